"""Spacings against diffusers where the names mean the same, and against their definitions."""

import inspect

import diffusers
import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import fastdiff
from fastdiff.registry import SOLVERS
from fastdiff.schedules import SPACINGS, NoiseSchedule, levels
from fastdiff.schedules.spacing import AYS, BY_LEVEL, BY_TIME

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FAMILY = NoiseSchedule.vp("scaled_linear")
NS = [1, 2, 5, 20, 50]
# Both interpolate between the same numbers; there they start as float32 alphas_cumprod (2e-5 of
# 1 - alphas_cumprod at the clean end) and end as float32 sigmas.
LIKE_DIFFUSERS = 3e-5


def dpm(n, **config):
    scheduler = DPMSolverMultistepScheduler(**SD, **config)
    scheduler.set_timesteps(n)
    return scheduler.sigmas.double().numpy()[:-1]


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize(
    ("spacing", "flag"),
    [
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("lu", "use_lu_lambdas"),
        ("beta", "use_beta_sigmas"),
    ],
)
def test_level_spacings_are_diffusers(spacing, flag, n):
    np.testing.assert_allclose(
        levels(FAMILY, spacing, n), dpm(n, **{flag: True}), rtol=LIKE_DIFFUSERS
    )


@pytest.mark.parametrize("n", [2, 5, 20, 50])
def test_karras_is_that_of_the_euler_class_too(n):
    scheduler = EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(n)
    np.testing.assert_allclose(
        levels(FAMILY, "karras", n), scheduler.sigmas[:-1].double(), rtol=LIKE_DIFFUSERS
    )


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_time_spacings_are_diffusers_before_they_round(spacing, n):
    """DPM-Solver++'s times, which are rounded there; here only where they are whole."""
    scheduler = DPMSolverMultistepScheduler(**SD, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    theirs = scheduler.timesteps.numpy()
    ours = FAMILY.time_of(levels(FAMILY, spacing, n))
    assert np.abs(ours - theirs).max() <= 0.5 + 1e-8
    whole = np.abs(ours - np.round(ours)) < 1e-6
    if spacing == "trailing" and 1000 % n == 0:
        assert whole.all()
    np.testing.assert_allclose(
        levels(FAMILY, spacing, n)[whole],
        scheduler.sigmas[:-1].double().numpy()[whole],
        rtol=LIKE_DIFFUSERS,
    )


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_time_spacings_are_those_of_ddim(spacing, n):
    """With whole quotients 1000 / n: DDIM's timesteps."""
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    ours = FAMILY.time_of(levels(FAMILY, spacing, n))
    np.testing.assert_allclose(ours, scheduler.timesteps, atol=1e-8)


@pytest.mark.parametrize("n", [1, 7, 30])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_leading_of_a_plan_is_that_of_the_class_of_its_solver(solver, n):
    """With 0 among the times, T // n apart, or above it, T // (n + 1) apart."""
    name, config = solver.scheduler
    known = inspect.signature(getattr(diffusers, name)).parameters
    if "timestep_spacing" not in known or solver.name in ("lcm", "tcd") or "PNDM" in name:
        return  # which has no such times, or those of a distillation, or some of them twice
    if "KDPM2" in name and n != 7:
        return  # diffusers needs a second for its model times
    scheduler = getattr(diffusers, name)(**SD, timestep_spacing="leading", **config)
    scheduler.set_timesteps(n)
    steps = n if solver.points is None else 2 * n - 1
    plan = fastdiff.plan(solver.name, steps=steps, spacing="leading")
    whole = [plan.timesteps[0], *plan.timesteps[1 :: solver.evaluations]]
    theirs = scheduler.timesteps.double().numpy()
    theirs = [theirs[0], *theirs[1 :: scheduler.order]]
    if solver.points is None or "kdpm2" not in solver.name:  # whose second call is in the middle
        np.testing.assert_allclose(whole, theirs, atol=1e-8)
    else:
        np.testing.assert_allclose(plan.timesteps[::2], scheduler.timesteps[::2], atol=1e-3)


def test_flow_is_the_flow_grid_of_dpm_solver():
    for shift in (1.0, 3.0):
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
        )
        scheduler.set_timesteps(20)
        for spacing in BY_TIME:
            ours = levels(NoiseSchedule.flow(shift), spacing, 20)
            np.testing.assert_allclose(ours, scheduler.sigmas[:-1].double(), rtol=3e-7)


def test_flow_shift_is_that_of_flow_match():
    plain = levels(NoiseSchedule.flow(), "linspace", 10)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=list(plain))
    ours = levels(NoiseSchedule.flow(3.0), "linspace", 10)
    np.testing.assert_allclose(ours, scheduler.sigmas[:-1].double(), rtol=3e-7)


@pytest.mark.parametrize("family", [FAMILY, NoiseSchedule.flow(), NoiseSchedule.flow(3.0)])
@pytest.mark.parametrize("spacing", [*BY_LEVEL, *BY_TIME])
@pytest.mark.parametrize("n", [1, 2, 3, 20, 1000])
def test_levels_descend_from_what_the_model_was_trained_on(family, spacing, n):
    sigmas = levels(family, spacing, n)
    assert sigmas.shape == (n,)
    assert sigmas.dtype == np.float64
    assert (np.diff(sigmas) < 0).all()
    top = family.ratios[-1] if family.kind == "vp" else 1.0
    assert 0 < sigmas[-1] <= sigmas[0] <= top * (1 + 1e-12)
    if spacing not in ("leading",) and family.kind == "vp":
        assert sigmas[0] == pytest.approx(top, rel=1e-12)


def test_karras_is_uniform_in_the_seventh_root():
    roots = levels(FAMILY, "karras", 9) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-14)


def test_exponential_is_uniform_in_lambda():
    np.testing.assert_allclose(np.diff(np.log(levels(FAMILY, "exponential", 9)), 2), 0, atol=1e-13)


def test_beta_is_the_quantile_function_of_scipy():
    from scipy.stats import beta

    low, high = FAMILY.ratios[0], FAMILY.ratios[-1]
    want = low + (high - low) * beta.ppf(1 - np.linspace(0, 1, 12), 0.6, 0.6)
    np.testing.assert_allclose(levels(FAMILY, "beta", 12), want, rtol=1e-12)


def test_beta_without_scipy_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match="spacing 'beta' needs SciPy: pip install scipy"):
        levels(FAMILY, "beta", 5)


def test_errors():
    with pytest.raises(ValueError, match=r"spacing must be one of karras, .*; got 'cosine'"):
        levels(FAMILY, "cosine", 5)
    with pytest.raises(ValueError, match=r"steps must be at most the 1000 .* got 1001"):
        levels(FAMILY, "leading", 1001)
    assert set(SPACINGS) == {*BY_LEVEL, *BY_TIME, *AYS}
