"""Attention: what diffusers' plain processors do, with the attention itself by our chooser.

    x = group_norm(x)                                   where the module has one (VAE, UNet2DModel)
    q, k, v = to_q(x), to_k(context), to_v(context)     (B, N or M, H*D), context = x without one
    y = to_out(softmax(scale * q k' + mask) v)          for each of H heads
    y = (y + residual) / rescale_output_factor

Heads stay where the projections put them, (B, N, H, D): nothing is transposed in memory.  Pictures
become tokens in the pass of the norm, and a picture again as a view.  Which processor a module has
is asked at every call: with another one than diffusers' two plain ones (IP-Adapter, xFormers, PAG,
slices) it is called as diffusers would call it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from fastdiff.accelerate import choice, norms
from fastdiff.ops.attention import attention_and_choice, why_no_kernel

PLAIN = (AttnProcessor2_0, AttnProcessor)


class FastAttention(Attention):  # type: ignore[misc]
    WHAT = "heads in place, (B, N, H, D)"

    def set_processor(self, processor: Any) -> None:
        Attention.set_processor(self, processor)
        listen(self)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        unless = lambda: why_left(self) or _why_not_now(self, hidden_states, others)  # noqa: E731
        tensors = (hidden_states, encoder_hidden_states, attention_mask, choice.weight(self.to_q))
        if choice.taken(self, None, *tensors, unless=unless):
            return _attended(self, hidden_states, encoder_hidden_states, attention_mask)
        y: Tensor = Attention.forward(
            self, hidden_states, encoder_hidden_states, attention_mask, **others
        )
        return y


def listen(module: Any) -> None:
    """Let diffusers' set_attention_backend find the plain processor of a module."""
    processor = module.processor
    if type(processor) in PLAIN and not hasattr(processor, "_attention_backend"):
        processor._attention_backend = None


def stop_listening(module: Any) -> None:
    if type(module.processor) in PLAIN:
        module.processor.__dict__.pop("_attention_backend", None)


def why_left(module: Any) -> str:
    """What about an attention module its fast path does not do; empty if nothing."""
    if type(module.processor) not in PLAIN:
        return f"its processor is {type(module.processor).__name__}"
    if module.spatial_norm is not None or module.norm_q is not None or module.norm_k is not None:
        return "it has a spatial_norm, or norms of queries and keys"
    if module.to_k is None or module.inner_kv_dim != module.inner_dim:
        return "its keys have other heads than its queries, or come from elsewhere"
    return ""


def describe(module: Any) -> tuple[str, str]:
    """Who computes the attention of a module, and why: of its last call, where there was one."""
    asked = getattr(module.processor, "_attention_backend", None)
    if asked is not None:
        return "diffusers", f"{asked.value}, as set_attention_backend asked; {module.WHAT}"
    mine = choice.tally(module)
    if mine is not None and mine.attention is not None:
        return mine.attention[0], f"{mine.attention[1]}; {module.WHAT}"
    weight = choice.weight(module.to_q)
    device = "cpu" if weight is None else weight.device.type
    if (why := why_no_kernel(device)) is not None:
        return "torch", f"{why}; {module.WHAT}"
    return "chosen", f"by the table of measurements, once it has run; {module.WHAT}"


def _why_not_now(module: Any, x: Tensor, others: dict[str, Any]) -> str:
    if others.keys() - {"temb"}:
        return f"called with {', '.join(sorted(others))}, which diffusers' own forward reports"
    upcast = module.upcast_attention and type(module.processor) is AttnProcessor
    if upcast and x.dtype != torch.float32:
        return f"upcast_attention asks for products in float32, of {x.dtype}"
    return ""


def _attended(module: Any, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    residual, tokens = x, _tokens(module, x)
    if context is None:
        context = tokens
    elif module.norm_cross is not None:
        context = module.norm_encoder_hidden_states(context)
    assert context is not None
    batch, length = context.shape[:2]
    if mask is not None:
        mask = module.prepare_attention_mask(mask, length, batch)
        mask = mask.view(batch, module.heads, -1, mask.shape[-1])

    heads = (module.to_q(tokens), module.to_k(context), module.to_v(context))
    q, k, v = (t.unflatten(-1, (module.heads, -1)) for t in heads)
    y = _by_heads(module, q, k, v, mask)
    out: Tensor = module.to_out[1](module.to_out[0](y.flatten(2)))

    if x.dim() == 4:
        out = out.transpose(1, 2).reshape(x.shape)
    if module.residual_connection:
        out = residual + out
    if module.rescale_output_factor != 1:
        out = out / module.rescale_output_factor
    return out


def _tokens(module: Any, x: Tensor) -> Tensor:
    """(B, L, C), normed if the module has a norm."""
    norm = module.group_norm
    if norm is not None and norms.fuses(norm, x):
        return norms.normed(norm, x if x.dim() == 4 else x.transpose(1, 2), tokens=True)
    tokens = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
    if norm is not None:
        tokens = norm(tokens.transpose(1, 2)).transpose(1, 2)
    return tokens


def _by_heads(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(scale * q k' + mask) v, (B, N, H, D); AttnProcessor2_0 has its own idea of scale."""
    processor, scale = module.processor, module.scale
    if type(processor) is AttnProcessor2_0:
        scale = q.shape[-1] ** -0.5
    backend = getattr(processor, "_attention_backend", None)
    if backend is not None:  # set_attention_backend was called
        y: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=backend)
        return y
    y, chosen = attention_and_choice(q, k, v, mask=mask, scale=scale)
    mine = None if torch.compiler.is_compiling() else choice.tally(module)
    if mine is not None and chosen is not None:
        mine.attention = chosen
        mine.calls[f"attention by {chosen.name}"] += 1
    return y
