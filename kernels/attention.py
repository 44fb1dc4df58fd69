"""Triton kernel of fastdiff::attention (shapes, dtypes, reference: fastdiff/ops).

    out[b, n, h] = softmax(scale * q[b, n, h] . k[b, :, h]^T + mask[b, h, n]) v[b, :, h]

4 * N * M * D flops of matrix products a head and N * M exponentials: at width 40 an H200 takes
longer for the exponentials than for the products (70 and 54 µs of 2 x 8 heads of 4096 places).

A program has a tile of rows of q and goes through k and v once, with the maximum m and the sum l of
what it has seen (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao 2022, arXiv:2205.14135):

    m' = max(m, s),  p = 2^(s - m'),  l' = l 2^(m - m') + sum p,  o' = o 2^(m - m') + p v

all times log2(e).  Where a mask is added, its numbers times log2(e) could be beyond float32 (as the
least of float32 and bfloat16 are, which stand for -inf in many models): there m and s are not, but
their differences are.  A head is cut in two pieces of powers of two, as in cross_attention.py.  The
VAE's of 512 does not fit: two programs, one for each 256 columns of v, both make all
the logits: 1.5 times the products, but o stays in registers.

Keys that are not there, or that a mask leaves out, are -inf before the maximum.  As long as a row
has seen no other, m = -inf stands for 0 in the differences, so that p = 0 and not NaN; a row that
has seen none at the end has l = 0 and becomes 0.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.cross_attention import put, tile
from fastdiff.ops import _attention
from fastdiff.ops._cross_attention_plan import pieces

LOG2E = 1.4426950408889634
OPTIONS = {"enable_fp_fusion": True, "ptx_version": 87}
INTERPRETED_AS = 90  # the capability that Triton's interpreter stands for
INTEGERS = ["N", "M", "H", "tiles", "q_b", "q_n", "q_h", "k_b", "k_m", "k_h", "v_b", "v_m", "v_h"]
INTEGERS += ["mask_b", "mask_h", "mask_n", "mask_m"]


@triton.jit(do_not_specialize=INTEGERS)
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, N, M, H, tiles,
    q_b, q_n, q_h, k_b, k_m, k_h, v_b, v_m, v_h, mask_b, mask_h, mask_n, mask_m, scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Strides of q, k and v in units of 8 elements; scale times log2(e), if no mask is added;
    COLUMNS of v: all of D1 and D2, or a part of D1, if D2 = 0."""
    parts: tl.constexpr = D1 // COLUMNS
    VALID: tl.constexpr = D if parts == 1 else COLUMNS
    part = tl.program_id(0) % parts
    first = tl.program_id(0) // parts % tiles * ROWS
    head = tl.program_id(0) // parts // tiles
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    q_n, k_m, v_m = q_n * 8, k_m * 8, v_m * 8
    q_ptr += (b * q_b + h * q_h) * 8 + first.to(tl.int64) * q_n
    k_ptr += (b * k_b + h * k_h) * 8
    v_ptr += (b * v_b + h * v_h) * 8 + part * COLUMNS
    out_ptr += ((b * N + first) * H + h) * D + part * COLUMNS
    rows = N - first
    row = tl.arange(0, ROWS)
    if mask_ptr is not None:
        mask_ptr += b * mask_b + h * mask_h + first.to(tl.int64) * mask_n

    q1 = tile(q_ptr, row, rows, q_n, 0, D1, D)
    o1 = tl.zeros((ROWS, COLUMNS), tl.float32)
    if D2 > 0:
        q2 = tile(q_ptr, row, rows, q_n, D1, D2, D)
        o2 = tl.zeros((ROWS, D2), tl.float32)
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    key = tl.arange(0, KEYS)
    for start in range(0, M, KEYS):
        left = M - start
        s = tl.dot(q1, tl.trans(tile(k_ptr, key, left, k_m, 0, D1, D)), input_precision="ieee")
        if D2 > 0:
            k2 = tl.trans(tile(k_ptr, key, left, k_m, D1, D2, D))
            s = tl.dot(q2, k2, s, input_precision="ieee")
        s = s * scale
        inside = (key < left)[None, :]
        if mask_ptr is not None:
            at = tl.minimum(row, rows - 1)[:, None] * mask_n + key[None, :] * mask_m
            m = tl.load(mask_ptr + at, mask=inside, other=0)
            mask_ptr += KEYS * mask_m
            if mask_ptr.dtype.element_ty.primitive_bitwidth == 8:
                inside = inside & (m != 0)
            else:
                s += m.to(tl.float32)
        s = tl.where(inside, s, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        near = higher
        if mask_ptr is not None:
            near = tl.where(higher == -float("inf"), 0.0, higher)
        p = s - near[:, None]
        keep = top - near
        if mask_ptr is not None:  # noqa: SIM102  None has no dtype
            if mask_ptr.dtype.element_ty.primitive_bitwidth > 8:
                p, keep = p * 1.4426950408889634, keep * 1.4426950408889634
        p, keep = tl.exp2(p), tl.exp2(keep)
        top = higher
        total = total * keep + tl.sum(p, 1)
        p = p.to(v_ptr.dtype.element_ty)
        v1 = tile(v_ptr, key, left, v_m, 0, COLUMNS, VALID)
        o1 = tl.dot(p, v1, o1 * keep[:, None], input_precision="ieee")
        if D2 > 0:
            v2 = tile(v_ptr, key, left, v_m, D1, D2, D)
            o2 = tl.dot(p, v2, o2 * keep[:, None], input_precision="ieee")
        k_ptr += k_m.to(tl.int64) * KEYS
        v_ptr += v_m.to(tl.int64) * KEYS
    if mask_ptr is not None:
        total = tl.where(total == 0.0, 1.0, total)
    put(out_ptr, o1 / total[:, None], row, rows, H * D, 0, COLUMNS, VALID)
    if D2 > 0:
        put(out_ptr, o2 / total[:, None], row, rows, H * D, D1, D2, D)


class Plan(NamedTuple):
    """How a head is cut; the same for any B, N, M and H."""

    d1: int
    d2: int
    columns: int
    rows: int
    keys: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """As the kernel wants them."""
        names = ("D1", "D2", "COLUMNS", "ROWS", "KEYS", "num_warps", "num_stages")
        return dict(zip(names, self, strict=True))


def launch_plan(width: int, element_size: int, capability: int, masked: bool = False) -> Plan:
    """capability: 90 for sm_90.  Tiles as large as the registers: tests look at the code."""
    large = 90 <= capability < 120  # matrix units that read shared memory
    if element_size == 4:  # no matrix units: each product by the ordinary ones
        d1 = max(64, 1 << (width - 1).bit_length())
        # Tiles of 16 x 16 of a head of 512 spill on sm_100, those of 32 x 32 with a mask on sm_86.
        wide = width <= 64 and not masked
        rows = 32 if wide or (d1 == 512 and 100 <= capability < 120) else 16
        return Plan(d1, 0, min(d1, 256), rows, 32 if width <= 64 else 16, 8, 1)
    if width > 160:  # 256 or 512: no columns are masked, and no keys but the last
        return Plan(width, 0, 256, 128 if capability == 90 else 64, 32, 8, 2 if large else 1)
    d1, d2 = pieces(width)
    if not large and width > (64 if masked else 128):
        # With a mask, and 32 keys, a head of 160 and sm_80 or 120 need more than 255 registers.
        return Plan(d1, d2, d1, 64, 16 if masked and width > 128 else 32, 8, 1)
    keys = 64 if (large or width <= 64) and not masked else 32
    return Plan(d1, d2, d1, 128, keys, 8, 2)


def launch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, out: Tensor) -> None:
    """Run the kernel on tensors that can be read in place; fastdiff.ops has checked them."""
    (batch, length, heads, width), keys = q.shape, k.shape[1]
    capability = INTERPRETED_AS
    if q.is_cuda:
        major, minor = torch.cuda.get_device_capability(q.device)
        capability = 10 * major + minor
    plan = launch_plan(width, q.element_size(), capability, mask is not None)
    tiles, parts = triton.cdiv(length, plan.rows), plan.d1 // plan.columns
    steps = (0, 0, 0, 0) if mask is None else mask.stride()
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    if mask is None or mask.dtype == torch.uint8:
        scale *= LOG2E
    with torch.cuda.device_of(q):  # Triton launches on the current device, not on q's
        attention_kernel[(parts * tiles * batch * heads,)](
            q, k, v, mask, out, length, keys, heads, tiles,
            *_attention.strides(q), *_attention.strides(k), *_attention.strides(v), *steps,
            scale, D=width, **plan.constants(), **OPTIONS,
        )  # fmt: skip
