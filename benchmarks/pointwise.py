"""Check, then time, one pointwise op against the same formula in eager PyTorch and torch.compile.

On the CPU the calls are timed one by one.  Which backend ran is in the record, under "backend": the
reference where the native extension was not built.  On a CUDA device what is timed is a graph of 20
calls, replayed and timed by the device, so that neither Python nor the launch counts; a "call"
of the record is that replay, "repeats" is 20, and "bytes" are those of all 20.  Every contestant
allocates its results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, Call, measure
from fastdiff import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ("float32", "bfloat16")
IN_A_GRAPH = 20
ROUNDINGS = 8  # of numbers no larger than the largest result, at most, in any contestant

Operands = tuple[Tensor | None, ...]
Formula = Callable[..., Tensor]


def draw(*shapes: tuple[int, ...] | None, dtype: str) -> Operands:
    """Normal operands on the device, the same each time."""
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    tensors = (None if s is None else torch.randn(s, generator=generator) for s in shapes)
    return tuple(None if t is None else t.to(DEVICE, kind) for t in tensors)


def compare(
    benchmark: Any,
    compiles: bool,
    op: str,
    case: dict[str, str],
    ours: Formula,
    formula: Formula,
    operands: Operands,
    moved: int,
    roundings: float = ROUNDINGS,
    flops: int = 0,
) -> None:
    """`ours` and `formula` return a tensor, or several, from the operands; moved: bytes that one
    call must read and write; flops: operations, where a call may be bound by them; roundings: how
    many a result may be off, in units of eps times the largest."""
    x = operands[0]
    assert x is not None
    contestants = {OURS: ours, "eager formula": formula}
    if compiles:
        torch._dynamo.reset()
        contestants[COMPILED] = torch.compile(formula, fullgraph=True, dynamic=False)
    calls = {n: functools.partial(run, *operands) for n, run in contestants.items()}

    truth = several(formula(*(None if t is None else t.double() for t in operands)))
    bounds = [roundings * torch.finfo(x.dtype).eps * t.abs().max().item() for t in truth]
    errors: dict[str, list[float]] = {}
    for name, call in calls.items():
        errors[name] = []
        for got, wide, bound in zip(several(call()), truth, bounds, strict=True):
            assert got.shape == wide.shape, name
            assert got.dtype == x.dtype, name
            errors[name].append((got.double() - wide).abs().max().item())
            assert errors[name][-1] <= bound, f"{name}: {errors[name][-1]:.3g} > {bound:.3g}"
    del truth

    backend = backends.chosen(op, backends.Key(x.device.type, x.dtype))
    repeats = IN_A_GRAPH if x.is_cuda else 1
    benchmark.group = "/".join([op, *case.values()])
    benchmark.extra_info |= {
        "case": {**case, "backend": backend},
        "bytes": repeats * moved,
        "repeats": repeats,
        "check": {"largest difference from float64": errors, "bound": bounds},
    }
    if flops:
        benchmark.extra_info["flops"] = repeats * flops
    laps = {n: functools.partial(list, [graph(c) if x.is_cuda else c]) for n, c in calls.items()}
    rounds = max(10, min(100, 10_000_000 // x.numel()))
    measure(benchmark, laps, skip=0, rounds=rounds)


def several(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


class Replay:
    """A graph of 20 calls: a replay and the wait for it; `seconds` is what the device took."""

    def __init__(self, captured: torch.cuda.CUDAGraph):
        self.captured = captured

    def __call__(self) -> None:
        self.captured.replay()
        torch.cuda.synchronize()

    def seconds(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.captured.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def graph(call: Call) -> Replay:
    """`call`, 20 times in a graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for _ in range(IN_A_GRAPH):
            call()
    return Replay(captured)
