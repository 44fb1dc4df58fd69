"""What plan refuses: each message names the argument, what it got, and what would do."""

import re

import numpy as np
import pytest

import fastdiff
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule

GOOD = {"solver": "dpmpp_2m", "steps": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "dpmpp_2x"}, "solver must be one of ddim, "),
        ({"steps": 0}, "steps must be a whole number >= 1; got 0"),
        ({"steps": -3}, "steps must be a whole number >= 1; got -3"),
        ({"steps": 2.5}, "steps must be a whole number >= 1; got 2.5"),
        ({"steps": True}, "steps must be a whole number >= 1; got True"),
        ({"steps": "20"}, "steps must be a whole number >= 1; got '20'"),
        ({"steps": None}, "steps must be a whole number >= 1; got None"),
        ({"begin": 5}, "begin must be a row in 0 .. 4; got 5"),
        ({"begin": -1}, "begin must be a row in 0 .. 4; got -1"),
        ({"begin": 1.5}, "begin must be a row in 0 .. 4; got 1.5"),
        ({"begin": "1"}, "begin must be a row in 0 .. 4; got '1'"),
        ({"numerics": "fast"}, "numerics must be one of exact, faithful; got 'fast'"),
        (
            {"prediction": "eps"},
            "prediction must be one of epsilon, sample, v_prediction, flow_pre",
        ),
        (
            {"prediction": "flow_prediction"},
            "'flow_prediction' does not go with a 'vp' noise schedule",
        ),
        ({"noise": "flow"}, "prediction 'epsilon' does not go with a 'flow' noise schedule"),
        (
            {"noise": "cosine"},
            "noise must be one of linear, scaled_linear, squaredcos_cap_v2",
        ),
        ({"noise": 3}, "noise must be a name or a NoiseSchedule; got 3"),
        ({"noise": None}, "noise must be a name or a NoiseSchedule; got None"),
        ({"spacing": "cosine"}, "spacing must be one of karras, exponential, lu, beta, linspace, "),
        ({"spacing": None}, "spacing must be a name, one-dimensional sigmas (float) or timesteps"),
        (
            {"spacing": [[3.0, 1.0]]},
            "spacing must be a name, one-dimensional sigmas (float) or time",
        ),
        (
            {"spacing": [[3.0], [1.0, 2.0]]},
            "spacing must be a name, one-dimensional sigmas (float)",
        ),
        (
            {"spacing": ["a"] * 5},
            "spacing must be a name, one-dimensional sigmas (float) or timestep",
        ),
        ({"spacing": [3.0, 1.0]}, "spacing must be 5 or 6 long for steps=5; got 2"),
        ({"spacing": [1.0, 2.0, 3.0, 4.0, 5.0]}, "spacing must go from noisy to clean"),
        ({"spacing": [5.0, 4.0, 3.0, 2.0, -1.0]}, "spacing must go from noisy to clean"),
        ({"spacing": [5.0, 4.0, float("nan"), 2.0, 1.0]}, "spacing must go from noisy to clean"),
        ({"spacing": [float("inf"), 4.0, 3.0, 2.0, 1.0]}, "spacing must go from noisy to clean"),
        (
            {"spacing": [1e300, 1e5, 3.0, 2.0, 1.0]},
            "spacing must have its levels at 0 or in 1e-20 .. 65536, else no weight means anything "
            "in float32; got 1e+300. Other levels,",
        ),
        (
            {"spacing": [1e300, 1e5, 3.0, 2.0, 1.0], "prediction": "v_prediction"},
            "spacing must have its levels at 0 or in 1e-20 .. 65536",
        ),
        (
            {"spacing": [5.0, 4.0, 3.0, 1e-300, 0.0]},
            "spacing must have its levels at 0 or in 1e-20 .. 65536, else no weight means anything "
            "in float32; got 1e-300",
        ),
        (
            {"noise": NoiseSchedule.vp("linear", 10_000)},
            "in float32; got 9.33835e+21. Other levels, or another noise schedule, would do",
        ),
        ({"spacing": [0.0] * 5}, "spacing must go from noisy to clean"),
        (
            {"spacing": [1000, 800, 600, 400, 200]},
            "spacing must be timesteps in 0 .. 999; got [1000",
        ),
        ({"spacing": [900, 800, 600, 400, -2]}, "spacing must be timesteps in 0 .. 999; got [900"),
        ({"spacing": [100, 200, 300, 400, 500]}, "spacing must go from noisy to clean"),
        (
            {
                "spacing": [1.5, 0.8, 0.6, 0.4, 0.2],
                "noise": "flow",
                "prediction": "flow_prediction",
            },
            "(at most 1 for flow)",
        ),
        ({"spacing": "leading", "steps": 1001}, "steps must be at most the 1000 training steps"),
        ({"spacing": "trailing", "steps": 1001}, "steps must be at most the 1000 training steps"),
        ({"final_sigma": ["zero"]}, "final_sigma must be zero or sigma_min; got ['zero']"),
        (
            {"prediction": ["epsilon"]},
            "prediction must be one of epsilon, sample, v_prediction, fl",
        ),
        (
            {"numerics": np.array(["exact"] * 2)},
            "numerics must be one of exact, faithful; got arra",
        ),
        ({"solver_type": ["midpoint"]}, "solver_type must be midpoint or heun; got ['midpoint']"),
        (
            {
                "solver": "dpmsolver_2m_sde",
                "noise": "flow",
                "prediction": "flow_prediction",
                "spacing": [1 - 1e-16, 0.5, 0.4, 0.3, 0.2],
            },
            "cannot start from a level without signal (alpha = 1.11022e-16)",
        ),
        ({"final_sigma": "small"}, "final_sigma must be zero or sigma_min; got 'small'"),
        (
            {"guidance": [1.0, 2.0]},
            "guidance must be a finite number, (5,) of them per step or (1 or",
        ),
        (
            {"guidance": np.ones((3, 2))},
            "guidance must be a finite number, (5,) of them per step or",
        ),
        (
            {"guidance": np.ones((1, 0))},
            "guidance must be a finite number, (5,) of them per step or",
        ),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"guidance": "7"}, "guidance must be a finite number, (5,) of them per step or (1 or 5, "),
        (
            {"guidance": True},
            "guidance must be a finite number, (5,) of them per step or (1 or 5, ",
        ),
        (
            {"guidance": ["7"] * 5},
            "guidance must be a finite number, (5,) of them per step or (1 o",
        ),
        ({"guidance": [True] * 5}, "guidance must be a finite number, (5,) of them per step or (1"),
        (
            {"guidance": 1e39},
            "guidance must be a finite number, (5,) of them per step or (1 or 5, ",
        ),
        ({"guidance": "strong"}, "guidance must be a finite number, (5,) of them per step or"),
        (
            {"eta": 0.5},
            "eta: no option of solver 'dpmpp_2m'; it takes solver_type, lower_order_final",
        ),
        ({"order": 3, "d2_scale": 1.0}, "d2_scale, order: no option of solver 'dpmpp_2m'"),
        ({"solver_type": "bh2"}, "solver_type must be midpoint or heun; got 'bh2'"),
        ({"lower_order_final": 1}, "lower_order_final must be True or False; got 1"),
        ({"solver": "ddim", "eta": 1e3}, "eta must be at most 1."),
        ({"solver": "ddim", "eta": -0.1}, "eta must be a number >= 0; got -0.1"),
        ({"solver": "ddim", "eta": "1"}, "eta must be a number >= 0; got '1'"),
        ({"solver": "ddim", "eta": float("inf")}, "eta must be a number >= 0; got inf"),
        ({"solver": "ddim", "eta": float("nan")}, "eta must be a number >= 0; got nan"),
        ({"solver": "ddim", "eta": 10**400}, "eta must be a number >= 0; got 1000000000"),
        ({"solver": "ddim", "eta": np.complex64(1)}, "eta must be a number >= 0; got np.complex64"),
        (
            {"solver": "dpmsolver_2m_sde", "s_noise": 1e38, "eta": 1e38},
            "it must hold numbers that are finite in float32, and an infinity only as a clamp",
        ),
        ({"solver": "ddim", "eta": True}, "eta must be a number >= 0; got True"),
        (
            {"solver": "ddpm", "variance": "fixed_small"},
            "variance must be small or large; got 'fixed",
        ),
        ({"solver": "ddpm", "eta": 1.0}, "eta: no option of solver 'ddpm'; it takes variance"),
        ({"solver": "euler", "s_churn": -1.0}, "s_churn must be a number >= 0; got -1.0"),
    ],
)
def test_wrong_arguments(change, message):
    """Each names the argument, what it got, and what would do."""
    arguments = {**GOOD, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdiff.plan(arguments.pop("solver"), **arguments)


def test_eta_above_1_is_taken_while_a_direction_is_left():
    """And by what follows diffusers, which clips the direction to 0, whatever it is."""
    near = {"steps": 2, "spacing": [3.0, 2.9, 2.8]}  # 1 - (2.9 / 3)^2 at alpha^2 + sigma^2 = 1
    fastdiff.plan("ddim", eta=1.1, **near)
    fastdiff.plan("ddim", steps=5, eta=1e3, numerics="faithful")


def test_an_infinite_upper_limit_of_churn_is_fine():
    fastdiff.plan("euler", steps=3, s_churn=1.0, s_tmax=float("inf"))


@pytest.mark.parametrize("family", ["scaled_linear", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_ends_of_the_levels_that_are_taken(solver, family):
    """No defect is reported, and no number overflows, at any level that plan accepts."""
    predictions = ["epsilon", "sample", "v_prediction"]
    top = 65536.0
    if family == "flow":
        by_noise = SOLVERS[solver].preset.get("predict") == "noise"
        predictions, top = ["flow_prediction"], 1 - 1e-5 if by_noise else 1 - 1e-8
    for prediction in predictions:
        for sigmas in ([top, 1.0 if family != "flow" else 0.5, 1e-20], [top, 1e-20, 1e-20]):
            steps = SOLVERS[solver].rows(3)  # 3 levels
            fastdiff.plan(solver, steps=steps, noise=family, spacing=sigmas, prediction=prediction)


SCALARS = [
    ("euler", {"s_churn": 2}),
    ("dpmpp_2m_sde", {"eta": 1}),
    ("dpmpp_2m_sde", {"eta": 0.5, "s_noise": 0.75}),
    ("ddim", {"eta": 0.3}),
    ("euler_a", {"eta": 0.3}),
]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize(("solver", "options"), SCALARS)
def test_a_numpy_scalar_is_the_number_that_it_holds(solver, options, kind):
    """Its precision is not that of the weights, and the plan can be saved."""
    given = {name: kind(value) for name, value in options.items()}
    plan = fastdiff.plan(solver, steps=20, **given)
    want = fastdiff.plan(solver, steps=20, **{name: float(v) for name, v in given.items()})
    np.testing.assert_array_equal(plan.rows, want.rows)
    assert plan.to_json() == want.to_json()


def test_numpy_bools_and_integers():
    family = NoiseSchedule.vp("linear", np.int64(100), np.float32(0.5e-3), np.float64(0.02))
    plan = fastdiff.plan(
        "dpmpp_2m",
        steps=np.int32(5),
        begin=np.int64(1),
        noise=family,
        lower_order_final=np.bool_(True),
        solver_type=np.str_("heun"),
    )
    twin = fastdiff.Plan.from_json(plan.to_json())
    assert twin.about == plan.about
    assert plan.about["noise"]["train_steps"] == 100
    assert type(plan.about["noise"]["train_steps"]) is int
    assert type(plan.about["options"]["lower_order_final"]) is bool
    flow = NoiseSchedule.flow(np.float32(3), np.int16(100))
    shifted = fastdiff.plan("euler", steps=3, noise=flow, prediction="flow_prediction")
    assert fastdiff.Plan.from_json(shifted.to_json()).about["noise"]["shift"] == 3.0
