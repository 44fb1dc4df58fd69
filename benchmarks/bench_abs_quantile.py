"""threshold_rows at pixels and latents: the quantile of |x| of each sample, and the bounds of it.

Peer: `torch.quantile` of the flattened |x|, which sorts, and the bounds by operators, eager and
compiled.  Ours must give the bits of the eager one; a compiler may fuse what is rounded there.
Where nothing is timed for its own sake, pictures of at most 256x256 do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.pointwise import DEVICE, DTYPES, IN_A_GRAPH, draw, graph
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, measure, small
from fastdiff import backends
from fastdiff.ops.abs_quantile import threshold_rows

SHAPES = {
    "latent 2x4x64x64": (2, 4, 64, 64),
    "latent 2x4x128x128": (2, 4, 128, 128),
    "pixels 1x3x256x256": (1, 3, 256, 256),
    "pixels 1x3x1024x1024": (1, 3, 1024, 1024),
}


ROUNDINGS = 4  # a difference, its product with a weight, a sum, a reciprocal


def formula(x: Tensor, p: float, maximum: float, row: Tensor) -> Tensor:
    q = torch.quantile(x.float().abs().flatten(1), p, dim=1).clamp(min=1.0, max=maximum)
    rows = row.expand(1, x.shape[0], -1).clone()
    rows[0, :, 4], rows[0, :, 5], rows[0, :, 6] = -q, q, 1 / q
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", SHAPES)
def test_abs_quantile(benchmark: Any, compiles: bool, where: str, dtype: str):
    shape = SHAPES[where]
    if small(benchmark):
        shape = (*shape[:2], *(min(side, 256) for side in shape[2:]))
    (x,) = draw(shape, dtype=dtype)
    assert x is not None
    row = torch.arange(12, device=DEVICE).div(12).view(1, 1, 12)  # what must come through
    runs: dict[str, Callable[..., Tensor]] = {OURS: threshold_rows, "eager formula": formula}
    if compiles:
        torch._dynamo.reset()
        runs[COMPILED] = torch.compile(formula, fullgraph=True, dynamic=False)
    contestants = {n: functools.partial(run, x, 0.995, 3.0, row) for n, run in runs.items()}
    want = contestants["eager formula"]()
    same = torch.equal(contestants[OURS](), want)
    assert same, "the bits are not those of torch.quantile"
    bound = ROUNDINGS * torch.finfo(torch.float32).eps * want.abs().max().item()
    errors = {n: (call() - want).abs().max().item() for n, call in contestants.items()}
    assert all(error <= bound for error in errors.values()), f"{errors} > {bound:.3g}"
    repeats = IN_A_GRAPH if DEVICE == "cuda" else 1
    backend = backends.chosen("abs_quantile", backends.Key(DEVICE, x.dtype))
    benchmark.group = f"abs_quantile/{where}/{dtype}"
    benchmark.extra_info |= {
        "case": {"where": where, "dtype": dtype, "backend": backend},
        "bytes": repeats * x.nbytes,
        "repeats": repeats,
        "check": {"bits of torch.quantile": same, "difference": errors, "bound": bound},
    }
    laps = {
        n: functools.partial(list, [graph(c) if DEVICE == "cuda" else c])
        for n, c in contestants.items()
    }
    measure(benchmark, laps, skip=0, rounds=10)
