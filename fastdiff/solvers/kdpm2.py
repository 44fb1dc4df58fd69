"""DPM-Solver-2 of Karras et al. in the noise level sigma of x / alpha: two calls a step, the second
in the middle; plain, or ancestral.

With sh = sigma / alpha the ODE is d(x / alpha) / d sh = n, and down = sh' without fresh noise,

    x'  = a' (x / a + (sh_m - sh) n)                     Euler to the middle, sh_m^2 = sh down
    x'' = a'' (x / a + (down - sh) n_m + up z)   from the start, with the middle's slope

down^2 + up^2 = sh''^2, up as in euler.py.  Each is a row: points of odd number are middles.  The
step to level 0, where there is no middle, is one Euler row.

Karras et al. 2022, arXiv:2206.00364, eq. 3 of its appendix C (alpha = 1/2 in log sigma);
k-diffusion's sample_dpm_2 and sample_dpm_2_ancestral.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastdiff.solvers.euler import euler
from fastdiff.solvers.heun import NOTHING, START
from fastdiff.solvers.row import Floats, Grid, Row, Weights


def middles(levels: Floats, steps: int, *, eta: float = 0.0, **_: object) -> Floats:
    """Levels (steps // 2 + 2,) as the points of `steps` rows: a middle between two of them.

    Not before the last level.  An even number of rows leaves the last middle out.
    """
    inner = levels[:-1]
    downs = [split(a, b, (a - b) * (a + b), eta)[0] for a, b in pairwise(inner)]
    points = np.repeat(inner, 2)[:-1]
    points[1::2] = np.sqrt(inner[:-1]) * np.sqrt(downs)
    points = np.append(points, levels[-1])
    return points if steps % 2 else np.delete(points, -3)


def split(sh: float, sh1: float, lost: float, eta: float) -> tuple[float, float]:
    """(down, up) of a step from sh to sh1; lost = sh^2 - sh1^2."""
    up = min(sh1, eta * sh1 * math.sqrt(max(lost, 0.0)) / sh) if eta else 0.0
    # (sh1 - up) (sh1 + up), which keeps its digits where nearly all of the noise is fresh
    left = (1 - eta) * (1 + eta) + (eta * sh1 / sh) ** 2
    return sh1 * math.sqrt(max(left, 0.0)), up


def kdpm2(grid: Grid, i: int, k: int, *, eta: float = 0.0, s_noise: float = 1.0) -> Row:
    """One row.  keeps the start of the step, depth 1."""
    a0 = float(grid.alpha[i - 1]) if i % 2 else 0.0
    if k > 0 and a0 > 0 and _whole(grid, i - 1):
        a1, sh, sh1 = float(grid.alpha[i + 1]), grid.ratio(i - 1), grid.ratio(i + 1)
        apart = grid.cross(i - 1, i + 1) / a0  # a'' (sh - sh''), rounded once
        down, up = split(sh, sh1, apart / a1 * (sh + sh1), eta)
        # down - sh = (down^2 - sh^2) / (down + sh), without the difference of two near numbers
        length = -(apart * (sh + sh1) + a1 * up * up) / (down + sh)
        return Row(Weights(n=length, z=a1 * up * s_noise, h=(a1 / a0,)), (NOTHING,))
    move = euler(grid, i, 0).next
    keep = START if i % 2 == 0 and grid.alpha[i] > 0 and _whole(grid, i) else NOTHING
    return Row(Weights(move.x, move.d, move.n, h=(0.0,)), (keep,))


def _whole(grid: Grid, i: int) -> bool:
    """Whether the step from point i, over a middle, goes to a level above 0."""
    return i + 2 <= grid.steps and grid.sigma[i + 2] > 0
