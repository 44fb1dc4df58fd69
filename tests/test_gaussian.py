"""Solvers with noise on Gaussian data, in closed form: a row is affine, so mean and variance
propagate.

Data N(mu, c^2), x = a x_0 + s n ~ N(a mu, a^2 c^2 + s^2), and the perfect estimate is affine too:

    E[x_0 | x] = mu + a c^2 (x - a mu) / (a^2 c^2 + s^2),    Var[x_0 | x] = c^2 s^2 / (a^2 c^2 +
    s^2)

No random numbers: the covariance of (x, kept vectors) is carried through the numbers of the plan.
"""

import numpy as np
import pytest

import fastdiff
from fastdiff.predictions import perfect
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers.ddim import ddim
from fastdiff.solvers.ddpm import ddpm
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.euler import euler, euler_ancestral
from fastdiff.solvers.row import Grid, Row, Weights

MU = 0.7
OPEN = {"lower_order_final": False}


def network(plan, prediction, spread):
    """(slope, offset) in x of the raw output at each row; x as the plan holds it (x / alpha for
    VE)."""
    for a, s in zip(plan.alpha[:-1], plan.sigma[:-1], strict=True):
        variance = (a * spread) ** 2 + s**2
        slope = a * spread**2 / variance
        estimate = np.array([slope, MU - slope * a * MU])  # of x_0
        noise = (np.array([1.0, 0.0]) - a * estimate) / s
        scale = 1 / np.hypot(a, s) if prediction == "v_prediction" else 1.0
        data_part, noise_part = perfect(prediction, a, s, scale)
        yield data_part * estimate + noise_part * noise


def propagate(plan, prediction="epsilon", spread=0.0):
    """Mean and variance of x at every grid point, from the true ones of the first."""
    history, keeps = plan.history, plan.keeps
    wide = 4 + history
    mean = np.zeros(1 + history)
    cov = np.zeros((1 + history, 1 + history))
    a, s = plan.alpha[0], plan.sigma[0]
    mean[0], cov[0, 0] = a * MU, (a * spread) ** 2 + s**2
    path = [(mean[0], cov[0, 0])]
    outputs = network(plan, prediction, spread)
    for rows, (slope, offset) in zip(plan.rows, outputs, strict=True):
        line = rows[0]
        _, kx, ke, kz = line[:4]
        c = line[7 : 7 + (1 + keeps) * wide].reshape(1 + keeps, wide)
        # [x, m, e, z, h ..] = state @ [x, h ..] + shift + draw z
        state = np.zeros((wide, 1 + history))
        state[:3, 0] = 1.0, kx + ke * slope, slope
        state[4:, 1:] = np.eye(history)
        shift = np.zeros(wide)
        shift[1:3] = ke * offset, offset
        draw = np.zeros(wide)
        draw[1], draw[3] = kz, 1.0
        into = [0, *(1 + int(v) for v in line[len(line) - keeps :])]
        move, add, noise = np.eye(1 + history), np.zeros(1 + history), np.zeros(1 + history)
        for p, (target, weights) in enumerate(zip(into, c, strict=True)):
            if p and not target:
                continue  # slot -1: not kept
            move[target], add[target], noise[target] = (
                weights @ state,
                weights @ shift,
                weights @ draw,
            )
        mean = move @ mean + add
        cov = move @ cov @ move.T + np.outer(noise, noise)
        path.append((mean[0], cov[0, 0]))
    return np.array(path).T


def true_path(plan, spread=0.0):
    a, s = plan.alpha, plan.sigma
    return a * MU, (a * spread) ** 2 + s**2


