"""Triton kernels of fastdiff::abs_quantile (formula, dtypes, reference: fastdiff/ops).

Radix select on the bits of |x|, which order as |x| does: digits of 11, 10 and 10 bits from the top.
For each of them `count_kernel` counts how often each of its values occurs among the elements whose
higher digits are those found, and `pick_kernel` finds the digit in which the wanted place lies; the
last one makes the quantile and the bounds of it.  The second pass also takes the least element
above those with the digit found; its complement is kept, so that a workspace of zeros is the
beginning.

In 16 bits two digits are all: the last 13 bits are zero.  In float32 the second pass also copies
the elements with the digit found, in any order, and the third one looks at the copy.  So x is read
twice, and beside the copy (1 element in 300 of normal numbers at the quantile of 0.995, all of a
sample whose elements are all alike) nothing is written than the counts, in a workspace of 16 KB a
sample.  They are integers: the order of atomic operations does not show.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels._compiler import OLD
from fastdiff.kernels._grid import by_samples
from fastdiff.ops.abs_quantile import WORKSPACE, workspaces

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False, "ptx_version": 87}
# Three blocks of 256 threads fit the 65,536 registers of a multiprocessor.  The histogram of Triton
# 3.6 holds all counts in each warp: there two, of half as much at once, which does not spill.
REGISTERS = 128 if OLD else 80
BLOCK = 1024 if OLD else 2048  # elements that a program counts at once
PROGRAMS = 528  # 4 for each of 132 multiprocessors


@triton.jit
def _bits(x_ptr, at, inside):
    x = tl.load(x_ptr + at, mask=inside, other=0)
    if x_ptr.dtype.element_ty != tl.int32:  # else the copy, which is bits
        x = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return x


@triton.jit(do_not_specialize=["first"])
def count_kernel(
    x_ptr,
    copy_ptr,
    work_ptr,
    numel,
    first,
    PASS: tl.constexpr,
    WORK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x_ptr: of pass 2 the copy.  copy_ptr: of pass 1, None if no pass follows.
    first: the sample that the grid begins with."""
    SHIFT: tl.constexpr = 20 - 10 * PASS
    BINS: tl.constexpr = 2048 if PASS == 0 else 1024
    sample = tl.program_id(1).to(tl.int64) + first
    work = work_ptr + sample * WORK
    state = work + WORK - 8  # found, rank, above, largest, copied
    found = tl.load(state)
    above = tl.zeros((BLOCK,), tl.int32)  # the largest complement, ~bits & 0x7fffffff
    largest = tl.zeros((BLOCK,), tl.int32)
    counts = tl.zeros((BINS,), tl.int32)
    end = numel
    if PASS == 2:
        end = tl.load(state + 4)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, end, step):
        at = start + tl.arange(0, BLOCK)
        inside = at < end
        bits = _bits(x_ptr, sample * numel + at, inside)
        higher = bits >> SHIFT >> (11 if PASS == 0 else 10)
        here = inside & (higher == found)
        counts += tl.histogram((bits >> SHIFT) & (BINS - 1), BINS, mask=here)
        if PASS == 0:
            largest = tl.maximum(largest, tl.where(inside, bits, 0))
        else:
            above = tl.maximum(above, tl.where(inside & (higher > found), 0x7FFFFFFF - bits, 0))
        if copy_ptr is not None:
            upto = tl.cumsum(here.to(tl.int32), axis=0)
            place = tl.atomic_add(state + 4, tl.max(upto, axis=0), sem="relaxed")
            tl.store(copy_ptr + sample * numel + place + upto - 1, bits, mask=here)
    bins = work + PASS * 1024 + (1024 if PASS > 0 else 0) + tl.arange(0, BINS)
    tl.atomic_add(bins, counts, mask=counts > 0, sem="relaxed")
    if PASS == 0:
        tl.atomic_max(state + 3, tl.max(largest, axis=0), sem="relaxed")
    else:
        tl.atomic_max(state + 2, tl.max(above, axis=0), sem="relaxed")


@triton.jit
def pick_kernel(
    work_ptr,
    out_ptr,
    rows_ptr,
    first_rank,
    weight,
    maximum,
    columns,
    PASS: tl.constexpr,
    LAST: tl.constexpr,
    WORK: tl.constexpr,
):
    SHIFT: tl.constexpr = 20 - 10 * PASS
    BINS: tl.constexpr = 2048 if PASS == 0 else 1024
    sample = tl.program_id(0).to(tl.int64)
    work = work_ptr + sample * WORK
    state = work + WORK - 8
    rank = first_rank
    if PASS > 0:
        rank = tl.load(state + 1)
    index = tl.arange(0, BINS)
    counts = tl.load(work + PASS * 1024 + (1024 if PASS > 0 else 0) + index)
    before = tl.cumsum(counts, axis=0) - counts
    here = (before <= rank) & (rank < before + counts)  # of one bin
    digit = tl.sum(tl.where(here, index, 0), axis=0)
    left = rank - tl.sum(tl.where(here, before, 0), axis=0)
    found = tl.load(state) * BINS + digit
    if not LAST:
        tl.store(state, found)
        tl.store(state + 1, left)
    else:
        alone = left + 1 == tl.sum(tl.where(here, counts, 0), axis=0)
        following = (found - digit + index) << SHIFT
        following = tl.where((index > digit) & (counts > 0), following, 0x7FFFFFFF)
        following = tl.minimum(tl.min(following, axis=0), 0x7FFFFFFF - tl.load(state + 2))
        found = found << SHIFT
        higher = tl.where(alone & (weight > 0), following, found)
        low = found.to(tl.float32, bitcast=True)
        high = higher.to(tl.float32, bitcast=True)
        d = high - low
        q = tl.where(weight < 0.5, tl.fma(weight, d, low), tl.fma(weight - 1.0, d, high))
        q = tl.where(tl.load(state + 3) > 0x7F800000, float("nan"), q)
        tl.store(out_ptr + sample, q)
        if rows_ptr is not None:
            bound = tl.where(q < 1.0, 1.0, q)  # a NaN stays a NaN
            bound = tl.where(bound > maximum, maximum, bound)
            row = rows_ptr + sample * columns
            tl.store(row + 4, 0.0 - bound)
            tl.store(row + 5, bound)
            tl.store(row + 6, tl.div_rn(1.0, bound))


def launch(
    x: Tensor, rank: int, weight: float, maximum: float, q: Tensor, rows: Tensor | None
) -> None:
    """Run the kernels; fastdiff.ops.abs_quantile has checked the tensors."""
    samples = x.shape[0]
    numel = x.numel() // samples
    columns = 0 if rows is None else rows.shape[1]
    programs = min(triton.cdiv(numel, BLOCK), triton.cdiv(PROGRAMS, samples))
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on x's
        work, copy = workspaces(x)
        passes = 2 if copy is None else 3
        for number in range(passes):
            constants = {"PASS": number, "WORK": WORKSPACE, **OPTIONS}
            source, to = (copy, None) if number == 2 else (x, copy if number == 1 else None)
            for first, grid in by_samples(programs, samples):
                count_kernel[grid](source, to, work, numel, first, BLOCK=BLOCK, **constants)
            constants["LAST"] = number == passes - 1
            pick_kernel[(samples,)](work, q, rows, rank, weight, maximum, columns, **constants)
