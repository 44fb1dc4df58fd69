"""Heun's method in the noise level sigma of x / alpha: two calls of the network a step.

With sh = sigma / alpha the ODE is d(x / alpha) / d sh = n, so

    x'  = a' (x / a + (sh' - sh) n)                  an Euler step, to where the network is called
    x'' = a' (x / a + (sh' - sh) (n + n') / 2)       the step again with the slopes at both ends

Each is a row, so a grid holds every inner level twice: a row between two equal levels takes the
step before it again.  The step to level 0 has no second half, for the network has no noise there
to predict.  Karras et al. 2022, arXiv:2206.00364, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from fastdiff.solvers.euler import euler
from fastdiff.solvers.row import NOISE, Floats, Grid, Row, Weights

START = Weights(x=1.0)  # keep the sample that a step begins with
NOTHING = Weights()  # the row keeps nothing that a later one reads


def repeated(levels: Floats, steps: int, **_: object) -> Floats:
    """Levels (steps // 2 + 2,) as the points of `steps` rows: the inner ones twice.

    An even number of rows leaves the second half of the last inner step out.
    """
    points = np.concatenate([levels[:1], np.repeat(levels[1:-1], 2), levels[-1:]])
    return points if steps % 2 else np.delete(points, -2)


def again(length: float, scale: float) -> Weights:
    """The second half of a step: length a' (sh' - sh), scale a' / a; h: first slope, start."""
    return Weights(n=length / 2, h=(length / 2, scale))


def heun(grid: Grid, i: int, k: int) -> Row:
    """One row.  keeps the slope and the start of the step, depth 1 each."""
    if k > 0 and _equal(grid, i) and not _equal(grid, i - 1):
        a0 = float(grid.alpha[i - 1])
        if a0 == 0 or grid.sigma[i] == 0:  # no signal where it began: the first half stays
            return Row(Weights(x=1.0, h=(0.0, 0.0)), (NOTHING, NOTHING))
        move = again(-grid.cross(i - 1, i) / a0, float(grid.alpha[i]) / a0)
        return Row(move, (NOTHING, NOTHING))
    move = euler(grid, i, 0).next
    follows = i + 2 <= grid.steps and _equal(grid, i + 1) and not _equal(grid, i)
    keep = (NOISE, START) if follows and grid.alpha[i] > 0 else (NOTHING, NOTHING)
    return Row(Weights(move.x, move.d, move.n, h=(0.0, 0.0)), keep)


def straight(grid: Grid, i: int, k: int) -> Row:
    """One row of Heun's method along the straight line between two levels, as flows have it.

        v = (a' - a) d + (s' - s) n,    x' = x + v,    x'' = x + (v + v') / 2

    The move v to the end of a step and its start are kept, depth 1 each.  With a + s = 1 this is
    Heun in the noise level along the velocity n - d: FlowMatchHeun of diffusers.
    """
    if k > 0 and _equal(grid, i) and not _equal(grid, i - 1):
        if grid.sigma[i] == 0:
            return Row(Weights(x=1.0, h=(0.0, 0.0)), (NOTHING, NOTHING))
        v = _chord(grid, i - 1)
        return Row(Weights(d=v.d / 2, n=v.n / 2, h=(0.5, 1.0)), (NOTHING, NOTHING))
    v = _chord(grid, i)
    follows = i + 2 <= grid.steps and _equal(grid, i + 1) and not _equal(grid, i)
    keep = (v, START) if follows else (NOTHING, NOTHING)
    if grid.sigma[i + 1] == 0:  # a step to the prediction of x_0, also where that was clipped
        return Row(Weights(d=float(grid.alpha[i + 1]), h=(0.0, 0.0)), keep)
    return Row(Weights(x=1.0, d=v.d, n=v.n, h=(0.0, 0.0)), keep)


def _chord(grid: Grid, i: int) -> Weights:
    """The move from grid point i to i + 1 for predictions d and n."""
    moved = (levels[i + 1] - levels[i] for levels in (grid.alpha, grid.sigma))
    d, n = map(float, moved)
    return Weights(d=d, n=n)


def _equal(grid: Grid, i: int) -> bool:
    """Whether grid points i and i + 1 are one level."""
    return grid.ratio(i) == grid.ratio(i + 1)