EXACT_FOR_ONE_POINT = [
    *(("ddim", {"eta": eta}) for eta in (0.0, 0.3, 1.0)),
    ("ddpm", {}),
    ("euler", {}),
    ("heun", {}),
    ("kdpm2", {}),
    *(("kdpm2_a", {"eta": eta}) for eta in (0.0, 0.3, 1.0)),
    *(("euler_a", {"eta": eta}) for eta in (0.0, 0.3, 1.0)),
    *(
        (name, {"eta": eta, **extra, **OPEN})
        for eta in (0.0, 0.3, 1.0)
        for name, extra in (
            ("dpmpp_sde_1", {}),
            ("dpmpp_2m_sde", {}),
            ("dpmpp_2m_sde", {"solver_type": "heun"}),
            ("dpmpp_3m_sde", {}),
            ("dpmpp_3m_sde", {"numerics": "faithful"}),
        )
    ),
]
EXACT_FOR_ONE_POINT += [
    (name, {"tau": tau, **OPEN}) for name in ("sa_solver", "sa_solver_3") for tau in (0.0, 0.3, 1.0)
]
PREDICTIONS = ["epsilon", "sample", "v_prediction", "flow_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "options"), EXACT_FOR_ONE_POINT)
def test_noise_put_back_is_noise_taken_out(solver, options, prediction):
    """Data in one point: the estimate is exact, so every level must have exactly its own noise."""
    noise = "flow" if prediction == "flow_prediction" else "scaled_linear"
    for steps, final in ((1, "zero"), (12, "zero"), (12, "sigma_min")):
        plan = fastdiff.plan(
            solver, steps=steps, noise=noise, prediction=prediction, final_sigma=final, **options
        )
        mean, variance = propagate(plan, prediction)
        want_mean, want = true_path(plan)
        np.testing.assert_allclose(mean, want_mean, rtol=1e-10)
        # relative to the level's own variance, but for the rounding of the data, (1e-15 mu)^2 below
        np.testing.assert_allclose(variance, want, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_noise_prediction_with_noise_has_a_known_excess(eta):
    """dpmsolver holds n, not x_0: (e^h - (1 + eta)(e^h - 1))^2 + eta (e^{2h} - 1) of s'^2."""
    lam = np.array([-1.0, -0.6, 0.5])
    plan = fastdiff.plan("dpmsolver_2m_sde", steps=2, spacing=np.exp(-lam), eta=eta, **OPEN)
    _, variance = propagate(plan)
    grown = np.exp(lam[1] - lam[0])
    factor = (grown - (1 + eta) * (grown - 1)) ** 2 + eta * (grown**2 - 1)
    assert variance[1] == pytest.approx(plan.sigma[1] ** 2 * factor, rel=1e-12)
    if eta == 1:
        assert factor == pytest.approx(1 + 2 * (grown - 1) ** 2, rel=1e-12)


def test_large_variance_of_ddpm_has_its_known_excess():
    """beta instead of the posterior's own: s'^2 e^{-2h} + s^2 (1 - e^{-2h})."""
    plan = fastdiff.plan("ddpm", steps=6, variance="large", final_sigma="sigma_min")
    a, s = plan.alpha, plan.sigma
    _, variance = propagate(plan)
    left = (a[0] * s[1] / (a[1] * s[0])) ** 2
    assert variance[1] == pytest.approx(s[1] ** 2 * left + s[0] ** 2 * (1 - left), rel=1e-12)


@pytest.mark.parametrize("noise", ["scaled_linear", "flow"])
def test_no_noise_is_added_on_the_way_to_level_zero(noise):
    prediction = "flow_prediction" if noise == "flow" else "epsilon"
    for solver, options in (("ddpm", {"variance": "large"}), ("ddpm", {}), ("euler_a", {})):
        plan = fastdiff.plan(solver, steps=5, noise=noise, prediction=prediction, **options)
        mean, variance = propagate(plan, prediction)
        assert mean[-1] == pytest.approx(MU, rel=1e-12)
        assert variance[-1] < 1e-28


@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_ddpm_is_the_posterior(spread):
    """Law of total variance: what the small variance lacks is exactly the spread of x_0 given x."""
    plan = fastdiff.plan("ddpm", steps=15, final_sigma="sigma_min", spacing="exponential")
    for i in range(14):
        a, s, a1, s1 = plan.alpha[i], plan.sigma[i], plan.alpha[i + 1], plan.sigma[i + 1]
        one = fastdiff.plan("ddpm", steps=1, spacing=np.array([s / a, s1 / a1]))
        mean, variance = propagate(one, spread=spread)
        share = 1 - (a * s1 / (a1 * s)) ** 2
        unknown = spread**2 * s**2 / ((a * spread) ** 2 + s**2)
        assert mean[1] == pytest.approx(a1 * MU, rel=1e-11)
        total = variance[1] + (a1 * share) ** 2 * unknown
        assert total == pytest.approx((a1 * spread) ** 2 + s1**2, rel=1e-11)


def weak_order(solver, spread=0.6, n=64, **options):
    """Order of the error in the variance at the last level, uniform in lambda from 3 to 0.05."""
    errors = []
    for steps in (n, 2 * n):
        sigmas = np.exp(np.linspace(np.log(3.0), np.log(0.05), steps + 1))
        calls = SOLVERS[solver].rows(steps)
        plan = fastdiff.plan(solver, steps=calls, spacing=sigmas, **options)
        _, variance = propagate(plan, spread=spread)
        errors.append(abs(variance[-1] - true_path(plan, spread)[1][-1]))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("solver", "options", "want"),
    [
        ("ddpm", {}, 1.0),
        ("euler_a", {}, 1.0),
        ("ddim", {"eta": 1.0}, 1.0),
        ("ddim", {"eta": 0.0}, 1.0),
        ("dpmpp_sde_1", OPEN, 1.0),
        ("dpmpp_2m_sde", OPEN, 2.0),
        ("dpmpp_2m_sde", {"solver_type": "heun", **OPEN}, 2.0),
        ("dpmpp_3m_sde", OPEN, 2.0),
        ("dpmpp_2m", OPEN, 2.0),
        ("kdpm2_a", {}, 2.0),
        ("sa_solver", {**OPEN}, 2.0),
        ("sa_solver", {"tau": 0.5, **OPEN}, 2.0),
        ("dpmsolver_sde_1", {"n": 512, **OPEN}, 1.0),  # its error changes sign at some 60 steps
        ("dpmsolver_2m_sde", OPEN, 2.0),
    ],
)
def test_weak_order(solver, options, want):
    """With all of the noise, on Gaussian data: as claimed for the deterministic forms."""
    assert weak_order(solver, **options) == pytest.approx(want, abs=0.15)
    assert SOLVERS[solver].order == want


@pytest.mark.parametrize("solver", ["dpmpp_2s_sde", "dpmpp_3s_sde"])
def test_a_cycle_with_noise_is_of_weak_order_one(solver):
    """The noise of a row says nothing of that of the row before, which is part of the same way."""
    got = weak_order(solver, n=192, solver_type="heun", **OPEN)
    assert got == pytest.approx(1.0, abs=0.15)


def test_the_sign_that_is_shipped_stops_3s_sde_from_converging():
    options = {"solver_type": "heun", "numerics": "faithful", **OPEN}
    assert weak_order("dpmpp_3s_sde", n=192, **options) == pytest.approx(0.0, abs=0.15)


def test_the_sign_that_is_shipped_costs_3m_sde_an_order():
    """sde3_offset = -1 leaves -h^2 d''/2 in every step: first order, worse than 2M SDE."""
    assert weak_order("dpmpp_3m_sde", numerics="faithful", **OPEN) == pytest.approx(1.0, abs=0.15)


def _grids():
    ratio = np.exp(-np.cumsum([-2.5, 0.4, 1.1, 0.02, 2.0]))
    alpha = 1 / np.sqrt(1 + ratio**2)
    yield Grid(alpha, ratio * alpha)
    sigma = np.array([0.97, 0.8, 0.31, 0.305, 0.01])
    yield Grid(1 - sigma, sigma)


GRIDS = list(_grids())


def in_x_and_d(row, grid, i):
    """(x, d, z) weights with n = (x - a d) / s put in."""
    w, a, s = row.next, grid.alpha[i], grid.sigma[i]
    return np.array([w.x + w.n / s, w.d - w.n * a / s, w.z])


def same(first, second, grid, i):
    got, want = (in_x_and_d(row, grid, i) for row in (first, second))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS, ids=["vp", "flow"])
