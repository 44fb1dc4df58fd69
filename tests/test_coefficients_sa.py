"""Weights of SA-Solver to 1e-11 against mpmath: what its corrector makes of a step, and what its
predictor makes of that.  test_coefficients.py has the others, and the integrals."""

import mpmath
import pytest
from mpmath import mpf

from fastdiff.solvers.sa import sa_solver
from tests.test_coefficients import DIGITS, OPEN, close, lagrange, level, moments, unipc_cases


def sa_weights(grid, i, order, predict, tau, corrects):
    """Step i through `order` predictions, newest first, of which a corrector has one at its end:
    weights of (x, predictions, noise).

    Xue et al. 2023: the integral of the Lagrange polynomials, in lambda, against e^{(1 + tau^2)
    lambda} (data) or e^{-lambda} (noise); through two predictions of the data the slope's is h^2 /
    2.
    """
    a, s, lam = level(grid, i)
    a1, s1, lam1 = level(grid, i + 1)
    h, square = lam1 - lam, mpf(tau) ** 2
    nodes = [level(grid, i + int(corrects) - age)[2] - lam for age in range(order)]
    if predict == "data":
        x, factor, c = s1 / s * mpmath.exp(-square * h), (1 + square) * a1, 1 + square
        noise = s1 * mpmath.sqrt(1 - mpmath.exp(-2 * square * h))
    else:
        x, factor, c = a1 / a, -(1 + square) * s1, mpf(-1)
        noise = tau * s1 * mpmath.sqrt(mpmath.exp(2 * h) - 1)
    integral = moments(c, h, order)
    if predict == "data" and order == 2:
        integral[1] = h**2 / 2
    weights = [
        factor * sum(p * m for p, m in zip(poly, integral, strict=True)) for poly in lagrange(nodes)
    ]
    return x, weights, noise


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize(("p", "c"), [(1, 1), (2, 2), (3, 3), (1, 3), (3, 2)])
def test_sa_solver(p, c, predict, tau):
    """The corrected sample, and what the predictor makes of it."""
    options = {"predictor_order": p, "corrector_order": c, "predict": predict, "tau": tau}
    with mpmath.workdps(DIGITS):
        for grid, i in unipc_cases():
            x0, old, z0 = sa_weights(grid, i - 1, c, predict, tau / 2, True)
            row = sa_solver(grid, i, i, tau_before=tau / 2, **options, **OPEN)
            begins, moved = row.keep[1], row.next
            now = begins.d if predict == "data" else begins.n
            depth = max(p, c) - 1
            want = [*old, *(0 for _ in range(depth + 1 - len(old)))]
            assert all(map(close, (now, *begins.h), (*want, x0, z0))), (grid, i)
            x1, new, z1 = sa_weights(grid, i, p, predict, tau, False)
            total, sizes = [x1 * w for w in want], [abs(x1 * w) for w in want]
            for j, weight in enumerate(new):
                total[j] += weight
                sizes[j] += abs(weight)
            made = moved.d if predict == "data" else moved.n
            for got, w, size in zip((made, *moved.h), total, sizes, strict=False):
                assert abs(got - w) <= 1e-11 * size
            assert all(map(close, (*moved.h[depth:], moved.z), (x1 * x0, x1 * z0, z1)))
            assert begins.x == moved.x == 0
