"""Trajectory consistency sampling: along the trajectory past the next level, then noise up to it.

    x_s = a_s d + s_s n,     s = (1 - eta) t'
    x'  = (a' / a_s) x_s + sqrt(s'^2 - (a' s_s / a_s)^2) z

eta is the paper's gamma: 0 is DDIM, 1 consistency sampling from the cleanest trained level.  t is
the model's time, which noise levels alone do not tell: `grid.inner` holds sigma / alpha at s.
Zheng et al. 2024, arXiv:2402.19159, algorithm 4.
"""

from __future__ import annotations

import math

import numpy as np

from fastdiff.schedules.noise import NoiseSchedule
from fastdiff.solvers.row import Floats, Grid, Row, Weights


def inner(family: NoiseSchedule, ratios: Floats, *, eta: float) -> Floats:
    """sigma / alpha at the model time (1 - eta) t of each grid point, (N + 1,)."""
    alpha, sigma = family.alpha_sigma(family.ratio_at((1 - eta) * family.time_of(ratios)))
    with np.errstate(divide="ignore"):  # a flow's noisiest level has no signal
        return np.asarray(sigma / alpha)


def tcd(grid: Grid, i: int, k: int, *, eta: float = 0.3) -> Row:
    """One row; no history."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta (gamma of the paper) must be a number from 0 to 1; got {eta!r}")
    a, s = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    if s == 0:
        return Row(Weights(d=a))
    if eta == 0:
        return Row(Weights(d=a, n=s))
    if grid.inner is None:
        raise ValueError(
            "tcd goes by the model's time, which noise levels alone do not tell: fastdiff.plan and "
            "fastdiff.sampler know it"
        )
    kept = min(a * float(grid.inner[i + 1]), s)  # a level in between, never a noisier one
    return Row(Weights(d=a, n=kept, z=math.sqrt((s - kept) * (s + kept))))
