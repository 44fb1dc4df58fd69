"""Order of convergence on a Gaussian mixture whose probability flow is known exactly (mixture.py).

Uniform in lambda, the last level above 0, no lowering of the order at the end; from a cold start
unless it says otherwise.  The order is that of the last interval, N = 96 to 192, in float64.

What is run is the plan, by the loop of loop.py, in a fifth of the time of fastdiff.sample.  That
the sampler makes the same of every solver here is test_the_loop_of_these_tests_is_the_sampler.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.registry import SOLVERS
from tests.loop import run
from tests.mixture import Mixture

DATA = Mixture()
X = np.linspace(-2.0, 2.0, 41)
STABLE_DIFFUSION = (14.6146, 0.0292)  # sigma / alpha of its noisiest and cleanest level
INNER = (3.0, 0.03)  # where the first steps count, so that a cold start shows
OPEN = {"lower_order_final": False}


def uniform(n, ends=STABLE_DIFFUSION, prediction="epsilon", solver="dpmpp_2m", **options):
    """A plan of n steps uniform in lambda between two levels."""
    sigmas = np.exp(np.linspace(*np.log(ends), n + 1))
    chosen = SOLVERS[solver] if isinstance(solver, str) else solver
    n = chosen.rows(n)  # calls
    noise = "scaled_linear"
    if prediction == "flow_prediction":
        noise, sigmas = "flow", sigmas / (1 + sigmas)
    return fastdiff.plan(
        solver, steps=n, spacing=sigmas, prediction=prediction, noise=noise, **options
    )


def unit(plan, i):
    """(alpha, sigma) of a grid point with the sample brought to the network's scale."""
    level = np.array([plan.alpha[i], plan.sigma[i]])
    return level / np.hypot(*level) if plan.c_in != 1 else level


def made(plan, prediction):
    """The result of the plan, (41,), as unit-variance (or flow) samples."""
    out = run(plan, DATA.network(plan, prediction), X * plan.noise_scale)[-1]
    return out * unit(plan, -1)[0] / plan.alpha[-1]


def sampled(plan, prediction):
    """The same through fastdiff.sample."""
    noise = torch.from_numpy(X)[None]
    out = fastdiff.sample(DATA.network(plan, prediction), noise, plan).numpy()[0]
    return out * unit(plan, -1)[0] / plan.alpha[-1]


def truth(plan):
    scale = plan.noise_scale * unit(plan, 0)[0] / plan.alpha[0]
    x = X * scale
    return DATA.flow(x, unit(plan, 0), unit(plan, -1))


def rms(got, want):
    return np.sqrt(np.mean((got - want) ** 2))


def order(n=96, prediction="epsilon", **options):
    errors = []
    for steps in (n, 2 * n):
        plan = uniform(steps, prediction=prediction, **options)
        errors.append(rms(made(plan, prediction), truth(plan)))
    return np.log2(errors[0] / errors[1])


