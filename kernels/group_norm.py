"""Triton kernels of fastdiff::group_norm (shapes, errors, reference: fastdiff/ops/group_norm.py).

    v = [x, x2] + addend[n, c] + residual;   y = (v - mean) * rstd * weight[c] + bias[c];   silu

mean and rstd = 1 / sqrt(var + eps) of each (sample, group).  Memory bound: v is read twice and y
written once, for some 15 flops an element; most tensors of a U-Net are so small that launches
count for more.  Hence two ways, chosen by `launch_plan` from the shape of one sample:

    small   one launch: a program normalises whole groups, and finds them in L1 the second time
    large   stats   mean and M2 = sum (v - mean)^2 of each channel in each of `splits` parts of L
            finish  merges the parts of a group: scale, centre and shift of each channel
            apply   y = (v - centre) * scale + shift, in 16 bit folded into v * scale + B

A tile is rows x channels and never one group wide: groups of 10 channels would make 2-byte loads.
Blocks of 64 channels leave no lane idle for multiples of 64, and one that straddles x and x2 reads
both under masks.  Sizes come in units of CV channels and RV rows, so that one compiled kernel makes
16-byte accesses whatever they are.  Sums are those of v - (a value nearby), merged by Chan's
formula: sound at any mean.  Every number has one writer and no sum depends on the number of
samples: the bits of a sample are the same in every batch and every run.
"""

import functools
from math import gcd, lcm
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops.group_norm_checks import channels_last

OPTIONS = {"enable_fp_fusion": True, "ptx_version": 87}  # the same code from Triton 3.6 on
# Triton 3.6 spills with more.
FINISH = {"BLOCK": 1024 if triton.__version__.startswith("3.6.") else 2048, "num_warps": 8}
PARTS = 1024  # programs a sample in stats, about: four waves on 132 multiprocessors
SMALL = 96 * 1024  # bytes of v that one program may normalise alone
INTEGERS = ["c1", "c2", "length", "groups", "width", "splits", "steps", "rows"]


@triton.jit
def _read(
    x_ptr, x2_ptr, n, row, channel, rows, columns, inside, C1, C2, length, LAST: tl.constexpr
):  # fmt: skip
    """A tile of [x, x2] in float32; where it straddles them, each is read under its own mask.
    n is 64-bit, and so is where the tile begins: a sample may have more than 2^31 elements."""
    x_ptr += (n * length + row) * C1 + channel if LAST else (n * C1 + channel) * length + row
    at = rows * C1 + columns if LAST else columns * length + rows
    if x2_ptr is None:
        return tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    else:
        c2 = channel - C1
        x2_ptr += (n * length + row) * C2 + c2 if LAST else (n * C2 + c2) * length + row
        at2 = rows * C2 + columns if LAST else columns * length + rows
        first = columns < C1 - channel
        v = tl.load(x_ptr + at, mask=inside & first, other=0.0)
        v2 = tl.load(x2_ptr + at2, mask=inside & (columns >= C1 - channel), other=0.0)
        return tl.where(first, v, v2).to(tl.float32)


