"""attention: softmax(scale * q k^T + mask) v, by whichever kernel was measured to be fastest.

    out[b, n, h] = sum_m p[m] v[b, m, h]
    p = softmax over m of scale * <q[b, n, h], k[b, m, h]> + mask[b, h, n, m]

q     (B, N, H, D)   floating
k,v   (B, M, H, D)   of the dtype and device of q; any dimension but D may be 0
mask  (B or 1, H or 1, N or 1, M), or without its first dimensions: bool (True takes part), or of
      the dtype of q (added)
out   (B, N, H, D)   contiguous, of the dtype of q; scale: 1 / sqrt(D) if it is None

A row of which no key takes part (all are False, or -inf) is 0, as in PyTorch; so is every row if
M = 0.  A finite number leaves a key its part: a row of the least number of a dtype is not 0.

Logits, their maximum, their exponentials and all sums are float32; the exponentials are rounded to
the dtype of q before they weigh v, their sum is not.  PyTorch's backends, each within its own
roundings, do so too or better.

Who computes (`attention_choice` says it, with the reason):

    torch             scaled_dot_product_attention on views, as PyTorch chooses
    cudnn, flash, fa3, fa4, efficient, math    one backend of it
    triton            kernels/attention.py
    cross_attention   kernels/cross_attention.py: few keys, no mask

A table of measurements (_attention_table.py) picks for its devices; where it has no row, PyTorch's
own choice stands.  Inside use_backend("triton") kernels/attention.py runs, or the call raises;
inside use_backend("reference") it is `torch`.

The backend triton has `launch(q, k, v, mask, scale, out) -> None`, mask (B, H, N, M), expanded, or
None, called with no empty dimension.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff import backends
from fastdiff.ops import _attention_table, cross_attention
from fastdiff.ops._attention import (
    call,
    check_mask,
    check_operands,
    default_scale,
    is_forced,
    readable,
    refused,
    sdpa,
)
from fastdiff.ops._attention_table import Choice
from fastdiff.ops._pointwise import implement

__all__ = ["attention", "attention_choice", "attention_ref"]

WIDTHS = (*range(8, 161, 8), 256, 512)  # of the Triton kernel
KINDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "fa3": SDPBackend.FLASH_ATTENTION,
    "fa4": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
IMPLEMENTATIONS = {"fa3": "FA3", "fa4": "FA4"}  # that PyTorch can activate in place of its flash

torch.library.define(
    "fastdiff::attention", "(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale) -> Tensor"
)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return out, (B, N, H, D), as a new tensor; differentiable."""
    check_arguments(q, k, v, mask)
    op = torch.ops.fastdiff.attention.default
    return call(op, _run, attention_ref, q, k, v, mask, default_scale(q, scale))


def attention_and_choice(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Choice | None]:
    """(out, who computed it), for callers that report; asked once.  None while torch.compile
    traces: there it is decided when the graph runs."""
    if torch.compiler.is_compiling():
        return attention(q, k, v, mask=mask, scale=scale), None
    check_arguments(q, k, v, mask)
    if (reason := backends.why_reference(q, k, v, mask)) is not None:
        return attention(q, k, v, mask=mask, scale=scale), Choice("torch", reason)
    chosen = _choice(q, k, mask)
    return _computed(chosen.name, q, k, v, mask, default_scale(q, scale)), chosen


