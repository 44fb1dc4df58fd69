"""Triton kernel of fastdiff::philox_normal, and the noise of affine_step (formula: fastdiff/ops).

    z[b, i] = normal(seeds[b], i, step + noise_step, stream)

Writes 4 bytes an element and reads nothing; some 30 integer and 25 float operations an element, for
Philox gives four of them at a time.  `normal_block` is what affine_step calls, too.  Compiled with
enable_fp_fusion=False and the square root rounded to nearest: the bits are those of the reference.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels._grid import by_samples

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "ptx_version": 87}
REGISTERS = 64  # eight blocks of 128 threads fit the 65,536 of a multiprocessor
BLOCK = 1024  # elements per program: two 16-byte stores a thread in float32


@triton.jit
def philox(c0, c1, c2, c3, key0, key1):
    """Philox4x32-10: blocks of uint32 counters become blocks of random words."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        low0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
        low1 = c2 * tl.full(c2.shape, 0xCD9E8D57, tl.uint32)
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 += tl.full(key0.shape, 0x9E3779B9, tl.uint32)
        key1 += tl.full(key1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _radius(word):
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 = 2^(k - 32) (1 + t)."""
    above = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True) - 0x3F3504F3
    k = above >> 23
    m = ((above & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    inverted = word ^ tl.full(word.shape, 0xFFFFFFFF, tl.uint32)  # ~ fails in 3.6's interpreter
    near_one = (inverted.to(tl.float32) + 0.5) * -2.3283064365386963e-10
    t = tl.where(k == 32, near_one, m - 1.0)
    q = 0.087347515 * t - 0.14307484
    q = q * t + 0.14917989
    q = q * t - 0.16570514
    q = q * t + 0.19962071
    q = q * t - 0.25001755
    q = q * t + 0.3333395
    q = q * t - 0.4999999
    log1p = t * t * q + t
    minus_log = (32 - k).to(tl.float32) * 0.6931472 - log1p
    return tl.sqrt_rn(minus_log + minus_log)


@triton.jit
def _normals(word0, word1):
    """radius(word0) * (cos, sin)(2 pi word1 / 2^32)."""
    r = _radius(word0)
    turn = word1.to(tl.int32, bitcast=True)
    quadrant = ((turn + 0x20000000) >> 30) & 3
    y = (turn - (quadrant << 30)).to(tl.float32) * 1.862645149230957e-09
    s = y * y
    sine = -3.595451e-05 * s + 0.002490007
    sine = sine * s - 0.080745436
    sine = (sine * s + 0.7853982) * y
    cosine = 3.5313344e-06 * s - 0.000325942
    cosine = cosine * s + 0.015854327
    cosine = cosine * s - 0.30842513
    cosine = cosine * s + 1.0
    odd = (quadrant & 1) != 0
    r0 = tl.where((quadrant == 1) | (quadrant == 2), r * -1.0, r)
    r1 = tl.where(quadrant >= 2, r * -1.0, r)
    return r0 * tl.where(odd, sine, cosine), r1 * tl.where(odd, cosine, sine)


@triton.jit
def normal_block(seed, start, number, stream, SIZE: tl.constexpr):
    """The normals of the elements start .. start + SIZE - 1 of a sample; start is a multiple of 4.

    seed is int64; number and stream are int32, the same bits as the uint32 of the counter.
    """
    lots: tl.constexpr = SIZE // 4
    zero = tl.zeros((lots,), tl.uint32)
    block = (start // 4 + tl.arange(0, lots)).to(tl.uint32)
    key0 = zero + (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = zero + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c1 = zero + number.to(tl.uint32, bitcast=True)
    c2 = zero + stream.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox(block, c1, c2, zero, key0, key1)
    z0, z1 = _normals(w0, w1)
    z2, z3 = _normals(w2, w3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit(do_not_specialize=["first"])
def philox_normal_kernel(
    seeds_ptr, step_ptr, out_ptr, noise_step, stream, numel, first, BLOCK: tl.constexpr
):
    """first: the sample that the grid begins with."""
    sample = tl.program_id(1).to(tl.int64) + first
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    number = tl.zeros((), tl.int32) + noise_step
    if step_ptr is not None:
        number += tl.load(step_ptr)
    stream = tl.zeros((), tl.int32) + stream
    z = normal_block(tl.load(seeds_ptr + sample), start, number, stream, BLOCK)
    at = out_ptr + sample * numel + offset
    tl.store(at, z.to(out_ptr.dtype.element_ty), mask=offset < numel)


def launch(seeds: Tensor, step: Tensor | None, noise_step: int, stream: int, out: Tensor) -> None:
    """Run the kernel; fastdiff.ops.philox_normal has checked the tensors."""
    if out.numel() == 0:  # CUDA refuses an empty grid
        return
    samples = len(seeds)
    numel = out.numel() // samples
    with torch.cuda.device_of(out):  # Triton launches on the current device, not on out's
        for first, grid in by_samples(triton.cdiv(numel, BLOCK), samples):
            philox_normal_kernel[grid](
                seeds, step, out, noise_step, stream, numel, first, BLOCK=BLOCK, **OPTIONS
            )
