"""fp16 and bf16: over seeds, our rms distance from float64 is at most 1.5 times diffusers'.

And float64 in means float64 throughout (diffusers goes through float32), which order tests need.

The network is computed in float64 and rounded to the dtype, in both, so that only the schedulers'
arithmetic and the storing of samples (in the dtype, as pipelines do) differ from the float64 run.
"""

import pytest
import torch

from .classes import FLOW_HEUN, ONE_RESULT, SD, ours
from .runs import Case, finite, gaps, mine, prepare, reference, run, theirs

CASES = {
    "2m-karras": Case("DPMSolverMultistepScheduler", SD | {"use_karras_sigmas": True}, 20),
    "3m": Case("DPMSolverMultistepScheduler", SD | {"solver_order": 3}, 20),
    "2m-sde-v": Case(
        "DPMSolverMultistepScheduler",
        SD | {"algorithm_type": "sde-dpmsolver++", "prediction_type": "v_prediction"},
        20,
    ),
    "2s-karras": Case("DPMSolverSinglestepScheduler", SD | {"use_karras_sigmas": True}, 20),
    "3s-sde-v": Case(
        "DPMSolverSinglestepScheduler",
        SD
        | {
            "solver_order": 3,
            "solver_type": "heun",
            "algorithm_type": "sde-dpmsolver++",
            "prediction_type": "v_prediction",
        },
        20,
    ),
    "edm-euler": Case("EDMEulerScheduler", {}, 20, {"s_churn": 8.0}),
    "edm-3m": Case("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, 20),
    "edm-sde-v": Case(
        "EDMDPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "prediction_type": "v_prediction"},
        20,
    ),
    "ddim": Case("DDIMScheduler", SD | {"clip_sample": False, "set_alpha_to_one": False}, 20),
    "ddim-eta": Case("DDIMScheduler", SD | {"clip_sample": True}, 20, {"eta": 0.7}),
    "ddim-sample": Case("DDIMScheduler", SD | {"prediction_type": "sample"}, 20),
    "euler": Case("EulerDiscreteScheduler", SD, 20),
    "euler-v": Case(
        "EulerDiscreteScheduler", SD | {"prediction_type": "v_prediction"}, 20, {"s_churn": 8.0}
    ),
    "euler-a": Case("EulerAncestralDiscreteScheduler", SD, 20),
    "unipc": Case("UniPCMultistepScheduler", SD, 20),
    "unipc-3-karras": Case(
        "UniPCMultistepScheduler", SD | {"solver_order": 3, "use_karras_sigmas": True}, 20
    ),
    "unipc-noise-v": Case(
        "UniPCMultistepScheduler",
        SD
        | {
            "predict_x0": False,
            "final_sigmas_type": "sigma_min",
            "prediction_type": "v_prediction",
        },
        20,
    ),
    "deis": Case("DEISMultistepScheduler", SD, 20),
    "deis-3-v": Case(
        "DEISMultistepScheduler", SD | {"solver_order": 3, "prediction_type": "v_prediction"}, 20
    ),
    "heun": Case("HeunDiscreteScheduler", SD, 20),
    "heun-v-karras": Case(
        "HeunDiscreteScheduler",
        SD | {"prediction_type": "v_prediction", "use_karras_sigmas": True},
        20,
    ),
    "kdpm2": Case("KDPM2DiscreteScheduler", SD, 20),
    "kdpm2-a-v": Case(
        "KDPM2AncestralDiscreteScheduler", SD | {"prediction_type": "v_prediction"}, 20
    ),
    "lms": Case("LMSDiscreteScheduler", SD, 20),
    "lms-v": Case("LMSDiscreteScheduler", SD | {"prediction_type": "v_prediction"}, 20),
    "plms": Case("PNDMScheduler", SD | {"skip_prk_steps": True}, 20),
    "pndm-v": Case("PNDMScheduler", SD | {"prediction_type": "v_prediction"}, 20),
    "sa": Case("SASolverScheduler", SD, 20),
    "sa-3-noise-v": Case(
        "SASolverScheduler",
        SD
        | {
            "predictor_order": 3,
            "corrector_order": 3,
            "algorithm_type": "noise_prediction",
            "prediction_type": "v_prediction",
        },
        20,
    ),
    "lcm": Case("LCMScheduler", SD, 8),
    "tcd": Case("TCDScheduler", SD | {"prediction_type": "v_prediction"}, 8),
    "flow": Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 20),
    "flow-noise": Case(
        "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}, 20
    ),
    "flow-heun": Case(FLOW_HEUN, {"shift": 3.0}, 20),
    "flow-heun-churn": Case(FLOW_HEUN, {"shift": 3.0}, 20, {"s_churn": 3.0}),
    "flow-lcm": Case("FlowMatchLCMScheduler", {"shift": 3.0}, 8),
    "ddpm": Case("DDPMScheduler", SD | {"clip_sample": False}, 20),
    "ddpm-large": Case("DDPMScheduler", SD | {"variance_type": "fixed_large"}, 20),
}
SEEDS = range(6)


def loss(runs, exact) -> float:
    """Root mean square over steps and seeds, each step relative to the size of the sample."""
    parts = [
        (p - q).square().mean() / q.square().mean()
        for run, truth in zip(runs, exact, strict=True)
        for p, q in zip(run, truth, strict=True)
    ]
    return float(torch.stack(parts).mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label", CASES)
def test_low_precision_loses_no_more_than_in_diffusers(label, dtype):
    case = CASES[label]
    cases = [
        Case(case.name, case.config, case.steps, case.call, seed=s, dtype=dtype) for s in SEEDS
    ]
    ours = [mine(c)[0] for c in cases]
    them = [theirs(c)[0] for c in cases]
    exact = [reference(c) for c in cases]
    assert all(map(finite, ours))
    kinds = 1 if case.name in ONE_RESULT else 2  # samples (and x_0)
    for kind in range(kinds):
        o, s, r = ([run[kind::kinds] for run in runs] for runs in (ours, them, exact))
        assert loss(o, r) <= 1.5 * loss(s, r)
    # what diffusers loses of a sample is rounding, about one eps a step: the bound is not empty
    samples = ([run[::kinds] for run in runs] for runs in (them, exact))
    assert loss(*samples) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("label", CASES)
def test_float64_runs_in_float64(label):
    case = CASES[label]
    case = Case(case.name, case.config, case.steps, case.call, dtype=torch.float64)
    s = prepare(ours(case.name), case)
    if case.name == "DDPMScheduler":
        s.numerics = "exact"  # faithful rounds beta_t to float32, as diffusers
    assert max(gaps(run(ours(case.name), case, s)[0], reference(case))) <= 1e-12