@pytest.mark.parametrize("i", range(4))
def test_methods_that_are_one_method(grid, i):
    first = {"order": 1, **OPEN}
    same(ddim(grid, i, 0, eta=1.0), ddpm(grid, i, 0), grid, i)
    same(dpmpp(grid, i, 0, eta=1.0, **first), ddpm(grid, i, 0), grid, i)
    same(dpmpp(grid, i, 0, **first), ddim(grid, i, 0), grid, i)
    same(dpmpp(grid, i, 0, predict="noise", **first), ddim(grid, i, 0), grid, i)
    same(euler(grid, i, 0), ddim(grid, i, 0), grid, i)
    for eta in (0.0, 0.3, 1.0):
        same(euler_ancestral(grid, i, 0, eta=eta), ddim(grid, i, 0, eta=eta), grid, i)
    if (grid.alpha + grid.sigma == 1).all():  # of a flow: along the velocity n - x_0
        step = grid.sigma[i + 1] - grid.sigma[i]
        same(Row(Weights(x=1.0, n=step, d=-step)), ddim(grid, i, 0), grid, i)


@pytest.mark.parametrize("grid", GRIDS, ids=["vp", "flow"])
@pytest.mark.parametrize("i", range(4))
def test_ancestral_noise_adds_up(grid, i):
    sh, sh1 = grid.ratio(i), grid.ratio(i + 1)
    for eta in (0.3, 1.0, 4.0):
        row = euler_ancestral(grid, i, 0, eta=eta).next
        up = row.z / grid.alpha[i + 1]
        down = row.n / grid.alpha[i + 1] + sh
        assert up**2 + down**2 == pytest.approx(sh1**2, rel=1e-12)
        assert up <= sh1


