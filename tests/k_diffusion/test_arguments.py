"""Bad input is refused in words; get_sigmas."""

import re

import numpy as np
import pytest
import torch

from fastdiff import k_diffusion, plan
from fastdiff.k_diffusion.rows import as_there
from fastdiff.registry import find
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.spacing import SPACINGS, levels

X = torch.ones(2, 3)
SIGMAS = torch.tensor([5.0, 1.0, 0.0])


def halve(x, sigma):
    return x / 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": 3}, "model must be a function model(x, sigma, **extra_args); got int"),
        ({"x": [1.0]}, "x must be a tensor (B, *shape); got list"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x must be a float tensor (B, *shape) of 16"),
        ({"x": torch.tensor(1.0)}, "x must be a float tensor (B, *shape) of 16 bits or more; got"),
        ({"sigmas": [5.0, 0.0]}, "sigmas must be a one-dimensional tensor; got list. torch.tensor"),
        ({"sigmas": torch.ones(2, 2)}, "sigmas must be a one-dimensional float tensor, at least 1"),
        ({"sigmas": torch.tensor([])}, "sigmas must be a one-dimensional float tensor, at least 1"),
        ({"sigmas": torch.tensor([3, 1])}, "sigmas must be a one-dimensional float tensor, at lea"),
        (
            {"sigmas": torch.tensor([1.0, 2.0])},
            "sigmas must go down, from above 0 (noisy) to at or above 0 (clean); got [1.0, 2.0]",
        ),
        ({"sigmas": torch.tensor([2.0, -1.0])}, "sigmas must go down, from above 0 (noisy)"),
        ({"sigmas": torch.tensor([0.0, 0.0])}, "sigmas must go down, from above 0 (noisy)"),
        ({"sigmas": torch.tensor([torch.inf, 1.0])}, "sigmas must be finite; got [inf, 1.0]"),
        ({"sigmas": torch.tensor([2.0, torch.nan])}, "sigmas must be finite; got [2.0, nan]"),
        ({"flow": True}, "sigmas must be at most 1 with flow=True; got 5"),
        ({"x": X.to_sparse()}, "x must be a dense tensor (B, *shape); got torch.sparse_coo"),
        ({"disable": "a"}, "disable must be True, False or None; got 'a'"),
        (
            {"sigmas": torch.tensor([1e30, 1.0])},
            "sigmas must be 0 or in 1e-20 .. 65536, else no weight means anything in float32; got",
        ),
        (
            {"sigmas": torch.tensor([5.0, 1e-30])},
            "sigmas must be 0 or in 1e-20 .. 65536, else no w",
        ),
        ({"flow": 1}, "flow must be True or False; got 1"),
        ({"extra_args": [1]}, "extra_args must be a dict of arguments for the model, or None; got"),
        ({"callback": 3}, "callback must be a function, or None; got int"),
        ({"noise_sampler": 3}, "noise_sampler must be a function, or None; got int"),
        ({"eta": -1.0}, "eta must be a number >= 0; got -1.0"),
        ({"eta": "1"}, "eta must be a number >= 0; got '1'"),
        ({"solver_type": "bh1"}, "solver_type must be midpoint or heun; got 'bh1'"),
        (
            {"s_churn": 1.0},
            "s_churn: no option of solver 'dpmpp_2m_sde'; it takes solver_type, lower_order_final,",
        ),
        ({"model": lambda x, s: None}, "model must return denoised, a tensor like x; got NoneType"),
        (
            {"model": lambda x, s: x[:1]},
            "model must return denoised, a float tensor of shape (2, 3) on cpu; got torch.float32 "
            "(1, 3) on cpu",
        ),
        (
            {"noise_sampler": lambda *_: torch.ones(3)},
            "noise_sampler must return noise, a float tensor of shape (2, 3) on cpu; got torch.flo",
        ),
    ],
)
def test_bad_input_is_refused_in_words(changed, message):
    given = {"model": halve, "x": X, "sigmas": SIGMAS, "disable": True} | changed
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
        k_diffusion.sample_dpmpp_2m_sde(**given)


def test_a_sampler_without_noise_takes_no_noise_sampler():
    for name in ("dpmpp_2m", "euler"):
        with pytest.raises(ValueError, match=r"^noise_sampler: no option of solver"):
            getattr(k_diffusion, f"sample_{name}")(halve, X, SIGMAS, noise_sampler=torch.randn_like)


