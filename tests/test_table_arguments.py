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
        ({"num_inference_steps": np.array([4, 4])}, "num_inference_steps must be 4, the rows of"),
        ({"num_inference_steps": 4.0}, "num_inference_steps must be 4, the rows of the table, or"),
        ({"num_inference_steps": torch.tensor(4)}, "num_inference_steps must be 4, the rows of"),
        # what was rounded is the table's, one part in 1000 is not
        ({"sigmas": [0.999, 0.7500, 0.4995, 0.24975]}, "sigmas must be the levels of the table"),
        ({"timesteps": [999, 749.25, 500.25, 249.75]}, "timesteps must be those of the table"),
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


def test_a_shift_is_not_that_of_its_inverse():
    shift, ramp = float(np.exp(0.7)), np.linspace(1.0, 0.25, 4)
    scheduler = flow_table(spacing=shift * ramp / (1 + (shift - 1) * ramp))
    scheduler.set_timesteps(sigmas=ramp, mu=0.7)
    with pytest.raises(ValueError, match=r"^sigmas must be the levels of the table .* and mu=-0"):
        scheduler.set_timesteps(sigmas=ramp, mu=-0.7)


def test_inside_a_run_noise_has_the_level_of_the_next_step():
    """As inpainting adds it to what it keeps, whatever timestep it names."""
    scheduler = TableScheduler(fastdiff.plan("euler", steps=5))
    scheduler.set_timesteps()
    scheduler.set_begin_index(1)
    x, z = start(), start(seed=1)
    for i in (1, 2, 3):
        levels = [float(v[i]) for v in (scheduler.plan.alpha, scheduler.plan.sigma)]
        want = levels[0] * x + levels[1] * z
        assert torch.equal(scheduler.add_noise(x, z, scheduler.timesteps[:1]), want)
        scheduler.step(x, scheduler.timesteps[i], x)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (
            {"noise": start()[:, :3]},
            ValueError,
            "noise must have the shape of original_samples, ",
        ),
        (
            {"noise": start().long()},
            TypeError,
            "noise must be a float tensor (B, *shape) of 16",
        ),
        ({"noise": "a"}, TypeError, "noise must be a tensor (B, *shape); got str"),
        ({"original_samples": start().int()}, TypeError, "original_samples must be a float tensor"),
        ({"timesteps": None}, TypeError, "timesteps must be a tensor (B,) of scheduler.timesteps"),
        (
            {"timesteps": "a"},
            TypeError,
            "timesteps must be a tensor (B,) of scheduler.timesteps",
        ),
        (
            {"timesteps": [1j]},
            TypeError,
            "timesteps must be numbers of scheduler.timesteps; got",
        ),
        (
            {"timesteps": torch.tensor([999.0] * 3)},
            ValueError,
            "timesteps must be one, or one for each of the 2 samples; got 3",
        ),
    ],
)
def test_noise_that_does_not_fit(changed, kind, message):
    given = {"original_samples": start(), "noise": start(), "timesteps": [999.0]} | changed
    with pytest.raises(kind, match="^" + re.escape(message)):
        flow_table(spacing="linspace").add_noise(**given)


def test_a_generator_is_one_before_anything_moves():
    scheduler = TableScheduler(fastdiff.plan("euler_a", steps=3))
    scheduler.set_timesteps()
    x, t = start(), scheduler.timesteps[0]
    for wrong in (3, [3], [None]):
        with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator, .*; got"):
            scheduler.step(x, t, x, generator=wrong)
    assert scheduler.step_index is None


def test_a_run_keeps_its_shape():
    """The vectors of the steps before are of those samples, and are blended into no others."""
    scheduler = TableScheduler(learned())
    scheduler.set_timesteps()
    x, one = start(), start()[:1]
    with pytest.raises(ValueError, match=r"^model_output must have the shape of sample"):
        scheduler.step(x, scheduler.timesteps[0], one)  # and leaves no vectors of one sample
    scheduler.step(x, scheduler.timesteps[0], x)
    for wrong in (one, start()[:, :1]):
        with pytest.raises(ValueError, match=r"^sample must have the shape of the steps before"):
            scheduler.step(wrong, scheduler.timesteps[1], wrong)
    assert scheduler.step_index == 1
    scheduler.step(x, scheduler.timesteps[1], x)
    scheduler.set_timesteps()
    scheduler.step(one, scheduler.timesteps[0], one)


@pytest.mark.parametrize("table", ["", {"a": object()}])
def test_a_table_is_a_file_or_json(table):
    with pytest.raises(ValueError, match=r"^table must be .*; got "):
        TableScheduler(table)