def attention_ref(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    return sdpa(q, k, v, mask, scale)


def attention_choice(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Choice:
    """(name, why): who computes attention of tensors like these, without computing it."""
    check_arguments(q, k, v, mask)
    if (reason := backends.why_reference(q, k, v, mask)) is not None:
        return Choice("torch", reason)
    return _choice(q, k, mask)


def check_arguments(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: object) -> None:
    check_operands(q, k, v)
    check_mask(mask, q, k)


def launch_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, out: Tensor
) -> None:
    """Write the result where a kernel would write it."""
    out.copy_(attention_ref(q, k, v, mask, scale))


def _choice(q: Tensor, k: Tensor, mask: Tensor | None) -> Choice:
    if is_forced():
        key = backends.Key(q.device.type, q.dtype)
        backend = backends.chosen("attention", key)
        if backend == "reference":
            return Choice("torch", "use_backend asked for the reference")
        if reason := why_not(q, mask):
            raise refused("attention", backend, reason)
        return Choice("triton", f"use_backend asked for {backend}")
    if (reason := why_no_kernel(q.device.type)) is not None:
        return Choice("torch", reason)
    found = _attention_table.lookup(
        _attention_table.device_name(q.device.index or 0),
        str(q.dtype).removeprefix("torch."),
        width=q.shape[-1],
        queries=q.shape[1],
        keys=k.shape[1],
        masked=mask is not None,
    )
    if (reason := _cannot(found.name, q, k, mask)) is not None:
        return Choice("torch", f"{found.name} was measured to be fastest, but {reason}")
    return found


def why_no_kernel(device: str) -> str | None:
    """Why PyTorch's attention runs on every tensor of a type of device; None if not on every."""
    return None if device == "cuda" else f"there is no kernel of ours for {device}"


def why_not(q: Tensor, mask: Tensor | None = None) -> str | None:
    """Why kernels/attention.py does not run here, or not on tensors like these; None if it does."""
    if reason := backends.why_not("attention", "triton", backends.Key(q.device.type, q.dtype)):
        return reason
    width = q.shape[-1]
    if width not in WIDTHS:
        return f"heads must be 8, 16, .. 160, 256 or 512 wide; these are {width}"
    if mask is not None and width > 160:
        return f"heads {width} wide leave no registers for a mask; at most 160 with one"
    return None


def _cannot(name: str, q: Tensor, k: Tensor, mask: Tensor | None) -> str | None:
    """Why what the table names does not run on tensors like these; None if it does."""
    if name == "triton":
        return why_not(q, mask)
    if name == "cross_attention":
        if mask is not None:
            return "it has no mask"
        if not 1 <= k.shape[1] <= cross_attention.LONGEST:
            return f"it takes 1 to {cross_attention.LONGEST} keys"
        if q.shape[-1] % 8 or q.shape[-1] > cross_attention.WIDEST:
            return f"it takes heads a multiple of 8 wide, at most {cross_attention.WIDEST}"
        return cross_attention.why_not(q, k)
    return None if name in ("torch", "math") else _torch_cannot(name, q, k, mask)


def _torch_cannot(name: str, q: Tensor, k: Tensor, mask: Tensor | None) -> str | None:
    from torch.backends import cuda

    if KINDS[name] is SDPBackend.FLASH_ATTENTION:
        wanted, active = IMPLEMENTATIONS.get(name, "FA2"), active_flash()
        if wanted != active:
            return f"PyTorch's flash attention is {active} in this process, not {wanted}"
    asks = {"cudnn": cuda.can_use_cudnn_attention, "efficient": cuda.can_use_efficient_attention}
    ask = asks.get(name, cuda.can_use_flash_attention)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if not ask(cuda.SDPAParams(q, k, k, mask, 0.0, False, False)):
        return "it does not take tensors like these"
    return None


def active_flash() -> str:
    """Which flash attention PyTorch has: FA2 of its own, or what
    torch.nn.attention.activate_flash_attention_impl put in its place, for the whole process."""
    import torch.nn.attention as module

    current = getattr(module, "current_flash_attention_impl", None)  # since torch 2.12
    return (current and current()) or "FA2"


def _run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return _computed(_choice(q, k, mask).name, q, k, v, mask, scale)


def _computed(
    name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    if name == "torch":
        return attention_ref(q, k, v, mask, scale)
    if name in KINDS:
        with sdpa_kernel(KINDS[name]):
            return attention_ref(q, k, v, mask, scale)
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    if k.shape[1] == 0:
        return out.zero_()
    operands = (readable(q), readable(k), readable(v))
    key = backends.Key(q.device.type, q.dtype)
    if name == "cross_attention":
        backends.resolve("cross_attention", key)(*operands, scale, out)
        return out
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    backends.resolve("attention", key)(*operands, mask, scale, out)
    return out


def _empty(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return q.new_empty(q.shape)


implement("attention", check_arguments, _run, _empty, attention_ref)
backends.register(
    "attention",
    reference="fastdiff.ops.attention:launch_reference",
    triton="fastdiff.kernels.attention:launch",
)
