"""GroupNorm with what comes before and after it, and the pair conv_norm_out, conv_act of a network.

The pair is two modules which a network calls one after the other.  Swapped, the first does the work
of both and the second passes on what it gets: only while both are there and untouched.  The network
looks at that before every run (`pair`), so that a part which was replaced, wrapped or hooked in the
meantime is called as diffusers would call it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.accelerate import choice
from fastdiff.ops.group_norm import channels_last, group_norm

# Below this many elements, PyTorch's two operators were faster than one group_norm on a CPU (one
# thread, Zen 4, torch 2.13, float32 and bfloat16, in both layouts), for what a call costs; with few
# channels innermost it is the kernel that is slower, up to four times as many.
CPU_LEAST, CPU_LEAST_NARROW, CPU_NARROW = 1 << 17, 1 << 19, 64


def large(x: Tensor, channels: int | None = None) -> bool:
    """Whether x (with another number of channels, if it is given) is large enough for group_norm
    to be better than PyTorch's operators, where it has a kernel."""
    if not x.is_cpu or choice.forced():
        return True
    width = channels or x.shape[1]
    elements = x.shape[0] * width * x.shape[2:].numel()
    if elements < CPU_LEAST or width >= CPU_NARROW or not channels_last(x):
        return elements >= CPU_LEAST
    return elements >= CPU_LEAST_NARROW


def norm_silu(
    norm: nn.Module, act: Any, x: Tensor, addend: Tensor | None = None, own: bool = False
) -> Tensor:
    """act(norm(x + addend[.., None, None])), in one pass where both are plain and x is large;
    addend: (N, C) or (C,).  own: x is needed no more, and may be overwritten.  group_norm has a
    kernel here."""
    ours = choice.plain(norm, nn.GroupNorm)
    silu = choice.plain(act, nn.SiLU)
    if ours and large(x):
        y = normed(norm, x, silu=silu, addend=addend)
    else:
        if addend is not None:
            per_channel = addend.to(x.dtype)[..., None, None]
            x = x.add_(per_channel) if own else x + per_channel
        y = norm(x)
        if ours and silu:
            return F.silu(y, inplace=True)
        silu = False
    if not silu:
        y = act(y)
    return y


def normed(norm: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """group_norm with the parameters of a GroupNorm."""
    assert isinstance(norm, nn.GroupNorm)
    y: Tensor = group_norm(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, **options)
    return y


def fuses(norm: nn.Module, x: Tensor) -> bool:
    """Whether group_norm does what a norm does to x, channels moved or not, and is better."""
    return choice.plain(norm, nn.GroupNorm) and large(x) and choice.has_kernel("group_norm", x)


class NormAndSiLU(nn.GroupNorm):
    """conv_norm_out: the SiLU after it, too, while they are a pair."""

    USES = "group_norm"
    WHAT = "with the SiLU that follows"

    def forward(self, input: Tensor) -> Tensor:
        mine = choice.tally(self)
        paired = mine is not None and mine.paired
        if choice.taken(self, "group_norm", input, self.weight, large=large(input)):
            return normed(self, input, silu=paired)
        y = nn.GroupNorm.forward(self, input)
        return F.silu(y) if paired else y


class SiLUInNorm(nn.SiLU):
    """conv_act: nothing, while they are a pair."""

    def forward(self, input: Tensor) -> Tensor:
        mine = choice.tally(self)
        return input if mine is not None and mine.paired else nn.SiLU.forward(self, input)


def pair(network: nn.Module) -> None:
    """Decide whether conv_norm_out and conv_act of a network are a pair now."""
    norm, act = network.conv_norm_out, network.conv_act
    there = isinstance(norm, NormAndSiLU) and isinstance(act, SiLUInNorm)
    both = there and choice.untouched(norm) and choice.untouched(act)
    for part in (norm, act):
        if isinstance(part, NormAndSiLU | SiLUInNorm):
            mine = choice.tally(part)
            if mine is not None and mine.paired != both:
                mine.paired = both
