"""Transformer2DModel and BasicTransformerBlock: the ways in and out, and norms with residuals.

A transformer's norm writes tokens, (B, L, C), at once; 1x1 convolutions around the blocks are the
matrix products that they are; and tokens become a picture again as a view, in channels_last order.
In a block, each residual connection and the LayerNorm that follows it are one pass.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from fastdiff.accelerate import choice, norms
from fastdiff.ops.add_layer_norm import add_layer_norm
from fastdiff.ops.group_norm import channels_last


class FastTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
    USES = "group_norm"
    WHAT = "norm to tokens, 1x1 convolutions as products"

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> Any:
        x, weight = hidden_states, choice.weight(self.norm)
        pays, unless = _pays(x), lambda: why_transformer_left(self)
        if not choice.taken(self, "group_norm", x, weight, large=pays, unless=unless):
            return Transformer2DModel._operate_on_continuous_inputs(self, hidden_states)
        if not self.use_linear_projection and not _is_product(self.proj_in):
            pictures = self.proj_in(norms.normed(self.norm, hidden_states))
            return pictures.flatten(2).transpose(1, 2).contiguous(), pictures.shape[1]
        tokens = norms.normed(self.norm, hidden_states, tokens=True)
        if self.use_linear_projection:
            return self.proj_in(tokens), tokens.shape[-1]
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        left = choice.tally(self) is None or not _pays(residual) or why_transformer_left(self)
        if left or choice.why_stock_or_traced(hidden_states, residual):
            sizes = (batch_size, height, width, inner_dim)
            y: Tensor = Transformer2DModel._get_output_for_continuous_inputs(
                self, hidden_states, residual, *sizes
            )
            return y
        if not self.use_linear_projection and not _is_product(self.proj_out):
            pictures = hidden_states.transpose(1, 2).reshape(batch_size, -1, height, width)
            y = residual + self.proj_out(pictures)
            return y
        if self.use_linear_projection:
            tokens = self.proj_out(hidden_states)
        else:
            weight, bias = self.proj_out.weight.flatten(1), self.proj_out.bias
            tokens = F.linear(hidden_states, weight, bias)
        y = residual + tokens.transpose(1, 2).reshape(residual.shape)
        return y


def _pays(x: Tensor) -> bool:
    """Tokens are a view of channels last; from another layout, PyTorch's way is as good."""
    return norms.large(x) and (choice.forced() or channels_last(x))


def why_transformer_left(module: Any) -> str:
    """What about a Transformer2DModel its fast path does not do; empty if nothing."""
    if not module.is_input_continuous:
        return "its input is no picture"
    if not choice.plain(module.norm, nn.GroupNorm):
        return "its norm is hooked or replaced"
    return ""


def _is_product(conv: Any) -> bool:
    """Whether a module is a plain convolution that looks at one place only, all channels of it."""
    if not choice.plain(conv, nn.Conv2d):
        return False
    one = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    return bool(one and conv.padding == (0, 0))


STOCK_BLOCK = (
    BasicTransformerBlock.forward
)  # by this name torch.compile traces it, not by the class


class FastBasicTransformerBlock(BasicTransformerBlock):  # type: ignore[misc]
    USES = "add_layer_norm"
    WHAT = "each residual connection with the LayerNorm after it"

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Any = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        kwargs = cross_attention_kwargs or {}
        weight = choice.weight(self.norm1)
        unless = lambda: why_block_left(self) or _why_not_now(kwargs)  # noqa: E731
        if not choice.taken(self, "add_layer_norm", hidden_states, weight, unless=unless):
            y: Tensor = STOCK_BLOCK(
                self,
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
            return y
        context = encoder_hidden_states if self.only_cross_attention else None
        h, y = hidden_states, _layer_norm(self.norm1, hidden_states, None)[0]
        y = self.attn1(y, encoder_hidden_states=context, attention_mask=attention_mask, **kwargs)
        if self.attn2 is not None:
            y, h = _layer_norm(self.norm2, y, h)
            y = self.attn2(
                y,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                **kwargs,
            )
        y, h = _layer_norm(self.norm3, y, h)
        total: Tensor = self.ff(y) + h
        return total


def why_block_left(module: Any) -> str:
    """What about a transformer block its fast path does not do; empty if nothing."""
    if module.norm_type != "layer_norm":
        return f"its norm_type is {module.norm_type}, only layer_norm is fused"
    if module.pos_embed is not None or hasattr(module, "fuser"):
        return "it has positional embeddings or GLIGEN's fuser"
    if module._chunk_size is not None:
        return "its feed-forward runs in chunks"
    norms = [module.norm1, module.norm3] + ([module.norm2] if module.attn2 is not None else [])
    if not all(choice.plain(norm, nn.LayerNorm) for norm in norms):
        return "a norm is hooked or replaced"
    return ""


def _why_not_now(kwargs: dict[str, Any]) -> str:
    known = kwargs.keys() & {"scale", "gligen"}
    return f"called with {', '.join(sorted(known))}" if known else ""


def _layer_norm(norm: nn.LayerNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, residual, norm.weight, norm.bias, eps=norm.eps)
