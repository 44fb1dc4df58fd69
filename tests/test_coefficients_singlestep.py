"""Weights of singlestep DPM-Solver to 1e-11 against mpmath, as tests/test_coefficients.py; and the
orders of its rows.
"""

import diffusers
import mpmath
import numpy as np
import pytest
from mpmath import mpf

from fastdiff.solvers.dpmpp import NO_SIGNAL
from fastdiff.solvers.row import Grid
from fastdiff.solvers.singlestep import order_of, update
from tests.test_coefficients import DIGITS, cases, close, lagrange, level, moments


def cycle_weights(grid, i, use, predict, eta, solver_type):
    """(x_b, weights of the predictions at i, i - 1, .., noise): Lu et al. 2022, a step of order
    `use` from b = i + 1 - use, its polynomial integrated whole ("heun"), or, "midpoint", with half
    of the value's weight for the slope (order 2) or without the prediction in between (order 3)."""
    a, s, lam = level(grid, i + 1 - use)
    a1, s1, lam1 = level(grid, i + 1)
    h, eta = lam1 - lam, mpf(eta)
    nodes = [level(grid, i - age)[2] - lam for age in range(use)]
    if predict == "data":
        x, factor = s1 / s * mpmath.exp(-eta * h), (1 + eta) * a1
        noise = s1 * mpmath.sqrt(1 - mpmath.exp(-2 * eta * h))
        integral = moments(1 + eta, h, use)
    else:
        x, factor = a1 / a, -(1 + eta) * s1
        noise = s1 * mpmath.sqrt(eta * (mpmath.exp(2 * h) - 1))
        integral = moments(mpf(-1), h, use)
    if solver_type == "midpoint" and use == 2:
        w = integral[0] / 2 * h / nodes[0]
        return x, [factor * w, factor * (integral[0] - w)], noise
    if solver_type == "midpoint" and use == 3:
        nodes, integral = nodes[::2], integral[:2]
    weights = [
        factor * sum(p * m for p, m in zip(poly, integral, strict=True)) for poly in lagrange(nodes)
    ]
    return x, weights if len(weights) == use else [weights[0], mpf(0), weights[1]], noise


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("use", [1, 2, 3])
def test_rows_of_a_cycle(use, solver_type, predict, eta):
    with mpmath.workdps(DIGITS):
        for grid, i in cases()[::3]:
            begin = i + 1 - use
            if predict == "noise" and grid.alpha[begin] < NO_SIGNAL * grid.sigma[begin]:
                continue  # refused
            row = update(grid, i, use, solver_type=solver_type, predict=predict, eta=eta)
            x, weights, noise = cycle_weights(grid, i, use, predict, eta, solver_type)
            now = row.d if predict == "data" else row.n
            begun = row.h[-1] if use > 1 else row.x
            size = sum(map(abs, weights))
            for got, want in zip((now, *row.h[:-1]), weights, strict=True):
                assert abs(got - want) < 1e-11 * size, (grid, i, got, mpmath.nstr(want, 17))
            assert close(begun, x)
            assert close(row.z, noise)


def test_the_sign_as_shipped_is_its_printed_formula():
    """The weight of P'' is a' ((1 - e^{-2h} - 2h) / (2h)^2 - 1/2) in diffusers, + 1/2 is right."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            a1, _, lam1 = level(grid, i + 1)
            b, middle, newest = (level(grid, i - age)[2] for age in (2, 1, 0))
            h = lam1 - b
            curve = 2 * h * h / ((newest - b) * (newest - middle))  # of P'', on the newest
            slope = -(middle - b) * h / ((newest - b) * (newest - middle))  # of h P'(0)
            value = a1 * (1 + (mpmath.exp(-2 * h) - 1) / (2 * h))
            for offset, half in ((-1.0, mpf(-0.5)), (0.0, mpf(0.5))):
                bend = a1 * ((1 - mpmath.exp(-2 * h) - 2 * h) / (2 * h) ** 2 + half)
                row = update(grid, i, 3, solver_type="heun", eta=1.0, sde3_offset=offset)
                size = abs(slope * value) + abs(curve * bend)
                assert abs(row.d - (slope * value + curve * bend)) < 1e-11 * size
            plain, other = (
                update(grid, i, 3, solver_type=kind, eta=eta, sde3_offset=-1.0)
                for kind, eta in (("heun", 0.0), ("midpoint", 1.0))
            )
            assert plain == update(grid, i, 3, solver_type="heun")
            assert other == update(grid, i, 3, eta=1.0)


@pytest.mark.parametrize("alpha", [0.0, 1e-9])
@pytest.mark.parametrize("use", [1, 2, 3])
def test_from_no_signal_the_newest_prediction_is_all_there_is(use, alpha):
    """Also of a solver of the noise, in its form for the data; not with noise of its own."""
    grid = Grid(np.array([alpha, 0.2, 0.5, 0.9]), np.array([1.0, 0.8, 0.5, 0.1]))
    row = update(grid, use - 1, use, predict="noise")
    a1, s1 = grid.alpha[use], grid.sigma[use]
    assert row.d == pytest.approx(a1 - alpha * s1, rel=1e-12)
    begun = row.h[-1] if use > 1 else row.x
    assert begun == pytest.approx(s1, rel=1e-12)
    assert (row.n, row.z, *row.h[:-1]) == (0.0,) * (2 + len(row.h[:-1]))
    with pytest.raises(ValueError, match="cannot start from a level without signal"):
        update(grid, use - 1, use, predict="noise", eta=1.0)
    if alpha == 0:
        assert update(grid, use - 1, use) == row
        fresh = update(grid, use - 1, use, eta=1.0)
        assert (fresh.d, fresh.z) == (a1, s1)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_orders_are_those_of_diffusers(order, final):
    for n in range(1, 20):
        for lower in (True, False):
            if not lower and (n % order or final == "zero"):
                continue  # diffusers changes the option
            stock = diffusers.DPMSolverSinglestepScheduler(
                solver_order=order, lower_order_final=lower, final_sigmas_type=final
            )
            ours = [order_of(i, n, order, lower) for i in range(n)]
            if final == "zero":
                ours[-1] = 1
            assert ours == stock.get_order_list(n)
    assert [order_of(i, 7, 3, False) for i in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert [order_of(i, 6, 3, True) for i in range(6)] == [1, 2, 3, 1, 2, 1]
