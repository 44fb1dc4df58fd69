"""Exactness on polynomials: a method of order p integrates d(lambda) = lambda^k, k < p, without
error.

One step on a non-uniform grid, the true predictions of the steps before it as history, no noise,
against quadrature of the exact step.  A wrong sign or factor shows at once, where no picture
does.
"""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

import fastdiff
from fastdiff.solvers.adams import adams
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.row import Grid
from fastdiff.solvers.sa import sa_solver
from fastdiff.solvers.unipc import unipc
from tests.loop import run as run_plan

LAM = np.array([-2.0, -1.6, -1.35, -1.0])
OPEN = {"lower_order_final": False}
START = 0.3
EXACT = 1e-13  # float64: a handful of ulps; the orders below are told apart by ten powers of ten


def grid(lam=LAM):
    ratio = np.exp(-lam)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Grid(alpha, ratio * alpha)


def run(k, predict="data", eta=0.0, **options):
    """The samples after two steps of warm-up from START and after the third, each fed lambda^k."""
    x, path = START, []
    for i in range(3):
        row = dpmpp(grid(), i, i, predict=predict, eta=eta, **OPEN, **options).next
        now = row.d if predict == "data" else row.n
        assert (row.n if predict == "data" else row.d) == 0
        history = (LAM[i - age] ** k for age in range(1, 3) if i >= age)
        used = [w * v for w, v in zip(row.h, history, strict=False)]
        x = row.x * x + now * LAM[i] ** k + sum(used)
        path.append(float(x))
    return path[1:]


def exact(x, k, predict="data", eta=0.0):
    """The third step by the variation of constants, in quadrature."""
    g = grid()
    a, s, a1, s1 = (mpf(float(v)) for v in (g.alpha[2], g.sigma[2], g.alpha[3], g.sigma[3]))
    ends, eta = [mpf(float(LAM[2])), mpf(float(LAM[3]))], mpf(eta)
    start, end = ends
    if predict == "data":
        inner = mpmath.quad(lambda u: mpmath.exp((1 + eta) * (u - end)) * u**k, ends)
        return float(s1 / s * mpmath.exp(-eta * (end - start)) * x + (1 + eta) * a1 * inner)
    inner = mpmath.quad(lambda u: mpmath.exp(end - u) * u**k, ends)
    return float(a1 / a * x - (1 + eta) * s1 * inner)


def error(k, predict="data", eta=0.0, **options):
    """Relative error of the third step."""
    before, after = run(k, predict, eta, **options)
    return abs(after / exact(before, k, predict, eta) - 1)


METHODS = [(1, "midpoint"), (2, "heun"), (3, "midpoint")]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize(("order", "solver_type"), METHODS)
def test_order_p_is_exact_below_degree_p_and_not_above(order, solver_type, predict, eta):
    errors = [error(k, predict, eta, order=order, solver_type=solver_type) for k in range(4)]
    assert max(errors[:order]) < EXACT
    assert errors[order] > 1e-4  # else this test could not tell the orders apart


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", ["data", "noise"])
def test_midpoint_is_exact_for_constants_only(predict, eta):
    errors = [error(k, predict, eta, order=2, solver_type="midpoint") for k in range(2)]
    assert errors[0] < EXACT
    assert errors[1] > 1e-3


def test_midpoint_differs_from_the_exact_slope_by_a_third_order_term():
    """g/2 stands for the slope's integral: a' (h^2/2 - h^3/4 ..) for a' (h^2/2 - h^3/6 ..)."""
    for h in (1e-2, 1e-3):
        lam = np.array([-h, 0.0, h])
        ratio = np.exp(-lam)
        alpha = 1 / np.sqrt(1 + ratio**2)
        g = Grid(alpha, ratio * alpha)
        mid, heun = (
            -dpmpp(g, 1, 1, solver_type=kind, **OPEN).next.h[0] for kind in ("midpoint", "heun")
        )
        assert (heun - mid) / (g.alpha[2] * h**2) == pytest.approx(1 / 12, rel=3 * h)


def test_third_order_as_shipped_misses_the_quadratic_by_2_9e_3():
    """d2_scale = 1, as every published implementation has it: h^2 d''/2 times the weight of h^2
    d''."""
    assert error(2, order=3, d2_scale=2.0) < EXACT
    assert error(2, order=3, d2_scale=1.0) == pytest.approx(2.9e-3, rel=0.05)
    assert error(1, order=3, d2_scale=1.0) < EXACT


def test_third_order_sde_as_shipped_has_a_sign_wrong():
    """sde3_offset = -1 (that is, - 1/2 for + 1/2): 6.6e-2 on a quadratic, exact on lines."""
    assert error(2, eta=1.0, order=3, sde3_offset=0.0) < EXACT
    shipped = {"order": 3, "d2_scale": 1.0, "sde3_offset": -1.0}
    assert error(2, eta=1.0, **shipped) == pytest.approx(6.6e-2, rel=0.05)
    assert error(1, eta=1.0, **shipped) < EXACT
    # with the sign turned only the factor 2 is left
    assert error(2, eta=1.0, order=3, d2_scale=1.0) == pytest.approx(5.9e-3, rel=0.05)


