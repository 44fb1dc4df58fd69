"""FlowMatchHeunDiscreteScheduler: what two calls a step add to test_flow_match.py."""

import importlib

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

from tests.fake_device import FakeDevice

from . import flow_pipelines
from .classes import FLOW_EULER, FLOW_HEUN, both, counted, ours, stock, unused
from .loops import answer, latents, loop, same

SIGMAS = [1.0, 0.8, 0.55, 0.3, 0.05]


@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_what_is_kept_between_the_two_calls_is_what_diffusers_keeps(churn):
    mine, theirs = both(FLOW_HEUN, shift=3.0)
    seen = []
    for s in (mine, theirs):
        s.set_timesteps(6)
        x, kept = latents(s), []
        generator = torch.Generator().manual_seed(1)
        for i, t in enumerate(s.timesteps):
            assert s.state_in_first_order == (i % 2 == 0)
            call = {"s_churn": churn, "generator": generator}
            x = s.step(answer(x, i), t, x, **call).prev_sample
            if i % 2 == 0:
                kept.append((s.prev_derivative, s.sample, float(s.dt), float(s.sigmas[i])))
            else:
                assert s.prev_derivative is s.sample is s.dt is None
        seen.append(kept)
    for (slope, begun, step, level), (slope_, begun_, step_, _) in zip(*seen, strict=True):
        # diffusers has it from a difference: (x - (x - s v)) / s
        lost = torch.finfo(torch.float32).eps * begun.abs().max() / (level * slope.abs().max())
        same(slope, slope_, 2 * float(lost))
        same(begun, begun_)
        assert step == pytest.approx(step_, rel=1e-5)


@pytest.mark.parametrize("churn", [0.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_both_calls_go_to_a_device_at_once(monkeypatch, dtype, churn):
    """In 16 bit, too, where a step keeps the sample that it began with in float32."""
    op = torch.ops.fastdiff.affine_step.default
    module = importlib.import_module("fastdiff.ops.affine_step")
    monkeypatch.setattr(module, "affine_step_ref", lambda *args: op(*args))
    with FakeDevice() as device:
        s = ours(FLOW_HEUN)(**unused(FLOW_HEUN))
        s.set_timesteps(6, device=device.name)
        x = torch.randn(2, 4, 8, 8, device=device.name).to(dtype)
        device.clear()
        for t in s.timesteps:
            x = s.step(x, t, x, s_churn=churn).prev_sample
        assert device.syncs == device.blocking_uploads == []
        assert len(device.uploads) == 1


def test_swapped_between_the_two_calls():
    """Their state is diffusers' own, so each can go on with the other's."""
    runs = [loop(ours(FLOW_HEUN)(shift=3.0))]
    for first, second in ((ours, stock), (stock, ours)):

        def edit(i, s, x, second=second):
            if i == 5:
                s.__class__ = second(FLOW_HEUN)

        runs.append(loop(first(FLOW_HEUN)(shift=3.0), edit))
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            same(a, b)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_custom_levels(kind):
    """Those of the Euler class, every one but the first twice."""
    s, euler = ours(FLOW_HEUN)(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    s.set_timesteps(sigmas=kind(SIGMAS))
    euler.set_timesteps(sigmas=SIGMAS)
    torch.testing.assert_close(s.sigmas[::2], euler.sigmas[:-1])
    torch.testing.assert_close(s.sigmas[1::2], euler.sigmas[1:])
    torch.testing.assert_close(s.timesteps, 1000 * s.sigmas[:-1])
    assert s.num_inference_steps == 5
    s.set_timesteps(timesteps=kind([1000 * level for level in SIGMAS]))
    torch.testing.assert_close(s.sigmas[::2], torch.tensor(SIGMAS))
    torch.testing.assert_close(s.timesteps[::2], 1000 * torch.tensor(SIGMAS))


@pytest.mark.parametrize(("kind", "mu"), [("exponential", 0.9), ("linear", 2.5)])
@pytest.mark.parametrize("given", [{}, {"sigmas": SIGMAS}], ids=["steps", "sigmas"])
def test_mu_shifts_where_the_config_came_from_a_class_that_shifts(given, kind, mu):
    euler = stock(FLOW_EULER)(use_dynamic_shifting=True, time_shift_type=kind)
    s = ours(FLOW_HEUN).from_config(euler.config)
    for one in (s, euler):
        retrieve_timesteps(one, None if given else 5, "cpu", mu=mu, **given)
    torch.testing.assert_close(s.sigmas[::2], euler.sigmas[:-1])
    plain, same_ = (ours(FLOW_HEUN)(shift=3.0) for _ in range(2))
    plain.set_timesteps(5)
    same_.set_timesteps(5, mu=mu)
    assert torch.equal(plain.sigmas, same_.sigmas)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "num_inference_steps"),
        ({"sigmas": SIGMAS, "timesteps": SIGMAS}, "pass timesteps or sigmas, not both"),
        ({"sigmas": SIGMAS[::-1]}, "sigmas must go down and stay above 0"),
        ({"sigmas": [*SIGMAS, 0.0]}, "sigmas must go down and stay above 0"),
        ({"timesteps": [500.0, 500.0]}, "timesteps must go down and stay above 0"),
        ({"num_inference_steps": 3, "sigmas": SIGMAS}, "num_inference_steps must be None or"),
        ({"num_inference_steps": 3, "mu": "x"}, "mu must be a finite number; got 'x'"),
    ],
    ids=str,
)
def test_set_timesteps_names_what_is_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        ours(FLOW_HEUN)().set_timesteps(**given)


def test_churn_below_0_is_named():
    s = ours(FLOW_HEUN)()
    s.set_timesteps(4)
    with pytest.raises(ValueError, match="s_churn must be 0 or more; got -1"):
        s.step(latents(s), s.timesteps[0], latents(s), s_churn=-1.0)


def test_it_is_of_second_order():
    """On the flow between two Gaussians, whose velocity is linear: halving the steps divides the
    error by 4."""
    spread = 0.5

    def error(steps):
        s = ours(FLOW_HEUN)()
        s.set_timesteps(sigmas=np.linspace(0.9, 0.1, steps + 1))
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for i, t in enumerate(s.timesteps[: 2 * steps]):
            level = float(s.sigmas[i])
            variance = (1 - level) ** 2 * spread**2 + level**2
            v = (level - (1 - level) * spread**2) / variance * x
            x = s.step(v, t, x).prev_sample
        ends = [(1 - level) ** 2 * spread**2 + level**2 for level in (0.1, 0.9)]
        return abs(float(x) - (ends[0] / ends[1]) ** 0.5)

    errors = [error(steps) for steps in (20, 40, 80)]
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert orders == pytest.approx([2.0, 2.0], abs=0.15)


def test_it_runs_in_flux_where_that_of_diffusers_cannot():
    parts = flow_pipelines.networks("flux")
    euler = stock(FLOW_EULER)(use_dynamic_shifting=True)
    mine, theirs = (make(FLOW_HEUN).from_config(euler.config) for make in (ours, stock))
    picture = flow_pipelines.pipeline("flux", mine, parts)(**flow_pipelines.inputs("flux")).images
    assert picture.std() > 0.02
    assert counted(mine) == (15, {}, 0)
    with pytest.raises(ValueError, match="does not support custom sigmas"):
        flow_pipelines.pipeline("flux", theirs, parts)(**flow_pipelines.inputs("flux"))
