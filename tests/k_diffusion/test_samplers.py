"""Every function against the same solver as a plan, in float64; dtypes, flow, noise, devices."""

import inspect
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import k_diffusion, rings
from fastdiff.k_diffusion.rows import as_there
from fastdiff.ops.affine_step import affine_step_out
from fastdiff.registry import SOLVERS, find
from tests.fake_device import FakeDevice
from tests.loop import run
from tests.mixture import Mixture

DATA = Mixture()
NAMES = [name for name in k_diffusion.__all__ if name.startswith("sample_")]
OWN = [name for name, row in SOLVERS.items() if row.inner is None]
SIGMAS = [14.0, 8.0, 4.5, 2.5, 1.2, 0.5, 0.2, 0.06, 0.0]
EPS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
CHURNED = ("euler", "heun", "kdpm2")
DRAWS = [n for n in OWN if SOLVERS[n].draws != "never" and n != "euler"]


def function(name):
    return getattr(k_diffusion, f"sample_{name.removeprefix('sample_')}")


def constant(target):
    """A network that always predicts the same x_0."""
    return lambda x, sigma, **_: torch.full_like(x, target)


def mixture(x, sigma):
    values = x.double().numpy()
    levels = sigma.double().numpy().reshape(-1, *[1] * (x.ndim - 1))
    return torch.from_numpy(values - levels * DATA.noise(values, 1.0, levels[0])).to(x.dtype)


def start(dtype=torch.float64, shape=(2, 4)):
    x = torch.linspace(-1.5, 1.5, int(np.prod(shape)), dtype=torch.float64)
    return (x.reshape(shape) * SIGMAS[0]).to(dtype)


def sigmas(dtype=torch.float64):
    return torch.tensor(SIGMAS, dtype=dtype)


def rows_over(name, steps):
    """Rows of a run over that many levels and level 0."""
    return SOLVERS[name].rows(steps)


def drawn_by(name, table):
    """noise_sampler that hands out the rows of the table where the solver draws."""
    calls = SOLVERS[name].evaluations
    given = iter(torch.from_numpy(table[calls - 1 :: calls]))
    return {"noise_sampler": lambda *_: next(given)} if name in DRAWS else {}


def noises(rows, shape):
    return np.random.default_rng(1).standard_normal((rows, *shape))


