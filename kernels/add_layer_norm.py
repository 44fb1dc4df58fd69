"""Triton kernel of fastdiff::add_layer_norm (shapes, dtypes, reference: fastdiff/ops).

    total = x + residual, rounded to the dtype of x
    y = (total - mean) * rstd * weight + bias           mean, rstd = 1 / sqrt(var + eps) of a row

Memory bound: a row is read once, held in registers, and written once.  Its threads hold it in 3, 4
or 5 pieces of BLOCK columns, a power of two: 320 = 5 * 64 or 1280 = 5 * 256 leave no lane idle, no
width above 24 elements a thread leaves more than a quarter.  In 16 bit, a row of up to 1,280 is
held by one warp or less, and its sums need neither shared memory nor a barrier.

The mean of float32 numbers is itself rounded, which at |mean| / std = 1000 would be an error of
1e-4 in y.  So the deviations d = v - mean, which are exact there, are averaged again, in the same
pass as their squares: var = mean(d^2) - mean(d)^2, y = (d - mean(d)) * rstd.
The bits of a row depend on nothing but the row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True, "ptx_version": 87}
REGISTERS = 80  # six blocks of 128 threads fit the 65,536 of a multiprocessor


@triton.jit
def add_layer_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    total_ptr,
    rows,
    D,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    start = row * D
    begin = first.to(tl.int64) * D
    x_ptr += begin
    y_ptr += begin
    if residual_ptr is not None:
        residual_ptr += begin
        total_ptr += begin
    rows -= first

    values = ()
    along = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in tl.static_range(CHUNKS):
        column = k * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < D)
        v = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            v += tl.load(residual_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
            total = v.to(total_ptr.dtype.element_ty)
            tl.store(total_ptr + start + column, total, mask=inside)
            v = total.to(tl.float32)
        values = values + (v,)
        along += v
    mean = tl.sum(along, 1)[:, None] / D

    along = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in tl.static_range(CHUNKS):
        column = k * BLOCK + tl.arange(0, BLOCK)[None, :]
        d = tl.where(column < D, values[k] - mean, 0.0)
        along += d
        squares += d * d
    rest = tl.sum(along, 1)[:, None] / D
    variance = tl.maximum(tl.sum(squares, 1)[:, None] / D - rest * rest, 0.0)
    rstd = tl.rsqrt(variance + eps)
    shift = rest * rstd

    for k in tl.static_range(CHUNKS):
        column = k * BLOCK + tl.arange(0, BLOCK)[None, :]
        y = (values[k] - mean) * rstd - shift
        # As wide as the tile, so that each thread loads what it needs.
        parameter = column + tl.zeros((ROWS, 1), tl.int32)
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + parameter, mask=parameter < D, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + parameter, mask=parameter < D, other=0.0).to(tl.float32)
        inside = (row < rows) & (column < D)
        tl.store(y_ptr + start + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def tiles(width: int, element_size: int) -> dict[str, int]:
    """ROWS, BLOCK, CHUNKS and num_warps for rows of `width` elements.

    A thread loads 16 bytes of each piece.  Of the ways to hold a row, the one that leaves the
    fewest lanes idle.
    """
    vector = 16 // element_size
    ways = [(n * vector * k, n, k) for n in (8, 16, 32, 64, 128, 256, 512) for k in (3, 4, 5)]
    _, threads, chunks = min(way for way in ways if way[0] >= width)
    warps = max(4, threads // 32)
    tile = {"ROWS": 32 * warps // threads, "BLOCK": threads * vector, "CHUNKS": chunks}
    return tile | {"num_warps": warps}


def launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """Run the kernel on contiguous tensors; fastdiff.ops.add_layer_norm has checked them."""
    if x.numel() == 0:  # CUDA refuses an empty grid
        return
    width = x.shape[-1]
    rows, tile = x.numel() // width, tiles(width, x.element_size())
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on x's
        add_layer_norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x,
            residual,
            weight,
            bias,
            out,
            total,
            rows,
            width,
            eps,
            **tile,
            **OPTIONS,
        )
