"""Networks that leave classifier-free guidance to the scheduler's step.

In a pipeline whose scheduler is one of ours, what the network returns is a Deferred
(fastdiff/schedulers/guidance.py): the pipeline's own `u + g * (c - u)` is recorded, and the step
gets u, c and g.  That is done where the sample has the same bits with it as without: in float32 and
float64.  In 16 bits a pipeline rounds c - u, g (c - u) and their sum each to 16 bits, the kernel to
float32, so that it is done only where `accelerate(.., guidance="fused")` asks for it.

It is the call of a network that is ours, not its forward: hooks, patches of forward and
`network.compile()` see tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from fastdiff import backends
from fastdiff.accelerate import choice
from fastdiff.schedulers.guidance import Answer, Deferred

GUIDANCE = ("exact", "fused", "off")
WIDE = (torch.float32, torch.float64)


class Guided(nn.Module):
    """Mixed into a network's class, before it in the bases."""

    _halves = True  # both outputs are one tensor, or the network is called for each

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        if torch.compiler.is_compiling():
            return out
        mine = choice.tally(self)
        if mine is None or mine.guidance == "off":
            return out
        return _deferred(out, mine, self._halves)


class GuidedSD3Transformer2DModel(Guided, SD3Transformer2DModel):  # type: ignore[misc]
    pass


class GuidedFluxTransformer2DModel(Guided, FluxTransformer2DModel):  # type: ignore[misc]
    _halves = False


def _deferred(out: Any, mine: choice.Tally, halves: bool) -> Any:
    """What a network returned, its tensor deferred; as it is if it has more than one."""
    listed = type(out) is tuple
    if len(out) != 1 or not (listed or isinstance(out, BaseOutput)):
        return out
    tensor = out[0]
    # of three an odd number may be: that is counted, too
    if type(tensor) is not Tensor or tensor.requires_grad or (halves and len(tensor) < 2):
        return out
    if tensor.dtype not in WIDE and mine.guidance == "exact":
        name = str(tensor.dtype).removeprefix("torch.")
        mine.calls[f"guidance before the step: {name} rounds it otherwise"] += 1
        return out
    if backends.why_recorded() or torch._C._len_torch_dispatch_stack():
        return out
    deferred = Deferred((Answer(mine.calls),), tensor)
    return (deferred,) if listed else type(out)(deferred)


def check(guidance: object) -> None:
    """Raise unless it is a word that accelerate knows."""
    if not isinstance(guidance, str) or guidance not in GUIDANCE:
        raise ValueError(f"guidance must be one of {', '.join(GUIDANCE)}; got {guidance!r}")


def settle(network: nn.Module, guidance: str) -> None:
    """From now on the network's answers are deferred, or not."""
    mine = choice.tally(network)
    assert mine is not None
    mine.guidance = guidance
