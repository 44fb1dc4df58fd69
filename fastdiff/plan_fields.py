"""Bounds of a plan's fields: what a run, in float32 and on whole timesteps, can hold.

The rows have checks of their own, in table.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.solvers.row import Grid

if TYPE_CHECKING:
    from fastdiff.plan import Plan

Floats = NDArray[np.float64]
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
WHOLE = 2.0**53  # beyond it float64 skips whole numbers, and int64 ends soon after


def check_times(timesteps: Floats, rows: Floats, draw: NDArray[np.bool_]) -> None:
    """Timesteps (N,) or (N, B), one a row, that int64 and float64 hold."""
    n = rows.shape[0] if rows.ndim else 0
    wide = timesteps.ndim == 2 and rows.ndim == 3 and 1 < timesteps.shape[1] == rows.shape[1]
    # where the other fields agree on N it is the timesteps that are wrong
    if not (timesteps.ndim == 1 or wide) or (len(timesteps) != n and draw.shape[:1] == (n,)):
        raise ValueError(
            f"timesteps must have shape ({n},), one for each of the rows; got {timesteps.shape}"
        )
    for time in timesteps[np.abs(timesteps) > WHOLE].tolist():
        raise ValueError(f"timesteps must be numbers in -2^53 .. 2^53; got {time:g}")


def check_shapes(plan: Plan, n: int) -> None:
    """One number for each of n rows or n + 1 levels, or of these and of B > 1 samples."""
    samples = plan.rows.shape[1]
    each = (samples,) if samples > 1 else ()
    for name, length in (("alpha", n + 1), ("sigma", n + 1), ("draw", n)):
        if getattr(plan, name).shape not in ((length,), (length, *each)):
            raise ValueError(
                f"{name} must have shape ({length},) for {n} timesteps; "
                f"got {getattr(plan, name).shape}"
            )
    for name in ("noise_scale", "c_in"):
        if np.shape(getattr(plan, name)) not in ((), each):
            raise ValueError(
                f"{name} must be a number{', or one for each sample, ' * bool(each)}{each or ''}; "
                f"got {np.shape(getattr(plan, name))}"
            )


def of_sample(plan: Plan, b: int) -> tuple[Floats, Floats, float, float]:
    """alpha (N + 1,), sigma (N + 1,), noise_scale and c_in of one sample."""
    alpha, sigma = (v if v.ndim == 1 else v[:, b] for v in (plan.alpha, plan.sigma))
    scale, c_in = (
        v if isinstance(v, float) else float(v[b]) for v in (plan.noise_scale, plan.c_in)
    )
    return alpha, sigma, scale, c_in


def check_levels(alpha: Floats, sigma: Floats, noise_scale: float, c_in: float) -> None:
    """Levels (N + 1,) and scales that float32 holds, with data or noise at every level."""
    for name, levels in (("alpha", alpha), ("sigma", sigma)):
        if not (levels >= 0).all():
            raise ValueError(f"{name} must not be negative; got {levels.min()}")
        if (levels > LARGEST).any():
            raise ValueError(
                f"{name} must be numbers in 0 .. {LARGEST:.4g}, what float32 holds; got "
                f"{levels.max():g}"
            )
    for i in np.flatnonzero((alpha == 0) & (sigma == 0)).tolist():
        raise ValueError(
            f"alpha and sigma must not both be 0 at a level, which would be empty; got 0 and 0 at "
            f"level {i}. One of them above 0 would do"
        )
    if c_in > LARGEST:
        raise ValueError(
            f"c_in must be a number in 0 .. {LARGEST:.4g}, what float32 holds; got {c_in:g}"
        )
    # a run from a clean level, sigma = 0, has no noise to scale
    if noise_scale > LARGEST or (noise_scale < SMALLEST and sigma[0] > 0):
        raise ValueError(
            f"noise_scale must be a number in {SMALLEST:.4g} .. {LARGEST:.4g}, what float32 holds; "
            f"got {noise_scale:g}. A run starts from noise_scale * noise: "
            f"{np.hypot(alpha[0], sigma[0]):g} or sigma[0] = {sigma[0]:g} is usual"
        )


def check_eta(eta: float, grid: Grid, begin: int) -> None:
    """Raise where DDIM's fresh noise, eta^2 s'^2 (1 - e^{-2h}), is more than the level s'^2."""
    for i in range(begin, grid.steps):
        share = -np.expm1(-2 * grid.span(i, i + 1)) if grid.sigma[i + 1] > 0 else 0.0
        # to rounding: at eta = 1 a large h leaves nothing of the direction, and that is fine
        if eta > 1 and eta * eta * share > 1 + 1e-12:
            raise ValueError(
                f"eta must be at most {share**-0.5:.6g} for row {i}, where the fresh noise is all "
                f"of the level; got {eta:g}. 1 adds as much as ancestral sampling"
            )
