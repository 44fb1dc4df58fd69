"""Weights of every solver to 1e-11 against mpmath, from the papers' integrals and closed forms.

The exponential solvers are checked in another form than the code's: the polynomial through the
predictions in Lagrange form, its integral against the exponential by parts in 80 digits (and by
quadrature for some).  The code has divided differences and phi functions.
"""

import functools
import itertools

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from fastdiff.schedules import NoiseSchedule, levels
from fastdiff.solvers.ddim import ddim
from fastdiff.solvers.ddpm import ddpm
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.euler import euler, euler_ancestral
from fastdiff.solvers.row import Grid
from fastdiff.solvers.unipc import unipc

DIGITS = 80
STEPS = (1e-6, 1e-4, 1e-2, 0.5, 1.0, 4.0, 20.0)
PLACES = (-5.0, -0.5, 3.0)  # lambda at the start of the step
RATIOS = (0.3, 1.0, 2.5)  # earlier steps in units of this one
OPEN = {"lower_order_final": False}


def vp_grid(lam):
    """VP noise levels at the given lambda; the numbers of the grid, not lambda, are what is
    exact."""
    ratio = np.exp(-np.asarray(lam, dtype=float))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Grid(alpha, ratio * alpha)


@functools.cache
def cases():
    """(grid, i): rows of three-step grids, and rows of thousand-step grids as users have them."""
    made = []
    for h, start, r0, r1 in itertools.product(STEPS, PLACES, RATIOS, RATIOS[::2]):
        if h * max(r0, r1) <= 20:
            lam = np.cumsum([start - h * (r0 + r1), h * r1, h * r0, h])
            made.append((vp_grid(lam), 2))
    family = NoiseSchedule.vp("scaled_linear")
    for spacing in ("karras", "trailing", "exponential"):
        alpha, sigma = family.alpha_sigma(levels(family, spacing, 1000))
        made += [(Grid(alpha, sigma), i) for i in (2, 3, 117, 500, 881, 998)]
    alpha, sigma = NoiseSchedule.flow(3.0).alpha_sigma(np.linspace(0.999, 0.001, 1001))
    return (*made, *((Grid(alpha, sigma), i) for i in (2, 400, 999)))


def level(grid, i):
    """alpha, sigma, lambda of a grid point in 80 digits, the float64 numbers taken as exact."""
    a, s = mpf(float(grid.alpha[i])), mpf(float(grid.sigma[i]))
    return a, s, mpmath.log(a / s)


def moments(c, h, count):
    """int_0^h e^{c (u - h)} u^k du for k < count, by parts."""
    out = [(1 - mpmath.exp(-c * h)) / c]
    for k in range(1, count):
        out.append((h**k - k * out[-1]) / c)
    return out


def lagrange(nodes):
    """Coefficients (constant first) of the polynomials that are 1 at one node and 0 at the
    others."""
    basis = []
    for j, x in enumerate(nodes):
        poly = [mpf(1)]
        for m, y in enumerate(nodes):
            if m != j:
                shifted = [mpf(0), *poly]
                poly = [p - y * q for p, q in zip(shifted, [*poly, 0], strict=True)]
                poly = [p / (x - y) for p in poly]
        basis.append(poly)
    return basis


def exponential_weights(grid, i, order, predict, eta, solver_type):
    """(x, weights of the predictions at i, i - 1, i - 2, noise)."""
    a, s, lam = level(grid, i)
    a1, s1, lam1 = level(grid, i + 1)
    h, eta = lam1 - lam, mpf(eta)
    nodes = [level(grid, i - age)[2] - lam for age in range(order)]
    if predict == "data":
        x, c, factor = s1 / s * mpmath.exp(-eta * h), 1 + eta, (1 + eta) * a1
        noise = s1 * mpmath.sqrt(1 - mpmath.exp(-2 * eta * h))
        integral = moments(c, h, order)
    else:  # int_0^h e^{h - u} u^k du is the same with c = -1
        x, factor = a1 / a, -(1 + eta) * s1
        noise = s1 * mpmath.sqrt(eta * (mpmath.exp(2 * h) - 1))
        integral = moments(mpf(-1), h, order)
    if solver_type == "midpoint" and order == 2:
        # half a constant's weight for the slope: d + (h/2) (d - d_1) / h_0
        w = integral[0] * h / (2 * -nodes[1])
        return x, [factor * (integral[0] + w), -factor * w], noise
    weights = [
        factor * sum(p * m for p, m in zip(poly, integral, strict=True)) for poly in lagrange(nodes)
    ]
    return x, weights, noise


