"""Which modules of a network are considered, what becomes of each, and the rows that say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from fastdiff import backends
from fastdiff.accelerate import attention, choice, layout, norms, transformer, upsampling
from fastdiff.accelerate.report_rows import ReportRow
from fastdiff.accelerate.swap import INNER, NETWORKS, is_swapped, stock_of, swaps, why_not

WHY_LEFT = {  # what about a module its fast path does not do: it may change, and is asked each time
    attention.FastAttention: attention.why_left,
    transformer.FastTransformer2DModel: transformer.why_transformer_left,
    transformer.FastBasicTransformerBlock: transformer.why_block_left,
    upsampling.FastUpsample2D: upsampling.why_left,
}
HOLD_A_PAIR = ("Encoder", "Decoder")  # swapped for the pair in them, whose row stands for both


class Considered(NamedTuple):
    """A module of a network, by its name there.

    left   why it cannot be swapped; "" if it can
    swaps  what is swapped with it
    """

    name: str
    module: nn.Module
    left: str
    swaps: tuple[nn.Module, ...]


def is_network(obj: object) -> bool:
    """Whether we know how networks of this class, or of one that it extends, are made."""
    return issubclass(stock_of(obj), tuple(map(_stock, NETWORKS)))


def networks_in(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The networks that a component of a pipeline is, or holds (several ControlNets), by name."""
    if is_network(module):
        return [(name, module)]
    return [(f"{name}.{n}", m) for n, m in module.named_modules() if is_network(m)]


def considered(network: nn.Module) -> Iterator[Considered]:
    """The network, and those of its modules that have an accelerated class, or hold a GroupNorm."""
    inner = tuple(map(_stock, INNER))
    module: nn.Module
    for name, module in network.named_modules():
        if _has_no_convolution(module):
            continue
        if module is network or isinstance(module, inner):
            left = _why_not_swapped(module)
            yield Considered(name, module, left, () if left else (module,))
        elif any(type(m) is nn.GroupNorm for m in module.children()):
            left = f"no accelerated class for {type(module).__name__}"
            yield Considered(name, module, left, ())
        if isinstance(getattr(module, "conv_norm_out", None), nn.Module):
            yield _considered_pair(f"{name}.conv_norm_out".lstrip("."), module)


def _has_no_convolution(module: nn.Module) -> bool:
    """Upsample2D as blocks with up=True hold it: interpolation alone, nothing to be faster at."""
    return isinstance(module, Upsample2D) and upsampling.convolution(module) is None


def _considered_pair(name: str, owner: Any) -> Considered:
    norm, act = owner.conv_norm_out, owner.conv_act
    left = why_not(nn.GroupNorm) or ""
    if stock_of(norm) is not nn.GroupNorm or stock_of(act) is not nn.SiLU:
        left = "it is not GroupNorm followed by SiLU"
    elif not is_swapped(norm) and not (choice.untouched(norm) and choice.untouched(act)):
        left = "it or conv_act is hooked or patched"
    return Considered(name, norm, left, () if left else (norm, act))


def _stock(fast: type) -> type:
    return next(stock for stock, swapped in swaps().items() if issubclass(swapped, fast))


def _why_not_swapped(module: nn.Module) -> str:
    stock = stock_of(module)
    if stock not in swaps():
        return f"{stock.__name__} is a subclass of a class that can be accelerated, and not that"
    if reason := why_not(stock):
        return reason
    if not is_swapped(module) and "forward" in vars(module) and "_old_forward" not in vars(module):
        return "its forward is replaced on the object (a hook or a patch): accelerate before that"
    return ""


def why_left(item: Considered) -> str:
    """What about a module, as it is now, asks for diffusers' own forward; "" if nothing does."""
    if item.left:
        return item.left
    fast = swaps()[stock_of(item.module)]
    ask = next((ask for cls, ask in WHY_LEFT.items() if issubclass(fast, cls)), None)
    return ask(item.module) if ask is not None else ""


def why_refused(item: Considered) -> str:
    """What strict=True refuses: something about the module, or a kernel that is missing here."""
    op = "" if item.left else getattr(swaps()[stock_of(item.module)], "USES", "")
    device, dtype = key_of(item.module)
    if (reason := why_left(item)) or not op or choice.kernel(op, device, dtype) is not None:
        return reason
    reason, missing = choice.why_no_kernel(op, device, dtype)
    return reason if missing else ""


def key_of(module: nn.Module) -> tuple[str, torch.dtype]:
    """Device and dtype of a module's weights."""
    first = next(module.parameters(), None)
    return ("cpu", torch.float32) if first is None else (first.device.type, first.dtype)


def settle(network: nn.Module) -> None:
    """After a swap: which norms and SiLUs are pairs, before the first run asks."""
    for module in network.modules():
        if is_swapped(module) and isinstance(getattr(module, "conv_norm_out", None), nn.Module):
            norms.pair(module)


def rows(name: str, network: nn.Module) -> Iterator[ReportRow]:
    """One row for the network and one for each of its modules that is considered."""
    first, *others = considered(network)
    inner = [item for item in others if stock_of(item.module).__name__ not in HOLD_A_PAIR]
    yield _row_of_network(name, first, inner)
    for item in inner:
        yield _row(f"{name}.{item.name}", item)


NOT_YET = "not accelerated: call fastdiff.accelerate"


def _row_of_network(name: str, item: Considered, inner: list[Considered]) -> ReportRow:
    kind = f"module {stock_of(item.module).__name__}"
    fast = sum(is_swapped(one.module) and not why_left(one) for one in inner)
    of_them = f"{fast} of {len(inner)} modules in it accelerated"
    if item.left:
        return ReportRow(name, kind, "stock", f"left alone: {item.left}; {of_them}")
    if not is_swapped(item.module):
        return ReportRow(name, kind, "stock", NOT_YET)
    mine = choice.tally(item.module)
    calls = {} if mine is None else dict(mine.calls)
    return ReportRow(name, kind, "swapped", f"{of_them}; {layout.describe(item.module)}", calls)


def _row(name: str, item: Considered) -> ReportRow:
    kind = f"module {stock_of(item.module).__name__}"
    mine = choice.tally(item.module)
    calls = {} if mine is None else dict(mine.calls)
    if left := why_left(item):
        return ReportRow(name, kind, "stock", f"left alone: {left}", calls)
    if mine is None:
        return ReportRow(name, kind, "stock", NOT_YET)
    try:
        return ReportRow(name, kind, *_chosen(item.module), calls)
    except backends.BackendError as error:  # use_backend asks for what cannot run here
        return ReportRow(name, kind, "none", str(error), calls)


def _chosen(module: Any) -> tuple[str, str]:
    """Backend of a swapped module, and why."""
    if isinstance(module, attention.FastAttention):
        return attention.describe(module)
    if isinstance(module, upsampling.FastUpsample2D):
        return upsampling.describe(module)
    device, dtype = key_of(module)
    backend = choice.kernel(module.USES, device, dtype)
    if backend is None:
        return "torch", choice.why_no_kernel(module.USES, device, dtype)[0]
    without = [op for op in getattr(module, "ALSO", ()) if not choice.kernel(op, device, dtype)]
    return backend, "; ".join(
        [module.WHAT, *(choice.why_no_kernel(op, device, dtype)[0] for op in without)]
    )
