"""cross_attention: attention of many queries to few keys, as to the tokens of a prompt.

    out[b, n, h] = sum_m p[m] v[b, m, h],   p = softmax over m of scale * <q[b, n, h], k[b, m, h]>

q    (B, N, H, D)   floating; D = 8, 16, .. 160; B, N and H may be 0
k,v  (B, M, H, D)   of the dtype and device of q; M = 1 .. 512
out  (B, N, H, D)   contiguous, of the dtype of q; scale: 1 / sqrt(D) if it is None

The layout is that which a projection leaves, so that nothing is transposed.  A tensor is read where
it lies if D is contiguous, its other strides are multiples of 8 elements, and its first element is
at a multiple of 16 bytes; else it is copied first.

Logits, their maximum, their exponentials and all sums are float32 (by the reference in float64, if
q is); the exponentials are rounded to the dtype of q before they weigh v, their sum is not; the
quotient is rounded once.  The bits of a row of out depend on that row of q and its k and v alone.

No CPU kernel: there, and for what the kernel does not take (`why_not`), PyTorch's attention runs.
Every backend has `launch(q, k, v, scale, out) -> None`, called with no empty dimension.
"""

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._attention import (
    call,
    check_operands,
    default_scale,
    is_forced,
    readable,
    refused,
    sdpa,
    shared_memory,
)
from fastdiff.ops._cross_attention_plan import why_too_large
from fastdiff.ops._pointwise import implement

__all__ = ["cross_attention", "cross_attention_ref", "why_not"]

WIDEST, LONGEST = 160, 512

torch.library.define(
    "fastdiff::cross_attention", "(Tensor q, Tensor k, Tensor v, float scale) -> Tensor"
)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Return out, (B, N, H, D), as a new tensor; differentiable."""
    check_arguments(q, k, v)
    op = torch.ops.fastdiff.cross_attention.default
    return call(op, _run, cross_attention_ref, q, k, v, default_scale(q, scale))


def cross_attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    return sdpa(q, k, v, None, scale)


def why_not(q: Tensor, k: Tensor) -> str | None:
    """Why the Triton kernel does not run here, or not on tensors like these; None if it does."""
    key = backends.Key(q.device.type, q.dtype)
    if reason := backends.why_not("cross_attention", "triton", key):
        return reason
    return _too_large(q, k)


def launch_reference(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Write the result where a kernel would write it."""
    out.copy_(cross_attention_ref(q, k, v, scale))


def check_arguments(q: Tensor, k: Tensor, v: Tensor, *_: object) -> None:
    check_operands(q, k, v)
    width, keys = q.shape[-1], k.shape[1]
    if width % 8 or width > WIDEST:
        raise ValueError(
            f"q must have heads of a width D that is a multiple of 8, at most {WIDEST}; got "
            f"{width}. Try fastdiff.ops.attention"
        )
    if not 1 <= keys <= LONGEST:
        raise ValueError(
            f"k must have 1 to {LONGEST} places, got {keys}. Try fastdiff.ops.attention"
        )


def _too_large(q: Tensor, k: Tensor) -> str | None:
    return why_too_large(q.shape[-1], k.shape[1], q.element_size(), shared_memory(q.device))


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    key = backends.Key(q.device.type, q.dtype)
    backend = backends.chosen("cross_attention", key)
    if backend == "triton" and (reason := _too_large(q, k)):
        if is_forced():
            raise refused("cross_attention", backend, reason)
        backend = "reference"
    if backend == "reference":
        return cross_attention_ref(q, k, v, scale)
    out = q.new_empty(q.shape)
    if out.numel() > 0:
        launch = backends.resolve("cross_attention", key)
        launch(readable(q), readable(k), readable(v), scale, out)
    return out


def _empty(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


implement("cross_attention", check_arguments, _run, _empty, cross_attention_ref)
backends.register(
    "cross_attention",
    reference="fastdiff.ops.cross_attention:launch_reference",
    triton="fastdiff.kernels.cross_attention:launch",
)
