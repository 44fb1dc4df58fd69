"""Triton kernels of fastdiff::upsample_conv: the pass that interleaves the four parities.

    out[n, o, 2i+a, 2j+b] = z[n, (a, b, o), i+a, j+b]        z (N, 4O, H+1, W+1), out (N, O, 2H, 2W)

Memory bound: what is written is read once.  Channels last, a program makes a piece of one row of
out, flat memory of 2W * O elements, in which runs of O are contiguous in z, too; O (CO in the code)
is a constant of the kernel, so that the pixel of an element costs no division and accesses have 16
bytes.  Contiguous, the even and the odd elements of a row are a row of z each: two loads,
interleaved in registers; a tile is some rows by some columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "ptx_version": 87}
REGISTERS = 80  # six blocks of 128 threads fit the 65,536 of a multiprocessor


@triton.jit
def channels_last_kernel(z_ptr, out_ptr, H, W, CO: tl.constexpr, BLOCK: tl.constexpr):
    size = 2 * W * CO  # a row of out
    blocks = (size + BLOCK - 1) // BLOCK
    row = tl.program_id(0) // blocks  # n * 2H + 2i + a
    offset = (tl.program_id(0) - row * blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    sample = row // (2 * H)
    high = row - sample * (2 * H)
    a = high % 2
    pixel = offset // CO  # 2j + b
    b = pixel % 2
    source = (sample.to(tl.int64) * (H + 1) + high // 2 + a) * (W + 1)
    at = (source + pixel // 2 + b) * (4 * CO) + (2 * a + b) * CO + (offset - pixel * CO)
    value = tl.load(z_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + row.to(tl.int64) * size + offset, value, mask=inside)


@triton.jit
def contiguous_kernel(z_ptr, out_ptr, rows, CO, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """rows = N * CO * 2H; COLUMNS of out, so half as many of z."""
    HALF: tl.constexpr = COLUMNS // 2
    blocks = (W + HALF - 1) // HALF
    first = tl.program_id(0) // blocks
    piece = tl.program_id(0) - first * blocks
    row = first * ROWS + tl.arange(0, ROWS)[:, None]  # (n * CO + o) * 2H + 2i + a
    j = piece * HALF + tl.arange(0, HALF)[None, :]
    plane = row // (2 * H)
    high = row - plane * (2 * H)
    a = high % 2
    sample = plane // CO
    even = sample.to(tl.int64) * 4 * CO + 2 * a * CO + (plane - sample * CO)  # plane of b = 0
    area = (H + 1) * (W + 1)
    at = (high // 2 + a) * (W + 1) + j
    inside = (row < rows) & (j < W)
    left = tl.load(z_ptr + even * area + at, mask=inside, other=0.0)
    right = tl.load(z_ptr + (even + CO) * area + at + 1, mask=inside, other=0.0)
    k = piece * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    out = out_ptr + row.to(tl.int64) * (2 * W) + k
    tl.store(out, tl.interleave(left, right), mask=(row < rows) & (k < 2 * W))


def tile_size(element_size: int) -> int:
    """Elements per program: two 16-byte accesses for each thread."""
    return 2 * OPTIONS["num_warps"] * 32 * (16 // element_size)


def columns(width: int, element_size: int) -> int:
    """Columns of a contiguous tile: a power of two that holds a row of out, if the tile can."""
    return min(tile_size(element_size), max(16, triton.next_power_of_2(width)))


def launch(z: Tensor, out: Tensor) -> None:
    """Run a kernel on tensors of one dense layout; fastdiff.ops.upsample_conv has made them."""
    if out.numel() == 0:  # CUDA refuses an empty grid
        return
    samples, outputs, height, width = out.shape
    tile, half = tile_size(out.element_size()), (height // 2, width // 2)
    with torch.cuda.device_of(out):  # Triton launches on the current device, not on out's
        if out.is_contiguous():
            rows, across = samples * outputs * height, columns(width, out.element_size())
            grid = triton.cdiv(rows, tile // across) * triton.cdiv(width, across)
            shape = {"ROWS": tile // across, "COLUMNS": across}
            contiguous_kernel[(grid,)](z, out, rows, outputs, *half, **shape, **OPTIONS)
        else:
            grid = samples * height * triton.cdiv(width * outputs, tile)
            channels_last_kernel[(grid,)](z, out, *half, CO=outputs, BLOCK=tile, **OPTIONS)
