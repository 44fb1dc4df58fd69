"""group_norm in PyTorch operators: the definition that every kernel is tested against, and its
derivative.  Symbols and shapes: fastdiff/ops/group_norm.py.

Everything is computed in float32, or in float64 if x is float64; the variance from differences to
the mean.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Normalised(NamedTuple):
    """What y is made of; v and what follows from it in the dtype of the arithmetic."""

    total: Tensor | None  # v rounded to the dtype of x, with a residual
    vhat: Tensor  # (v - mean) * rstd, (N, C, *spatial)
    rstd: Tensor  # (N, G, 1)
    u: Tensor  # vhat * weight + bias


def normalise(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
) -> Normalised:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = (x if x2 is None else torch.cat([x, x2], dim=1)).to(wide)
    ones = (1,) * (x.dim() - 2)
    channels = v.shape[1]
    total = None
    if addend is not None:
        v = v + addend.to(wide).reshape(-1, channels, *ones)
    if residual is not None:
        total = (v + residual.to(wide)).to(x.dtype)
        v = total.to(wide)
    grouped = v.reshape(v.shape[0], groups, (channels // groups) * x.shape[2:].numel())
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    rstd = ((centred * centred).mean(dim=2, keepdim=True) + eps).rsqrt()
    vhat = (centred * rstd).reshape(v.shape)
    u = vhat
    if weight is not None:
        u = u * weight.to(wide).reshape(channels, *ones)
    if bias is not None:
        u = u + bias.to(wide).reshape(channels, *ones)
    return Normalised(total, vhat, rstd, u)


def group_norm_ref(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
) -> tuple[Tensor, Tensor]:
    """The functional form: y, total (empty without residual); differentiable, on any device,
    through any transform."""
    total, _, _, u = normalise(x, groups, weight, bias, eps, addend, residual, x2)
    y = (u * torch.sigmoid(u) if silu else u).to(x.dtype)
    if tokens:
        y = y.flatten(2).transpose(1, 2) if y.dim() > 2 else y.unsqueeze(1)
    return y, x.new_empty(0) if total is None else total


def launch(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """Write the results where a kernel would write them."""
    y, kept = group_norm_ref(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens)
    out.copy_(y)
    if total is not None:
        total.copy_(kept)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The operands: the derivative computes the rest again, as memory is what is scarce."""
    x, ctx.groups, weight, bias, ctx.eps, ctx.silu, addend, residual, x2, ctx.tokens = inputs
    ctx.save_for_backward(x, weight, bias, addend, residual, x2)


def backward(ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
    """Gradients of x, weight, bias, addend, residual and x2.

    With d = dL/du * weight and means over the group: dL/dv = rstd (d - mean d - vhat mean(d vhat)).
    """
    x, weight, bias, addend, residual, x2 = ctx.saved_tensors
    total, vhat, rstd, u = normalise(x, ctx.groups, weight, bias, ctx.eps, addend, residual, x2)
    grad_v, per_channel = torch.zeros_like(vhat), (0, *range(2, x.dim()))
    grad_weight = grad_bias = None
    if grad_y is not None:
        grad_u = grad_y.transpose(1, 2).reshape(u.shape) if ctx.tokens else grad_y
        grad_u = grad_u.to(u.dtype)
        if ctx.silu:
            s = torch.sigmoid(u)
            grad_u = grad_u * s * (1 + u * (1 - s))
        grad_bias = grad_u.sum(per_channel)
        grad_weight = (grad_u * vhat).sum(per_channel)
        if weight is not None:
            grad_u = grad_u * weight.to(u.dtype).reshape(-1, *(1,) * (x.dim() - 2))
        shape = (x.shape[0], ctx.groups, vhat[0].numel() // ctx.groups)
        d, unit = grad_u.reshape(shape), vhat.reshape(shape)
        along = (d * unit).mean(dim=2, keepdim=True)
        grad_v = (rstd * (d - d.mean(dim=2, keepdim=True) - unit * along)).reshape(vhat.shape)
    if grad_total is not None and total is not None:
        grad_v = grad_v + grad_total.to(grad_v.dtype)
    grad_addend = None
    if addend is not None:
        grad_addend = grad_v.flatten(2).sum(2) if x.dim() > 2 else grad_v
        grad_addend = (grad_addend if addend.dim() == 2 else grad_addend.sum(0)).to(addend.dtype)
    return (
        grad_v[:, : x.shape[1]].to(x.dtype),
        None,
        None if weight is None or grad_weight is None else grad_weight.to(weight.dtype),
        None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
        *(None, None),
        grad_addend,
        None if residual is None else grad_v.to(residual.dtype),
        None if x2 is None else grad_v[:, x.shape[1] :].to(x2.dtype),
        None,
    )
