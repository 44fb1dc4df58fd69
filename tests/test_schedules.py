"""Noise schedules against diffusers' own classes, and against their definitions."""

import re

import numpy as np
import pytest
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import fastdiff
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.noise import (
    BETA_SCHEDULES,
    ZERO_SNR_FLOOR,
    betas,
    rescale_zero_terminal_snr,
)

FLOAT32 = 2.0**-23


def stock(**config):
    return DDPMScheduler(**config)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("train_steps", [1000, 50])
@pytest.mark.parametrize("ends", [(None, None), (0.0005, 0.015)])
def test_alphas_cumprod_are_diffusers(schedule, train_steps, ends):
    start, end = ends
    ours = NoiseSchedule.vp(schedule, train_steps, start, end)
    defaults = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
    start, end = ends if start else defaults.get(schedule, (1e-4, 0.02))
    theirs = stock(
        beta_schedule=schedule, num_train_timesteps=train_steps, beta_start=start, beta_end=end
    ).alphas_cumprod.double()
    # float32 there: every factor 1 - beta is rounded to an ulp of 1, relatively 2^-23 / (1 -
    # beta), and so is every product; independent errors add like a random walk, of which this is
    # four deviations
    factors = 1 - betas(schedule, train_steps, start, end)
    allowed = 4 * np.sqrt(np.cumsum((FLOAT32 / factors) ** 2))
    assert (np.abs(ours.alphas_cumprod / theirs.numpy() - 1) <= allowed).all()
    assert len(ours.alphas_cumprod) == ours.train_steps == train_steps


def test_stable_diffusion_has_the_known_ends():
    ratios = NoiseSchedule.named("scaled_linear").ratios
    assert ratios[0] == pytest.approx(0.0291675, rel=2e-5)  # 1 - bar = 8.5e-4 in float32
    assert ratios[-1] == pytest.approx(14.614642, rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_zero_terminal_snr(schedule):
    ours = NoiseSchedule.vp(schedule, 1000, 0.00085, 0.012, rescale_betas_zero_snr=True)
    theirs = DPMSolverMultistepScheduler(
        beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    assert ours.alphas_cumprod[-1] == float(theirs[-1]) == ZERO_SNR_FLOOR == 2.0**-24
    # float32 there: sqrt(bar) - sqrt(bar_T) loses digits towards the end, absolutely a few ulps
    # of 1
    np.testing.assert_allclose(
        np.sqrt(ours.alphas_cumprod), np.sqrt(theirs.numpy()), rtol=0, atol=100 * FLOAT32
    )
    plain = NoiseSchedule.vp(schedule, 1000, 0.00085, 0.012)
    assert ours.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-12)


def test_rescaling_is_the_papers_algorithm():
    """Lin et al. 2023, algorithm 1: sqrt(bar) is shifted to 0 at the end and scaled back at the
    start."""
    values = betas("linear", 100)
    before = np.sqrt(np.cumprod(1 - values))
    after = np.sqrt(np.cumprod(1 - rescale_zero_terminal_snr(values)))
    want = (before - before[-1]) * before[0] / (before[0] - before[-1])
    np.testing.assert_allclose(after, want, rtol=1e-9, atol=1e-12)


def test_trained_betas():
    values = np.linspace(0.001, 0.2, 7)
    ours = NoiseSchedule.from_betas(values)
    theirs = stock(trained_betas=values, num_train_timesteps=7).alphas_cumprod
    np.testing.assert_allclose(ours.alphas_cumprod, theirs, rtol=7 * FLOAT32)
    assert ours.origin == {"schedule": "trained_betas", "rescale_betas_zero_snr": False}


@pytest.mark.parametrize(
    "values", [[0.1], [[0.1, 0.2]], [0.1, 1.0], [0.0, 0.1], [0.1, float("nan")], []]
)
def test_bad_betas_are_refused(values):
    with pytest.raises(ValueError, match="trained_betas must be one-dimensional, at least two"):
        NoiseSchedule.from_betas(values)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="scaled_linear, squaredcos_cap_v2, flow; got 'cosine'"):
        NoiseSchedule.named("cosine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (
                lambda n=n, f=f: f(train_steps=n),
                f"train_steps must be a whole number >= 2; got {n!r}",
            )
            for n in ("a", -3, 0, 1, None, True, 2.5)
            for f in (NoiseSchedule.vp, NoiseSchedule.flow)
        ),
        *(
            (
                lambda v=v: NoiseSchedule.vp(beta_start=v),
                "beta_start must be a number in (0, 1), or N",
            )
            for v in (-1, 0, 1.0, float("nan"), "0.1", True)
        ),
        (
            lambda: NoiseSchedule.vp(beta_end=2),
            "beta_end must be a number in (0, 1), or None; got 2",
        ),
        (
            lambda: NoiseSchedule.vp(["linear"]),
            "schedule must be one of linear, scaled_linear",
        ),
        (lambda: NoiseSchedule.vp("flow"), "got 'flow'. Make that one with NoiseSchedule.flow()"),
        (
            lambda: NoiseSchedule.vp(rescale_betas_zero_snr="no"),
            "rescale_betas_zero_snr must be True or False; got 'no'",
        ),
        (
            lambda: NoiseSchedule.vp("linear", 100_000),
            "alphas_cumprod, the products of 1 - beta, must lie in (0, 1), in float64; got",
        ),
        (
            lambda: NoiseSchedule.vp("linear", 10**5, None, None, True),
            "alphas_cumprod, the products",
        ),
        (
            lambda: NoiseSchedule.from_betas([1e-18, 0.1]),
            "alphas_cumprod, the products of 1 - beta",
        ),
        (
            lambda: NoiseSchedule.from_betas("ab"),
            "trained_betas must be one-dimensional, at least t",
        ),
        (lambda: NoiseSchedule("edm", 1000), "kind must be vp or flow; got 'edm'"),
        (
            lambda: NoiseSchedule("vp", 1000),
            "alphas_cumprod must have shape (train_steps,) = (1000,)",
        ),
    ],
)
def test_wrong_arguments(make, message):
    """Each names the argument, what it got, and what would do."""
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("family", [NoiseSchedule.vp(train_steps=2), NoiseSchedule.flow(1e6, 2)])
def test_the_least_number_of_training_steps(family):
    flow = family.kind == "flow"
    prediction = "flow_prediction" if flow else "epsilon"
    plan = fastdiff.plan("dpmpp_2m", steps=3, noise=family, prediction=prediction)
    assert plan.steps == 3


