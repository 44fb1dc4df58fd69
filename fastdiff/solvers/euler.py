"""Euler steps in the noise level sigma of x / alpha, plain, churned, or ancestral.

With sh = sigma / alpha, the ODE of x / alpha is d(x / alpha) / d sh = n, hence

    x' = a' (x / a + (sh' - sh) n)                               Euler
    x  <- x + nu z first, at sh_hat = (1 + gamma) sh             churn
    x' = a' (x / a + (down - sh) n + up z)                       ancestral, down^2 + up^2 = sh'^2

Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2; ancestral as in k-diffusion.  For
a' = a = 1 (the form diffusers uses) the factors of a vanish.
"""

from __future__ import annotations

import math

from fastdiff.solvers.row import Grid, Row, Weights


def euler(
    grid: Grid,
    i: int,
    k: int,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Row:
    """One row; no history.  s_churn > 0 adds noise before the step where s_tmin <= sh <= s_tmax."""
    a, a1 = float(grid.alpha[i]), float(grid.alpha[i + 1])
    sh, sh1 = grid.ratio(i), grid.ratio(i + 1)
    churned = s_tmin <= sh <= s_tmax and a > 0
    gamma = min(s_churn / grid.steps, math.sqrt(2) - 1) if churned else 0.0
    if gamma > 0:
        hat = sh * (1 + gamma)
        nu = a * s_noise * sh * math.sqrt(gamma * (2 + gamma))
        # from x + nu z, along the line through the prediction of x_0
        return Row(
            Weights(
                x=a1 / a * sh1 / hat,
                d=(grid.cross(i, i + 1) / a + a1 * gamma * sh) / hat,  # a' (1 - sh' / sh_hat)
                z=a1 / a * nu * sh1 / hat,
            ),
            churn=(nu, a * hat),
        )
    if sh1 == 0:
        return Row(Weights(d=a1))
    if a == 0:  # pure noise: x / a is infinite, x' = a' d + s' n is the same line
        return Row(Weights(d=a1, n=a1 * sh1))
    return Row(Weights(x=a1 / a, n=-grid.cross(i, i + 1) / a))


def euler_ancestral(grid: Grid, i: int, k: int, *, eta: float = 1.0, s_noise: float = 1.0) -> Row:
    """One row; no history.  eta = 1: all of the noise that the step allows is fresh."""
    a, a1 = float(grid.alpha[i]), float(grid.alpha[i + 1])
    sh, sh1 = grid.ratio(i), grid.ratio(i + 1)
    if sh1 == 0:
        return Row(Weights(d=a1))
    if a == 0:
        up = min(eta, 1.0) * sh1
        return Row(Weights(d=a1, n=a1 * math.sqrt((sh1 - up) * (sh1 + up)), z=a1 * s_noise * up))
    lost = grid.cross(i, i + 1) / (a * a1) * (sh + sh1)  # sh^2 - sh'^2
    up = min(sh1, eta * sh1 * math.sqrt(max(lost, 0.0)) / sh)
    down = math.sqrt((sh1 - up) * (sh1 + up))
    # down - sh = (down^2 - sh^2) / (down + sh), without the difference of two near numbers
    return Row(Weights(x=a1 / a, n=-a1 * (lost + up * up) / (down + sh), z=a1 * s_noise * up))
