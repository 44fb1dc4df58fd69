"""add_layer_norm: a residual connection and the LayerNorm that follows it, in one pass.

    total = x + residual                                 rounded to the dtype of x
    y = (total - mean) * rstd * weight + bias            mean, rstd = 1 / sqrt(var + eps) of each
                                                         row; the variance is the biased one
x, residual   (.., D)   floating, one dtype and device; D from 1 to 8,192; rows may be none
weight, bias  (D,)      float32 or of the dtype of x; None: 1, and 0
y, total      (.., D)   contiguous, of the dtype of x

Without residual this is LayerNorm, and total is x itself.  The sum is rounded once, so that total
has the same bits from every kernel, and y is the norm of what was rounded, as in eager PyTorch.
All else is computed in float32 (by the reference in float64, if x is float64) and rounded to the
dtype of x once, from deviations from the mean, never from the mean of squares: sound at |mean| /
std up to 1000.  The bits of a row depend on that row alone.  Tensors that are not contiguous are
copied first.

Every backend has `launch(x, residual, weight, bias, eps, out, total) -> None`, called on contiguous
tensors; total is None without residual.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import check_floating, check_number, number
from fastdiff.ops._pointwise import call, check_parameter_dtype, implement, kernel, wide
from fastdiff.ops.group_norm_checks import check_like_x, check_vector

__all__ = ["add_layer_norm", "add_layer_norm_ref"]

MAX_WIDTH = 8_192  # what a kernel holds on chip, or in the first-level cache
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

torch.library.define(
    "fastdiff::add_layer_norm",
    "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps) "
    "-> (Tensor y, Tensor total)",
)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return (y, total), new tensors, but for total = x without residual; differentiable in all
    tensors."""
    args = (x, residual, weight, bias, number("eps", eps))
    check_arguments(*args)
    op = torch.ops.fastdiff.add_layer_norm.default
    y, total = call(op, _run, add_layer_norm_ref, *args)
    return y, x if residual is None else total


def add_layer_norm_ref(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The definition in PyTorch operators: y, total (empty without residual); on any device,
    through any transform."""
    total = x if residual is None else x + residual
    weight, bias = (None if p is None else p.to(wide(x)) for p in (weight, bias))
    y = F.layer_norm(total.to(wide(x)), x.shape[-1:], weight, bias, eps).to(x.dtype)
    return y, x.new_empty(0) if residual is None else total


def launch_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """Write the results where a kernel would write them."""
    y, kept = add_layer_norm_ref(x, residual, weight, bias, eps)
    out.copy_(y)
    if total is not None:
        total.copy_(kept)


def launch_cpu(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """csrc/add_layer_norm.cpp."""
    if out.numel() == 0:
        return
    from fastdiff import _C

    tensors = (x, residual, weight, bias, out, total)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    dtypes = [0 if t is None else DTYPE_CODES[t.dtype] for t in (x, weight, bias)]
    width = x.shape[-1]
    rows = x.numel() // width
    _C.add_layer_norm(addresses, dtypes, rows, width, eps, torch.get_num_threads())


def check_arguments(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> None:
    check_floating("x", x)
    width = x.shape[-1] if x.dim() else 0
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(
            f"x must be (.., D) with D from 1 to {MAX_WIDTH}, got {tuple(x.shape)}. "
            "For other widths there is torch.nn.functional.layer_norm"
        )
    if residual is not None:
        check_like_x("residual", residual, x, tuple(x.shape))
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            check_vector(name, parameter, x, ((width,),))
            check_parameter_dtype(name, parameter, x)
    check_number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}. Try 1e-5")


def _empty(x: Tensor, residual: Tensor | None, *rest: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    y, total = _empty(x, residual)
    tensors = (None if t is None else t.contiguous() for t in (x, residual, weight, bias))
    launch = kernel("add_layer_norm", x)
    launch(*tensors, eps, y, None if residual is None else total)
    return y, total


implement("add_layer_norm", check_arguments, _run, _empty, add_layer_norm_ref)
backends.register(
    "add_layer_norm",
    reference="fastdiff.ops.add_layer_norm:launch_reference",
    cpu="fastdiff.ops.add_layer_norm:launch_cpu",
    triton="fastdiff.kernels.add_layer_norm:launch",
)
