"""affine_step in PyTorch operators: the definition that every kernel is tested against, and its
derivative.  Symbols, shapes and the row's columns: fastdiff/ops/affine_step.py.

Sums start from +0 and take products rounded on their own, as the kernels do, so that in float32 all
give the same bits.  Where a weight is 0 the product is replaced by 0, for 0 * NaN is NaN.  No
value is read on the host: rows and step may live on any device.  Only `launch` reads, for one row
on the CPU, which of its weights are 0: there reading is free, and leaving out makes it quick.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops.philox_normal_reference import STEP_STREAM, philox_normal_ref

X, M, E, Z, H = range(5)  # columns of C; those of the history follow


class Row(NamedTuple):
    """One row of the table, its columns shaped to multiply x: () or (1 or B, 1, .., 1)."""

    g: Tensor
    estimate: Tensor  # kx, (no m), ke, kz at X, M, E, Z
    lo: Tensor
    hi: Tensor
    gain: Tensor
    matrix: Tensor  # (1 + P, 4 + R, ..)
    c_in: Tensor
    slots: Tensor  # (P, ..)


def read_row(x: Tensor, rows: Tensor, step: Tensor | None, keeps: int, depth: int) -> Row:
    """The row of `step`, in float64 if x or rows is float64, else in float32."""
    wide = torch.float64 if torch.float64 in (x.dtype, rows.dtype) else torch.float32
    if step is None:
        row = rows[0]
    else:
        try:
            row = rows.index_select(0, step.reshape(1).long())[0]
        except IndexError:  # of the CPU: a device cannot raise
            count = rows.shape[0]
            raise IndexError(
                f"step is {step}, but rows has {count} rows. Try 0 to {count - 1}"
            ) from None
    samples = [rows.shape[1]] + [1] * (x.dim() - 1) if x.dim() else []
    row = row.to(wide).t().reshape(rows.shape[2], *samples)
    width, end = H + depth, 7 + (1 + keeps) * (H + depth)
    estimate = torch.stack([row[1], torch.zeros_like(row[1]), row[2], row[3]])
    matrix = row[7:end].reshape(1 + keeps, width, *samples)
    return Row(row[0], estimate, row[4], row[5], row[6], matrix, row[end], row[end + 1 :])


def weighted_sum(
    like: Tensor,
    weights: Tensor,
    operands: Sequence[Tensor | None],
    used: Sequence[bool] | None = None,
) -> Tensor:
    """sum_k weights[k] * operands[k] in the dtype of weights; None and weight 0 are left out.

    used: which weights are not 0, if that is known on the host.
    """
    total = torch.zeros_like(like, dtype=weights.dtype)
    for k, (weight, operand) in enumerate(zip(weights, operands, strict=True)):
        if operand is None or (used is not None and not used[k]):
            continue
        product = weight * operand.to(weights.dtype)
        if used is None:
            product = torch.where(weight != 0, product, torch.zeros_like(product))
        total = total + product
    return total


def guided(g: Tensor, uncond: Tensor | None, cond: Tensor) -> Tensor:
    """e, in the dtype of g."""
    cond = cond.to(g.dtype)
    if uncond is None:
        return cond
    uncond = uncond.to(g.dtype)
    return uncond + g * (cond - uncond)


def drawn(
    x: Tensor, noise: Tensor | None, seeds: Tensor | None, step: Tensor | None, noise_step: int
) -> Tensor | None:
    """z: the noise, or what the seeds make of it."""
    if seeds is None:
        return noise
    return philox_normal_ref(seeds, x.shape[1:], step, noise_step, STEP_STREAM, torch.float32)


def evaluate(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    row: Row,
    used: Sequence[Sequence[bool]] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x', m and [r_1 .. r_P] in the dtype of the sums; used: for m, then for each row of C."""
    of_m, *of_results = [*used] if used else [None] * (1 + len(row.matrix))
    e = guided(row.g, uncond, cond)
    m = weighted_sum(x, row.estimate, (x, None, e, noise), of_m)
    m = row.gain * torch.minimum(torch.maximum(m, row.lo), row.hi)
    operands = (x, m, e, noise, *history)
    weights = zip(row.matrix, of_results, strict=True)
    x_next, *kept = (weighted_sum(x, c, operands, known) for c, known in weights)
    return x_next, m, kept