@pytest.mark.parametrize("name", OWN)
def test_it_is_the_plan_of_that_solver(name):
    """x / alpha of a variance preserving run, whose table knows nothing of alpha = 1."""
    # straight lines between levels are Heun in sigma where alpha = 1
    solver = as_there(find("heun" if name == "flow_heun" else name))
    plan = fastdiff.plan(
        solver,
        steps=rows_over(name, len(SIGMAS) - 1),
        spacing=SIGMAS,
        prediction="sample",
        **solver.options,
    )
    alpha, sigma = plan.alpha, plan.sigma
    drawn = noises(plan.steps, (2, 4))
    calls = iter(zip(alpha[:-1], sigma[:-1], strict=True))

    def network(x, t, j):
        a, s = next(calls)
        ratio = s / a
        # a solver in x / alpha hands on c_in x, at unit variance; in that scale, too, x_0 is the
        # prediction at the ratio of the levels
        values = x * np.hypot(1.0, ratio)
        return values - ratio * DATA.noise(values, 1.0, ratio)

    want = run(plan, network, start().numpy() * alpha[0], drawn)[-1] / alpha[-1]
    extra = drawn_by(name, drawn)
    got = function(name)(mixture, start(), sigmas(), disable=True, **extra)
    assert got.dtype == torch.float64
    # eight rows, each of a few operations with weights up to 1 / sigma of n = (x - d) / sigma
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", [n for n in OWN if SOLVERS[n].draws != "always"])
def test_the_state_is_wide_whatever_x_is(name, dtype):
    """With x_0 = c always, x goes to c + (x - c) s' / s whatever the solver: rounded once."""
    levels = torch.tensor([14.0, *np.geomspace(12.0, 0.5, 40)], dtype=torch.float32)
    x = start(dtype)
    out = function(name)(constant(0.75), x, levels, disable=True)
    assert out.dtype == dtype
    exact = 0.75 + (x.double() - 0.75) * float(levels[-1].double() / levels[0].double())
    error = (out.double() - exact).abs()
    # 41 rows of at most 6 products and sums of numbers up to |x| in float32, and the last rounding
    kept = (torch.linspace(1, 0, 42)[1:] * 14 + 0.75).sum() * 6 * 2.0**-24
    assert (error <= EPS[dtype] * exact.abs() + kept * 1.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_and_callback_get_the_dtype_of_x(dtype):
    seen = []

    def model(x, sigma, scale):
        seen.append((x, sigma, scale))
        return x * 0

    told = []
    levels = sigmas(torch.float32)
    function("dpmpp_2m")(model, start(dtype), levels, {"scale": 3}, told.append, True)
    assert len(seen) == len(told) == len(SIGMAS) - 1
    for i, ((x, sigma, scale), row) in enumerate(zip(seen, told, strict=True)):
        assert set(row) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert row["x"] is x
        assert (x.dtype, sigma.dtype, sigma.shape, scale) == (dtype, dtype, (2,), 3)
        assert row["i"] == i
        assert row["sigma"].data_ptr() == levels[i].data_ptr()
        assert float(row["sigma_hat"]) == float(levels[i])
        assert (sigma == levels[i].to(dtype)).all()


def flow_levels():
    return [0.97, 0.85, 0.6, 0.35, 0.1, 0.0]


@pytest.mark.parametrize("name", OWN)
def test_flow_is_the_plan_of_a_flow(name):
    solver = as_there(find(name))
    plan = fastdiff.plan(
        solver,
        steps=rows_over(name, 5),
        noise="flow",
        spacing=flow_levels(),
        prediction="flow_prediction",
        **solver.options,
    )
    drawn = noises(plan.steps, (2, 4))
    x = np.linspace(-1.5, 1.5, 8).reshape(2, 4)
    levels = iter(zip(plan.alpha[:-1], plan.sigma[:-1], strict=True))
    want = run(plan, lambda v, t, j: DATA.output("flow_prediction", v, *next(levels)), x, drawn)

    def model(v, sigma):
        s, values = float(sigma[0]), v.numpy()
        return torch.from_numpy((values - s * DATA.noise(values, 1 - s, s)) / (1 - s))

    extra = drawn_by(name, drawn)
    given_sigmas = torch.tensor(flow_levels(), dtype=torch.float64)
    got = function(name)(model, torch.from_numpy(x), given_sigmas, disable=True, flow=True, **extra)
    # weights up to 1 / (1 - 0.97) on numbers of about 2, five rows
    np.testing.assert_allclose(got.numpy(), want[-1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", DRAWS)
def test_noise_is_randn_like_or_the_callers(name):
    options = {"eta": 1.0} if "eta" in SOLVERS[name].options else {}
    told = []

    def noise_sampler(sigma, sigma_next):
        told.append((float(sigma), float(sigma_next)))
        return torch.randn_like(start())

    ends = []
    for extra in ({}, {"noise_sampler": noise_sampler}):
        torch.manual_seed(3)
        ends.append(function(name)(mixture, start(), sigmas(), disable=True, **options, **extra))
    assert torch.equal(*ends)
    assert told == list(pairwise(SIGMAS[:-1]))  # not for the last x_0


@pytest.mark.parametrize("name", [n for n in DRAWS if "eta" in SOLVERS[n].options])
def test_without_eta_nothing_is_drawn(name):
    before = torch.get_rng_state()
    function(name)(mixture, start(), sigmas(), disable=True, eta=0.0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", CHURNED)
def test_churn_without_noise_goes_up_and_down_again(name):
    """s_noise = 0 adds nothing: steps from sigma_hat then, as if the sample were at it."""
    out = function(name)(mixture, start(), sigmas(), disable=True, s_churn=2.0, s_noise=0.0)
    assert torch.isfinite(out).all()
    plain = function(name)(mixture, start(), sigmas(), disable=True)
    assert (out - plain).abs().max() > 1e-3


@pytest.mark.parametrize("last", [0.0, 0.3])
@pytest.mark.parametrize("name", CHURNED)
def test_churn_that_no_level_is_in_draws_nothing_and_changes_nothing(name, last):
    before = torch.get_rng_state()
    levels = torch.tensor([*SIGMAS[:5], last], dtype=torch.float64)
    out = function(name)(mixture, start(), levels, disable=True, s_churn=2.0, s_tmin=50.0)
    assert torch.equal(before, torch.get_rng_state())
    plain = function(name)(mixture, start(), levels, disable=True)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CHURNED)
def test_churned_noise_is_noise_of_the_next_level(name):
    """Data in one point, from any start: what is left at a level has exactly its spread."""
    g, n = torch.Generator().manual_seed(0), 20000
    levels = torch.tensor([8.0, 5.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    x = 0.5 + levels[0] * torch.randn(n, 1, generator=g, dtype=torch.float64)
    torch.manual_seed(5)
    out = function(name)(constant(0.5), x, levels, disable=True, s_churn=2.0)
    # the spread of 20000 numbers is known to 1 / sqrt(2 n) = 0.5 %
    assert float((out - 0.5).std()) == pytest.approx(1.0, abs=0.025)
    assert float((out - 0.5).mean()) == pytest.approx(0.0, abs=0.035)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc_3", "deis_3", "euler"])
def test_equal_levels_and_a_layout_of_its_own(name):
    levels = torch.tensor([9.0, 9.0, 3.0, 3.0, 0.4], dtype=torch.float64)
    out = function(name)(mixture, start(), levels, disable=True)
    assert torch.isfinite(out).all()
    x = start(torch.float32, (2, 4, 3, 5)).to(memory_format=torch.channels_last)
    out = function(name)(constant(0.5), x, sigmas(torch.float32), disable=True)
    assert out.is_contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    same = function(name)(constant(0.5), x.contiguous(), sigmas(torch.float32), disable=True)
    assert torch.equal(out, same)
    assert torch.equal(x, kept)  # the caller's


def test_one_level_is_no_step():
    x = start()
    assert function("dpmpp_2m")(None.__class__, x, torch.tensor([3.0]), disable=True) is x


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("name", OWN)
def test_one_kernel_a_step_and_no_wait_between_two_calls(name, place, monkeypatch):
    """Counted on a device that is not there (tests/fake_device.py)."""

    def below_autograd(*args, **kwargs):  # which has no entry for a device of that type
        with torch._C._AutoDispatchBelowAutograd():
            affine_step_out(*args, **kwargs)

    monkeypatch.setattr(rings, "affine_step_out", below_autograd)
    options = {"s_churn": 4.0} if name in CHURNED else {}
    with FakeDevice() as device:
        x = torch.randn(1, 4, 8, 8, device=device.name)
        levels = sigmas(torch.float32).to(device.name if place == "device" else "cpu")
        device.clear()
        started = []

        def model(x, sigma):
            if not started:
                assert len(device.syncs) == (place == "device")  # sigmas are read, once
                device.clear()
            started.append(sigma)
            return x  # no kernel of its own

        out = function(name)(model, x, levels, disable=True, **options)
        assert out.device == x.device
        assert device.syncs == device.blocking_uploads == device.uploads == []
        draws = SOLVERS[name].noise or bool(options)
        rows = rows_over(name, len(SIGMAS) - 1)
        assert len(device.kernels) == rows + (len(SIGMAS) - 2) * draws


def test_the_progress_bar(capsys):
    for disable in (True, False):
        function("euler")(mixture, start(), sigmas(), disable=disable)
        assert ("8/8" in capsys.readouterr().err) == (not disable)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_signatures(name):
    made = getattr(k_diffusion, name)
    solver = find(name.removeprefix("sample_"))
    assert made.__name__ == f"sample_{solver.name}"
    assert made is getattr(k_diffusion, made.__name__)
    assert made.__doc__.startswith(f"{solver.name} on x = x_0 + sigma n")
    parameters = inspect.signature(made).parameters
    assert list(parameters)[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    options = as_there(solver).options
    assert {n: parameters[n].default for n in options} == options
    assert set(parameters) - set(options) - set(list(parameters)[:6]) <= {"flow", "noise_sampler"}


def test_any_name_of_the_registry_and_no_other():
    assert k_diffusion.sample_k_euler_a is k_diffusion.sample_euler_ancestral
    assert set(NAMES) <= set(dir(k_diffusion))
    with pytest.raises(AttributeError, match=r"got 'dpmpp_2mm'\. Did you mean 'dpmpp_2m'"):
        k_diffusion.sample_dpmpp_2mm  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        k_diffusion.nothing  # noqa: B018


def test_a_solver_of_ones_own():
    solver = replace(find("ddim"), name="mine")
    mine = k_diffusion.function(solver)
    assert mine.__name__ == "sample_mine"
    assert k_diffusion.function("Euler a").__name__ == "sample_euler_a"
    ends = [f(mixture, start(), sigmas(), disable=True) for f in (mine, function("ddim"))]
    assert torch.equal(*ends)
