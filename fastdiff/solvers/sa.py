"""SA-Solver: stochastic Adams methods, a predictor whose result a corrector takes again.

For the diffusion SDE with tau >= 0 as the amount of noise put back (0: the ODE, 1: the reverse
SDE), in lambda = log(alpha / sigma), h = lambda' - lambda and primes for grid point i + 1,

  data     x' = (s'/s) e^{-tau^2 h} x + (1 + tau^2) a' int_0^h e^{-(1 + tau^2)(h - u)} P(u) du
                + s' sqrt(1 - e^{-2 tau^2 h}) z
  noise    x' = (a'/a) x - (1 + tau^2) s' int_0^h e^{h - u} P(u) du + tau s' sqrt(e^{2h} - 1) z

The predictor's P goes through the last p predictions.  Once the network has been called on x', the
corrector takes the step again from where it began, with the same z and a polynomial through that
prediction and the c - 1 before it; the next step begins with its result.  Through two predictions
of the data the slope's integral is that of u e^0, h^2 / 2, as the authors have it for few steps.

Xue et al. 2023, arXiv:2309.05019: SA-Predictor and SA-Corrector.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastdiff.solvers.dpmpp import REPEATED
from fastdiff.solvers.heun import NOTHING
from fastdiff.solvers.phi import phi
from fastdiff.solvers.row import DATA, NOISE, Grid, Row, Weights
from fastdiff.solvers.unipc import NO_SIGNAL


class Step(NamedTuple):
    """x' = x weight * x + sum of weights * predictions, newest first, + z weight * z."""

    x: float
    weights: tuple[float, ...]
    z: float


def orders_of(
    i: int, n: int, k: int, orders: tuple[int, int], lower_order_final: bool
) -> tuple[int, int]:
    """Of step i of n after k steps of the run: the orders of its predictor and its corrector."""
    predictor, corrector = orders
    if lower_order_final:
        predictor, corrector = min(predictor, n - i), min(corrector, n - i + 1)
    return max(1, min(predictor, k + 1)), max(1, min(corrector, k + 2))


def sa_solver(
    grid: Grid,
    i: int,
    k: int,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    s_noise: float = 1.0,
    predict: str = "data",
    lower_order_final: bool = True,
    use: int | None = None,
    corrected: int | None = None,
    tau_before: float | None = None,
) -> Row:
    """One row.  keeps the prediction, depth max(orders) - 1, where the step began and its noise,
    depth 1 each.

    tau         of this step; tau_before: of the step before, the same if None
    use         the order of the predictor; None: as the steps before imply
    corrected   the order of the correction of the step before, 0 for none; None: as they imply
    """
    n, data = grid.steps, predict == "data"
    if not data and float(grid.alpha[i]) < NO_SIGNAL * float(grid.sigma[i]):
        raise ValueError(
            "a solver that predicts the noise cannot start from a level without signal "
            f"(alpha = {float(grid.alpha[i]):g}); predict the data or start below it"
        )
    orders = predictor_order, corrector_order
    if corrected is None:
        before = orders_of(i - 1, n, k - 1, orders, lower_order_final)
        corrected = 0 if k == 0 or i == 0 else before[1]
    if use is None:
        use = orders_of(i, n, k, orders, lower_order_final)[0]
    start, last, now, made = 0.0, 0.0, 1.0, 0.0
    past = np.zeros(max(*orders, use, corrected) - 1)
    if corrected:
        taken = tau if tau_before is None else tau_before
        step = _step(grid, i - 1, corrected, taken, data, corrector=True)
        start, last, now = step.x, step.z * s_noise, 0.0
        made, *older = step.weights
        past[: len(older)] = older
    begun = _weights(now, made, past, start, last, data)
    move = _step(grid, i, use, tau, data, corrector=False)
    first, *older = move.weights
    ahead = move.x * past
    ahead[: len(older)] += older
    next_ = _weights(
        move.x * now, move.x * made + first, ahead, move.x * start, move.x * last, data,
        move.z * s_noise,
    )  # fmt: skip
    noise = Weights(z=1.0) if move.z else NOTHING
    return Row(next_, (DATA if data else NOISE, begun, noise))


def _weights(
    x: float, m: float, past: np.ndarray, start: float, last: float, data: bool, z: float = 0.0
) -> Weights:
    h = (*map(float, past), float(start), float(last))
    return Weights(x=x, d=m, z=z, h=h) if data else Weights(x=x, n=m, z=z, h=h)


def _step(grid: Grid, i: int, order: int, tau: float, data: bool, *, corrector: bool) -> Step:
    """Step i through `order` predictions, of a corrector the newest at its end."""
    a, s = float(grid.alpha[i]), float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    none = (0.0,) * (order - 1)
    if s1 == 0:  # h is infinite: the sample is the prediction of x_0
        return Step(0.0, (a1, *none), 0.0) if data else Step(a1 / a, (-a1 * s / a, *none), 0.0)
    h = grid.span(i, i + 1)
    if h == 0:  # two equal noise levels: nothing to do
        return Step(1.0, (0.0, *none), 0.0)
    if math.isinf(h):  # no signal yet: the newest prediction is all there is
        return Step(0.0 if tau else s1 / s, (a1, *none), s1 if tau else 0.0)
    if h < 0:  # towards the noise there is no reverse SDE: the ODE
        tau = 0.0
    square = tau * tau
    if data:
        hh, factor, x = -(1 + square) * h, (1 + square) * h * a1, s1 / s * math.exp(-square * h)
        z = s1 * math.sqrt(-math.expm1(-2 * square * h))
    else:
        hh, factor, x = h, -(1 + square) * h * s1, a1 / a
        z = tau * s1 * math.sqrt(math.expm1(2 * h)) if tau else 0.0
    found = _integrals(grid, i, order, h, hh, data, corrector)
    return Step(x, tuple(factor * w for w in found), z)


def _integrals(
    grid: Grid, i: int, order: int, h: float, hh: float, data: bool, corrector: bool
) -> list[float]:
    """int_0^1 e^{(1 - v) hh} L_j(v) dv of the polynomials through the predictions, newest first."""
    out = [0.0] * order
    whole = phi(1, hh)
    if corrector and order == 1:
        return [whole]
    now = int(corrector)  # where in `out` the prediction at the step's beginning is
    at: list[int] = []
    places: list[float] = []
    for j in range(order):
        point = i + now - j
        if point == i:
            continue
        place = 1.0 if point > i else grid.span(i, point) / h
        # the same level twice, or one without signal, says nothing about the slope
        if REPEATED < abs(place) < math.inf and all(abs(place - p) > REPEATED for p in places):
            at.append(j)
            places.append(place)
    if places:
        right = [math.factorial(q) * phi(q + 1, hh) for q in range(1, len(places) + 1)]
        if data and order == 2:
            right = [0.5]
        matrix = np.vander(places, len(places) + 1, increasing=True).T[1:]
        for j, weight in zip(at, np.linalg.solve(matrix, right), strict=True):
            out[j] = float(weight)
    out[now] = whole - math.fsum(out)
    return out
