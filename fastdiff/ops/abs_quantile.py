"""abs_quantile: the quantile of |x| over each sample, exactly, without a sort; and the bounds of
dynamic thresholding that follow from it (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    s[b, 0] <= s[b, 1] <= ..    the |x[b]|, sorted;  n of them
    r = p * (n - 1)             in float32;  k = floor(r), w = r - k
    q[b] = s[b, k] + w * (s[b, k + 1] - s[b, k])     float32, as torch.lerp rounds it:
           w < 1/2: fma(w, d, s[b, k]), else fma(w - 1, d, s[b, k + 1]), d = s[b, k + 1] - s[b, k]

    threshold_rows: bound = min(max(q, 1), maximum);  lo, hi, gain = -bound, bound, 1 / bound

x     (B, ..)     float32, float16 or bfloat16, of 1 to 2^24 elements a sample (the limit of
                  torch.quantile, whose r is float32); float64 runs the reference
p     a number from 0 to 1
q     (B,)        float32: the bits of torch.quantile(x.float().abs().flatten(1), p, dim=1) on every
                  processor that fuses products into sums. NaN if any of the sample is; NaN, too,
                  where an infinity would be interpolated, as in PyTorch
row   (1, 1 or B, K), contiguous, float32: rows of affine_step; threshold_rows returns a new tensor
      (1, B, K), the row of each sample with its bounds in the columns lo, hi, gain

The order of elements does not count: any dense layout with the batch outermost is read in place,
others are copied.  Kernels select by radix: the bits of |x| order as |x| does, and the place k is
found from the top digit down, in two passes over x.  The first one counts how often each value of
the top 11 bits occurs.  The second one looks at the elements that share the digit found: it counts
their next digit, 10 bits (of 16 bits that is all: the rest of the float32 is zero), and copies them
in float32, where the last 10 bits are then looked for in the copy alone.  It also takes the least
element above them, which is s[b, k + 1] if the place k is the last of them.  The copy has the
elements of one bin, an eighth of a power of two wide: 1 in 300 of normal numbers at p = 0.995, 1 in
25 at p = 0.5, all n if they are all alike.  The CPU allocates as many; a GPU, which is not waited
for, n.  Counts are integers, so every launch and every kernel give the same bits.

Kernels have `launch(x, rank, weight, maximum, q, rows) -> None`: x dense, rows (B, K) or None.
"""

import math

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import check_floating, check_number, check_tensor, number
from fastdiff.ops._pointwise import call, implement, kernel
from fastdiff.ops.affine_step_checks import dense

__all__ = ["abs_quantile", "abs_quantile_ref", "threshold_rows", "threshold_rows_ref"]

LO, HI, GAIN = 4, 5, 6  # columns of a row
MAX_SAMPLE = 2**24
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
WORKSPACE = 2048 + 2 * 1024 + 8  # int32 a sample: a histogram a digit, and what was found so far

torch.library.define("fastdiff::abs_quantile", "(Tensor x, float p) -> Tensor")
torch.library.define(
    "fastdiff::threshold_rows", "(Tensor x, float p, float maximum, Tensor row) -> Tensor"
)


def abs_quantile(x: Tensor, p: float) -> Tensor:
    """Return q, (B,), as a new tensor; differentiable, as torch.quantile is."""
    p = number("p", p)
    _check(x, p)
    q: Tensor = call(torch.ops.fastdiff.abs_quantile.default, _run, abs_quantile_ref, x, p)
    return q


def threshold_rows(x: Tensor, p: float, maximum: float, row: Tensor) -> Tensor:
    """Return the rows (1, B, K) of affine_step that clamp to the quantile and divide by it."""
    p, maximum = number("p", p), number("maximum", maximum)
    _check_rows(x, p, maximum, row)
    op = torch.ops.fastdiff.threshold_rows.default
    rows: Tensor = call(op, _run_rows, threshold_rows_ref, x, p, maximum, row)
    return rows


def abs_quantile_ref(x: Tensor, p: float) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if x.shape[0] == 0:  # torch.quantile wants elements
        return wide.flatten(1).sum(1)
    return torch.quantile(wide.abs().flatten(1), p, dim=1)


def threshold_rows_ref(x: Tensor, p: float, maximum: float, row: Tensor) -> Tensor:
    bound = abs_quantile_ref(x, p).clamp(min=1.0, max=maximum)  # a maximum below 1 wins
    return _with_bounds(row, bound.to(row.dtype))


def _with_bounds(row: Tensor, bound: Tensor) -> Tensor:
    row = row.expand(1, bound.shape[0], -1)
    bounds = torch.stack([-bound, bound, 1 / bound], dim=-1)[None]
    return torch.cat([row[..., :LO], bounds, row[..., GAIN + 1 :]], dim=-1)


def launch_reference(
    x: Tensor, rank: int, weight: float, maximum: float, q: Tensor, rows: Tensor | None
) -> None:
    """Write the results where a kernel would write them: by a sort."""
    ordered = x.flatten(1).to(q.dtype).abs().sort(dim=1)[0]
    low, high = ordered[:, rank], ordered[:, rank + (weight > 0)]
    q.copy_(torch.where(ordered[:, -1].isnan(), math.nan, torch.lerp(low, high, weight)))
    if rows is not None:
        rows.copy_(_with_bounds(rows[None], q.clamp(min=1.0, max=maximum))[0])


