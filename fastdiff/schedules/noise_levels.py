"""The noise levels of a run: of a named spacing, or what a caller gives, and the model's times."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.schedules.noise import NoiseSchedule
from fastdiff.schedules.spacing import levels

Floats = NDArray[np.float64]
LOWEST, HIGHEST = 1e-20, 2.0**16  # of the levels: at the top float32 has 8 bits of the data left,
# and no weight, at most a ratio of two levels, leaves float32


def require(fine: bool, name: str, wanted: str, got: object) -> None:
    """Raise ValueError that says what an argument must be, unless it is fine."""
    if not fine:
        raise ValueError(f"{name} must be {wanted}; got {got!r}")


def ratios_of(
    family: NoiseSchedule, spacing: Any, steps: int, final_sigma: str, at_zero: bool = True
) -> Floats:
    """sigma (flow) or sigma / alpha (vp) at the N + 1 grid points; at_zero: see `levels`."""
    known = isinstance(final_sigma, str) and final_sigma in ("zero", "sigma_min")
    require(known, "final_sigma", "zero or sigma_min", final_sigma)
    if isinstance(spacing, str):
        sigmas = levels(family, spacing, steps, at_zero=at_zero)
    else:
        sigmas = _given(family, _array(spacing), steps)
    outside = (sigmas > HIGHEST) | ((sigmas > 0) & (sigmas < LOWEST))
    if outside.any():
        raise ValueError(
            f"spacing must have its levels at 0 or in {LOWEST:g} .. {HIGHEST:g}, else no weight "
            f"means anything in float32; got {sigmas[outside][0]:g}. Other levels, or another noise"
            " schedule, would do"
        )
    if len(sigmas) == steps + 1:
        return sigmas
    lowest = 1 / family.train_steps if family.kind == "flow" else float(family.ratios[0])
    return np.append(sigmas, 0.0 if final_sigma == "zero" else min(lowest, sigmas[-1]))


def _array(spacing: Any) -> NDArray[Any]:
    try:
        values = np.asarray(spacing)
    except ValueError:  # ragged
        values = np.asarray(None)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(
            "spacing must be a name, one-dimensional sigmas (float) or timesteps (int); got "
            f"{spacing!r}"
        )
    return values


def _given(family: NoiseSchedule, values: NDArray[Any], steps: int) -> Floats:
    """A caller's sigmas (float) or timesteps (int) as sigmas, N or N + 1 of them."""
    fit = len(values) in (steps, steps + 1)
    require(fit, "spacing", f"{steps} or {steps + 1} long for steps={steps}", len(values))
    if values.dtype.kind in "iu":
        last = family.train_steps - (family.kind == "vp")
        inside = bool((values >= 0).all() and (values <= last).all())
        require(inside, "spacing", f"timesteps in 0 .. {last}", values.tolist())
        sigmas = family.ratio_at(values)
    else:
        sigmas = values.astype(np.float64)
    top = 1.0 if family.kind == "flow" else np.finfo(np.float64).max
    descending = (np.diff(sigmas) <= 0).all() and sigmas[-1] >= 0 and 0 < sigmas[0] <= top
    if not descending:  # also where a number is NaN
        raise ValueError(
            "spacing must go from noisy to clean, from a finite level above 0 (at most 1 for flow) "
            f"to one at or above 0; got {values.tolist()}"
        )
    return sigmas


def times_of(family: NoiseSchedule, spacing: Any, ratios: Floats) -> Floats:
    """Model times of the calls; whole numbers that the caller gave stay what they are."""
    if not isinstance(spacing, str) and (values := _array(spacing)).dtype.kind in "iu":
        return values[: len(ratios) - 1].astype(np.float64)
    return family.time_of(ratios[:-1])
