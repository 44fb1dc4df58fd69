"""Triton kernel of fastdiff::affine_step (shapes, the row's columns, reference: fastdiff/ops).

    e = u + g*(c - u);   m = gain * clamp(kx*x + ke*e + kz*z, lo, hi)
    [x'; r_1 .. r_P] = C . [x, m, e, z, h_1 .. h_R];   model_input = c_in * x'

Memory bound, and for one latent launch bound: 16,384 elements move 0.3 MB.  So there is one launch,
each operand is read once in 16-byte loads and each result written once.  All numbers of the step
are read from the row in device memory, and the row is picked by a counter there: one compiled
kernel, and one captured graph, serves every step of every solver with the same P and R.  A weight
of 0 masks the load of its operand.  Launched with enable_fp_fusion=False: products are rounded
before they are added, so that the bits are those of the reference.  With seeds the noise is not
read but drawn, by the function that philox_normal has.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels._grid import by_samples
from fastdiff.kernels.philox_normal import normal_block

NUM_WARPS = 4
OPTIONS = {"enable_fp_fusion": False, "ptx_version": 87}  # the same code from Triton 3.6 on


@triton.jit
def _weight(row, j, column, R: tl.constexpr):
    return tl.load(row + 7 + j * (4 + R) + column)


@triton.jit
def _reads(row, column, outputs: tl.constexpr, R: tl.constexpr):
    """How many of the results weigh this column of C."""
    count = tl.where(_weight(row, 0, column, R) != 0, 1, 0)
    for j in tl.static_range(1, outputs):
        count += tl.where(_weight(row, j, column, R) != 0, 1, 0)
    return count


@triton.jit
def _where(inside, number):
    """inside, if the scalar is positive: compared as a block, for the interpreter's sake."""
    return inside & (number + tl.zeros(inside.shape, tl.int32) > 0)


@triton.jit
def _read(pointer, at, inside, readers):
    return tl.load(pointer + at, mask=_where(inside, readers), other=0.0).to(tl.float32)


@triton.jit
def _add(total, weight, value):
    """total + weight * value, without 0 * inf; -0 never turns into the total."""
    return total + tl.where(weight != 0, weight * value, 0.0)


@triton.jit
def _write(pointer, at, value, mask):
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first"])
def affine_step_kernel(
    x_ptr,
    uncond_ptr,
    cond_ptr,
    noise_ptr,
    history,
    x_next_ptr,
    x0_ptr,
    model_input_ptr,
    kept,
    rows_ptr,
    step_ptr,
    seeds_ptr,
    noise_step,
    samples,
    numel,
    first,
    P: tl.constexpr,
    R: tl.constexpr,
    RING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """samples: rows of a step, 1 or one for each; first: the sample that the grid begins with."""
    sample = tl.program_id(1).to(tl.int64) + first
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < numel
    at = sample * numel + offset
    K: tl.constexpr = 7 + (1 + P) * (4 + R) + 1 + P
    row = rows_ptr + sample * K * (samples > 1)
    number = tl.zeros((), tl.int32) + noise_step
    if step_ptr is not None:
        row += tl.load(step_ptr).to(tl.int64) * samples * K
        number += tl.load(step_ptr)
    kx = tl.load(row + 1)
    ke = tl.load(row + 2)
    kz = tl.load(row + 3)

    by_m = 1 if x0_ptr is not None else _reads(row, 1, 1 + P, R)  # who reads m
    by_x = _reads(row, 0, 1 + P, R) + tl.where(kx != 0, by_m, 0)
    by_e = _reads(row, 2, 1 + P, R) + tl.where(ke != 0, by_m, 0)
    x = _read(x_ptr, at, inside, by_x)
    e = _read(cond_ptr, at, inside, by_e)
    if uncond_ptr is not None:
        u = _read(uncond_ptr, at, inside, by_e)
        e = u + tl.load(row) * (e - u)
    m = _add(_add(tl.zeros((BLOCK,), tl.float32), kx, x), ke, e)
    if seeds_ptr is not None:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        one = tl.full((), 1, tl.int32)  # STEP_STREAM
        z = normal_block(tl.load(seeds_ptr + sample), start, number, one, BLOCK)
        m = _add(m, kz, z)
    elif noise_ptr is not None:
        by_z = _reads(row, 3, 1 + P, R) + tl.where(kz != 0, by_m, 0)
        z = _read(noise_ptr, at, inside, by_z)
        m = _add(m, kz, z)
    lo = tl.load(row + 4)
    hi = tl.load(row + 5)
    m = tl.where(m < lo, lo, m)  # a NaN stays a NaN
    m = tl.where(m > hi, hi, m)
    m = tl.load(row + 6) * m

    # Operand by operand: 1 + P sums are held in registers, not R operands besides.
    results = ()
    for j in tl.static_range(1 + P):
        total = _add(tl.zeros((BLOCK,), tl.float32), _weight(row, j, 0, R), x)
        total = _add(total, _weight(row, j, 1, R), m)
        total = _add(total, _weight(row, j, 2, R), e)
        if noise_ptr is not None or seeds_ptr is not None:
            total = _add(total, _weight(row, j, 3, R), z)
        results = results + (total,)
    for r in tl.static_range(R):
        past = _read(history[r], at, inside, _reads(row, 4 + r, 1 + P, R))
        totals = ()
        for j in tl.static_range(1 + P):
            totals = totals + (_add(results[j], _weight(row, j, 4 + r, R), past),)
        results = totals

    # All of an element is read by now, and its thread alone writes it: x_next may be x.
    tail = row + 7 + (1 + P) * (4 + R)
    _write(x_next_ptr, at, results[0], inside)
    if x0_ptr is not None:
        _write(x0_ptr, at, m, inside)
    if model_input_ptr is not None:
        _write(model_input_ptr, at, tl.load(tail) * results[0], inside)
    for p in tl.static_range(P):
        if kept[p] is not None:
            _write(kept[p], at, results[1 + p], inside)
        if RING:
            slot = tl.load(tail + 1 + p).to(tl.int32)
            for r in tl.static_range(R):
                here = _where(inside, tl.where(slot == r, 1, 0))
                _write(history[r], at, results[1 + p], here)


def block_size(element_size: int) -> int:
    """Elements per program: one 16-byte load per thread of the operand of the smallest dtype."""
    return NUM_WARPS * 32 * (16 // element_size)


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
    """Run the kernel on tensors of one dense layout; fastdiff.ops.affine_step has checked them."""
    if x.numel() == 0:  # CUDA refuses an empty grid
        return
    samples = rows.shape[1] if seeds is None else len(seeds)
    per_sample = x.numel() // samples
    operands = (x, uncond, cond, noise, x_next, x0, model_input, *history, *kept)
    block = block_size(min(t.element_size() for t in operands if t is not None))
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on x's
        for first, grid in by_samples(triton.cdiv(per_sample, block), samples):
            affine_step_kernel[grid](
                x,
                uncond,
                cond,
                noise,
                tuple(history),
                x_next,
                x0,
                model_input,
                tuple(kept) or (None,) * keeps,
                rows,
                step,
                seeds,
                noise_step,
                rows.shape[1],
                per_sample,
                first,
                P=keeps,
                R=len(history),
                RING=ring,
                BLOCK=block,
                num_warps=NUM_WARPS,
                **OPTIONS,
            )
