"""UniPC: a predictor whose result is corrected when the network has been called on it.

With r_j = (lambda_j - lambda) / h the places of the predictions m_j made before, seen from where a
step of length h begins, and hh = -h, G = -a' (data) or hh = h, G = -s' (noise), one step is

    x' = A x + G (e^hh - 1) m + sum_j G y_j (m_j - m) / r_j,      A = s'/s (data), a'/a (noise)
    sum_j r_j^(k-1) y_j = k! hh phi_{k+1}(hh),                    k = 1 .. number of the m_j

The predictor (UniP) takes p - 1 predictions made before.  The corrector (UniC), once m' is known at
the new place (r = 1), takes the step again with p - 1 and m', from the sample that the last step
began with: the next step begins with its result.  "bh1" and "bh2" are B = hh and B = e^hh - 1 of
the paper; they differ where y_j = B / 2 stands for the solution: in a predictor of order 2 and in a
corrector of order 1.

Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastdiff.solvers.dpmpp import REPEATED
from fastdiff.solvers.phi import phi
from fastdiff.solvers.row import DATA, NOISE, Grid, Row, Weights

TYPES = ("bh1", "bh2")
NO_SIGNAL = 2.0**-20  # of alpha: diffusers' flow grids begin at 1e-6, where six digits are left


class Step(NamedTuple):
    """x' = x weight * x + m weight * m + sum of weights * m_j; of a corrector the last is of m'."""

    x: float
    m: float
    others: tuple[float, ...]


def order_of(i: int, n: int, k: int, order: int, lower_order_final: bool) -> int:
    """The order of step i of n after k steps of the run."""
    use = min(order, k + 1)
    return max(1, min(use, n - i)) if lower_order_final else use


def unipc(
    grid: Grid,
    i: int,
    k: int,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict: str = "data",
    lower_order_final: bool = True,
    disable_corrector: tuple[int, ...] = (),
    corrected: int | None = None,
) -> Row:
    """One row.  keeps the prediction, depth order, and where the step began, depth 1.

    disable_corrector  steps after which the sample is not corrected
    corrected          the order of that correction, 0 for none; None: as the steps before imply
    """
    if solver_type not in TYPES:
        raise ValueError(f"solver_type must be one of {', '.join(TYPES)}; got {solver_type!r}")
    n = grid.steps
    data = predict == "data"
    if not data and float(grid.alpha[i]) < NO_SIGNAL * float(grid.sigma[i]):
        raise ValueError(
            "a solver that predicts the noise cannot start from a level without signal "
            f"(alpha = {float(grid.alpha[i]):g}); predict the data or start below it"
        )
    if corrected is None:
        off = k == 0 or i == 0 or i - 1 in disable_corrector
        corrected = 0 if off else order_of(i - 1, n, k - 1, order, lower_order_final)
    start, now, past = 0.0, 1.0, np.zeros(order + 1)  # x_c = start X + past m_j, or now x
    made = 0.0  # weight of the prediction made now
    if corrected:
        step = _step(grid, i - 1, corrected, solver_type, data, corrector=True)
        start, now, made = step.x, 0.0, step.others[-1]
        past[0] = step.m
        past[1 : len(step.others)] = step.others[:-1]
    begun = _weights(now, made, past[:order], start, data)
    use = order_of(i, n, k, order, lower_order_final)
    move = _step(grid, i, use, solver_type, data, corrector=False)
    ahead = move.x * past
    ahead[: len(move.others)] += move.others
    next_ = _weights(move.x * now, move.x * made + move.m, ahead[:order], move.x * start, data)
    return Row(next_, (DATA if data else NOISE, begun))


def _weights(x: float, m: float, past: np.ndarray, start: float, data: bool) -> Weights:
    h = (*map(float, past), float(start))
    return Weights(x=x, d=m, h=h) if data else Weights(x=x, n=m, h=h)


def _step(grid: Grid, i: int, order: int, solver_type: str, data: bool, *, corrector: bool) -> Step:
    """Step i with order - 1 predictions made before; corrector: and with the one made after."""
    a, s = float(grid.alpha[i]), float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    none = (0.0,) * (order if corrector else order - 1)
    if s1 == 0:  # h is infinite: the sample is the prediction of x_0
        return Step(0.0, a1, none) if data else Step(a1 / a, -a1 * s / a, none)
    h = grid.span(i, i + 1)
    if h == 0:
        return Step(1.0, 0.0, none)
    if math.isinf(h):  # no signal yet: the prediction is all there is, before and after
        g = -1.0 * -a1  # G (e^hh - 1), of a data solver
        after = g / 2 if corrector and solver_type == "bh2" else 0.0
        return Step(s1 / s, g - after, (*none[:-1], after) if corrector else none)
    hh, factor = (-h, -a1) if data else (h, -s1)
    at: list[int] = []
    places: list[float] = []
    for j in range(1, order):
        r = grid.span(i, i - j) / h
        # the same level twice, or one without signal, says nothing about the slope
        if REPEATED < abs(r) < math.inf and all(abs(r - other) > REPEATED for other in places):
            at.append(j)
            places.append(r)
    if corrector:
        at.append(0)
        places.append(1.0)
    half = len(places) == 1 and (order == 1 if corrector else order == 2)
    if half:
        y = np.array([(hh if solver_type == "bh1" else math.expm1(hh)) / 2])
    else:
        matrix = np.vander(places, increasing=True).T
        right = [math.factorial(q) * hh * phi(q + 1, hh) for q in range(1, len(places) + 1)]
        y = np.linalg.solve(matrix, right) if places else np.zeros(0)
    others = np.zeros(len(none))
    for j, r, weight in zip(at, places, y, strict=True):
        others[j - 1] = factor * weight / r  # of m', the last
    first = factor * math.expm1(hh) - float(others.sum())
    x = s1 / s if data else a1 / a
    return Step(x, first, tuple(map(float, others)))
