"""numerics = "exact": what diffusers does otherwise than the papers is put right, and nothing else.

Every deviation that "faithful" reproduces is listed in fastdiff/schedulers/quirks.py; each of them
has a test here that shows its size, and that "exact" is the float64 recursion without it.
"""

import contextlib

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import fastdiff

from .classes import (
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EDM_DPM,
    EDM_EULER,
    EULER,
    EULER_A,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    HEUN,
    HOME,
    KDPM2,
    KDPM2_A,
    LMS,
    ONE_RESULT,
    PNDM,
    SA,
    SD,
    SINGLE,
    UNIPC,
    base,
    ours,
    stock,
)
from .options import none
from .runs import Case, finite, gaps, mine, prepare, reference, run, theirs

REL = 1e-5
ORDER3 = SD | {"solver_order": 3, "use_karras_sigmas": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def exact_run(case):
    s = prepare(ours(case.name), case)
    s.numerics = "exact"
    s.set_timesteps(case.steps, **case.grid)
    return run(ours(case.name), case, s)[0]


def samples(case, tensors):
    return tensors if case.name in ONE_RESULT else tensors[::2]


DEVIATIONS = {  # quirk -> (a run that has it, how the recursion differs without it, its least size)
    "third order is second order": (Case(DPM, ORDER3, 20), {"second": 2.0}, 1e-3),
    "sign of the third-order SDE term": (
        Case(DPM, ORDER3 | {"algorithm_type": "sde-dpmsolver++"}, 20),
        {"second": 2.0, "sde_sign": 1.0},
        1e-2,
    ),
    "DDIM's previous timestep is t - T // n": (
        Case(DDIM, SD | {"timestep_spacing": "linspace", "clip_sample": False}, 10),
        {"stride": False},
        1e-3,
    ),
}
DEVIATIONS["weights of predictions that a run does not have"] = (
    Case(LMS, SD, 20, begin=(8, True)),
    {"short": True},
    1e-2,
)
DEVIATIONS["sign of the third-order SDE term of a cycle"] = (
    # on a flow: elsewhere the shipped sign raises float32 rounding above REL, in diffusers, too
    Case(
        SINGLE,
        FLOW | {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        8,
    ),
    {"sde_sign": 1.0},
    1.0,
)
_PLMS = SD | {"skip_prk_steps": True}
DEVIATIONS["PLMS steps from t to t - T // n"] = (
    Case(PNDM, _PLMS | {"timestep_spacing": "linspace"}, 10),
    {"stride": False},
    1e-3,
)
DEVIATIONS["the second call of PLMS in a run that begins later"] = (
    Case(PNDM, _PLMS, 10, begin=(4, True)),
    {"stride": False},
    1e-2,
)
ELSEWHERE = {
    "model times are cut to whole numbers": "test_model_times_keep_their_fractions",
    "mu of one run stays for the next": "test_mu_is_for_one_run",
    "beta_t of DDPM is a difference of float32 numbers": "test_beta_of_ddpm_is_rounded",
    "the first step drops the prediction of x_0": "test_the_first_step_of_ipndm",
    "the noise of a flow's last level is left": "test_a_flow_ends_at_0",
    "a flow that does not end at 0 ends at the least level of the betas": (
        "test_a_flow_of_dpmsolver_ends_where_diffusers_says_and_never_higher_in_exact"
    ),
}


@pytest.mark.parametrize("quirk", DEVIATIONS)
def test_exact_is_the_recursion_without_the_deviation(quirk):
    case, correct, size = DEVIATIONS[quirk]
    faithful, exact = mine(case)[0], exact_run(case)
    assert max(gaps(samples(case, exact), samples(case, reference(case, **correct)))) <= REL
    assert max(gaps(samples(case, faithful), samples(case, reference(case)))) <= REL
    assert max(gaps(samples(case, exact), samples(case, faithful))) >= size


@pytest.mark.skipif(HOME != "fastdiff.schedulers", reason="the list is ours")
def test_every_deviation_on_the_list_has_a_test():
    from fastdiff.schedulers.quirks import QUIRKS

    reproduced = {quirk.name for quirk in QUIRKS if quirk.parameter}
    assert reproduced - set(DEVIATIONS) - set(ELSEWHERE) == set()
    assert all(test in globals() for test in ELSEWHERE.values())


@pytest.mark.parametrize(
    "case",
    [
        Case(DPM, SD | {"use_karras_sigmas": True}, 20),
        Case(DPM, SD | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, 20),
        Case(SINGLE, SD | {"use_karras_sigmas": True}, 20),
        Case(SINGLE, ORDER3 | {"algorithm_type": "sde-dpmsolver++"}, 20),
        Case(EDM_EULER, {}, 20, {"s_churn": 20.0}),
        Case(EDM_DPM, {"algorithm_type": "sde-dpmsolver++"}, 20),
        Case(DDIM, SD, 10, {"eta": 0.5}),
        Case(EULER, SD, 20, {"s_churn": 20.0}),
        Case(EULER_A, SD, 20),
        Case(UNIPC, SD | {"solver_order": 3, "use_karras_sigmas": True}, 20),
        Case(HEUN, SD, 20),
        Case(KDPM2, SD, 20),
        Case(LMS, SD, 20),
        Case(PNDM, _PLMS, 20),
        Case(SA, SD | {"predictor_order": 3, "corrector_order": 3}, 20),
        Case(PNDM, SD | {"set_alpha_to_one": True}, 20),
        Case(KDPM2_A, SD, 20),
        Case(DEIS, SD | {"solver_order": 3}, 20),
        Case(FLOW_EULER, {"shift": 3.0}, 20),
        Case(FLOW_LCM, {"shift": 3.0}, 8),
        Case(FLOW_HEUN, {"shift": 3.0}, 8),
        Case(FLOW_EULER, {"stochastic_sampling": True}, 20),
    ],
    ids=lambda case: f"{case.name}-{len(case.config)}",
)
def test_without_a_deviation_the_two_are_the_same_bits(case):
    """DDIM: leading spacing, where t - T // n is the next timestep of the grid."""
    for a, b in zip(exact_run(case), mine(case)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_exact_ddpm_is_the_float64_recursion(variance):
    case = Case(DDPM, SD | {"variance_type": variance, "clip_sample": False}, 50)
    assert max(gaps(exact_run(case)[::2], reference(case)[::2])) <= REL


def test_beta_of_ddpm_is_rounded():
    """1 - a_t / a_{t-1} of float32 numbers near 1: three digits are left at t = 1."""
    case = Case(DDPM, {"clip_sample": False}, 1000, begin=(990, True))
    faithful, exact = mine(case)[0][::2], exact_run(case)[::2]
    assert max(gaps(faithful, theirs(case)[0][::2])) <= 2e-6
    assert max(gaps(exact, reference(case)[::2])) <= 2e-6
    assert max(gaps(faithful, exact)) >= 1e-5


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_the_middles_of_the_runge_kutta_start(spacing):
    """Between two timesteps, and where the sample is when the network is called: with the network
    of data in one point every sample has the noise of its level."""
    s = ours(PNDM)(**SD, timestep_spacing=spacing)
    s.numerics = "exact"
    s.set_timesteps(12)
    whole, times = np.flip(s._timesteps), s.timesteps.tolist()
    assert times[:12:4] == whole[:3].tolist()
    assert times[3:12:4] == times[12:13] * 0 + whole[1:4].tolist()
    assert np.abs(np.array(times[1:12:4]) - (whole[:3] + whole[1:4]) / 2).max() <= 0.5
    assert times[12:] == whole[3:].tolist()
    z = torch.ones(1, 1, 2, 2).double()
    levels = [*(s.alphas_cumprod[t].double() for t in times), s.final_alpha_cumprod.double()]
    x = levels[0].sqrt() * 0.5 + (1 - levels[0]).sqrt() * z
    for t, level, after in zip(times, levels, levels[1:], strict=False):
        x = s.step((x - level.sqrt() * 0.5) / (1 - level).sqrt(), t, x).prev_sample
        torch.testing.assert_close(x, after.sqrt() * 0.5 + (1 - after).sqrt() * z)


def test_the_first_step_of_ipndm():
    """From pure noise: s' x there, s' x + a' x_0 with x_0 = -out here."""
    x, out = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), -0.5)
    for numerics, share in (("faithful", 0.0), ("exact", 0.5)):
        s = ours("IPNDMScheduler")()
        s.numerics = numerics
        s.set_timesteps(20)
        assert s.alphas[0] == 0
        made = s.step(out, s.timesteps[0], x).prev_sample
        torch.testing.assert_close(made, s.betas[1] * x + share * s.alphas[1] * x)
        assert float(s.alphas[1]) == pytest.approx(0.11, abs=0.005)  # the size on the list


@pytest.mark.parametrize("name", [DPM, SINGLE, UNIPC, SA])
def test_model_times_keep_their_fractions(name):
    s = ours(name)(**FLOW, flow_shift=3.0)
    s.set_timesteps(10)
    assert s.timesteps.dtype == torch.int64
    faithful = s.timesteps.tolist()
    s.numerics = "exact"
    s.set_timesteps(10)
    torch.testing.assert_close(s.timesteps, s.sigmas[:-1] * 1000)
    assert faithful == [int(t) for t in s.timesteps.tolist()]
    s.set_timesteps(sigmas=np.linspace(0.95, 0.1, 10))
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(0.95, 0.1, 10))
    torch.testing.assert_close(s.timesteps.float(), theirs.timesteps)
    x = torch.randn(1, 4, 4, 4)
    for t in s.timesteps:
        x = s.step(torch.tanh(x), t, x).prev_sample
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("spacing", ["use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", [DPM, SINGLE, UNIPC, SA])
def test_model_times_are_rounded_not_cut(name, spacing):
    s = ours(name)(**base(name), **{spacing: True})
    s.numerics = "exact"
    s.set_timesteps(12)
    levels = np.log(((1 - s.alphas_cumprod) / s.alphas_cumprod).double().numpy()) / 2
    exact = np.interp(np.log(s.sigmas[:-1].double().numpy()), levels, np.arange(1000))
    assert np.abs(s.timesteps.double().numpy() - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("shift", "left"), [(1.0, 0.125), (3.0, 0.3)])
@pytest.mark.parametrize("name", [DEIS, SA])
def test_a_flow_ends_at_0(name, shift, left):
    """With the exact velocity of one point, 0.5, it arrives there; there noise is left."""
    ends = []
    for numerics in ("faithful", "exact"):
        quiet = {"tau_func": none} if name == SA else {}
        s = ours(name)(**FLOW, **quiet, flow_shift=shift)
        s.numerics = numerics
        s.set_timesteps(8)
        x = noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        for i, t in enumerate(s.timesteps):
            x = s.step((x - 0.5) / s.sigmas[i], t, x).prev_sample
        ends.append(x)
    assert (ends[1] - 0.5).abs().max() < 1e-5
    rest = (ends[0] - 0.5).std() / noise.std()
    assert float(rest) == pytest.approx(left, rel=0.01)


@pytest.mark.parametrize("name", [DPM, SINGLE])
def test_mu_is_for_one_run(name):
    s = ours(name)(**FLOW, use_dynamic_shifting=True)
    s.numerics = "exact"
    s.set_timesteps(6)
    plain = s.sigmas.clone()
    s.set_timesteps(6, mu=1.1)
    assert not torch.equal(s.sigmas, plain)
    s.set_timesteps(6)
    assert torch.equal(s.sigmas, plain)


class TestWhereDiffusersFails:
    """Nothing to be faithful to: the same in both modes."""

    @pytest.mark.parametrize("numerics", ["faithful", "exact"])
    def test_two_equal_levels_are_the_identity(self, numerics):
        config = ORDER3 | {"final_sigmas_type": "sigma_min"}
        s = ours(DPM)(**config)
        s.numerics = numerics
        s.set_timesteps(20)
        s.sigmas[-1] = s.sigmas[-2]
        case = Case(DPM, config, 20)
        seen = run(ours(DPM), case, s)[0]
        assert finite(seen)
        assert torch.equal(seen[-1], seen[-2])

    @pytest.mark.parametrize(("numerics", "second"), [("faithful", 1.0), ("exact", 2.0)])
    def test_sde_dpmsolver_of_third_order(self, numerics, second):
        config = ORDER3 | {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
        case = Case(DPM, config | {"use_karras_sigmas": False}, 20)
        with pytest.raises(UnboundLocalError):
            run(stock(DPM), case)
        seen = exact_run(case) if numerics == "exact" else mine(case)[0]
        assert max(gaps(seen, reference(case, second=second))) <= REL

    @pytest.mark.parametrize("numerics", ["faithful", "exact"])
    @pytest.mark.parametrize(
        "config",
        [
            {"solver_type": "bh1"},
            {"lower_order_final": False, "solver_order": 3},
            {"predict_x0": False},
            {
                "use_karras_sigmas": True,
                "final_sigmas_type": "sigma_min",
                "solver_order": 3,
                "lower_order_final": False,
            },
        ],
        ids=str,
    )
    def test_unipc_at_level_0_and_at_equal_levels(self, config, numerics):
        case = Case(UNIPC, SD | config, 20)
        with contextlib.suppress(torch.linalg.LinAlgError):
            assert not finite(theirs(case)[0])
        seen = exact_run(case) if numerics == "exact" else mine(case)[0]
        assert max(gaps(seen, reference(case))) <= REL

    def test_sa_solver_bounds_the_x0_of_a_predicted_noise(self):
        config = SD | {"algorithm_type": "noise_prediction", "thresholding": True}
        case = Case(SA, config | {"sample_max_value": 1.6}, 20)
        with pytest.raises(RuntimeError, match="size of tensor"):
            run(stock(SA), case)
        assert finite(reference(case))
        assert max(gaps(mine(case)[0], reference(case))) <= REL

    def test_sa_solver_draws_noise_for_the_mean_alone(self):
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        plain, learned = (ours(SA)(**SD, variance_type=kind) for kind in (None, "learned_range"))
        theirs = stock(SA)(**SD, variance_type="learned_range")
        for s in (plain, learned, theirs):
            s.set_timesteps(6)
        with pytest.raises(RuntimeError, match="size of tensor"):
            theirs.step(torch.cat([x, x], 1), theirs.timesteps[0], x)
        a = b = x
        for t in plain.timesteps:
            torch.manual_seed(2)
            a = plain.step(torch.tanh(a), t, a).prev_sample
            torch.manual_seed(2)
            b = learned.step(torch.cat([torch.tanh(b), x], 1), t, b).prev_sample
            assert torch.equal(a, b)

    def test_as_many_steps_of_sa_solver_as_timesteps(self):
        """Two of them are one then, and a slope between them is 0 / 0 in diffusers."""
        config = SD | {"predictor_order": 3, "corrector_order": 3, "num_train_timesteps": 100}
        case, truth = Case(SA, config, 100), reference(Case(SA, config, 100))
        assert not finite(theirs(case)[0])
        assert finite(truth)
        assert max(gaps(mine(case)[0], truth)) <= REL

    def test_fixed_large_log_has_the_variance_of_fixed_large(self):
        large, log = (
            mine(Case(DDPM, SD | {"variance_type": kind}, 10))[0]
            for kind in ("fixed_large", "fixed_large_log")
        )
        assert all(torch.equal(a, b) for a, b in zip(large, log, strict=True))


@pytest.mark.parametrize("name", ["dpmsolver_2m", "dpmsolver_2s"])
def test_a_flow_of_dpmsolver_ends_where_diffusers_says_and_never_higher_in_exact(name):
    s = fastdiff.sampler(name, **FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    theirs = stock(type(s).__name__).from_config(s.config)
    for one in (s, theirs):
        one.set_timesteps(120)
    torch.testing.assert_close(s.sigmas, theirs.sigmas)
    s.numerics = "exact"
    s.set_timesteps(400)
    assert s.sigmas[-1] == pytest.approx(1e-3)
    assert (s.sigmas.diff() < 0).all()