def close(got, want, rel=1e-11):
    return got == 0 if want == 0 else abs(mpf(got) / want - 1) < rel


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize(
    ("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
)
def test_exponential_solvers(order, solver_type, predict, eta):
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            row = dpmpp(
                grid,
                i,
                i,
                order=order,
                solver_type=solver_type,
                predict=predict,
                eta=eta,
                **OPEN,
            )
            x, weights, noise = exponential_weights(grid, i, order, predict, eta, solver_type)
            now = row.next.d if predict == "data" else row.next.n
            got, want = (row.next.x, now, *row.next.h, row.next.z), (x, *weights, noise)
            for name, g, w in zip(("x", "now", "old", "older", "z"), got, want, strict=False):
                assert close(g, w), (name, grid, i, g, mpmath.nstr(w, 17))
            assert len(got) == len(want)


def test_s_noise_scales_the_noise_alone():
    grid = vp_grid([-1.0, 0.0, 0.7])
    for predict in ("data", "noise"):
        plain, scaled = (
            dpmpp(grid, 1, 1, predict=predict, eta=1.0, s_noise=f).next for f in (1.0, 0.9)
        )
        assert scaled.z == pytest.approx(0.9 * plain.z, rel=1e-15)
        assert (scaled.x, scaled.d, scaled.n, scaled.h) == (plain.x, plain.d, plain.n, plain.h)


def test_the_integrals_of_this_file_are_right():
    """By parts against quadrature, and the Lagrange weights against a polynomial's own integral."""
    with mpmath.workdps(50):
        for c, h in itertools.product((mpf(1), mpf("1.3"), mpf(2), mpf(-1)), (mpf("0.01"), mpf(3))):
            for k, got in enumerate(moments(c, h, 3)):
                want = mpmath.quad(lambda u, c=c, h=h, k=k: mpmath.exp(c * (u - h)) * u**k, [0, h])
                assert abs(got - want) < abs(want) * mpf(10) ** -40
        basis = lagrange([mpf(0), mpf(-1), mpf(-3)])
        for (j, node), (m, poly) in itertools.product(enumerate((0, -1, -3)), enumerate(basis)):
            value = sum(p * node**n for n, p in enumerate(poly))
            assert abs(value - (j == m)) < mpf(10) ** -40


@functools.cache
def unipc_cases():
    """(grid, i) with three points before i: four-step grids, and thousand-step ones."""
    made = []
    for h, start, r0, r1 in itertools.product(STEPS, PLACES, RATIOS, RATIOS[::2]):
        if h * max(r0, r1) <= 20:
            made.append((vp_grid(np.cumsum([start, h * r1, h * r0, h, h * r1])), 3))
    return (*made, *((grid, i) for grid, i in cases() if i > 2))


def unipc_weights(grid, i, order, predict, solver_type, corrects):
    """Step i from its place with `order` predictions there and before, and, if it corrects, one at
    its end: weights of (x, predictions from i backwards, the one at the end).

    Zhao et al. 2023: the integral of the polynomial through them, which is the solution of
    R(h) a B(h) = phi(h), but for a_1 = 1/2 where one difference is left (appendix F).
    """
    a, s, lam = level(grid, i)
    a1, s1, lam1 = level(grid, i + 1)
    h = lam1 - lam
    data = predict == "data"
    x, factor, c = (s1 / s, a1, mpf(1)) if data else (a1 / a, -s1, mpf(-1))
    nodes = [level(grid, i - age)[2] - lam for age in range(order)] + [h] * corrects
    if len(nodes) == 2 and order == (1 if corrects else 2):
        value = moments(c, h, 1)[0]
        b = h if solver_type == "bh1" else value
        half = b / 2 * h / nodes[1]
        return x, [factor * (value - half), factor * half]
    integral = moments(c, h, len(nodes))
    return x, [
        factor * sum(p * m for p, m in zip(poly, integral, strict=True)) for poly in lagrange(nodes)
    ]


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, predict, solver_type):
    options = {"predict": predict, "solver_type": solver_type, "lower_order_final": False}
    with mpmath.workdps(DIGITS):
        for grid, i in unipc_cases():
            args = order, predict, solver_type
            plain = unipc(grid, i, i, order=order, corrected=0, **options)
            made = plain.next.d if predict == "data" else plain.next.n
            x, weights = unipc_weights(grid, i, *args, False)
            assert all(map(close, (plain.next.x, made, *plain.next.h), (x, *weights, 0, 0)))
            assert (plain.keep[1].x, plain.keep[1].h) == (1, (0,) * (order + 1))

            both = unipc(grid, i, i, order=order, **options)
            begins = both.keep[1]  # x corrected: of the last start, now the oldest kept vector
            last = begins.d if predict == "data" else begins.n
            start, (*old, after) = unipc_weights(grid, i - 1, *args, True)
            assert begins.x == both.next.x == 0
            assert all(map(close, (last, *begins.h), (after, *old, start)))
            # and the predictor from there: its weights on top of x times those
            made = both.next.d if predict == "data" else both.next.n
            want = [x * after + weights[0], *(x * w for w in old)]
            for j, weight in enumerate(weights[1:], 1):
                want[j] += weight
            sizes = [abs(x * after) + abs(weights[0]), *(abs(x * w) for w in old)]
            for j, weight in enumerate(weights[1:], 1):
                sizes[j] += abs(weight)
            for got, w, size in zip((made, *both.next.h), want, sizes, strict=False):
                assert abs(got - w) < 1e-11 * size
            assert close(both.next.h[-1], x * start)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(eta):
    """Song et al. 2020, eq. 12 with sigma of eq. 16, in alphas_cumprod."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            # eq. 16 written for any alpha, sigma: 1 - bar -> s^2, bar / bar' -> the part of the
            # signal-to-noise ratio that is left
            v = eta**2 * (s1 / s) ** 2 * (s**2 - (a * s1 / a1) ** 2)
            if grid.alpha[0] ** 2 + grid.sigma[0] ** 2 > 0.9999999 and i == 2:  # VP: as printed
                bar, bar1 = a**2, a1**2
                printed = eta**2 * (1 - bar1) / (1 - bar) * (1 - bar / bar1)
                assert abs(v - printed) < 1e-15
            row = ddim(grid, i, 0, eta=eta).next
            assert row.x == 0
            assert close(row.d, a1)
            assert close(row.n, mpmath.sqrt(s1**2 - v))
            assert close(row.z, mpmath.sqrt(v))


def test_ddim_with_the_noise_of_the_clipped_estimate():
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            row = ddim(grid, i, 0, use_clipped_model_output=True).next
            assert (row.n, row.z) == (0, 0)
            assert close(row.x, s1 / s)
            # the difference of two numbers near a': the part of it that is left, absolutely
            assert abs(row.d - (a1 - a * s1 / s)) < 1e-15


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance):
    """Ho et al. 2020, eq. 7: the posterior of a Gaussian chain, from Bayes' rule."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            step = a / a1  # x_t = step x_{t'} + sqrt(added) noise
            added = s**2 - step**2 * s1**2
            precision = 1 / s1**2 + step**2 / added
            row = ddpm(grid, i, 0, variance=variance).next
            assert row.n == 0
            assert close(row.x, step / added / precision)
            assert close(row.d, a1 / s1**2 / precision)
            want = 1 / precision if variance == "small" else added
            assert close(row.z, mpmath.sqrt(want))


