"""phi functions against the integral that defines them, in 50 digits."""

import math

import mpmath
import pytest

from fastdiff.solvers.phi import phi

POINTS = (0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 5.0, 20.0, 40.0)


def integral(k, z):
    """phi_k(z) = int_0^1 exp((1 - t) z) t^{k-1} / (k-1)! dt; exp(z) for k = 0."""
    with mpmath.workdps(50):
        z = mpmath.mpf(z)
        if k == 0:
            return mpmath.exp(z)
        pieces = mpmath.linspace(0, 1, 9)
        return mpmath.quad(
            lambda t: mpmath.exp((1 - t) * z) * t ** (k - 1) / mpmath.factorial(k - 1), pieces
        )


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("z", sorted({s * p for s in (1, -1) for p in POINTS}))
def test_phi_is_the_integral(k, z):
    want = integral(k, z)
    # below 1 a sum of positive or shrinking terms: a few ulps; above, each of the k - 1 recurrences
    # subtracts 1/j! from a number of its size, which at worst (z = -1) costs a factor 4
    assert abs(phi(k, z) / want - 1) < (4 if abs(z) < 1 else 4**k) * 2.0**-53 + 2e-16


@pytest.mark.parametrize("k", range(1, 5))
@pytest.mark.parametrize("z", [1e-8, -1e-8, 0.3, -0.3, 3.0, -3.0])
def test_recurrence(k, z):
    """phi_{k-1}(z) = z phi_k(z) + 1 / (k-1)!."""
    assert phi(k - 1, z) == pytest.approx(z * phi(k, z) + 1 / math.factorial(k - 1), rel=1e-15)


def test_the_naive_formula_would_fail_here():
    """What the series is for: the recurrence alone loses k! / h^k ulps, here all but two digits."""
    h = 1e-5
    naive = (((math.exp(h) - 1) / h - 1) / h - 0.5) / h
    assert abs(naive / float(integral(3, h)) - 1) > 1e-3
    assert abs(phi(3, h) / float(integral(3, h)) - 1) < 4e-16
