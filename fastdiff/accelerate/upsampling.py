"""Upsample2D: nearest-neighbour upsampling by 2 and its 3x3 convolution, as one convolution of the
small picture with the sums of filters (upsample_conv), where that was measured to be faster.

    y = conv2d(u, weight, bias, padding=1)        u[.., r, s] = x[.., r // 2, s // 2]

The sums are made anew in each call, so that nothing has to follow weights that change.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from fastdiff import backends
from fastdiff.accelerate import choice
from fastdiff.ops.upsample_conv import pays, upsample_conv

LARGEST = 1 << 12  # pixels a side, to ask whether upsample_conv pays at any size


class FastUpsample2D(Upsample2D):  # type: ignore[misc]
    WHAT = "nearest-neighbour by 2 and its convolution as one convolution, where that pays"

    def forward(
        self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kw: Any
    ) -> Tensor:
        x, conv = hidden_states, convolution(self)
        weight = choice.weight(conv)
        slower = "" if choice.forced() or weight is None else pays(x, weight) or ""
        others = bool(args) or kw.get("scale") is not None
        unless = lambda: why_left(self) or _why_not_now(x, output_size, others)  # noqa: E731
        if choice.taken(self, None, x, weight, slower=slower, unless=unless):
            return upsample_conv(x, conv.weight, conv.bias)
        y: Tensor = Upsample2D.forward(self, x, output_size, *args, **kw)
        return y


def convolution(module: Any) -> Any:
    """What an Upsample2D applies to the larger picture; None if nothing."""
    name = "conv" if module.name == "conv" else "Conv2d_0"
    return getattr(module, name, None) if module.use_conv or module.use_conv_transpose else None


def why_left(module: Any) -> str:
    """What about an Upsample2D its fast path does not do; empty if nothing."""
    if module.use_conv_transpose or not module.interpolate or module.norm is not None:
        return "it is not nearest-neighbour upsampling alone before its convolution"
    conv = convolution(module)
    if not choice.plain(conv, nn.Conv2d):
        return "its convolution is hooked or replaced"
    sizes = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups)
    if sizes != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
        return "its convolution is not 3x3 with one row of zeros around the picture"
    return ""


def describe(module: Any) -> tuple[str, str]:
    """Who computes a module whose convolution is plain, and why."""
    weight = convolution(module).weight
    reason = pays(weight.new_empty((0, weight.shape[1], LARGEST, LARGEST)), weight)
    if reason is not None and not choice.forced():
        return "torch", f"PyTorch's own operators: {reason}"
    mine = choice.tally(module)
    calls = {} if mine is None else dict(mine.calls)
    small = [what.removeprefix("torch: ") for what in calls if what.startswith("torch: ")]
    if small and "fused" not in calls:  # so far
        return "torch", f"PyTorch's own operators: {small[0]}"
    key = backends.Key(weight.device.type, weight.dtype)
    return backends.chosen("upsample_conv", key), module.WHAT


def _why_not_now(x: Tensor, size: Any, others: bool) -> str:
    if others:
        return choice.OTHERS
    twice = (2 * x.shape[2], 2 * x.shape[3])
    if size is not None and not (isinstance(size, tuple | list) and tuple(size) == twice):
        return "output_size is not twice the size"
    return ""
