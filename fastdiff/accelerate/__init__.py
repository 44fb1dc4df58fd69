"""What is done to objects that exist: a scheduler, a network, a pipeline.

fastdiff.accelerate(pipe)      swaps the class of what we have a faster class for
fastdiff.report(pipe)          what that was, what not, and how it has run since
fastdiff.restore(pipe)         everything as it was
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from fastdiff import backends
from fastdiff.accelerate.report_rows import Report, ReportRow
from fastdiff.accelerate.swap import is_swapped, swap, unswap, why_not
from fastdiff.schedulers.fused import FusedStep

T = TypeVar("T")


def accelerate(obj: T, *, strict: bool = False) -> T:
    """Accelerate a scheduler, a network or a pipeline in place, and return it.

    What has no accelerated class is left alone and listed by `report`.  strict=True raises where a
    scheduler cannot be accelerated (nothing is changed then), and later where a step would have to
    leave the kernels.  Calling it twice is calling it once; the last call's strict counts.
    """
    schedulers = {name: part for name, part in _parts(obj) if isinstance(part, SchedulerMixin)}
    stock = {name: part for name, part in schedulers.items() if not isinstance(part, FusedStep)}
    reasons = {name: why for name, part in stock.items() if (why := why_not(type(part)))}
    if strict and reasons:
        raise ValueError(
            "; ".join(f"{n} cannot be accelerated: {why}" for n, why in reasons.items())
        )
    for name, part in schedulers.items():
        if name in reasons:
            continue
        if not isinstance(part, FusedStep):
            swap(part)
        part.__dict__.pop("strict", None)
        if strict:
            part.__dict__["strict"] = True
    return obj


def restore(obj: T) -> T:
    """Undo `accelerate` in place, and return the object; a stock object stays as it is."""
    for _, part in _parts(obj):
        if is_swapped(part):
            unswap(part)
        elif isinstance(part, FusedStep):
            part.__dict__.pop("strict", None)
    return obj


def report(obj: object) -> Report:
    """What runs where, and why, for a scheduler, a network or a pipeline."""
    return Report(tuple(_row(name, part) for name, part in _parts(obj)))


def _parts(obj: Any) -> list[tuple[str, Any]]:
    if isinstance(obj, DiffusionPipeline):
        parts = [(name, part) for name, part in obj.components.items() if part is not None]
        wanted = (SchedulerMixin, torch.nn.Module)
        return [(name, part) for name, part in parts if isinstance(part, wanted)]
    if isinstance(obj, SchedulerMixin):
        return [("scheduler", obj)]
    if isinstance(obj, torch.nn.Module):
        return [("module", obj)]
    raise TypeError(
        "obj must be a diffusers scheduler, a network (torch.nn.Module) or a pipeline; got "
        f"{type(obj).__name__}"
    )


def _row(name: str, part: Any) -> ReportRow:
    if not isinstance(part, SchedulerMixin):
        why = "left alone: there is no accelerated class for networks yet"
        return ReportRow(name, f"module {type(part).__name__}", "stock", why)
    kind = f"scheduler {type(part).__name__}"
    if not isinstance(part, FusedStep):
        reason = why_not(type(part))
        why = f"left alone: {reason}" if reason else "not accelerated: call fastdiff.accelerate"
        return ReportRow(name, kind, "stock", why)
    state = part._state
    calls = {"fused": state.fused, **state.counts}
    key = backends.Key(part.timesteps.device.type, torch.float32)
    try:
        backend = backends.chosen("affine_step", key)
    except backends.BackendError as error:
        return ReportRow(name, kind, "none", str(error), calls)
    how = "class swapped" if is_swapped(part) else "drop-in class"
    preferred = backends.PREFERENCE[: backends.PREFERENCE.index(backend)]
    reasons = [f"{b}: {backends.why_not('affine_step', b, key)}" for b in preferred]
    why = f"{how}, numerics {part.numerics}" + (f" ({'; '.join(reasons)})" if reasons else "")
    return ReportRow(name, kind, backend, why, calls)


__all__ = ["Report", "ReportRow", "accelerate", "report", "restore"]