def test_ddpm_on_integer_timesteps_is_the_table_of_the_paper():
    """beta_t, alpha_t, bar alpha_t as printed: eq. 4 and 7."""
    family = NoiseSchedule.vp("linear")
    bar = family.alphas_cumprod
    for t in (999, 500, 1):
        grid = Grid(np.sqrt(bar[[t, t - 1]]), np.sqrt(1 - bar[[t, t - 1]]))
        beta = 1 - bar[t] / bar[t - 1]
        small, large = (ddpm(grid, 0, 0, variance=v).next for v in ("small", "large"))
        assert small.d == pytest.approx(np.sqrt(bar[t - 1]) * beta / (1 - bar[t]), rel=1e-11)
        assert small.x == pytest.approx(
            np.sqrt(1 - beta) * (1 - bar[t - 1]) / (1 - bar[t]), rel=1e-11
        )
        assert small.z**2 == pytest.approx((1 - bar[t - 1]) / (1 - bar[t]) * beta, rel=1e-11)
        assert large.z**2 == pytest.approx(beta, rel=1e-11)


def ve_cases():
    for grid, i in cases():
        yield grid, i
        ratio = grid.sigma / grid.alpha
        yield Grid(np.ones_like(ratio), ratio), i


def test_euler():
    with mpmath.workdps(DIGITS):
        for grid, i in ve_cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            row = euler(grid, i, 0).next
            assert close(row.x, a1 / a)
            assert close(row.n, a1 * (s1 / a1 - s / a))
            assert (row.d, row.z) == (0, 0)