MEASURED = [  # order in the last interval, as known for these methods
    ("ddim", {}, 0.95),
    ("euler", {}, 0.95),
    ("euler_a", {"eta": 0.0}, 0.95),
    ("lms", {}, 3.14),
    ("ipndm", {}, 2.0),
    ("ipndm_v", {}, 3.14),
    ("plms", {}, 2.0),
    ("sa_solver", {"tau": 0.0, **OPEN}, 2.1),
    ("sa_solver_3", {"tau": 0.0, **OPEN}, 3.0),
    ("heun", {}, 2.01),
    ("kdpm2", {}, 1.95),
    ("kdpm2_a", {"eta": 0.0}, 1.95),
    ("flow_heun", {}, 2.01),
    ("tcd", {"eta": 0.0}, 0.95),
    ("dpmpp_1", OPEN, 0.95),
    ("dpmsolver_1", OPEN, 0.95),
    ("dpmpp_2m", OPEN, 1.99),
    ("dpmpp_2m", {"solver_type": "heun", **OPEN}, 2.00),
    ("dpmpp_3m", {"numerics": "faithful", **OPEN}, 2.06),
    ("dpmsolver_2m", OPEN, 2.01),
    ("dpmsolver_3m", {"numerics": "faithful", **OPEN}, 2.01),
    ("dpmpp_sde_1", {"eta": 0.0, **OPEN}, 0.95),
    ("dpmpp_2m_sde", {"eta": 0.0, **OPEN}, 1.99),
    ("dpmpp_3m_sde", {"eta": 0.0, "numerics": "faithful", **OPEN}, 2.06),
    ("dpmsolver_sde_1", {"eta": 0.0, **OPEN}, 0.95),
    ("dpmsolver_2m_sde", {"eta": 0.0, **OPEN}, 2.01),
    ("dpmpp_2s", OPEN, 1.97),
    ("dpmpp_3s", OPEN, 2.98),
    ("dpmpp_3s", {"solver_type": "heun", **OPEN}, 2.83),
    ("dpmpp_2s_sde", {"eta": 0.0, **OPEN}, 1.97),
    ("dpmpp_3s_sde", {"eta": 0.0, **OPEN}, 2.98),
    ("dpmsolver_2s", OPEN, 2.01),
    ("dpmsolver_3s", OPEN, 3.05),
    ("deis_1", OPEN, 0.95),
    ("deis_2", OPEN, 1.99),
    ("deis_3", OPEN, 2.76),
    ("unipc_1", OPEN, 1.99),
    ("unipc_1", {"solver_type": "bh1", **OPEN}, 2.03),
    ("unipc_2", OPEN, 2.98),
    ("unipc_2", {"solver_type": "bh1", **OPEN}, 3.01),
    ("unipc_3", OPEN, 3.85),
    ("unipc_3", {"solver_type": "bh1", **OPEN}, 3.85),
]
# UniPC-3 is of order 4 after a first step that leaves h^3: 3.28 from N = 96 on, 3.05 from here on
SETTLED = {"unipc_3": 384, "lms": 384, "ipndm": 384}


@pytest.mark.parametrize(("solver", "options", "want"), MEASURED)
def test_order(solver, options, want):
    assert order(solver=solver, **options) == pytest.approx(want, abs=0.15)


@pytest.mark.parametrize(
    ("predictor", "corrector", "want"), [(2, 1, 1.1), (1, 1, 1.0), (1, 2, 2.0), (2, 3, 3.0)]
)
def test_the_corrector_of_sa_solver_gives_the_order(predictor, corrector, want):
    """Not the predictor, but for the limit that its result sets: one more than its own order."""
    solver = replace(
        SOLVERS["sa_solver"],
        preset={"predictor_order": predictor, "corrector_order": corrector},
        depths=(max(predictor, corrector) - 1, 1, 1),
    )
    assert order(solver=solver, tau=0.0, **OPEN) == pytest.approx(want, abs=0.15)


PREDICTIONS = ("sample", "v_prediction", "flow_prediction")
CLASSES = {"ddim": 0.95, "euler": 0.95, "dpmpp_2m": 2.0, "dpmsolver_2m": 2.0, "unipc_2": 3.0}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "want"), CLASSES.items())
def test_order_does_not_depend_on_the_prediction(solver, want, prediction):
    options = OPEN if "lower_order_final" in SOLVERS[solver].options else {}
    got = order(solver=solver, prediction=prediction, ends=INNER, **options)
    assert got == pytest.approx(want, abs=0.15)


FIXED = [row for row in SOLVERS.values() if not row.noise and "eta" not in row.options]
FIXED.remove(SOLVERS["ipndm_v"])  # the row of lms
FREE = [row for row in SOLVERS.values() if {"eta", "tau"} & {*row.options}]


@pytest.mark.parametrize("solver", FIXED, ids=lambda row: row.name)
def test_claimed_order_of_deterministic_solvers(solver):
    """The registry's `order` is asymptotic and from a cold start: the first step's first order
    shows."""
    options = OPEN if "lower_order_final" in solver.options else {}
    got = order(SETTLED.get(solver.name, 96), solver=solver.name, ends=INNER, **options)
    assert got == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", FREE, ids=lambda row: row.name)