@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_eta_zero_is_the_ode(order, predict):
    grid = GRIDS[0]
    for i in range(4):
        options = {"order": order, "predict": predict, **OPEN}
        assert dpmpp(grid, i, i, eta=0.0, s_noise=0.9, **options) == dpmpp(grid, i, i, **options)
    sde, ode = (
        ("dpmpp_2m_sde", "dpmpp_2m")
        if predict == "data"
        else (
            "dpmsolver_2m_sde",
            "dpmsolver_2m",
        )
    )
    one, two = fastdiff.plan(sde, steps=9, eta=0.0), fastdiff.plan(ode, steps=9)
    np.testing.assert_array_equal(one.rows, two.rows)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_euler_plans_are_ddim_plans_in_other_coordinates(eta):
    """VE samples are x / alpha: the same sequence of means and variances, times alpha^2."""
    ve = fastdiff.plan("euler_a", steps=20, eta=eta)
    vp = fastdiff.plan("ddim", steps=20, eta=eta)
    scale = NoiseSchedule.vp().alpha_sigma(ve.sigma)[0]
    for got, want, power in zip(
        propagate(ve, spread=0.5), propagate(vp, spread=0.5), (1, 2), strict=True
    ):
        np.testing.assert_allclose(got * scale**power, want, rtol=1e-10)
    np.testing.assert_allclose(ve.timesteps, vp.timesteps, rtol=1e-12)


def test_churn_is_karras_algorithm_2_when_the_network_predicts_x_0():
    """The network is called before the noise is added, as deployed: right for x_0, not for
    epsilon."""
    options = {"steps": 8, "s_churn": 2.0}
    _, variance = propagate(fastdiff.plan("euler", prediction="sample", **options), "sample")
    plan = fastdiff.plan("euler", **options)
    np.testing.assert_allclose(variance, plan.sigma**2, rtol=1e-10, atol=1e-30)
    _, carried = propagate(plan)
    gamma, sh, sh1 = 2.0 / 8, plan.sigma[0], plan.sigma[1]
    excess = 2 * gamma * sh * (sh - sh1) + 2 * (gamma * sh) ** 2
    assert carried[1] == pytest.approx(sh1**2 + excess, rel=1e-11)


def test_s_noise_scales_the_added_variance():
    for solver in ("dpmpp_2m_sde", "euler_a"):
        full, none, part = (
            propagate(
                fastdiff.plan(
                    solver,
                    steps=1,
                    final_sigma="sigma_min",
                    s_noise=f,
                    spacing=np.array([5.0, 1.0]),
                )
            )[1][1]
            for f in (1.0, 0.0, 0.9)
        )
        assert part == pytest.approx(none + 0.81 * (full - none), rel=1e-12)