def test_churn_is_not_for_flow():
    for name in ("euler", "heun", "dpm_2"):
        with pytest.raises(ValueError, match=r"^s_churn must be 0 with flow=True.*; got 2"):
            getattr(k_diffusion, f"sample_{name}")(halve, X, SIGMAS / 5, flow=True, s_churn=2.0)
    with pytest.raises(ValueError, match="s_churn: no option of solver 'kdpm2_a'"):
        k_diffusion.sample_dpm_2_ancestral(halve, X, SIGMAS, s_churn=2.0)
    with pytest.raises(ValueError, match="s_churn must be a number >= 0"):
        k_diffusion.sample_heun(halve, X, SIGMAS, s_churn=-1.0)
    with pytest.raises(ValueError, match="s_churn must be 0 within a step of two calls"):
        plan(as_there(find("heun")), steps=5, s_churn=1.0)


@pytest.mark.parametrize("spacing", [s for s in SPACINGS if s != "ays_svd"])  # for other levels
def test_sigmas_of_a_spacing_are_those_of_a_plan(spacing):
    family = NoiseSchedule.vp()
    got = k_diffusion.get_sigmas(spacing, 12, torch.from_numpy(family.ratios))
    want = np.append(levels(family, spacing, 12), 0.0)
    assert got.dtype == torch.float32
    # sigma -> 1 / (1 + sigma^2) -> sigma loses eps / sigma^2, 1e-13 at 0.03; then float32
    np.testing.assert_allclose(got.numpy(), want, rtol=2.0**-23)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", ["trailing", "karras", "beta"])
def test_sigmas_of_a_flow_keep_its_shift(spacing, shift):
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    got = k_diffusion.get_sigmas(spacing, 8, shift * t / (1 + (shift - 1) * t), flow=True)
    want = np.append(levels(NoiseSchedule.flow(shift), spacing, 8), 0.0)
    np.testing.assert_allclose(got.numpy(), want, rtol=2.0**-22)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spacing": "karas"}, f"spacing must be one of {', '.join(SPACINGS)}; got 'karas'"),
        ({"spacing": np.ones(2)}, "spacing must be one of karras, exponential"),
        ({"flow": None}, "flow must be True or False; got None"),
        ({"trained": torch.tensor([1.0, 1e9])}, "trained must ascend within 1e-07 .. 65536; got 1"),
        ({"steps": 0}, "steps must be a whole number >= 1; got 0"),
        ({"steps": 2.0}, "steps must be a whole number >= 1; got 2.0"),
        ({"trained": [1.0, 2.0]}, "trained must be a one-dimensional tensor; got list"),
        ({"trained": torch.tensor([1.0])}, "trained must be a one-dimensional float tensor, at le"),
        (
            {"trained": torch.tensor([2.0, 1.0])},
            "trained must ascend within 1e-07 .. 65536; got 2 .. 1",
        ),
        (
            {"trained": torch.tensor([0.0, 1.0])},
            "trained must ascend within 1e-07 .. 65536; got 0 .. 1",
        ),
        (
            {"trained": torch.tensor([0.5, 2.0]), "flow": True},
            "trained must ascend within 1e-07 .. 1, as flow=True; got 0.5 .. 2",
        ),
        (
            {"trained": torch.tensor([0.1, 0.11, 0.9]), "flow": True},
            "trained must be the levels of a flow, r t / (1 + (r - 1) t) at t = 1/T .. 1, as",
        ),
    ],
)
def test_bad_input_of_get_sigmas(changed, message):
    given = {"spacing": "karras", "steps": 4, "trained": torch.tensor([0.1, 1.0, 9.0])} | changed
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
        k_diffusion.get_sigmas(**given)


def test_two_levels_are_a_flow_and_steps_may_be_of_numpy():
    two = torch.tensor([0.1, 1.0])
    got = k_diffusion.get_sigmas("trailing", np.int64(2), two, flow=True)
    # r = 1/9 has 0.1 at t = 1/2, and 1/28 at 1/4
    torch.testing.assert_close(got, torch.tensor([0.1, 1 / 28, 0.0]))


@pytest.mark.parametrize("solver", ["dpmpp_2n", None, 3])
def test_a_function_is_of_a_solver(solver):
    with pytest.raises(ValueError, match=r"^solver must be one of ddim, .*; got " + repr(solver)):
        k_diffusion.function(solver)