@pytest.mark.parametrize(
    "shift", [0.0, -1.0, float("nan"), float("inf"), 1e300, "3", True, None, [3.0]]
)
def test_shift_must_be_positive(shift):
    with pytest.raises(ValueError, match="shift must be above 0"):
        NoiseSchedule.flow(shift)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_time_and_level_are_inverses(schedule):
    family = NoiseSchedule.vp(schedule)
    times = np.array([0.0, 0.25, 1.0, 17.5, 500.0, 998.999, 999.0])
    np.testing.assert_allclose(family.time_of(family.ratio_at(times)), times, atol=1e-8)
    whole = np.arange(1000)
    np.testing.assert_allclose(family.ratio_at(whole), family.ratios, rtol=1e-13)
    np.testing.assert_allclose(family.time_of(family.ratios), whole, atol=1e-8)


def test_levels_nobody_trained_get_the_nearest_time():
    family = NoiseSchedule.vp()
    np.testing.assert_array_equal(family.time_of([0.0, 1e-9, 1e9]), [0, 0, 999])


def test_time_of_a_level_is_diffusers():
    """_sigma_to_t of the Karras grids: linear in log sigma between training levels."""
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    known = np.log(NoiseSchedule.vp().ratios)
    wanted = np.exp(np.linspace(np.log(0.03), np.log(14.0), 23))
    want = [float(theirs._sigma_to_t(np.array(v), known)) for v in wanted]
    np.testing.assert_allclose(NoiseSchedule.vp().time_of(wanted), want, rtol=1e-10)


def test_flow():
    family = NoiseSchedule.named("flow")
    assert (family.kind, family.train_steps, family.shift) == ("flow", 1000, 1.0)
    np.testing.assert_allclose(family.time_of([1.0, 0.25]), [1000.0, 250.0])
    np.testing.assert_allclose(family.ratio_at([1000.0, 250.0]), [1.0, 0.25])
    alpha, sigma = family.alpha_sigma([1.0, 0.25, 0.0])
    np.testing.assert_allclose(alpha, [0.0, 0.75, 1.0])
    np.testing.assert_allclose(sigma, [1.0, 0.25, 0.0])
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    np.testing.assert_allclose(theirs.timesteps, family.time_of(theirs.sigmas.double()), rtol=1e-6)


def test_alpha_sigma_of_a_variance_preserving_level():
    ratio = np.array([0.0, 1e-8, 0.5, 14.6, 4096.0])
    alpha, sigma = NoiseSchedule.vp().alpha_sigma(ratio)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=4e-16)
    np.testing.assert_allclose(sigma, ratio * alpha, rtol=4e-16)
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    bar = NoiseSchedule.vp().alphas_cumprod
    alpha, sigma = NoiseSchedule.vp().alpha_sigma(NoiseSchedule.vp().ratios)
    np.testing.assert_allclose(alpha**2, bar, rtol=1e-13)


def test_a_schedule_is_frozen():
    family = NoiseSchedule.vp()
    with pytest.raises(AttributeError):
        family.train_steps = 5
