"""Weights of the solvers in the noise level of x / alpha to 1e-11 against mpmath: linear multistep,
and those whose step is two calls of the network.  One-step methods are in test_coefficients.py."""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from fastdiff.registry import SOLVERS
from fastdiff.solvers.adams import adams
from fastdiff.solvers.heun import heun
from fastdiff.solvers.kdpm2 import kdpm2, middles
from fastdiff.solvers.plms import plms
from fastdiff.solvers.row import Grid
from tests.test_coefficients import DIGITS, cases, close, lagrange, level


def test_heun():
    """Karras et al. 2022, algorithm 1, in y = x / alpha: half of the step with each slope."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            (a, s, _), (a1, s1, _) = level(grid, i), level(grid, i + 1)
            length = a1 * (s1 / a1 - s / a)
            two = Grid(*(np.array([v[i], v[i + 1], v[i + 1]]) for v in (grid.alpha, grid.sigma)))
            first, second = heun(two, 0, 0), heun(two, 1, 1)
            assert close(first.next.x, a1 / a)
            assert close(first.next.n, length)
            assert [(w.x, w.d, w.n) for w in first.keep] == [(0, 0, 1), (1, 0, 0)]
            assert (second.next.x, second.next.d) == (0, 0)
            got, want = (second.next.n, *second.next.h), (length / 2, length / 2, a1 / a)
            assert all(map(close, got, want))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_kdpm2(eta):
    """To the geometric middle of the step without its noise, and over it with the slope there."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            ratios = np.array([grid.ratio(i), grid.ratio(i + 1), 0.0])
            (a, s, _), (a1, s1, _) = level(grid, i), level(grid, i + 1)
            up = eta * s1 / a1 * mpmath.sqrt(1 - (s1 * a / (a1 * s)) ** 2)
            down = mpmath.sqrt((s1 / a1) ** 2 - up**2)
            middle = middles(ratios, 3, eta=eta)[1]
            assert abs(middle / mpmath.sqrt(s / a * down) - 1) < 1e-10
            # of the VP levels of that middle only the ends enter the second row
            alpha, sigma = (np.insert(v[i : i + 2], 1, 0.5) for v in (grid.alpha, grid.sigma))
            row = kdpm2(Grid(alpha, sigma), 1, 1, eta=eta).next
            assert (row.x, row.d) == (0, 0)
            assert abs(row.n / (a1 * (down - s / a)) - 1) < 1e-11
            assert close(row.h[0], a1 / a)
            assert abs(row.z - a1 * up) <= 1e-11 * a1 * up


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms(order):
    """The polynomial through the last predictions, in Lagrange form, integrated over the step."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            (a, s, _), (a1, s1, _) = level(grid, i), level(grid, i + 1)
            length = s1 / a1 - s / a
            nodes = [level(grid, i - j)[1] / level(grid, i - j)[0] - s / a for j in range(order)]
            if order > 1 and max(abs(n / length) for n in nodes) > 1e6:
                continue  # a step of e^-20 after one of 1: weights far beyond 1 / rounding
            want = [
                a1 * sum(c * length ** (k + 1) / (k + 1) for k, c in enumerate(poly))
                for poly in lagrange(nodes)
            ]
            row = adams(grid, i, i, order=order).next
            assert close(row.x, a1 / a)
            assert all(map(close, (row.n, *row.h), want)), (grid, i)


def test_plms():
    """Improved Euler over the first step, then a mean of slopes whose weights are integrals of
    equal steps; the second call leaves nothing but the first slope."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            points = [i - 2, i - 1, i - 1, i, i + 1]
            run = Grid(grid.alpha[points], grid.sigma[points])
            rows = [plms(run, j, j) for j in range(4)]
            for j, row in enumerate(rows):
                (a, s, _), (a1, s1, _) = level(run, j), level(run, j + 1)
                if j == 1:  # from where the first step began
                    a, s, _ = level(run, 0)
                length, past = s1 / a1 - s / a, [int(j == 1), 1, 1, 2][j]
                equal = lagrange([mpf(-age) for age in range(past + 1)])
                weights = [sum(c / (k + 1) for k, c in enumerate(poly)) for poly in equal]
                if j == 1:
                    weights = [mpf(1) / 2] * 2
                weights = [a1 * length * w for w in weights] + [0] * (3 - past)
                start = a1 / a
                got = (row.next.n, *row.next.h[:3])
                assert all(map(close, got, weights)), (grid, i, j)
                assert close(row.next.h[3] if j == 1 else row.next.x, start)
                assert (row.next.x == 0) == (j == 1)
            assert [r.keep[0].n for r in rows] == [1, 0, 1, 1]
            assert rows[1].keep[0].h == (1, 0, 0, 0)
            assert [r.keep[1].x for r in rows] == [1, 0, 0, 0]


def test_ipndm_v():
    """Newton's form, as shipped but for three slips (docs/mathematics.md), is the integral."""
    with mpmath.workdps(DIGITS):
        for grid, i in cases():
            points = [i - 2, i - 1, i, i + 1]
            ratios = [level(grid, p)[1] / level(grid, p)[0] for p in points]
            first = ratios[0] + (ratios[0] - ratios[1]) / 3  # one more before them
            run = Grid(np.ones(5), np.array([float(r) for r in (first, *ratios)]))
            sh = [mpf(float(r)) for r in run.sigma]
            h, h1, h2, h3 = (sh[4 - j] - sh[3 - j] for j in range(4))
            if max(abs(step / h) for step in (h1, h2, h3)) > 1e5:
                continue  # a step of e^-20 after one of 1: weights far beyond 1 / rounding
            a, b = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
            bent, share = 1 - h / (3 * (h + h1)), 1 - h / (2 * (h + h1))
            second = bent / 2 * h * (h + h1) / (h1 * (h1 + h2))
            third = bent / 2 - share * h / (6 * (h + h1 + h2))
            third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            want = [
                1 + h / h1 / 2 + second + third,
                -h / h1 / 2 - (1 + a) * second - (1 + a + b) * third,
                a * second + (a + b * (1 + h2 / h3)) * third,
                -b * h2 / h3 * third,
            ]
            row = SOLVERS["ipndm_v"].row(run, 3, 3, **SOLVERS["ipndm_v"].preset).next
            assert row.x == 1
            for got, w in zip((row.n, *row.h), want, strict=True):
                assert abs(got / h - w) < 1e-11 * max(map(abs, want)), (grid, i)
