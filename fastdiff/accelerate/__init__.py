"""What is done to objects that exist: a scheduler, a network, a pipeline.

fastdiff.accelerate(pipe)      swaps the class of what we have a faster class for
fastdiff.report(pipe)          what that was, what not, and how it has run since
fastdiff.restore(pipe)         everything as it was
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from fastdiff import backends
from fastdiff.accelerate import choice, inventory
from fastdiff.accelerate import guidance as deferring
from fastdiff.accelerate.report_rows import Report, ReportRow
from fastdiff.accelerate.swap import is_swapped, stock_of, swap, swaps, unswap, why_not
from fastdiff.schedulers.fused import FusedStep

T = TypeVar("T")
NO_CLASS = "there is no accelerated class for it"


def accelerate(obj: T, *, strict: bool = False, guidance: str = "exact") -> T:
    """Accelerate a scheduler, a network or a pipeline in place, and return it.

    Schedulers get a fused step.  In UNet2DConditionModel, UNet2DModel, AutoencoderKL and
    ControlNetModel, modules get a forward that takes fewer passes: norms with their SiLU, with the
    bias of a convolution and the time embedding; attention with heads in place; GEGLU; LayerNorm
    with its residual; upsampling with its convolution; and the weights of convolutions are laid out
    channels_last.  Where no kernel is better than PyTorch's own operators, those run.

    guidance  of a pipeline: where u + g (c - u) is computed, see docs/guidance.md.  "exact": in the
    scheduler's step where that gives the same bits, so in float32; "fused": in 16 bits, too, where
    the kernel rounds less often than the pipeline; "off": as the pipeline has it.

    What cannot be accelerated is left alone and listed by `report`.  strict=True raises ValueError
    for it, and nothing is changed then; of a pipeline its schedulers and the networks of diffusers
    count, not its text encoders or its safety checker.  Later it raises RuntimeError where a step
    or a module would have to leave its fast path.  Calling it twice is calling it once; the last
    call's strict counts.
    """
    if not isinstance(strict, bool):
        raise TypeError(f"strict must be True or False; got {strict!r}")
    deferring.check(guidance)
    parts = _parts(obj)
    schedulers = {name: part for name, part in parts if isinstance(part, SchedulerMixin)}
    stock = {name: part for name, part in schedulers.items() if not isinstance(part, FusedStep)}
    reasons = {name: why for name, part in stock.items() if (why := why_not(type(part)))}
    networks = _networks(parts)
    if strict:
        refused = reasons | _refused(networks) | _unknown(parts)
        if refused:
            raise ValueError(
                "; ".join(f"{n} cannot be accelerated: {why}" for n, why in refused.items())
            )
    for name, part in schedulers.items():
        if name in reasons:
            continue
        if not isinstance(part, FusedStep):
            swap(part)
        part.__dict__.pop("strict", None)
        if strict:
            part.__dict__["strict"] = True
    for network in networks.values():
        _accelerate_network(network, strict)
    if isinstance(obj, DiffusionPipeline):
        ours = isinstance(schedulers.get("scheduler"), FusedStep)
        _defer_guidance(parts, guidance if ours else "off")
    return obj


def _defer_guidance(parts: list[tuple[str, Any]], guidance: str) -> None:
    """Tell the networks of a pipeline what becomes of their guidance."""
    for _, part in parts:
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            stock = stock_of(module)
            fast = swaps().get(stock)
            if fast is None or not issubclass(fast, deferring.Guided) or why_not(stock):
                continue
            if not is_swapped(module):
                swap(module)
            deferring.settle(module, guidance)


def _refused(networks: dict[str, torch.nn.Module]) -> dict[str, str]:
    return {
        f"{name}.{item.name}".rstrip("."): why
        for name, network in networks.items()
        for item in inventory.considered(network)
        if (why := inventory.why_refused(item))
    }


def _unknown(parts: list[tuple[str, Any]]) -> dict[str, str]:
    """Networks of diffusers that we have no class for, as a DiT, or whatever was given by itself;
    not the text encoders and safety checkers of a pipeline, which are none of ours."""
    return {
        name: NO_CLASS
        for name, part in parts
        if isinstance(part, torch.nn.Module)
        and (len(parts) == 1 or isinstance(part, ModelMixin))
        and not inventory.networks_in(name, part)
    }


def _accelerate_network(network: torch.nn.Module, strict: bool) -> None:
    items = list(inventory.considered(network))
    for part in (part for item in items for part in item.swaps):
        if not is_swapped(part):
            swap(part)
        mine = choice.tally(part)
        assert mine is not None
        mine.strict = strict
    inventory.settle(network)


def restore(obj: T) -> T:
    """Undo `accelerate` in place, and return the object; a stock object stays as it is.

    Modules get their classes back, and weights the strides that they had: outputs are those of
    before, bit for bit.
    """
    parts = _parts(obj)
    for _, part in parts:
        if isinstance(part, torch.nn.Module):
            for module in part.modules():
                if is_swapped(module):
                    unswap(module)
        elif is_swapped(part):
            unswap(part)
        elif isinstance(part, FusedStep):
            part.__dict__.pop("strict", None)
    return obj


def report(obj: object) -> Report:
    """What runs where, and why, for a scheduler, a network or a pipeline."""
    return Report(tuple(row for name, part in _parts(obj) for row in _rows(name, part)))


def _rows(name: str, part: Any) -> list[ReportRow]:
    if isinstance(part, SchedulerMixin):
        return [_row(name, part)]
    networks = inventory.networks_in(name, part)
    if not networks:
        kind = f"module {type(part).__name__}"
        if isinstance(part, deferring.Guided):
            mine = choice.tally(part)
            assert mine is not None
            why = f"guidance {mine.guidance}; its modules are left alone"
            return [ReportRow(name, kind, "swapped", why, dict(mine.calls))]
        return [ReportRow(name, kind, "stock", f"left alone: {NO_CLASS}")]
    return [row for own, network in networks for row in inventory.rows(own, network)]


def _networks(parts: list[tuple[str, Any]]) -> dict[str, torch.nn.Module]:
    modules = [(name, part) for name, part in parts if isinstance(part, torch.nn.Module)]
    return dict(pair for name, part in modules for pair in inventory.networks_in(name, part))


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
    kind = f"scheduler {type(part).__name__}"
    if not isinstance(part, FusedStep):
        reason = why_not(type(part))
        why = f"left alone: {reason}" if reason else "not accelerated: call fastdiff.accelerate"
        return ReportRow(name, kind, "stock", why)
    state = part._state
    calls = {"fused": state.fused, **state.counts}
    times = part.timesteps  # PNDM has none before its first run
    key = backends.Key("cpu" if times is None else times.device.type, torch.float32)
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
