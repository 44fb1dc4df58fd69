"""The short way from a scheduler's step to the CPU kernel.

One step of a 1x4x64x64 latent has a budget of about ten microseconds, half of it for Python.  So
the conditions of fastdiff.ops.affine_step (plain dense CPU tensors of one shape, nothing that
records) are tested here in the cheapest order, without building reasons; if any fails, the caller
takes the op.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops.affine_step import DTYPE_CODES, SERIAL_BELOW

_code = DTYPE_CODES.get
_forced = backends._forced.get
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state
_compiling = torch.compiler.is_dynamo_compiling
_forward_ad = torch.autograd.forward_ad
_empty = torch.empty_like
_float32 = torch.float32
_address = Tensor.data_ptr
_kernel = backends.native("affine_step")


def native(
    row: int,
    x: Tensor,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    out_dtype: torch.dtype,
    x0_dtype: torch.dtype,
    keeps: int,
    uncond: Tensor | None = None,
) -> tuple[Tensor, Tensor, Sequence[Tensor]] | None:
    """(x', x_0, kept) as new contiguous tensors, or None if these tensors must take the op.

    row: address of one float32 row whose history has len(history) vectors; it has the guidance if
    there is uncond.
    """
    shape = x.shape
    plain = out_dtype is _float32 and x0_dtype is _float32
    given: tuple[Tensor, ...]
    every: tuple[Tensor | None, ...]
    records = torch.is_grad_enabled()
    given = (x, cond, *history) if noise is None else (x, cond, noise, *history)
    if uncond is not None:
        given = (*given, uncond)
    for tensor in given:
        # every one of these is a call into PyTorch; together 0.3 us a tensor
        if type(tensor) is not Tensor or not tensor.is_cpu or not tensor.is_contiguous():
            return None
        if records and tensor.requires_grad:
            return None
        if tensor is not x and tensor.shape != shape:
            return None
        if tensor.dtype is not _float32:
            plain = False
            if _code(tensor.dtype) is None:
                return None
    if _kernel is None or _forced() not in (None, "cpu") or _compiling():
        return None
    if _dispatch_modes() or _transform() is not None or _tracing() is not None:
        return None
    if _forward_ad._current_level >= 0:
        return None
    if plain and x.dtype is _float32:
        x_next, x0, codes = _empty(x), _empty(x), 0
        # written out: a comprehension is a call of its own, 0.6 us
        kept = (_empty(x),) if keeps == 1 else [_empty(x) for _ in range(keeps)] if keeps else ()
    else:
        if _code(out_dtype) is None or _code(x0_dtype) is None:
            return None
        x_next, x0 = _empty(x, dtype=out_dtype), _empty(x, dtype=x0_dtype)
        kept = [_empty(x0) for _ in range(keeps)]
        codes = 0
        every = (x, uncond, cond, noise, x_next, x0, None, *history, *kept)
        for i, operand in enumerate(every):
            if operand is not None:
                codes |= DTYPE_CODES[operand.dtype] << 2 * i
    numel = x.numel()
    threads = 1 if numel < SERIAL_BELOW else torch.get_num_threads()
    z = 0 if noise is None else noise.data_ptr()
    u = 0 if uncond is None else uncond.data_ptr()
    now = (
        *(x.data_ptr(), u, cond.data_ptr(), z, x_next.data_ptr(), x0.data_ptr(), 0),
        *map(_address, history),
        *map(_address, kept),
    )
    _kernel(row, 1, 0, 1, numel, keeps, 0, threads, codes, now)
    return x_next, x0, kept
