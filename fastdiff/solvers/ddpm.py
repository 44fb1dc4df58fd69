"""DDPM: the posterior of the noising chain between two noise levels.

    x' = (s'/s) e^{-h} x + a' (1 - e^{-2h}) d + std z,     h = lambda' - lambda

Ho et al. 2020, arXiv:2006.11239, eq. 7, written for any two levels: e^{-h} = a s' / (a' s).
std^2 is s'^2 (1 - e^{-2h}) ("small", the posterior's own) or s^2 (1 - e^{-2h}) ("large", the noise
that the chain added; beta_t = 1 - (a/a')^2 for a^2 + s^2 = 1).
"""

from __future__ import annotations

import math

from fastdiff.solvers.row import Grid, Row, Weights


def ddpm(
    grid: Grid,
    i: int,
    k: int,
    *,
    variance: str = "small",
    final_noise: bool = True,
    chain: tuple[float, float] | None = None,
) -> Row:
    """One row; no history.

    variance     "small" or "large"
    final_noise  False: none on the step to level 0, where "large" has some (algorithm 2)
    chain        (alpha_t, beta_t) in place of (a/a')^2 and 1 - (a/a')^2 (see quirks)
    """
    s = float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    if s1 == 0:
        return Row(Weights(d=a1, z=s if variance == "large" and final_noise else 0.0))
    if chain is None:
        h = grid.span(i, i + 1)
        share, x = -math.expm1(-2 * h), s1 / s * math.exp(-h)
    else:
        share, x = chain[1] / s**2, math.sqrt(chain[0]) * (s1 / s) ** 2
    std = (s if variance == "large" else s1) * math.sqrt(max(share, 0.0))
    return Row(Weights(x=x, d=a1 * share, z=std))