def test_third_order_sde_as_shipped_against_its_printed_formula():
    """D2's weight: a' ((1 - e^{-2h} - 2h) / (2h)^2 - 1/2) in diffusers, + 1/2 in k-diffusion's
    terms."""
    h = LAM[3] - LAM[2]
    a1 = grid().alpha[3]
    size = a1 * ((1 - np.exp(-2 * h) - 2 * h) / (2 * h) ** 2 + np.array([-0.5, 0.5]))
    r0, r1 = (LAM[2] - LAM[1]) / h, (LAM[1] - LAM[0]) / h
    oldest = 1 / ((r0 + r1) * r1)  # of the second difference, on the prediction two steps back
    for offset, second in zip((-1.0, 0.0), size, strict=True):
        got, none = (
            dpmpp(grid(), 2, 2, order=3, eta=1.0, d2_scale=d, sde3_offset=o, **OPEN).next.h[1]
            for d, o in ((1.0, offset), (0.0, 0.0))
        )
        assert got - none == pytest.approx(second * oldest, rel=1e-12)


def test_the_ode_is_not_touched_by_the_sde_offset():
    rows = [dpmpp(grid(), 2, 2, order=3, sde3_offset=o, **OPEN).next for o in (0.0, -1.0)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize(("order", "predictor", "corrector"), [(1, 0, 0), (2, 0, 2), (3, 2, 3)])
def test_unipc_is_exact_up_to_these_degrees(order, predictor, corrector, predict, solver_type):
    """The corrector has a prediction more; where one difference is left, half of B(h) stands for
    its integral, and only constants are exact."""
    lam = np.append(LAM, -0.8)  # the corrector of the third step belongs to the fourth row
    options = {"order": order, "predict": predict, "solver_type": solver_type}
    options["lower_order_final"] = False

    def error(k, corrects):
        if corrects:
            row, i, first = unipc(grid(lam), 3, 3, **options).keep[1], 3, 2
            start = row.h[-1]
        else:
            row, i, first = unipc(grid(lam), 2, 2, corrected=0, **options).next, 2, 1
            start = row.x
        now = row.d if predict == "data" else row.n
        past = (w * lam[first - j] ** k for j, w in enumerate(row.h[:-1]) if w)
        made = float(start * START + now * lam[i] ** k + sum(past))
        return abs(made / exact(START, k, predict) - 1)

    for corrects, degree in ((False, predictor), (True, corrector)):
        errors = [error(k, corrects) for k in range(degree + 2)]
        assert max(errors[:-1]) < EXACT
        assert errors[-1] > 1e-5


@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver_is_exact_up_to_these_degrees(order, predict):
    """As many as there are predictions; but through two of the data the slope's integral is h^2 /
    2, and only constants are exact."""
    lam = np.append(LAM, -0.8)  # the corrector of the third step belongs to the fourth row
    options = {"predictor_order": order, "corrector_order": order, "predict": predict, "tau": 0.0}
    degree = 0 if order == 2 and predict == "data" else order - 1

    def error(k, corrects):
        if corrects:
            row, i = sa_solver(grid(lam), 3, 3, **options, **OPEN).keep[1], 3
            start = row.h[-2]
        else:
            row, i = sa_solver(grid(lam), 2, 2, corrected=0, **options, **OPEN).next, 2
            start = row.x
        now = row.d if predict == "data" else row.n
        past = (w * lam[i - j] ** k for j, w in enumerate(row.h[:-2], 1) if w)
        made = float(start * START + now * lam[i] ** k + sum(past))
        return abs(made / exact(START, k, predict) - 1)

    for corrects in (False, True):
        errors = [error(k, corrects) for k in range(degree + 2)]
        assert max(errors[:-1]) < EXACT
        assert errors[-1] > 1e-5


# Solvers in sh = sigma / alpha: there d(x / alpha) / d sh = n, so n(sh) = sh^k is integrated.


def in_the_noise_level(solver, k, calls, last):
    """Relative error of row `last` after the exact samples of the rows before it."""
    plan = fastdiff.plan(
        solver, steps=calls, spacing=[3.0, 2.2, 1.7, 1.1, 0.6, 0.4], prediction="epsilon"
    )
    sh = plan.sigma / plan.alpha
    true = START + sh ** (k + 1) / (k + 1)
    path = run_plan(plan, lambda x, t, j: sh[j] ** k + 0 * x, true[:1], given=warm(true, last))
    return abs(float(path[last + 1][0]) / true[last + 1] - 1)


def warm(true, last):
    return {j: true[j : j + 1] for j in range(1, last + 1)}


@pytest.mark.parametrize(
    ("solver", "calls", "last", "degree"),
    [
        ("lms", 5, 3, 4),  # four predictions by then
        ("lms", 5, 2, 3),
        ("ipndm_v", 5, 3, 4),
        ("ipndm", 5, 3, 1),  # exact for any slope on equal steps alone
        ("heun", 9, 5, 2),  # a second half
        ("heun", 9, 6, 1),  # a first half
        ("kdpm2", 9, 5, 1),  # the middle is that of log sh
    ],
)
def test_exact_in_the_noise_level_up_to_its_degree(solver, calls, last, degree):
    for k in range(degree):
        assert in_the_noise_level(solver, k, calls, last) < EXACT
    assert in_the_noise_level(solver, degree, calls, last) > 1e-4


def test_equal_steps_are_exact_where_steps_are_equal():
    """iPNDM is LMS there: of order 4 as well."""
    grid = Grid(np.ones(6), np.linspace(3.0, 0.5, 6))
    for i in range(1, 5):
        equal, exact_ = (adams(grid, i, i, steps=kind).next for kind in ("equal", "exact"))
        np.testing.assert_allclose((equal.n, *equal.h), (exact_.n, *exact_.h), rtol=1e-12)
