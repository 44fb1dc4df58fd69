"""DPM-Solver and DPM-Solver++, singlestep: each step of order p is a cycle of p rows, p calls.

Row j of a cycle, j = 1 .. p, goes from where the cycle began (x_b at lambda_b), with the
predictions made since then, to the next grid point: over h = lambda_{i+1} - lambda_b, a step of
order j. With u_q = (lambda_q - lambda_b) / h the places of the predictions m_q, their differences

    D_q = (m_q - m_b) / u_q

and A, g, w_1, w_2, c the weights of x_b, of a constant, of h P', of h^2 P'' and of fresh noise
(solvers/dpmpp.py has the integrals, for data or noise, deterministic or with noise),

    order 1             x' = A x_b + g m_b + c z
    order 2, midpoint   x' = A x_b + g m_b + (g / 2) D_i + c z
    order 2, heun       x' = A x_b + g m_b + w_1 D_i + c z
    order 3, midpoint   the same formula, i two points after b
    order 3, heun       x' = A x_b + g m_b + w_1 P'(0) + w_2 P'' + c z, P through m_b, m_{i-1}, m_i

Every row puts back the noise of its whole way from b; what an earlier row of the cycle drew shows
in the predictions alone.

Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2, and arXiv:2211.01095, algorithm 1; the places
u_q are those of the grid. k-diffusion's dpmpp_sde and dpmpp_2s_ancestral are other methods.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fastdiff.solvers.dpmpp import NO_SIGNAL, REPEATED, integrals
from fastdiff.solvers.heun import NOTHING, START
from fastdiff.solvers.row import DATA, NOISE, Grid, Row, Weights

ROUNDING = 2.0**-48  # a part of a weight that is this small is rounding of the levels


def order_of(i: int, n: int, order: int, lower_order_final: bool) -> int:
    """The order of row i of n: the row's number in its cycle, from 1.

    Below a whole cycle at the end, its rows stay at that. lower_order_final: if the last cycle is
    whole, its last row is a step of order 1 of its own (as in the authors' code and diffusers).
    """
    if lower_order_final and i == n - 1 and n % order == 0:
        return 1
    return i % order + 1


def singlestep(
    grid: Grid,
    i: int,
    k: int,
    *,
    order: int = 2,
    solver_type: str = "midpoint",
    predict: str = "data",
    eta: float = 0.0,
    s_noise: float = 1.0,
    lower_order_final: bool = True,
    sde3_offset: float = 0.0,
) -> Row:
    """One row.  keeps the prediction, depth order - 1, and where the cycle began, depth 1.

    A run that begins in a cycle begins a cycle of its own, as long as what is left of that one. The
    row to level 0 is of order 1, for h is infinite there.
    """
    n = grid.steps

    def use_of(j: int) -> int:
        if grid.sigma[j + 1] == 0:
            return 1
        return min(order_of(j, n, order, lower_order_final), k + j - i + 1)

    def move_of(j: int) -> Weights:
        return update(
            grid,
            j,
            use_of(j),
            solver_type=solver_type,
            predict=predict,
            eta=eta,
            s_noise=s_noise,
            sde3_offset=sde3_offset,
        )

    use, move = use_of(i), move_of(i)
    if order == 1:
        return Row(move)
    past, begun = (move.h[:-1], move.h[-1]) if use > 1 else ((), 0.0)
    move = replace(move, h=(*past, *(0.0,) * (order - 1 - len(past)), begun))
    made = start = NOTHING
    for j in range(i + 1, min(n, i + order)):  # what the rest of the cycle reads
        if use_of(j) == 1:
            break
        later = move_of(j).h
        if later[j - i - 1] != 0:
            made = DATA if predict == "data" else NOISE
        if later[-1] != 0:
            start = START if use == 1 else Weights(h=(0.0,) * (order - 1) + (1.0,))
    return Row(move, (made, start))


def update(
    grid: Grid,
    i: int,
    use: int,
    *,
    solver_type: str = "midpoint",
    predict: str = "data",
    eta: float = 0.0,
    s_noise: float = 1.0,
    sde3_offset: float = 0.0,
) -> Weights:
    """Row `use` of a cycle, at grid point i.  h: `use` - 1 predictions, newest first, then where
    the cycle began; nothing if use is 1, where x is that.

    sde3_offset  added to the weight of h^2 P'' of "heun" with data and noise (see quirks)
    """
    b = i + 1 - use
    here, there = _level(grid, b), _level(grid, i + 1)
    (a, s), (a1, s1) = here, there
    data = predict == "data"
    none = (0.0,) * (use - 1)
    if s1 == 0:  # h is infinite: the sample is the prediction of x_0
        return _weights(0.0, 0.0, none, 0.0, True, use, of_x0=a1)
    silent = not data and a < NO_SIGNAL * s
    if silent and eta > 0:
        raise ValueError(
            "a solver that predicts the noise and draws some cannot start from a level without "
            f"signal (alpha = {a:g}); use DPM-Solver++ or start below it"
        )
    if silent or a == 0:  # h is infinite at the other end: the newest prediction is all there is
        fresh = s1 * s_noise if eta > 0 else 0.0
        made = -a1 * math.expm1(-grid.span(b, i + 1))
        return _weights(0.0 if eta > 0 else s1 / s, fresh, none, 0.0, True, use, of_x0=made)
    h = grid.span(b, i + 1)
    if h == 0:  # the cycle ends where it began
        return _weights(1.0, 0.0, none, 0.0, data, use)
    if h < 0:  # towards the noise there is no reverse SDE: the ODE (diffusers: NaN)
        eta = 0.0
    x, g, slope, bend, noise = integrals(here, there, h, predict, eta)
    if data and eta > 0:
        bend += a1 * sde3_offset
    places = [grid.span(b, i - j) / h for j in range(use)]  # newest first, of m_b 0
    apart = grid.span(i - 1, i) / h if use > 1 else 0.0
    now, *past = _differences(places, g, slope, bend, apart, solver_type)
    return _weights(x, noise * s_noise, tuple(past), now, data, use)


def _differences(
    places: list[float], g: float, slope: float, bend: float, apart: float, solver_type: str
) -> tuple[float, ...]:
    """Weights of the predictions, newest first.  apart: from the second newest place to the newest.

    A prediction made at another one's level adds nothing but rounding.
    """
    if len(places) == 1:
        return (g,)
    none = (0.0,) * (len(places) - 2)
    newest, second = places[0], places[1]
    if abs(newest) < REPEATED:
        return (0.0, *none, g)
    if len(places) == 2 or solver_type == "midpoint" or min(abs(second), abs(apart)) < REPEATED:
        w = (g / 2 if len(places) == 2 and solver_type == "midpoint" else slope) / newest
        # half way, the midpoint formula is the newest prediction alone
        return (w, *none, g - w if abs(g - w) > ROUNDING * abs(g) else 0.0)
    # P'(0) = (u_i D_{i-1} - u_{i-1} D_i) / (u_i - u_{i-1}),  P'' = 2 (D_i - D_{i-1}) / (..)
    first = (2 * bend - slope * second) / apart / newest
    other = (slope * newest - 2 * bend) / apart / second
    return (first, other, g - first - other)


def _weights(
    begun: float,
    z: float,
    past: tuple[float, ...],
    now: float,
    data: bool,
    use: int,
    *,
    of_x0: float = 0.0,
) -> Weights:
    """Weights of a row: where the cycle began is x on the first row, and kept on the others."""
    d, n = (now + of_x0, 0.0) if data else (of_x0, now)
    if use == 1:
        return Weights(x=begun, d=d, n=n, z=z)
    return Weights(d=d, n=n, z=z, h=(*past, begun))


def _level(grid: Grid, i: int) -> tuple[float, float]:
    return float(grid.alpha[i]), float(grid.sigma[i])
