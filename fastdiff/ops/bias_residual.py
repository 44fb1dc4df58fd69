"""bias_residual: what follows a convolution, in one pass: bias, time embedding, residual, scale.

    y = ((x + bias) + residual) * scale

x         (N, C, *spatial)   floating; any of its sizes may be 0
bias      (C,) or (N, C)     float32 or of the dtype of x: the convolution's own bias, or that plus
                             the time embedding; None: 0
residual  (N, C, *spatial)   dtype and device of x; None: 0
scale     a number, 1 / output_scale_factor
y         (N, C, *spatial)   of the dtype of x, in its layout

Computed in float32 (by the reference in float64, if x is float64): each sum and the product is
rounded to float32, in the order above, and the result to the dtype of x: the same bits from every
kernel.

One dense layout, contiguous (N, C, L) or channels last (N, L, C), is that of all: a residual in
another one is copied first, and an x that is neither becomes contiguous.

Every backend has `launch(x, bias, residual, scale, out) -> None`, called on tensors of the one
layout; bias contiguous.
"""

import math

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import check_floating, check_number, number
from fastdiff.ops._pointwise import call, check_parameter_dtype, implement, kernel, wide
from fastdiff.ops.group_norm_checks import channels_last, check_like_x, check_vector, dense

__all__ = ["bias_residual", "bias_residual_ref"]

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

torch.library.define(
    "fastdiff::bias_residual",
    "(Tensor x, Tensor? bias, Tensor? residual, float scale) -> Tensor",
)


def bias_residual(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """Return ((x + bias) + residual) * scale as a new tensor; differentiable in all tensors."""
    args = (x, bias, residual, number("scale", scale))
    check_arguments(*args)
    y: Tensor = call(torch.ops.fastdiff.bias_residual.default, _run, bias_residual_ref, *args)
    return y


def bias_residual_ref(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float
) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    y = x.to(wide(x))
    if bias is not None:
        per_sample = bias.to(y.dtype) if bias.dim() == 2 else bias.to(y.dtype)[None]
        y = y + per_sample.reshape(*per_sample.shape, *(1,) * (x.dim() - 2))
    if residual is not None:
        y = y + residual.to(y.dtype)
    return (y * scale).to(x.dtype)


def launch_reference(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float, out: Tensor
) -> None:
    """Write the result where a kernel would write it."""
    out.copy_(bias_residual_ref(x, bias, residual, scale))


def launch_cpu(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float, out: Tensor
) -> None:
    """csrc/bias_residual.cpp."""
    if out.numel() == 0:
        return
    from fastdiff import _C

    bias = None if bias is None else bias.float()
    addresses = [0 if t is None else t.data_ptr() for t in (x, bias, residual, out)]
    samples, channels, *spatial = x.shape
    sizes = (samples, channels, math.prod(spatial))
    code, each_sample = DTYPE_CODES[x.dtype], bias is not None and bias.dim() == 2
    rest = (each_sample, channels_last(x), scale, torch.get_num_threads())
    _C.bias_residual(addresses, code, sizes, *rest)


def check_arguments(x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be (N, C, *spatial), got {tuple(x.shape)}. Try x[None]")
    if bias is not None:
        check_vector("bias", bias, x, ((x.shape[1],), tuple(x.shape[:2])))
        check_parameter_dtype("bias", bias, x)
    if residual is not None:
        check_like_x("residual", residual, x, tuple(x.shape))
    check_number("scale", scale)


def _empty(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(dense(x))


def _run(x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float) -> Tensor:
    x = dense(x)
    y, launch = torch.empty_like(x), kernel("bias_residual", x)
    if residual is not None and channels_last(x):
        residual = residual.movedim(1, -1).contiguous().movedim(-1, 1)
    elif residual is not None:
        residual = residual.contiguous()
    launch(x, None if bias is None else bias.contiguous(), residual, scale, y)
    return y


implement("bias_residual", check_arguments, _run, _empty, bias_residual_ref)
backends.register(
    "bias_residual",
    reference="fastdiff.ops.bias_residual:launch_reference",
    cpu="fastdiff.ops.bias_residual:launch_cpu",
    triton="fastdiff.kernels.bias_residual:launch",
)
