"""DDIM: jump to the prediction of x_0 and back to the next noise level, eta of the noise fresh.

    x' = a' d + sqrt(s'^2 - v) n + sqrt(v) z,     v = eta^2 s'^2 (1 - e^{-2h})

h = lambda' - lambda; for a^2 + s^2 = 1 this v is sigma^2(eta) of Song et al. 2020,
arXiv:2010.02502, eq. 12 and 16.  eta = 0: the ODE to first order, the same step as DPM-Solver++ 1
and Euler.
"""

from __future__ import annotations

import math

from fastdiff.solvers.row import Grid, Row, Weights


def ddim(
    grid: Grid, i: int, k: int, *, eta: float = 0.0, use_clipped_model_output: bool = False
) -> Row:
    """One row; no history.  use_clipped_model_output: take n from the clipped d (as in GLIDE)."""
    a, s = float(grid.alpha[i]), float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    if s1 == 0:
        return Row(Weights(d=a1))
    h = grid.span(i, i + 1)
    share = -math.expm1(-2 * h)  # < 0 where a caller walks towards the noise (inversion)
    variance = eta * eta * s1 * s1 * share if eta else 0.0
    # s'^2 - v = s'^2 (1 - eta^2 + eta^2 e^{-2h}), which keeps its digits for eta = 1 and large h
    direction = s1 * math.sqrt(max((1 - eta) * (1 + eta) + eta * eta * math.exp(-2 * h), 0.0))
    noise = math.sqrt(variance) if variance > 0 else 0.0
    if use_clipped_model_output:  # n = (x - a d) / s
        return Row(Weights(x=direction / s, d=a1 - direction * a / s, z=noise))
    return Row(Weights(d=a1, n=direction, z=noise))
