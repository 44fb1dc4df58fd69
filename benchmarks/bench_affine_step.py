"""One affine_step of DPM++ 2M, from the checked op down to the kernel.

    op       fastdiff.ops.affine_step: checks its arguments, allocates its results
    direct   what a scheduler calls: fewer checks, the same two allocations
    kernel   the native function alone: addresses in, results into memory that is there

Peers: the formula in eager PyTorch and through torch.compile (formula.py).  All read x, e, h and
write x', m; all but `kernel` allocate both.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from benchmarks import formula
from benchmarks.side_by_side import OURS, Call, measure
from fastdiff import backends
from fastdiff.ops.affine_step import DTYPE_CODES, affine_step, affine_step_ref
from fastdiff.schedulers.native import native

SHAPES = {"1x4x64x64": 65_536, "1x4x128x128": 262_144, "8x4x128x128": 2_097_152}  # bytes in float32
DTYPES = ("float32", "bfloat16")
STEPS, SKIP, TIMED = 20, 4, 12


def op(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    return [functools.partial(affine_step, x, e, row[None], history=[h]) for row in rows]


def direct(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    at = [row.data_ptr() for row in rows]
    return [functools.partial(native, a, x, e, [h], None, x.dtype, x.dtype, 0) for a in at]


def kernel(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    from fastdiff import _C

    out = (torch.empty_like(x), torch.empty_like(x))
    operands = (x, None, e, None, *out, None, h)
    addresses = tuple(0 if t is None else t.data_ptr() for t in operands)
    codes = sum(DTYPE_CODES[x.dtype] << 2 * i for i, t in enumerate(operands) if t is not None)

    def call(row: int) -> tuple[Tensor, Tensor]:
        _C.affine_step(row, 1, 0, 1, x.numel(), 0, 0, 1, codes, addresses)
        return out

    return [functools.partial(call, row.data_ptr()) for row in rows]


ENTRIES = {OURS: op, "fastdiff direct": direct, "fastdiff kernel": kernel}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_step(benchmark: Any, compiles: bool, shape: str, dtype: str):
    size, kind = tuple(map(int, shape.split("x"))), getattr(torch, dtype)
    torch.manual_seed(0)
    x, e, h = (torch.randn(size).to(kind) for _ in range(3))
    plan = fastdiff.plan("dpmpp_2m", steps=STEPS)
    # P = 0: m, which the op returns, is what DPM++ keeps, so the row of r_1 and the slot go
    columns = [*range(12), 17]
    table = torch.from_numpy(plan.rows[: SKIP + TIMED][..., columns]).contiguous()
    rows = table.float()
    entries = ENTRIES if backends.build_info()["native"] else {OURS: op}
    contestants = {name: entry(rows, x, e, h) for name, entry in entries.items()}
    updates = {"eager formula": formula.formula}
    if compiles:
        updates["torch.compile of the formula"] = formula.compiled()
    for name, update in updates.items():
        contestants[name] = formula.calls(update, plan, x, e, h)[: SKIP + TIMED]

    wide = affine_step_ref(
        *(x.double(), None, e.double(), [h.double()], None),
        *(table[:1], None, 0, torch.float64, torch.float64),
    )[0]
    # five roundings at most, each of a number no larger than the largest result and its terms
    bound = 5 * torch.finfo(kind).eps * wide.abs().max().item()
    errors = {}
    for name, calls in contestants.items():
        out = calls[0]()
        out = out if isinstance(out, Tensor) else out[0]
        errors[name] = (out.double() - wide).abs().max().item()
        assert errors[name] <= bound, name

    benchmark.group = f"affine_step/{shape}/{dtype}"
    benchmark.extra_info |= {
        "case": {"solver": "dpmpp_2m", "shape": shape, "dtype": dtype},
        "bytes": 5 * x.nbytes,
        "check": {"largest difference from float64": errors, "bound": bound},
    }
    laps = {name: functools.partial(list, calls) for name, calls in contestants.items()}
    rounds = max(10, min(100, 20_000_000 // SHAPES[shape]))
    measure(benchmark, laps, skip=SKIP, rounds=rounds)