@pytest.mark.parametrize("churn", [1e-6, 0.3, 40.0])
def test_churned_euler(churn):
    """Karras et al. 2022, algorithm 2 without the second-order correction."""
    with mpmath.workdps(DIGITS):
        for grid, i in ve_cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            gamma = min(mpf(churn) / grid.steps, mpmath.sqrt(2) - 1)
            sh, hat = s / a, s / a * (1 + gamma)
            nu = a * mpf(0.9) * mpmath.sqrt(hat**2 - sh**2)
            row = euler(grid, i, 0, s_churn=churn, s_noise=0.9)
            assert close(row.churn[0], nu)
            assert close(row.churn[1], a * hat)
            # x' / a' = (x + nu z) / a + (sh' - hat) ((x + nu z) / a - d) / hat
            assert close(row.next.x, a1 / a * (s1 / a1) / hat)
            assert close(row.next.d, a1 * (1 - (s1 / a1) / hat))
            assert close(row.next.z, row.next.x * nu)


def test_churn_only_between_its_limits():
    grid = Grid(np.ones(4), np.array([8.0, 4.0, 2.0, 1.0]))
    rows = [euler(grid, i, 0, s_churn=1.0, s_tmin=3.0, s_tmax=5.0) for i in range(3)]
    assert [row.churn is not None for row in rows] == [False, True, False]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_euler(eta):
    with mpmath.workdps(DIGITS):
        for grid, i in ve_cases():
            a, s, _ = level(grid, i)
            a1, s1, _ = level(grid, i + 1)
            sh, sh1 = s / a, s1 / a1
            up = eta * mpmath.sqrt(sh1**2 * (sh**2 - sh1**2) / sh**2)
            down = mpmath.sqrt(sh1**2 - up**2)
            row = euler_ancestral(grid, i, 0, eta=eta).next
            assert close(row.x, a1 / a)
            assert close(row.n, a1 * (down - sh))
            assert close(row.z, a1 * up)
            assert row.d == 0


def test_step_lengths_keep_their_digits():
    """lambda_j - lambda_i for levels as near as 1e-9, where two logarithms would leave seven
    digits."""
    with mpmath.workdps(DIGITS):
        for h, start in itertools.product((1e-9, 1e-6, 1e-3, 1.0, 30.0), (-8.0, -1.0, 5.0)):
            grid = vp_grid([start, start + h])
            want = level(grid, 1)[2] - level(grid, 0)[2]
            assert close(grid.span(0, 1), want, 1e-15)
            assert grid.span(1, 0) == -grid.span(0, 1)
        assert grid.span(1, 1) == 0


def test_levels_without_noise_or_signal():
    grid = Grid(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]))
    assert [grid.lam(i) for i in range(3)] == [-np.inf, 0.0, np.inf]
    assert grid.ratio(0) == np.inf
    assert grid.ratio(2) == 0
    assert grid.span(0, 1) == grid.span(1, 2) == np.inf
    assert grid.span(2, 1) == grid.span(1, 0) == -np.inf
    assert grid.span(0, 0) == grid.span(2, 2) == 0