@triton.jit
def _vector(pointer, at, inside, default):
    """Numbers of the channels in float32; None stands for `default` everywhere."""
    if pointer is None:
        return tl.full(at.shape, default, tl.float32)
    else:
        return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _sums(
    x_ptr, x2_ptr, addend_ptr, residual_ptr, total_ptr, n, row, channel, end, C1, C2, length, steps,
    LAST: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Mean and M2 of the channels channel .. end - 1 over steps * UNROLL * BR rows.
    Each of the BR lanes of a channel subtracts from all its values the first one.  With a residual
    total is written; without, the addend is left to the caller: it moves the mean, nothing else."""
    C = C1 + C2
    columns = tl.arange(0, BC)[None, :]
    owned = columns < end - channel
    lane = tl.arange(0, BR)
    first = tl.full((BR, BC), 0.0, tl.float32)
    one = tl.full((BR, BC), 0.0, tl.float32)
    two = tl.full((BR, BC), 0.0, tl.float32)
    if residual_ptr is not None:
        start = (n * length + row) * C + channel if LAST else (n * C + channel) * length + row
        added = _vector(addend_ptr, n * C + channel + columns, owned, 0.0)
    step: tl.constexpr = BR * UNROLL
    for i in range(tl.minimum(steps, (length - row + step - 1) // step)):
        # Tile by tile: how one of three dimensions lies across the lanes depends on the version of
        # Triton, and sums over UNROLL were shuffles in 3.6 (243 registers for 80).
        values, others = (), ()
        for u in tl.static_range(UNROLL):
            rows = i * step + u * BR + lane[:, None]
            inside = (rows < length - row) & owned
            v = _read(x_ptr, x2_ptr, n, row, channel, rows, columns, inside, C1, C2, length, LAST)
            values = values + (v,)
            if residual_ptr is not None:
                at = start + (rows * C + columns if LAST else columns * length + rows)
                others = others + (tl.load(residual_ptr + at, mask=inside, other=0.0),)
        for u in tl.static_range(UNROLL):
            rows = i * step + u * BR + lane[:, None]
            inside = (rows < length - row) & owned
            v = values[u]
            if residual_ptr is not None:
                at = start + (rows * C + columns if LAST else columns * length + rows)
                rounded = (v + added + others[u].to(tl.float32)).to(total_ptr.dtype.element_ty)
                tl.store(total_ptr + at, rounded, mask=inside)
                v = rounded.to(tl.float32)
            if u == 0:
                first = tl.where(inside & (i == 0), v, first)
            d = tl.where(inside, v - first, 0.0)
            one += d
            two += d * d

    rows = tl.minimum(length - row, steps * step)
    count = tl.maximum((rows - lane + BR - 1) // BR, 0).to(tl.float32)[:, None]
    near = tl.sum(first, 0) / tl.minimum(rows, BR).to(tl.float32)
    mean = one / tl.maximum(count, 1.0)
    away = first - near[None, :] + mean
    moved = tl.sum(count * away, 0)
    spread = tl.sum(two - one * mean + count * away * away, 0)
    rows = rows.to(tl.float32)
    return near + moved / rows, spread - moved * (moved / rows)


@triton.jit
def _write(
    x_ptr, x2_ptr, out_ptr, n, row, channel, end, scale, centre, shift, C1, C2, length, steps,
    LAST: tl.constexpr, OUT_LAST: tl.constexpr, SILU: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y of the same rows and channels."""
    C = C1 + C2
    columns = tl.arange(0, BC)[None, :]
    owned = columns < end - channel
    out_ptr += (n * length + row) * C + channel if OUT_LAST else (n * C + channel) * length + row
    exact: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    if not exact:
        shift -= centre * scale
    step: tl.constexpr = BR * UNROLL
    for i in range(tl.minimum(steps, (length - row + step - 1) // step)):
        rows = i * step + tl.arange(0, step)[:, None]
        inside = (rows < length - row) & owned
        v = _read(x_ptr, x2_ptr, n, row, channel, rows, columns, inside, C1, C2, length, LAST)
        if exact:
            v -= centre[None, :]
        v = v * scale[None, :] + shift[None, :]
        if SILU:
            v = v / (1.0 + tl.exp(-v))
        at = rows * C + columns if OUT_LAST else columns * length + rows
        tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rstd(m2, count, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(tl.maximum(m2, 0.0) / count + eps))


@triton.jit(do_not_specialize=INTEGERS)
def small_kernel(
    x_ptr, x2_ptr, addend_ptr, residual_ptr, total_ptr, weight_ptr, bias_ptr, out_ptr,
    c1, c2, length, groups, width, eps,
    CV: tl.constexpr, RV: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    SILU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A program for `width` units of channels, which are whole groups, of one sample."""
    C1, C2, length, width = c1 * CV, c2 * CV, length * RV, width * CV
    C = C1 + C2
    blocks = (C + width - 1) // width
    n = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * width
    end = tl.minimum(channel + width, C)
    steps = (length + BR * UNROLL - 1) // (BR * UNROLL)
    mean, m2 = _sums(
        x_ptr, x2_ptr, addend_ptr, residual_ptr, total_ptr, n, 0, channel, end,
        C1, C2, length, steps, LAST, BR, BC, UNROLL,
    )  # fmt: skip
    column = channel + tl.arange(0, BC)
    owned = column < end
    added = tl.full((BC,), 0.0, tl.float32)
    if residual_ptr is None:
        added = _vector(addend_ptr, n * C + column, owned, 0.0)
        mean += added
    variance = m2 / length.to(tl.float32)
    centre = tl.full((BC,), 0.0, tl.float32)
    rstd = tl.full((BC,), 0.0, tl.float32)
    per_group = C // groups
    for group in range(channel // per_group, end // per_group):
        here = owned & (column // per_group == group)
        near = tl.sum(tl.where(here, mean, 0.0), 0) / per_group
        away = tl.where(here, mean - near, 0.0)
        moved = tl.sum(away, 0) / per_group
        spread = tl.sum(tl.where(here, variance + (away - moved) * (away - moved), 0.0), 0)
        centre = tl.where(here, near + moved, centre)
        rstd = tl.where(here, _rstd(spread, per_group, eps), rstd)
    scale = _vector(weight_ptr, column, owned, 1.0) * rstd
    shift = _vector(bias_ptr, column, owned, 0.0)
    if residual_ptr is None:
        _write(
            x_ptr, x2_ptr, out_ptr, n, 0, channel, end, scale, centre - added, shift,
            C1, C2, length, steps, LAST, OUT_LAST, SILU, BR, BC, UNROLL,
        )  # fmt: skip
    else:
        tl.debug_barrier()  # what one thread wrote to total, another may read
        _write(
            total_ptr, None, out_ptr, n, 0, channel, end, scale, centre, shift,
            C, 0, length, steps, LAST, OUT_LAST, SILU, BR, BC, UNROLL,
        )  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def stats_kernel(
    x_ptr, x2_ptr, addend_ptr, residual_ptr, total_ptr, work_ptr, c1, c2, length, splits, steps,
    CV: tl.constexpr, RV: tl.constexpr, LAST: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """work (N, 3 + 2 splits, C): here mean and M2 of each part; finish writes the first three."""
    C1, C2, length = c1 * CV, c2 * CV, length * RV
    C = C1 + C2
    blocks = (C + BC - 1) // BC
    n = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    part = tl.program_id(0) // blocks % splits
    channel = tl.program_id(0) % blocks * BC  # neighbours share rows
    mean, m2 = _sums(
        x_ptr, x2_ptr, addend_ptr, residual_ptr, total_ptr, n, part * steps * (BR * UNROLL),
        channel, C, C1, C2, length, steps, LAST, BR, BC, UNROLL,
    )  # fmt: skip
    column = channel + tl.arange(0, BC)
    at = work_ptr + (n * (3 + 2 * splits) + 3 + 2 * part) * C + column
    tl.store(at, mean, mask=column < C)
    tl.store(at + C, m2, mask=column < C)


@triton.jit(do_not_specialize=INTEGERS)
def finish_kernel(
    work_ptr, addend_ptr, weight_ptr, bias_ptr, c1, length, groups, splits, rows, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One group of one sample; c1: all channels, rows: of a part."""
    n = (tl.program_id(0) // groups).to(tl.int64)
    width = c1 // groups
    channel = tl.program_id(0) % groups * width
    work_ptr += n * (3 + 2 * splits) * c1 + channel
    addend = n * c1 + channel
    near = 0.0  # a mean of parts, close to that of the group
    one = tl.full((BLOCK,), 0.0, tl.float32)
    two = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, splits * width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < splits * width
        part, column = k // width, k % width
        at = work_ptr + (3 + 2 * part) * c1 + column
        mean = tl.load(at, mask=inside, other=0.0)
        mean += _vector(addend_ptr, addend + column, inside, 0.0)
        near = tl.where(start == 0, tl.sum(mean, 0) / tl.minimum(splits * width, BLOCK), near)
        count = tl.minimum(length - part * rows, rows).to(tl.float32)
        d = tl.where(inside, mean - near, 0.0)
        one += count * d
        two += tl.load(at + c1, mask=inside, other=0.0) + count * d * d
    count = width.to(tl.float32) * length.to(tl.float32)
    moved = tl.sum(one, 0) / count
    rstd = _rstd(tl.sum(two, 0) - count * moved * moved, count, eps)
    for start in range(0, width, 128):
        column = start + tl.arange(0, 128)
        inside = column < width
        at = work_ptr + column
        centre = near + moved - _vector(addend_ptr, addend + column, inside, 0.0)
        tl.store(at, _vector(weight_ptr, channel + column, inside, 1.0) * rstd, mask=inside)
        tl.store(at + c1, centre, mask=inside)
        tl.store(at + 2 * c1, _vector(bias_ptr, channel + column, inside, 0.0), mask=inside)


@triton.jit(do_not_specialize=INTEGERS)
def apply_kernel(
    x_ptr, x2_ptr, work_ptr, out_ptr, c1, c2, length, splits, steps,
    CV: tl.constexpr, RV: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    SILU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    C1, C2, length = c1 * CV, c2 * CV, length * RV
    C = C1 + C2
    rows = steps * (BR * UNROLL)
    blocks, parts = (C + BC - 1) // BC, (length + rows - 1) // rows
    n = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    row = tl.program_id(0) // blocks % parts * rows
    channel = tl.program_id(0) % blocks * BC
    column = channel + tl.arange(0, BC)
    at = work_ptr + n * (3 + 2 * splits) * C + column
    scale = tl.load(at, mask=column < C, other=0.0)
    centre = tl.load(at + C, mask=column < C, other=0.0)
    shift = tl.load(at + 2 * C, mask=column < C, other=0.0)
    _write(
        x_ptr, x2_ptr, out_ptr, n, row, channel, C, scale, centre, shift, C1, C2, length, steps,
        LAST, OUT_LAST, SILU, BR, BC, UNROLL,
    )  # fmt: skip


class Tile(NamedTuple):
    rows: int
    channels: int
    unroll: int  # as many tiles, one below the other, are loaded at a time
    warps: int

    def constants(self) -> dict[str, int]:  # as the kernels want them
        return dict(zip(("BR", "BC", "UNROLL", "num_warps"), self, strict=True))


class Plan(NamedTuple):
    """How a sample is cut.  It does not depend on how many there are, so neither do their bits."""

    small: bool
    cv: int
    rv: int
    tile: Tile
    store: Tile  # that of apply
    width: int  # channels a program, if small
    splits: int  # parts of L, if large
    steps: int  # loads of `unroll` tiles in a part
    store_steps: int


@functools.cache
def launch_plan(
    c1: int, c2: int, length: int, groups: int, element_size: int, last: bool, tokens: bool
) -> Plan:
    """last: channels are innermost in the memory of x; tokens: they shall be in that of y."""
    vector = 16 // element_size
    channels, turned = c1 + c2, tokens and not last
    cv = vector if (last or turned) and gcd(c1, c2) % vector == 0 else 1
    rv = vector if not last and length % vector == 0 else 1
    if turned and 1 in (cv, rv):
        cv = rv = 1
    width = lcm(channels // groups, cv)
    width *= max(1, 64 // width)
    size = length * width * element_size
    if max(cv, rv) > 1 and not turned and width <= 128 and size <= SMALL:
        warps, block = (4 if size <= SMALL // 8 else 16), (64 if width <= 64 else 128)
        tile = Tile(warps * 32 * vector // block, block, 4, warps)
        return Plan(True, cv, rv, tile, tile, width, 1, 1, 1)
    unroll = 4 if max(cv, rv) > 1 else 1  # what is odd is read element by element
    tile = Tile(2 * vector, 64, unroll, 4) if last else Tile(32 * vector, 4, unroll, 4)
    store = Tile(4 * vector, 32, unroll, 4) if turned else tile
    step = tile.rows * tile.unroll
    parts = max(1, PARTS // triton.cdiv(channels, tile.channels))
    steps = triton.cdiv(length, parts * step)
    return Plan(
        False, cv, rv, tile, store, width, triton.cdiv(length, steps * step), steps, min(4, steps)
    )


def cut(kernel: str, p: Plan, x2: bool, residual: bool, size: int, aligned: bool = True):
    """(tile, steps) of a launch: of many operands half as much at a time, of narrow accesses one
    tile or two, or registers spill.  The same rows in the same order, so the same bits."""
    tile, steps = (p.store, p.store_steps) if kernel == "apply" else (p.tile, p.steps)
    many = x2 and (size == 4 if kernel == "apply" else residual)
    unroll = max(1, tile.unroll // (1 + many if aligned else 8 // size))
    return tile._replace(unroll=unroll), steps * (tile.unroll // unroll)


def launch(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool,
    addend: Tensor | None, residual: Tensor | None, x2: Tensor | None, tokens: bool,
    out: Tensor, total: Tensor | None,
) -> None:  # fmt: skip
    """Run the kernels on tensors of one dense layout; fastdiff.ops.group_norm has checked them."""
    n, c1, length = x.shape[0], x.shape[1], x.shape[2:].numel()
    c2 = 0 if x2 is None else x2.shape[1]
    channels, last = c1 + c2, length == 1 or channels_last(x)
    p = launch_plan(c1, c2, length, groups, x.element_size(), last, tokens)
    sizes = {"c1": c1 // p.cv, "c2": c2 // p.cv, "length": length // p.rv}
    known = {"CV": p.cv, "RV": p.rv, "LAST": last} | OPTIONS
    into = {"OUT_LAST": last or tokens, "SILU": silu}
    large = (t for t in (x, x2, residual, total, out) if t is not None)
    given = (residual is not None, x.element_size(), not any(t.data_ptr() % 16 for t in large))
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on x's
        if p.small:
            tile, _ = cut("small", p, x2 is not None, *given)
            small_kernel[(n * triton.cdiv(channels, p.width),)](
                x, x2, addend, residual, total, weight, bias, out, **sizes, groups=groups,
                width=p.width // p.cv, eps=eps, **known, **into, **tile.constants(),
            )  # fmt: skip
            return
        work = torch.empty((n, 3 + 2 * p.splits, channels), dtype=torch.float32, device=x.device)
        tile, steps = cut("stats", p, x2 is not None, *given)
        stats_kernel[(n * p.splits * triton.cdiv(channels, p.tile.channels),)](
            x, x2, addend, residual, total, work, **sizes, splits=p.splits, steps=steps,
            **known, **tile.constants(),
        )  # fmt: skip
        finish_kernel[(n * groups,)](
            work, addend if residual is None else None, weight, bias, channels, length, groups,
            p.splits, p.steps * p.tile.rows * p.tile.unroll, eps, **FINISH, **OPTIONS,
        )  # fmt: skip
        if residual is not None:
            x, x2, sizes["c1"], sizes["c2"] = total, None, channels // p.cv, 0
        tile, steps = cut("apply", p, x2 is not None, *given)
        blocks = triton.cdiv(length, steps * tile.rows * tile.unroll)
        apply_kernel[(n * blocks * triton.cdiv(channels, tile.channels),)](
            x, x2, work, out, **sizes, splits=p.splits, steps=steps,
            **known, **into, **tile.constants(),
        )  # fmt: skip