def test_claimed_order_without_noise(solver):
    less = "eta" if "eta" in solver.options else "tau"
    options = {less: 0.0, **(OPEN if "lower_order_final" in solver.options else {})}
    got = order(solver=solver.name, ends=INNER, **options)
    assert got == pytest.approx(solver.order, abs=0.15)


THIRD = ("dpmpp_3m", "dpmsolver_3m")


def warm_order(n, prediction="epsilon", **options):
    """From an exact start: the first two grid points are put on the exact flow."""
    errors = []
    for steps in (n, 2 * n):
        plan = uniform(steps, INNER, prediction, **options)
        given = {i: DATA.flow(X, unit(plan, 0), unit(plan, i)) for i in (1, 2)}
        out = run(plan, DATA.network(plan, prediction), X * plan.noise_scale, given=given)[-1]
        errors.append(rms(out, truth(plan)))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("solver", THIRD)
def test_order_three_needs_an_exact_start_and_the_factor_two(solver):
    assert warm_order(48, solver=solver, **OPEN) == pytest.approx(3.0, abs=0.15)
    shipped = warm_order(48, solver=solver, numerics="faithful", **OPEN)
    assert shipped == pytest.approx(2.0, abs=0.15)
    assert order(48, solver=solver, ends=INNER, **OPEN) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("solver", THIRD)
def test_from_pure_noise_the_cold_start_hardly_counts(solver):
    """At sigma = 14.6 the first steps see a constant prediction: order 3 in all practical step
    counts."""
    assert order(48, solver=solver, **OPEN) > 2.75
    errors = [
        rms(made(plan, "epsilon"), truth(plan))
        for plan in (uniform(96, solver=solver, numerics=n, **OPEN) for n in ("exact", "faithful"))
    ]
    assert errors[0] < errors[1] / 3


def plain(name):
    """The options under which this file takes the order of a solver."""
    options = SOLVERS[name].options
    less = {option: 0.0 for option in ("eta", "tau") if option in options}
    return less | (OPEN if "lower_order_final" in options else {})


SAMPLED = [(solver, "epsilon", options) for solver, options, _ in MEASURED]
SAMPLED += [(row.name, "epsilon", plain(row.name)) for row in FIXED + FREE]
SAMPLED += [(name, prediction, plain(name)) for name in CLASSES for prediction in PREDICTIONS]
SAMPLED += [(name, "epsilon", {**OPEN, "numerics": "faithful"}) for name in THIRD]


@pytest.mark.parametrize(("solver", "prediction", "options"), SAMPLED)
def test_the_loop_of_these_tests_is_the_sampler(solver, prediction, options):
    plan = uniform(12, solver=solver, prediction=prediction, **options)
    ours = made(plan, prediction)
    np.testing.assert_allclose(sampled(plan, prediction), ours, rtol=1e-12, atol=1e-13)


def test_the_flow_map_solves_the_ode():
    """dx/dlambda = d log(alpha)/dlambda x - .. : in y = x / alpha, dy / d(sigma/alpha) = E[n |
    x]."""
    start, step = 0.7, 1e-4

    def level(ratio):
        return np.array([1.0, ratio]) / np.hypot(1.0, ratio)

    y = DATA.flow(X, level(3.0), level(start)) / level(start)[0]
    ends = [DATA.flow(X, level(3.0), level(start + s)) / level(start + s)[0] for s in (-step, step)]
    slope = (ends[1] - ends[0]) / (2 * step)
    want = DATA.noise(y * level(start)[0], *level(start))
    np.testing.assert_allclose(slope, want, atol=20 * step**2 + 1e-10)


def test_the_network_of_the_mixture_is_consistent():
    """Its four outputs stand for one estimate of (x_0, n)."""
    from fastdiff.predictions import convert

    for alpha, sigma in ((0.6, 0.8), (0.98, np.sqrt(1 - 0.98**2))):
        n = DATA.noise(X, alpha, sigma)
        for prediction in ("epsilon", "sample", "v_prediction"):
            e = DATA.output(prediction, X, alpha, sigma)
            k = convert(prediction, alpha, sigma)
            np.testing.assert_allclose(k.qx * X + k.qe * e, n, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(k.kx * X + k.ke * e, (X - sigma * n) / alpha, atol=1e-12)
