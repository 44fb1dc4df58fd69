"""The short way from a scheduler's step to the CPU kernel.

One step of a 1x4x64x64 latent has a budget of about ten microseconds, half of it for Python.  So
the conditions of fastdiff.ops.affine_step (plain dense CPU tensors of one shape, nothing that
records) are tested here in the cheapest order, without building reasons; if any fails, the caller
takes the op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops.affine_step import DTYPE_CODES

SERIAL_BELOW = 65_536  # elements; the kernel's own limit, so that asking for threads is saved
_CODE = DTYPE_CODES.get
_forced = backends._forced.get
_recorders = (
    torch._C._len_torch_dispatch_stack,
    torch._C._functorch.peek_interpreter_stack,
    torch._C._get_tracing_state,
)


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    try:
        from fastdiff import _C
    except ImportError:
        return None
    kernel: Callable[..., Any] = _C.affine_step
    return kernel


def native(
    row: int,
    x: Tensor,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    out_dtype: torch.dtype,
    x0_dtype: torch.dtype,
    keeps: int,
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """(x', x_0, kept) as new contiguous tensors, or None if these tensors must take the op.

    row: address of one float32 row whose history has len(history) vectors.
    """
    if type(x) is not Tensor or type(cond) is not Tensor:
        return None
    shape = x.shape
    operands = (x, cond, *history) if noise is None else (x, cond, noise, *history)
    codes = 0
    for tensor in operands:
        if type(tensor) is not Tensor or not tensor.is_cpu or not tensor.is_contiguous():
            return None
        if tensor.requires_grad and torch.is_grad_enabled():
            return None
        if tensor is not x and tensor.shape != shape:
            return None
        code = _CODE(tensor.dtype)
        if code is None:
            return None
        codes |= code
    kernel = _kernel()
    if kernel is None or _forced() not in (None, "cpu") or torch.compiler.is_compiling():
        return None
    if _recorders[0]() or _recorders[1]() is not None or _recorders[2]() is not None:
        return None
    if torch.autograd.forward_ad._current_level >= 0:
        return None
    x_next = torch.empty_like(x) if out_dtype is x.dtype else torch.empty_like(x, dtype=out_dtype)
    x0 = torch.empty_like(x) if x0_dtype is x.dtype else torch.empty_like(x, dtype=x0_dtype)
    kept = [torch.empty_like(x0) for _ in range(keeps)]
    out = _CODE(out_dtype, -1), _CODE(x0_dtype, -1)
    if -1 in out:
        return None
    if codes or out[0] or out[1]:
        every = [x, None, cond, noise, x_next, x0, None, *history, *kept]
        codes = 0
        for i, tensor in enumerate(every):
            if tensor is not None:
                codes |= DTYPE_CODES[tensor.dtype] << 2 * i
    numel = x.numel()
    kernel(
        row,
        1,
        0,
        1,
        numel,
        keeps,
        0,
        1 if numel < SERIAL_BELOW else torch.get_num_threads(),
        codes,
        (
            x.data_ptr(),
            0,
            cond.data_ptr(),
            0 if noise is None else noise.data_ptr(),
            x_next.data_ptr(),
            x0.data_ptr(),
            0,
            *[h.data_ptr() for h in history],
            *[r.data_ptr() for r in kept],
        ),
    )
    return x_next, x0, kept
