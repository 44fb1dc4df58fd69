"""PLMS: Adams-Bashforth with the weights of equal steps, its first step taken twice.

With sh = sigma / alpha the ODE is d(x / alpha) / d sh = n.  The first step is improved Euler

    x'  = a' (x / a + (sh' - sh) n)                     to where the network is called again
    x'' = a' (x / a + (sh' - sh) (n + n') / 2)          the step again with both slopes

and all later ones are those of adams.py: x' = a' (x / a + (sh' - sh) (55 n - 59 n_1 + 37 n_2 -
9 n_3) / 24), of the order that the predictions made so far allow.  The network is called at the
second level twice, so a grid holds that level twice; n' is used there and forgotten.  A run that
begins later (image to image) has no second call and begins with order 1.

Liu et al. 2022, arXiv:2202.09778, eq. 9 and 12; the start is Stable Diffusion's (CompVis, plms.py).
"""

from __future__ import annotations

import numpy as np

from fastdiff.solvers.adams import MOST, adams
from fastdiff.solvers.heun import NOTHING, START, again
from fastdiff.solvers.row import NOISE, Floats, Grid, Row, Weights

PAST = MOST - 1


def second_twice(levels: Floats, rows: int, **_: object) -> Floats:
    """Levels (M + 1,) as the points of `rows` rows: M + 1 of them hold the second level twice."""
    return levels if len(levels) > rows else np.insert(levels, 1, levels[1])


def plms(grid: Grid, i: int, k: int) -> Row:
    """One row.  keeps the noise, depth 3, and the start of the first step, depth 1."""
    whole = i == k and grid.steps > 2 and grid.ratio(1) == grid.ratio(2)
    none = (0.0,) * PAST
    if whole and i == 1:
        first = Weights(h=(1.0, *none))  # stays the newest that later rows read
        a0, a1 = float(grid.alpha[0]), float(grid.alpha[1])
        if a0 == 0:  # no signal where it began: the first result stays
            return Row(Weights(x=1.0, h=(*none, 0.0)), (first, NOTHING))
        move = again(-grid.cross(0, 1) / a0, a1 / a0)
        slope, start = move.h
        return Row(Weights(n=move.n, h=(slope, *none[1:], start)), (first, NOTHING))
    if whole and i > 1:  # as if the second call had not been
        grid = Grid(np.delete(grid.alpha, 1), np.delete(grid.sigma, 1))
        i, k = i - 1, k - 1
    move = adams(grid, i, k, steps="equal").next
    keep = START if whole and i == 0 else NOTHING
    return Row(Weights(move.x, move.d, move.n, h=(*move.h, 0.0)), (NOISE, keep))
