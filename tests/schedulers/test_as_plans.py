"""A plan of the registry's row makes the numbers of the class that the row names."""

import math

import numpy as np
import pytest
import torch

import fastdiff

from .classes import FLOW_HEUN, SD, TCD, ours
from .loops import SHAPE, answer

X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()


def of_plan(plan):
    """Every sample; a noise that is drawn is that of one generator."""
    calls, seen = iter(range(plan.steps)), []
    fastdiff.sample(
        lambda x, t: answer(x, next(calls)),
        X,
        plan,
        generator=torch.Generator().manual_seed(3),
        callback=lambda i, t, x: seen.append(x),
    )
    return seen


def of_class(s, times, **call):
    x, seen = X, []
    if "generator" in s.step.__code__.co_varnames:
        call["generator"] = torch.Generator().manual_seed(3)
    for i, t in enumerate(times):
        x = s.step(answer(x, i), t, x, **call).prev_sample
        seen.append(x)
    return seen


def agree(plan, samples, rel=1e-12):
    for a, b in zip(of_plan(plan)[: len(samples)], samples, strict=True):
        assert (a - b).abs().max() <= rel * b.abs().max()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_tcd(eta):
    """But for the last step, which ends at the cleanest trained level there, at the data here."""
    times = [900, 700, 500, 300, 100]  # half of each is a whole time
    s = ours(TCD)(**SD)
    s.set_timesteps(timesteps=times)
    plan = fastdiff.plan("tcd", steps=5, spacing=times, eta=eta)
    # alphas_cumprod is float32 there: 3e-8 of it, up to 5e-5 of sigma^2 at t = 0
    agree(plan, of_class(s, s.timesteps, eta=eta)[:-1], 1e-4)


@pytest.mark.parametrize("angles", [[1.5, 1.1, 0.6, 0.2], [1.4, 0.9]], ids=len)
def test_scm_with_data_of_unit_spread(angles):
    s = ours("SCMScheduler")(sigma_data=1.0)
    angles = [float(np.float32(t)) for t in angles]
    s.set_timesteps(sigmas=[math.tan(t) for t in angles])
    s.timesteps = torch.tensor([*angles, 0.0], dtype=torch.float64)
    torch.set_default_dtype(torch.float64)  # in which the class draws
    try:
        wanted = of_class(s, s.timesteps[:-1])
    finally:
        torch.set_default_dtype(torch.float32)
    levels = [math.tan(t) for t in angles]
    agree(
        fastdiff.plan("scm", steps=len(angles), spacing=levels, prediction="v_prediction"), wanted
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_heun(shift):
    s = ours(FLOW_HEUN)(shift=shift)
    s.set_timesteps(6)
    levels = [*s.sigmas[:1].tolist(), *s.sigmas[1:-1:2].tolist()]
    plan = fastdiff.plan(
        "flow_heun", steps=11, noise="flow", spacing=levels, prediction="flow_prediction"
    )
    assert plan.noise_scale == 1
    agree(plan, of_class(s, s.timesteps))
