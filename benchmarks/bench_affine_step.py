"""One affine_step of DPM++ 2M, from the checked op down to the kernel.

    op       fastdiff.ops.affine_step: checks its arguments, allocates its results
    direct   what a scheduler calls: fewer checks, the same two allocations
    kernel   the native function alone: addresses in, results into memory that is there

Peers: the formula in eager PyTorch and through torch.compile (formula.py).  All read x, e, h and
write x', m; all but `kernel` allocate both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from benchmarks import formula
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, Call, measure
from fastdiff import backends
from fastdiff.ops.affine_step import DTYPE_CODES, affine_step, affine_step_ref
from fastdiff.schedulers.native import native

SHAPES = {"1x4x64x64": 65_536, "1x4x128x128": 262_144, "8x4x128x128": 2_097_152}  # bytes in float32
DTYPES = ("float32", "bfloat16")
STEPS, SKIP, TIMED = 20, 4, 12
HISTORY = 11  # the column of h's weight in x'


def op(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    return [functools.partial(affine_step, x, e, row[None], history=[h]) for row in rows]


def direct(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    at = [row.data_ptr() for row in rows]
    return [functools.partial(native, a, x, e, [h], None, x.dtype, x.dtype, 0) for a in at]


def kernel(rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> list[Call]:
    from fastdiff import _C

    out = tuple(torch.full_like(x, float("nan")) for _ in range(2))
    operands = (x, None, e, None, *out, None, h)
    addresses = tuple(0 if t is None else t.data_ptr() for t in operands)
    codes = sum(DTYPE_CODES[x.dtype] << 2 * i for i, t in enumerate(operands) if t is not None)

    def call(row: int) -> tuple[Tensor, ...]:
        _C.affine_step(row, 1, 0, 1, x.numel(), 0, 0, 1, codes, addresses)
        return out

    return [functools.partial(call, row.data_ptr()) for row in rows]


ENTRIES = {OURS: op, "fastdiff direct": direct, "fastdiff kernel": kernel}
NAMES = ("x'", "m")
CHECKED = (0, SKIP, SKIP + TIMED - 1)  # the first has no history, the others, all timed, do


def worst(got: object, rows: Tensor, x: Tensor, e: Tensor, h: Tensor) -> float:
    """The largest error of x' and of m against float64, over what it may be; (13,) rows.

    A result is at most four rounded operations deep, and each coefficient is exact: every rounding
    is of a number no larger than the sum of the absolute values of all terms, which is the formula
    of the absolute values.  To that comes one rounding to the dtype of x.
    """
    assert isinstance(got, (tuple, list))
    positive = rows.abs()
    positive[4] = rows[4]  # -inf, the lower limit of m, which is also that of |m|
    wide, terms = (
        affine_step_ref(
            *(t[0].double(), None, t[1].double(), [t[2].double()], None),
            *(row[None, None], None, 0, torch.float64, torch.float64),
        )[:2]
        for t, row in (((x, e, h), rows), ((x.abs(), e.abs(), h.abs()), positive))
    )
    errors = []
    for name, mine, truth, term in zip(NAMES, got[:2], wide, terms, strict=True):
        assert (mine.shape, mine.dtype) == (x.shape, x.dtype), name
        bound = 4 * torch.finfo(torch.float32).eps * term
        bound += torch.finfo(x.dtype).eps / 2 * truth.abs()
        errors.append(((mine.double() - truth).abs() / bound).max())
    return torch.stack(errors).max().item()  # NaN stays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_step(benchmark: Any, compiles: bool, shape: str, dtype: str):
    size, kind = tuple(map(int, shape.split("x"))), getattr(torch, dtype)
    torch.manual_seed(0)
    x, e, h = (torch.randn(size).to(kind) for _ in range(3))
    plan = fastdiff.plan("dpmpp_2m", steps=STEPS)
    # P = 0: m, which the op returns, is what DPM++ keeps, so the row of r_1 and the slot go
    columns = [*range(12), 17]
    rows = torch.from_numpy(plan.rows[: SKIP + TIMED][..., columns]).contiguous().float()
    entries = ENTRIES if backends.build_info()["native"] else {OURS: op}
    makers: dict[str, Callable[[], list[Call]]] = {
        name: functools.partial(entry, rows, x, e, h) for name, entry in entries.items()
    }
    updates = {"eager formula": formula.formula}
    if compiles:
        updates[COMPILED] = formula.compiled()
    for name, update in updates.items():
        makers[name] = functools.partial(formula.calls, update, plan, x, e, h)

    errors = dict.fromkeys(makers, 0.0)
    for at in CHECKED:
        assert bool(rows[at, 0, HISTORY]) == (at > 0)
        for name, make in makers.items():  # anew: the formula's calls hand m on to the next
            error = worst(make()[at](), rows[at, 0], x, e, h)
            assert error <= 1, f"{name}, row {at}: {error:.3g} times what it may be"
            errors[name] = max(errors[name], error)

    benchmark.group = f"affine_step/{shape}/{dtype}"
    benchmark.extra_info |= {
        "case": {"solver": "dpmpp_2m", "shape": shape, "dtype": dtype},
        "bytes": 5 * x.nbytes,
        "check": {"largest error / bound": errors, "rows": CHECKED},
    }
    laps = {}
    for name, make in makers.items():
        laps[name] = functools.partial(list, make()[: SKIP + TIMED])
    rounds = max(10, min(100, 20_000_000 // SHAPES[shape]))
    measure(benchmark, laps, skip=SKIP, rounds=rounds)
