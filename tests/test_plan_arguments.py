"""What plan refuses: each message names the argument, what it got, and what would do."""

import re

import numpy as np
import pytest

import fastdiff

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
            "noise schedule must be one of linear, scaled_linear, squaredcos_cap_v2",
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
        ({"guidance": "strong"}, "guidance must be a finite number, (5,) of them per step or"),
        (
            {"eta": 0.5},
            "eta: no option of solver 'dpmpp_2m'; it takes solver_type, lower_order_final",
        ),
        ({"order": 3, "d2_scale": 1.0}, "d2_scale, order: no option of solver 'dpmpp_2m'"),
        ({"solver_type": "bh2"}, "solver_type must be midpoint or heun; got 'bh2'"),
        ({"lower_order_final": 1}, "lower_order_final must be True or False; got 1"),
        ({"solver": "ddim", "eta": -0.1}, "eta must be a number >= 0; got -0.1"),
        ({"solver": "ddim", "eta": "1"}, "eta must be a number >= 0; got '1'"),
        ({"solver": "ddim", "eta": float("inf")}, "eta must be a number >= 0; got inf"),
        ({"solver": "ddim", "eta": float("nan")}, "eta must be a number >= 0; got nan"),
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


def test_an_infinite_upper_limit_of_churn_is_fine():
    fastdiff.plan("euler", steps=3, s_churn=1.0, s_tmax=float("inf"))
