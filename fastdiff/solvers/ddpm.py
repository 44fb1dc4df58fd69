"""DDPM: the posterior of the noising chain between two noise levels.

    x' = (s'/s) e^{-h} x + a' (1 - e^{-2h}) d + std z,     h = lambda' - lambda

Ho et al. 2020, arXiv:2006.11239, eq. 7, written for any two levels: e^{-h} = a s' / (a' s).
std^2 is s'^2 (1 - e^{-2h}) ("small", the posterior's own) or 1 - (a/a')^2 ("large", beta_t).
"""

from __future__ import annotations

import math

from fastdiff.solvers.row import Grid, Row, Weights


def ddpm(grid: Grid, i: int, k: int, *, variance: str = "small") -> Row:
    """One row; no history.  variance: "small" or "large"."""
    a, s = float(grid.alpha[i]), float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    if variance == "large":
        std = math.sqrt(max(1 - (a / a1) ** 2, 0.0))
    else:
        std = 0.0
    if s1 == 0:
        return Row(Weights(d=a1, z=std))
    h = grid.lam(i + 1) - grid.lam(i)
    share = -math.expm1(-2 * h)
    if variance != "large":
        std = s1 * math.sqrt(max(share, 0.0))
    return Row(Weights(x=s1 / s * math.exp(-h), d=a1 * share, z=std))
