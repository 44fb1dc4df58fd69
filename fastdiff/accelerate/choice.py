"""When a swapped module takes its fast path, and what it remembers of that.

A fast path needs a kernel that is better than PyTorch's own operators here, and tensors that a
kernel may have.  Otherwise the module does what diffusers' class does, by that class's own forward,
and counts why.  Nothing here looks at values: no synchronisation, no decision that depends on data.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastdiff import backends

NAME = "_fastdiff"  # the one attribute of a swapped module that is ours
OTHERS = "called with arguments that only diffusers' own forward knows"
logger = logging.getLogger("fastdiff")

# The least number of elements at which an op's kernel is better than PyTorch's operators on a CPU
# (one thread, Cascade Lake, torch 2.13, float32 and bfloat16); of an op that is not here, any.
# add_layer_norm was even with them at 163,840 elements and faster at 655,360; 2^18 lies between.
# bias_residual makes a new tensor, where PyTorch's way is a convolution with its bias and an
# addition in place: that addition alone took 0.2 to 0.8 of its time in float32 but for a few
# measurements, and in bfloat16 about as long.  The convolution with and without its bias was not
# compared.
CPU_LEAST = {"add_layer_norm": 1 << 18, "bias_residual": math.inf}


@dataclass
class Tally:
    """Kept by a swapped module under NAME, and gone when it is restored.

    strict     raise where the fast path cannot be taken
    calls      how often it ran: "fused", "torch: <why PyTorch is better>", "stock: <why it must
               be>"; of attention besides "attention by <whom the chooser took>"
    paired     of a GroupNorm and of the SiLU after it: the norm applies the SiLU, too
    strides    of a network: (shape, strides) of its weights before they were laid out anew, by name
    attention  of attention: whom the chooser took at the last call, and why
    guidance   of a network in a pipeline: what is done with its answers, one of guidance.GUIDANCE
    """

    strict: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    paired: bool = False
    strides: dict[str, tuple[torch.Size, tuple[int, ...]]] = field(default_factory=dict)
    attention: tuple[str, str] | None = None
    guidance: str = "off"


def tally(module: nn.Module) -> Tally | None:
    """What a swapped module remembers; None for any other."""
    found: Tally | None = module.__dict__.get(NAME)
    return found


def taken(
    module: nn.Module,
    op: str | None,
    *tensors: Tensor | None,
    large: bool = True,
    slower: str = "",
    unless: Callable[[], str] | None = None,
) -> bool:
    """Whether this call takes the fast path, whose kernel is that of `op`; counted.

    The first tensor decides on device and dtype.  large: whether the kernel is better at this size,
    of which `pays` knows, too.
    slower: why else PyTorch's own operators are better here, in words; "" where they are not.
    unless: asked for a reason that the module has against its fast path ("" if none) where all else
    is for it.
    """
    x = tensors[0]
    assert x is not None
    large = large and (op is None or pays(op, x))
    if torch.compiler.is_compiling():  # ops are traced; a count would be a guard
        traced = op is None or _worth_tracing(op, x.device.type, x.dtype)
        return bool(traced and large and not slower and not (unless and unless()))
    mine = tally(module)
    if mine is None:  # a method that somebody kept, on a module that was restored since
        return False
    reason = None
    if not large:
        slower = "too small for the kernel"
    if slower:
        mine.calls[f"torch: {slower}"] += 1
        return False
    if op is not None and kernel(op, x.device.type, x.dtype) is None:
        reason, missing = why_no_kernel(op, x.device.type, x.dtype)
        if not missing:
            mine.calls["torch: no kernel"] += 1
            return False
    reason = why_stock(*tensors) or reason or (unless and unless())
    if not reason:
        mine.calls["fused"] += 1
        return True
    if mine.strict:
        raise RuntimeError(
            f"{type(module).__name__} cannot take its fast path: {reason}. "
            "accelerate(.., strict=False) runs diffusers' own forward instead"
        )
    if not mine.calls[f"stock: {reason}"]:
        logger.info("%s runs diffusers' own forward: %s", type(module).__name__, reason)
    mine.calls[f"stock: {reason}"] += 1
    return False


def why_stock(*tensors: Tensor | None) -> str | None:
    """Why a call with these tensors takes diffusers' own forward; None if it need not."""
    if reason := backends.why_reference(*tensors):
        return reason
    if tensors[0] is not None and torch.is_autocast_enabled(tensors[0].device.type):
        return "autocast is on, which rounds each operator's result as it likes"
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return "a hook on all modules is registered"
    return None


def why_stock_or_traced(*tensors: Tensor | None) -> str | None:
    """The same where torch.compile may be tracing, which needs no reason."""
    return None if torch.compiler.is_compiling() else why_stock(*tensors)


def kernel(op: str, device: str, dtype: torch.dtype) -> str | None:
    """The backend that runs op there; None where only the reference would, which is slower than
    PyTorch's own operators (unless use_backend asks for it)."""
    backend = backends.chosen(op, backends.Key(device, dtype))
    return None if backend == "reference" and not forced() else backend


def forced() -> bool:
    """Whether use_backend asks for a backend, whatever is better."""
    return False if torch.compiler.is_compiling() else backends._forced.get() is not None


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _worth_tracing(op: str, device: str, dtype: torch.dtype) -> bool:
    return kernel(op, device, dtype) is not None


def pays(op: str, x: Tensor) -> bool:
    """Whether x is large enough for the kernel of op, where there is one, to be better."""
    return not x.is_cpu or forced() or x.numel() >= CPU_LEAST.get(op, 0)


def has_kernel(op: str, x: Tensor) -> bool:
    """Whether a kernel of ours runs op on tensors like x, and pays; inside torch.compile, too."""
    if not pays(op, x):
        return False
    if torch.compiler.is_compiling():
        return bool(_worth_tracing(op, x.device.type, x.dtype))
    return kernel(op, x.device.type, x.dtype) is not None


@functools.cache
def why_no_kernel(op: str, device: str, dtype: torch.dtype) -> tuple[str, bool]:
    """Why PyTorch runs op there, and whether a kernel that exists is missing (or none is meant)."""
    key = backends.Key(device, dtype)
    home = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device, backends.PREFERENCE[:-1])
    reasons = {backend: backends.why_not(op, backend, key) for backend in home}
    unwritten = all(r is not None and r.startswith("not written") for r in reasons.values())
    if unwritten:
        return f"PyTorch's own operators: no kernel of {op} for {device} tensors", False
    return f"{op}: " + "; ".join(f"{b}: {r}" for b, r in reasons.items()), True


def untouched(module: Any) -> bool:
    """Whether calling a module is calling its class's forward: no hook (offloading), no patch of it
    or of what it calls (`_conv_forward`, as for pictures that tile)."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_conv_forward" in module.__dict__
    )


def plain(module: Any, cls: type) -> bool:
    """Whether a part of a module is exactly what diffusers put there: nobody's subclass, wrapper
    (LoRA), hook or patch.  Only then may its weights be used without calling it."""
    return type(module) is cls and untouched(module)


def weight(module: Any) -> Tensor | None:
    """The weight of a part of a module, whatever that part is."""
    found: Tensor | None = getattr(module, "weight", None)
    return found