def launch_cpu(
    x: Tensor, rank: int, weight: float, maximum: float, q: Tensor, rows: Tensor | None
) -> None:
    """csrc/abs_quantile.cpp."""
    from fastdiff import _C

    table = (0, 0) if rows is None else (rows.data_ptr(), rows.shape[1])
    data = (x.data_ptr(), DTYPE_CODES[x.dtype], x.shape[0], x.numel())
    threads = torch.get_num_threads()
    _C.abs_quantile(*data, rank, weight, maximum, q.data_ptr(), *table, threads)


def launch_cuda(
    x: Tensor, rank: int, weight: float, maximum: float, q: Tensor, rows: Tensor | None
) -> None:
    """csrc/abs_quantile.cu, on the current stream of the device of x."""
    from fastdiff import _C

    table = (0, 0) if rows is None else (rows.data_ptr(), rows.shape[1])
    with torch.cuda.device(x.device):
        workspace, copies = workspaces(x)
        _C.abs_quantile_cuda(
            x.data_ptr(),
            DTYPE_CODES[x.dtype],
            x.shape[0],
            x.numel(),
            rank,
            weight,
            maximum,
            q.data_ptr(),
            *table,
            workspace.data_ptr(),
            0 if copies is None else copies.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )


def workspaces(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the kernels of a GPU need beside x: cleared counts; room for the copy, (B, n).

    In float32 alone: of 16 bits the digits of the two passes are all.
    """
    counts = torch.zeros(x.shape[0], WORKSPACE, dtype=torch.int32, device=x.device)
    if x.dtype != torch.float32:
        return counts, None
    return counts, torch.empty(x.shape, dtype=torch.int32, device=x.device)


def place(p: float, n: int) -> tuple[int, float]:
    """(k, w): the rank of the lower neighbour among n, and the weight of the upper one."""
    r = torch.tensor(p, dtype=torch.float32, device="cpu") * (n - 1)  # whatever the default is
    k = int(r)
    return k, float(r - k)


def _check(x: Tensor, p: float) -> None:
    check_floating("x", x)
    if x.dim() == 0 or (x.shape[0] and not 1 <= x.numel() // x.shape[0] <= MAX_SAMPLE):
        raise ValueError(
            f"x must be (B, ..) with 1 to 2^24 elements a sample; got {tuple(x.shape)}. "
            "Try x[None] for one sample"
        )
    check_number("p", p)
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p}. A percentage is p / 100")


def _check_rows(x: Tensor, p: float, maximum: float, row: Tensor) -> None:
    _check(x, p)
    check_number("maximum", maximum)
    if not maximum > 0:
        raise ValueError(f"maximum must be above 0, the largest bound of |x|; got {maximum}")
    check_tensor("row", row)
    if row.dim() != 3 or row.shape[0] != 1 or row.shape[1] not in (1, x.shape[0]):
        raise ValueError(
            f"row must be (1, 1 or {x.shape[0]}, K), one step of a table; got {tuple(row.shape)}"
        )
    if row.shape[2] <= GAIN or row.device != x.device or not row.is_floating_point():
        raise ValueError(
            f"row must hold the columns of affine_step, on {x.device}; got {tuple(row.shape)} "
            f"{row.dtype} on {row.device}. Try .to(x.device)"
        )


def _quantile(x: Tensor, p: float, maximum: float, rows: Tensor | None) -> Tensor:
    if x.dtype == torch.float64:  # whose rank PyTorch computes in float64, too
        return abs_quantile_ref(x, p)
    q = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.shape[0] > 0:
        k, w = place(p, x.numel() // x.shape[0])
        kernel("abs_quantile", x)(dense(x, x.shape[0]), k, w, maximum, q, rows)
    return q


def _run(x: Tensor, p: float) -> Tensor:
    return _quantile(x, p, math.inf, None)


def _run_rows(x: Tensor, p: float, maximum: float, row: Tensor) -> Tensor:
    if x.dtype == torch.float64 or row.dtype != torch.float32:
        return threshold_rows_ref(x, p, maximum, row)
    rows = row.expand(1, x.shape[0], -1).clone(memory_format=torch.contiguous_format)
    _quantile(x, p, maximum, rows[0])
    return rows


def _empty(x: Tensor, p: float) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[0], dtype=wide)


def _empty_rows(x: Tensor, p: float, maximum: float, row: Tensor) -> Tensor:
    return row.new_empty((1, x.shape[0], row.shape[2]))


implement("abs_quantile", _check, _run, _empty, abs_quantile_ref)
implement("threshold_rows", _check_rows, _run_rows, _empty_rows, threshold_rows_ref)
backends.register(
    "abs_quantile",
    reference="fastdiff.ops.abs_quantile:launch_reference",
    cpu="fastdiff.ops.abs_quantile:launch_cpu",
    cuda="fastdiff.ops.abs_quantile:launch_cuda",
    triton="fastdiff.kernels.abs_quantile:launch",
)
