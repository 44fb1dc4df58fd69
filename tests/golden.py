"""Golden tables: plans whose numbers must not move by accident.

    python -m tests.golden          writes tests/golden/*.json again

Run it only for a change that is meant to change numbers, and say so in the commit.
"""

from pathlib import Path

import fastdiff
from fastdiff.schedules import NoiseSchedule

FOLDER = Path(__file__).parent / "golden"
PLANS = {  # file -> arguments of fastdiff.plan
    "ddim-eta": {"solver": "ddim", "steps": 4, "spacing": "trailing", "eta": 0.3},
    "ddpm-large": {"solver": "ddpm", "steps": 4, "spacing": "leading", "variance": "large"},
    "dpmpp-2m": {"solver": "dpmpp_2m", "steps": 6},
    "dpmpp-2m-heun-sde": {
        "solver": "dpmpp_2m_sde",
        "steps": 5,
        "spacing": "exponential",
        "solver_type": "heun",
        "eta": 0.5,
        "prediction": "v_prediction",
    },
    "dpmpp-3m": {"solver": "dpmpp_3m", "steps": 6, "lower_order_final": False},
    "dpmpp-3m-sde-faithful": {"solver": "dpmpp_3m_sde", "steps": 6, "numerics": "faithful"},
    "dpmsolver-3m": {"solver": "dpmsolver_3m", "steps": 5, "final_sigma": "sigma_min"},
    "dpmpp-3s": {"solver": "dpmpp_3s", "steps": 7},
    "dpmpp-3s-heun-sde-faithful": {
        "solver": "dpmpp_3s_sde",
        "steps": 6,
        "spacing": "exponential",
        "solver_type": "heun",
        "prediction": "v_prediction",
        "numerics": "faithful",
        "begin": 1,
    },
    "dpmsolver-2s": {"solver": "dpmsolver_2s", "steps": 6, "final_sigma": "sigma_min"},
    "euler-a-guided": {"solver": "euler_a", "steps": 4, "guidance": [[3.0, 7.5]]},
    "euler-churn": {"solver": "euler", "steps": 4, "s_churn": 1.0, "prediction": "v_prediction"},
    "flow": {
        "solver": "dpmpp_2m",
        "steps": 4,
        "noise": NoiseSchedule.flow(3.0),
        "spacing": [1.0, 0.8, 0.5, 0.2],
        "prediction": "flow_prediction",
    },
    "flow-heun": {
        "solver": "flow_heun",
        "steps": 5,
        "noise": NoiseSchedule.flow(3.0),
        "spacing": "linspace",
        "prediction": "flow_prediction",
    },
    "heun": {"solver": "heun", "steps": 5, "prediction": "v_prediction"},
    "ipndm-flow": {
        "solver": "ipndm",
        "steps": 6,
        "noise": NoiseSchedule.flow(3.0),
        "spacing": [1.0, 0.9, 0.7, 0.5, 0.3, 0.15],
        "prediction": "flow_prediction",
    },
    "ipndm-v": {"solver": "ipndm_v", "steps": 6, "prediction": "v_prediction"},
    "kdpm2-a": {"solver": "kdpm2_a", "steps": 6, "eta": 0.7, "begin": 2},
    "lms": {"solver": "lms", "steps": 6, "spacing": "trailing"},
    "scm": {
        "solver": "scm",
        "steps": 2,
        "spacing": [1000.0, 3.6],
        "prediction": "v_prediction",
    },
    "tcd": {"solver": "tcd", "steps": 4, "spacing": "trailing", "eta": 0.4},
    "plms": {"solver": "plms", "steps": 7, "spacing": "leading", "prediction": "v_prediction"},
    "sa-3": {"solver": "sa_solver_3", "steps": 6, "tau": 0.8, "final_sigma": "sigma_min"},
    "sa-flow": {
        "solver": "sa_solver",
        "steps": 5,
        "noise": NoiseSchedule.flow(3.0),
        "spacing": [1.0, 0.9, 0.7, 0.4, 0.15],
        "prediction": "flow_prediction",
        "lower_order_final": False,
    },
    "unipc-2": {"solver": "unipc_2", "steps": 6},
    "unipc-3-bh1": {
        "solver": "unipc_3",
        "steps": 6,
        "spacing": "trailing",
        "prediction": "v_prediction",
        "solver_type": "bh1",
        "lower_order_final": False,
        "final_sigma": "sigma_min",
    },
    "unipc-flow": {
        "solver": "unipc_3",
        "steps": 5,
        "noise": NoiseSchedule.flow(3.0),
        "spacing": [1.0, 0.9, 0.7, 0.4, 0.15],
        "prediction": "flow_prediction",
    },
    "zero-snr": {
        "solver": "dpmpp_2m",
        "steps": 4,
        "noise": NoiseSchedule.vp("linear", rescale_betas_zero_snr=True),
        "spacing": "linspace",
        "prediction": "v_prediction",
        "begin": 1,
    },
}


def make(name: str) -> fastdiff.Plan:
    """The plan of a file, computed now."""
    arguments = dict(PLANS[name])
    return fastdiff.plan(arguments.pop("solver"), **arguments)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in PLANS:
        path = FOLDER / f"{name}.json"
        make(name).save(path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
