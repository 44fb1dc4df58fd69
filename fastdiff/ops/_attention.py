"""What attention and cross_attention share: checks, PyTorch's own attention, the way to a kernel.

Tensors are (B, N, H, D): batch, place, head, width of a head, as a projection leaves them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import backends
from fastdiff.ops import _pointwise
from fastdiff.ops._arguments import check_floating, check_tensor, number

LAYOUT = "(B, N, H, D): batch, place, head, width"
ALIGNMENT = 16  # bytes
LONGEST_STEP = 1 << 21  # elements from one place to the next: kernels count within a tile in int32


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """PyTorch's attention on (B, N, H, D), contiguous.  The transposes are views."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous()


def default_scale(q: Tensor, scale: float | None) -> float:
    if scale is None:
        return float(max(1, q.shape[-1]) ** -0.5)
    return number("scale", scale)


def call(op: Any, run: Callable[..., Any], reference: Callable[..., Any], *args: Any) -> Tensor:
    """As _pointwise.call; where a gradient is wanted, PyTorch's own attention keeps what its
    derivative needs, so that nothing is computed twice."""
    eager = not torch.compiler.is_compiling()
    wanted = torch.is_grad_enabled() and any(
        isinstance(a, Tensor) and a.requires_grad for a in args
    )
    result: Tensor
    result = reference(*args) if eager and wanted else _pointwise.call(op, run, reference, *args)
    return result


def in_place(tensor: Tensor) -> bool:
    """Whether a kernel can read (B, N, H, D) where it lies: D contiguous, all else in 16 bytes."""
    steps = [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    dense = tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
    whole = all(s % 8 == 0 for s in steps[: -1 if tensor.shape[-1] > 1 else None])
    short = tensor.shape[1] <= 1 or tensor.stride(1) < LONGEST_STEP
    return dense and whole and short and tensor.data_ptr() % ALIGNMENT == 0


def readable(tensor: Tensor) -> Tensor:
    """The tensor, or an aligned copy of what a kernel cannot read where it lies."""
    return tensor if in_place(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of batch, place and head in units of 8 elements, of a tensor that is `in_place`."""
    each = zip(tensor.stride()[:3], tensor.shape[:3], strict=True)
    return tuple(0 if size == 1 else step // 8 for step, size in each)


def shared_memory(device: torch.device) -> int:
    """Bytes of it that a block may have on a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    kilobytes = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
    return kilobytes.get((major, minor), 99) * 1024


def refused(op: str, backend: str, reason: str) -> backends.BackendError:
    """What a backend that was asked for and cannot run these tensors raises."""
    return backends.BackendError(f"backend {backend!r} cannot run this fastdiff::{op}: {reason}")


def is_forced() -> bool:
    """Whether use_backend named the backend: then it runs, or the call raises."""
    return backends._forced.get() is not None


def check_operands(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor)
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be {LAYOUT}, got {tuple(tensor.shape)}. "
                f"Try {name}.unflatten(-1, (heads, -1)) of a projection (B, N, H*D)"
            )
    check_floating("q", q)
    batch, _, heads, width = q.shape
    if width == 0:
        raise ValueError(f"q must have heads at least 1 wide, got {tuple(q.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise TypeError(
                f"{name} must have the dtype and device of q, {q.dtype} on {q.device}; got "
                f"{tensor.dtype} on {tensor.device}. Try {name}.to(q)"
            )
        wanted = (batch, k.shape[1], heads, width)
        if tensor.shape != wanted:
            places = "M" if name == "k" else k.shape[1]
            raise ValueError(
                f"{name} must be ({batch}, {places}, {heads}, {width}), as q "
                f"{tuple(q.shape)}{'' if name == 'k' else ' and k'} say; got {tuple(tensor.shape)}"
            )


def check_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> None:
    if mask is None:
        return
    check_tensor("mask", mask)
    if mask.dtype not in (torch.bool, q.dtype) or mask.device != q.device:
        raise TypeError(
            f"mask must be bool (True takes part) or of the dtype of q, {q.dtype} (added), on "
            f"{q.device}; got {mask.dtype} on {mask.device}. Try mask.to(q)"
        )
    whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    found = tuple(mask.shape)
    fits = 2 <= len(found) <= 4 and found[-1] == whole[-1]
    each = zip(reversed(found[:-1]), reversed(whole[:-1]), strict=False)
    if not fits or any(size not in (1, full) for size, full in each):
        raise ValueError(
            f"mask must be (B or 1, H or 1, N or 1, M) with (B, H, N, M) = {whole}, or without its "
            f"first dimensions; got {found}"
        )
