"""What pipelines pass to a TableScheduler: levels, a shift, timesteps, noise to scale."""

import re

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import TableScheduler

from .test_table_scheduler import learned, start

FLOW = {"noise": "flow", "prediction": "flow_prediction"}


def flow_table(**more):
    return TableScheduler(fastdiff.plan("dpmpp_2m", steps=4, **FLOW | more))


def test_levels_and_timesteps_of_the_table_are_taken():
    shift, ramp = float(np.exp(0.7)), np.linspace(1.0, 0.25, 4)
    shifted = shift * ramp / (1 + (shift - 1) * ramp)
    scheduler = flow_table(spacing=shifted)
    assert scheduler.flow
    assert scheduler.config.use_flow_sigmas is True
    levels = scheduler.plan.sigma
    for given in (
        {"sigmas": levels[:-1].tolist()},
        {"sigmas": torch.tensor(levels, dtype=torch.float32), "mu": 0.2},
        {"sigmas": ramp, "mu": 0.7},
        {"timesteps": list(scheduler.plan.timesteps)},
        {"num_inference_steps": 4, "mu": 0.9},  # as Flux, which asks the config for a flow
        {"num_inference_steps": 4, "sigmas": levels},
    ):
        scheduler.set_timesteps(**given)
        assert torch.equal(scheduler.timesteps, scheduler._times)
        assert scheduler.num_inference_steps == 4
    plain = TableScheduler(learned())
    assert not plain.flow
    plain.set_timesteps(sigmas=plain.plan.sigma / plain.plan.alpha)
    again = TableScheduler.from_config(scheduler.config)
    assert again.config.use_flow_sigmas is True


def test_scale_noise_is_add_noise():
    scheduler = flow_table()
    scheduler.set_timesteps()
    x, z, t = start(), start(seed=1), scheduler.timesteps[[2, 1]]
    assert torch.equal(scheduler.scale_noise(x, t, z), scheduler.add_noise(x, z, t))
    sigma = torch.tensor(scheduler.plan.sigma[[2, 1]], dtype=torch.float32).reshape(2, 1, 1, 1)
    torch.testing.assert_close(scheduler.scale_noise(x, t, z), (1 - sigma) * x + sigma * z)
    with pytest.raises(TypeError, match=r"^noise must be a float tensor .*; got NoneType\. The o"):
        scheduler.scale_noise(x, t)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sigmas": [1.0, 0.75, 0.5, 0.25]},
            "sigmas must be the levels of the table (sigma), [0.999, 0.74925, 0.4995, 0.24975, 0],"
            " the last one at will; got [1, 0.75, 0.5, 0.25]. Pass those (pipe(.., sigmas=..)), or",
        ),
        ({"sigmas": [0.999, 0.74925]}, "sigmas must be the levels of the table"),
        ({"sigmas": [0.999], "mu": 0.3}, "sigmas must be the levels of the table"),
        ({"sigmas": ["a"]}, "sigmas must be numbers in a list, array or tensor; "),
        ({"timesteps": [900, 500, 300, 100]}, "timesteps must be those of the table, [999, 749.25"),
        ({"timesteps": [999]}, "timesteps must be those of the table, [999, 749.25"),
        ({"timesteps": [9], "sigmas": [1.0]}, "pass timesteps or sigmas, not both; got both"),
        ({"mu": "x"}, "mu must be a finite number; got 'x'"),
    ],
)
def test_others_are_refused(given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        flow_table(spacing="linspace").set_timesteps(**given)


def test_a_table_of_no_flow_has_no_shift():
    with pytest.raises(ValueError, match=r"^mu must be None: the levels of this table are of no f"):
        TableScheduler(learned()).set_timesteps(mu=0.5)
    with pytest.raises(ValueError, match=r"^use_flow_sigmas must be False for this table, or None"):
        TableScheduler(learned(), use_flow_sigmas=True)
