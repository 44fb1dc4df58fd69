"""ResnetBlock2D: two norms with their SiLU, and what the convolutions between them add.

    h = conv1(silu(norm1(x)))                        up- or downsampled before conv1, if it is to be
    h = conv2(silu(norm2(h + temb)))                 temb = time_emb_proj(silu(temb))
    y = (shortcut(x) + h) / output_scale_factor

Two passes of group_norm do both norms and SiLUs.  conv1 runs without its bias, which the second
norm adds together with the time embedding: that sum of N x C numbers is made anew in each call, so
that nothing has to follow weights that change.  Where bias_residual has a kernel that pays, conv2
runs without its bias, too, and the last line is one pass.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from fastdiff.accelerate import choice
from fastdiff.accelerate.norms import large, norm_silu
from fastdiff.ops.bias_residual import bias_residual


class FastResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    USES = "group_norm"
    ALSO = ("bias_residual",)
    WHAT = "norm1 + SiLU, conv1's bias + time embedding + norm2 + SiLU"

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kw: Any) -> Tensor:
        x, parts = input_tensor, (choice.weight(self.norm1), choice.weight(self.conv1))
        pays, unless = large(x), lambda: _unless(self, temb, args, kw)
        if not choice.taken(self, "group_norm", x, temb, *parts, large=pays, unless=unless):
            y: Tensor = ResnetBlock2D.forward(self, input_tensor, temb, *args, **kw)
            return y
        act = self.nonlinearity
        x, h = _resampled(self, x, norm_silu(self.norm1, act, x))

        bias = _bias_to_fold(self, h)
        h = self.conv1(h) if bias is None else self.conv1._conv_forward(h, self.conv1.weight, None)
        addend = bias
        if self.time_emb_proj is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else act(temb))
        if temb is not None and self.time_embedding_norm == "default":
            addend = temb if bias is None else temb.float() + bias
        if self.time_embedding_norm == "scale_shift":
            act = _scaled_and_shifted(temb, act)
        h = norm_silu(self.norm2, act, h, addend, own=choice.plain(self.conv1, nn.Conv2d))

        h = self.dropout(h)
        return _joined(self, x, h)


def _unless(block: Any, temb: Tensor | None, args: Any, kw: dict[str, Any]) -> str:
    if args or kw:
        return choice.OTHERS
    if (temb is None) != (block.time_emb_proj is None):
        return "a time embedding without its projection, or the reverse"
    return ""


def _resampled(block: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    sample = block.upsample if block.upsample is not None else block.downsample
    if sample is None:
        return x, h
    if block.upsample is not None and h.shape[0] >= 64:  # as diffusers does, and for its reason
        x, h = x.contiguous(), h.contiguous()
    return sample(x), sample(h)


def _bias_to_fold(block: Any, h: Tensor) -> Tensor | None:
    """The bias that norm2's pass adds instead of conv1; None if conv1 is to add it."""
    folds = choice.plain(block.norm2, nn.GroupNorm) and large(h, block.out_channels)
    return _own_bias(block.conv1) if folds else None


def _own_bias(conv: Any) -> Tensor | None:
    """The bias that a convolution may be called without; None if it must be called as a module."""
    bias: Tensor | None = conv.bias if choice.plain(conv, nn.Conv2d) else None
    return bias


def _scaled_and_shifted(temb: Any, act: Any) -> Any:
    """What follows norm2 in a block with time_embedding_norm="scale_shift" (temb is given)."""
    scale, shift = temb[:, :, None, None].chunk(2, dim=1)
    return lambda h: act(h * (1 + scale) + shift)


def _joined(block: Any, x: Tensor, h: Tensor) -> Tensor:
    """(shortcut(x) + conv2(h)) / output_scale_factor."""
    conv, factor = block.conv2, block.output_scale_factor
    bias = _own_bias(conv) if choice.has_kernel("bias_residual", h) else None
    h = conv(h) if bias is None else conv._conv_forward(h, conv.weight, None)
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x.contiguous() if block.training else x)
    if bias is not None and x.dtype == h.dtype:
        return bias_residual(h, bias, x, scale=1 / factor)
    if bias is not None:
        h = h + bias[:, None, None]
    h = h.add_(x) if choice.plain(conv, nn.Conv2d) and h.dtype == x.dtype else h + x
    return h if factor == 1 else h / factor