def affine_step_ref(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    out_dtype: torch.dtype,
    x0_dtype: torch.dtype,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The functional form; differentiable, on any device, through any transform."""
    noise = drawn(x, noise, seeds, step, noise_step)
    row = read_row(x, rows, step, keeps, len(history))
    x_next, m, kept = evaluate(x, uncond, cond, history, noise, row)
    return x_next.to(out_dtype), m.to(x0_dtype), [r.to(x0_dtype) for r in kept]


def launch(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    x_next: Tensor,
    x0: Tensor | None,
    kept: Sequence[Tensor],
    model_input: Tensor | None,
    ring: bool,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> None:
    """Write the results where a kernel would write them."""
    noise = drawn(x, noise, seeds, step, noise_step)
    row, used = read_row(x, rows, step, keeps, len(history)), None
    if rows.is_cpu and rows.shape[1] == 1:
        used = [(c != 0).flatten().tolist() for c in (row.estimate, *row.matrix)]
        if noise is None and any(weights[Z] for weights in used):
            raise ValueError(
                "noise is None, but the row weighs it: pass noise of the shape of x, or seeds"
            )
    after, m, results = evaluate(x, uncond, cond, history, noise, row, used)
    if model_input is not None:
        model_input.copy_(row.c_in * after)
    if x0 is not None:
        x0.copy_(m)
    x_next.copy_(after)
    for target, result in zip(kept, results, strict=False):
        target.copy_(result)
    for slot, result in zip(row.slots, results, strict=True):
        for r, h in enumerate(history if ring else ()):  # no slot is read on the host
            h.copy_(torch.where(slot == r, result.to(h.dtype), h))


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """All that the derivative needs: what m depends on (is it clamped?) and the row."""
    x, uncond, cond, history, noise, rows, step, keeps, _, _, seeds, ctx.noise_step = inputs
    ctx.save_for_backward(x, uncond, cond, noise, rows, step, seeds)
    ctx.keeps, ctx.history_dtypes = keeps, [h.dtype for h in history]


def backward(
    ctx: Any, grad_next: Tensor | None, grad_x0: Tensor | None, grad_kept: list[Tensor | None]
) -> tuple[Any, ...]:
    """Gradients of x, uncond, cond, history and noise: the transpose of a linear map.

    Where m is clamped it does not depend on anything.
    """
    x, uncond, cond, noise, rows, step, seeds = ctx.saved_tensors
    z = drawn(x, noise, seeds, step, ctx.noise_step)
    row = read_row(x, rows, step, ctx.keeps, len(ctx.history_dtypes))
    results = [grad_next, *grad_kept]

    def pulled(column: int) -> Tensor:
        return weighted_sum(x, row.matrix[:, column], results)

    estimate = weighted_sum(x, row.estimate, (x, None, guided(row.g, uncond, cond), z))
    free = (estimate >= row.lo) & (estimate <= row.hi)
    grad_m = pulled(M) if grad_x0 is None else pulled(M) + grad_x0.to(row.g.dtype)
    grad_m = torch.where(free, row.gain * grad_m, torch.zeros_like(grad_m))
    grad_x, _, grad_e, grad_z = (pulled(k) + row.estimate[k] * grad_m for k in range(H))
    grad_history = [pulled(H + r).to(dtype) for r, dtype in enumerate(ctx.history_dtypes)]
    return (
        grad_x.to(x.dtype),
        None if uncond is None else (grad_e - row.g * grad_e).to(uncond.dtype),
        (grad_e if uncond is None else row.g * grad_e).to(cond.dtype),
        grad_history,
        None if noise is None else grad_z.to(noise.dtype),
        *[None] * 7,
    )
