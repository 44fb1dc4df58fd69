"""Triton kernel of fastdiff::cross_attention (shapes, dtypes, reference: fastdiff/ops).

    out[b, n, h] = softmax(scale * q[b, n, h] . k[b, :, h]^T) v[b, :, h]          n = 0 .. N - 1

Memory bound: 77 keys make 4 * 77 / 4 = 77 flops for each byte of q and out, less than the 180 at
which the matrix units of an H200 are busy.  So q and out are touched once, and k and v of a head,
20 kB for 77 keys of width 64, stay in shared memory while a program goes through `steps` tiles of
rows of q.  `launch_plan` says how, or why they do not fit: nothing is autotuned.

Heads are not as wide as powers of two.  A head is cut in two such pieces, 40 = 32 + 16 (8 of them
masked), 80 = 64 + 16, 160 = 128 + 32: products 20, 60, 60 % cheaper than with a padded tile.  Up
to 128 keys are one tile, a softmax without rescaling; more are tiles of 64, each tile's sums scaled
to the maximum so far.  Only the last tile has keys that are not there: -inf before the maximum.

What the compiler needs to be told: k is transposed before the loop, or it would be copied to shared
memory again in each step; rows are clamped to the last one, so that addresses depend on the step
and are made anew, not kept in registers, of which there are not enough.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _attention
from fastdiff.ops._cross_attention_plan import Plan, launch_plan

LOG2E = 1.4426950408889634
OPTIONS = {"enable_fp_fusion": True, "ptx_version": 87}
INTEGERS = ["N", "M", "H", "steps", "groups"]  # not compiled anew for each
INTEGERS += ["q_b", "q_n", "q_h", "k_b", "k_m", "k_h", "v_b", "v_m", "v_h"]
PROGRAMS = 4 * 132  # fewer, and multiprocessors of an H200 stand idle


@triton.jit
def tile(pointer, row, rows, stride, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """pointer[row, START : START + WIDTH], 0 outside of `rows` rows and D columns."""
    column = START + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None]
    if START + WIDTH > D:
        inside = inside & (column < D)[None, :]
    return tl.load(pointer + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def put(pointer, x, row, rows, stride, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """The way back of `tile`."""
    column = START + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None]
    if START + WIDTH > D:
        inside = inside & (column < D)[None, :]
    at = pointer + row[:, None] * stride + column[None, :]
    tl.store(at, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=INTEGERS)
def cross_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, N, M, H, steps, groups,
    q_b, q_n, q_h, k_b, k_m, k_h, v_b, v_m, v_h, scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Strides in units of 8 elements; scale times log2(e)."""
    head = tl.program_id(0) // groups
    first = tl.program_id(0) % groups * (steps * ROWS)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    q_n, k_m, v_m = q_n * 8, k_m * 8, v_m * 8
    q_ptr += (b * q_b + h * q_h) * 8 + first.to(tl.int64) * q_n
    k_ptr += (b * k_b + h * k_h) * 8
    v_ptr += (b * v_b + h * v_h) * 8
    out_ptr += ((b * N + first) * H + h) * D
    rows = N - first

    k1, k2, v1, v2 = (), (), (), ()
    for i in tl.static_range(TILES):
        key = i * KEYS + tl.arange(0, KEYS)
        k1 = k1 + (tl.trans(tile(k_ptr, key, M, k_m, 0, D1, D)),)
        v1 = v1 + (tile(v_ptr, key, M, v_m, 0, D1, D),)
        if D2 > 0:
            k2 = k2 + (tl.trans(tile(k_ptr, key, M, k_m, D1, D2, D)),)
            v2 = v2 + (tile(v_ptr, key, M, v_m, D1, D2, D),)

    for step in tl.range(0, tl.minimum(steps, (rows + ROWS - 1) // ROWS), num_stages=1):
        place = step * ROWS + tl.arange(0, ROWS)
        row = tl.minimum(place, rows - 1)
        q1 = tile(q_ptr, row, rows, q_n, 0, D1, D)
        if D2 > 0:
            q2 = tile(q_ptr, row, rows, q_n, D1, D2, D)
        for i in tl.static_range(TILES):
            s = tl.dot(q1, k1[i], input_precision="ieee")
            if D2 > 0:
                s = tl.dot(q2, k2[i], s, input_precision="ieee")
            s = s * scale
            if i == TILES - 1:
                s = tl.where((i * KEYS + tl.arange(0, KEYS) < M)[None, :], s, -float("inf"))
            if i == 0:
                top = tl.max(s, 1)
                p = tl.exp2(s - top[:, None])
                total = tl.sum(p, 1)
                p = p.to(v1[i].dtype)
                o1 = tl.dot(p, v1[i], input_precision="ieee")
                if D2 > 0:
                    o2 = tl.dot(p, v2[i], input_precision="ieee")
            else:
                higher = tl.maximum(top, tl.max(s, 1))
                p = tl.exp2(s - higher[:, None])
                keep = tl.exp2(top - higher)
                top = higher
                total = total * keep + tl.sum(p, 1)
                p = p.to(v1[i].dtype)
                o1 = tl.dot(p, v1[i], o1 * keep[:, None], input_precision="ieee")
                if D2 > 0:
                    o2 = tl.dot(p, v2[i], o2 * keep[:, None], input_precision="ieee")
        put(out_ptr, o1 / total[:, None], place, rows, H * D, 0, D1, D)
        if D2 > 0:
            put(out_ptr, o2 / total[:, None], place, rows, H * D, D1, D2, D)


def launch(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Run the kernel on tensors that can be read in place; fastdiff.ops has checked them."""
    (batch, length, heads, width), keys = q.shape, k.shape[1]
    memory = (
        _attention.shared_memory(q.device) if q.is_cuda else 227 * 1024
    )  # the interpreter has any
    plan = launch_plan(width, keys, q.element_size(), memory)
    assert isinstance(plan, Plan), plan
    tiles = triton.cdiv(length, plan.rows)
    steps = max(1, min(8, tiles * batch * heads // PROGRAMS))
    groups = triton.cdiv(tiles, steps)
    with torch.cuda.device_of(q):  # Triton launches on the current device, not on q's
        cross_attention_kernel[(groups * batch * heads,)](
            q, k, v, out, length, keys, heads, steps, groups,
            *_attention.strides(q), *_attention.strides(k), *_attention.strides(v), scale * LOG2E,
            D=width, **plan.constants(), **OPTIONS,
        )  # fmt: skip
