"""Triton kernels of fastdiff::bias_residual (shapes, dtypes, reference: fastdiff/ops).

    y = ((x + bias[c or n, c]) + residual) * scale

Memory bound: x and residual are read once and y is written once, in accesses of 16 bytes.  Channels
last, a tile is a piece of the flat memory of a sample, so that no lane idles whatever C is and even
C = 4 moves 16 bytes at a time; C is a constant of the kernel, for then the channel of an element
costs no division and its bias can be loaded in pieces.  Contiguous, a row is one channel of one
sample, and a tile is some rows by some columns.  Each sum and the product is rounded on its own:
the bits are those of the reference.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "ptx_version": 87}
REGISTERS = 48  # ten blocks of 128 threads fit the 65,536 of a multiprocessor


@triton.jit
def _finish(x, bias, residual_ptr, y_ptr, at, inside, scale):
    if bias is not None:
        x += bias.to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (x * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def channels_last_kernel(
    x_ptr, bias_ptr, residual_ptr, y_ptr, scale, size, C: tl.constexpr, BLOCK: tl.constexpr
):
    """size: elements with a bias of their own, those of a sample or all."""
    blocks = (size + BLOCK - 1) // BLOCK
    sample = tl.program_id(0) // blocks
    start = (tl.program_id(0) - sample * blocks).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    inside = start + offset < size
    at = sample.to(tl.int64) * size + start + offset
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = None
    if bias_ptr is not None:
        # Not start % C: through a remainder Triton 3.6 loses sight of what is contiguous.
        first = (start - start // C * C).to(tl.int32) + offset
        channel = first - first // C * C
        bias = tl.load(bias_ptr + sample * C + channel)
    _finish(x, bias, residual_ptr, y_ptr, at, inside, scale)


@triton.jit
def contiguous_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    scale,
    rows,
    biases,
    L,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """rows = N * C; biases: C or N * C."""
    blocks = (L + COLUMNS - 1) // COLUMNS
    first = tl.program_id(0) // blocks
    column = (tl.program_id(0) - first * blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = first * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < rows) & (column < L)
    at = row.to(tl.int64) * L + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + row % biases)
    _finish(x, bias, residual_ptr, y_ptr, at, inside, scale)


def tile_size(element_size: int) -> int:
    """Elements per program: two 16-byte loads of each operand for each thread."""
    return 2 * OPTIONS["num_warps"] * 32 * (16 // element_size)


def columns(rows: int, length: int, element_size: int) -> int:
    """Of the powers of two that a tile can be wide, the one that leaves the fewest lanes idle in
    `rows` rows, and of equals the largest."""
    tile = tile_size(element_size)
    widths = [tile >> halvings for halvings in range(8)]

    def tiles(width: int) -> int:
        return triton.cdiv(length, width) * triton.cdiv(rows, tile // width)

    return min(widths, key=lambda width: (tiles(width), -width))


def launch(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float, out: Tensor
) -> None:
    """Run a kernel on tensors of one dense layout; fastdiff.ops.bias_residual has checked them."""
    if x.numel() == 0:  # CUDA refuses an empty grid
        return
    samples, channels = x.shape[:2]
    per_sample = bias is not None and bias.dim() == 2
    tile = tile_size(x.element_size())
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on x's
        length = x.shape[2:].numel()
        if x.is_contiguous() and length > 1:
            rows = samples * channels
            width = columns(rows, length, x.element_size())
            grid = triton.cdiv(rows, tile // width) * triton.cdiv(length, width)
            contiguous_kernel[(grid,)](
                x,
                bias,
                residual,
                out,
                scale,
                rows,
                rows if per_sample else channels,
                length,
                ROWS=tile // width,
                COLUMNS=width,
                **OPTIONS,
            )
        else:
            size = x.numel() // samples if per_sample else x.numel()
            grid = triton.cdiv(size, tile) * (samples if per_sample else 1)
            channels_last_kernel[(grid,)](
                x,
                bias,
                residual,
                out,
                scale,
                size,
                C=channels,
                BLOCK=tile,
                **OPTIONS,
            )
