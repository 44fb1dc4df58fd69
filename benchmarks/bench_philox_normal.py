"""philox_normal at latents of SD1.5 and SDXL, and of a batch: one write of 4 bytes an element.

Peers: `torch.randn` with one generator (another noise, and one that depends on the batch), and the
formula in PyTorch operators, eager and compiled (on the CPU at one shape, for it compiles for a
minute).  Ours must give the bits of the eager one; a compiler may fuse what is rounded there.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.pointwise import DEVICE, IN_A_GRAPH, ROUNDINGS, graph
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, measure
from fastdiff import backends
from fastdiff.ops.philox_normal import philox_normal, philox_normal_ref

SHAPES = {
    "sd15 1x4x64x64": (1, 4, 64, 64),
    "sdxl 1x4x128x128": (1, 4, 128, 128),
    "sdxl 8x4x128x128": (8, 4, 128, 128),
}
FIRST = (5 << 32) + 3  # the first sample's seed: both words of the key are something


def formula(seeds: Tensor, shape: list[int]) -> Tensor:
    return philox_normal_ref(seeds, shape, None, 0, 0, torch.float32)


@pytest.mark.parametrize("where", SHAPES)
def test_philox_normal(benchmark: Any, compiles: bool, where: str):
    batch, *shape = SHAPES[where]
    seeds = torch.arange(batch, device=DEVICE) + FIRST
    contestants = {
        OURS: functools.partial(philox_normal, seeds, shape),
        "eager formula": functools.partial(formula, seeds, shape),
    }
    if compiles and (DEVICE == "cuda" or where == next(iter(SHAPES))):
        torch._dynamo.reset()
        compiled = torch.compile(formula, fullgraph=True, dynamic=False)
        contestants[COMPILED] = functools.partial(compiled, seeds, shape)
    expected = formula(seeds, shape)
    same = torch.equal(contestants[OURS](), expected)
    assert same, "the bits are not those of the reference"
    bound = ROUNDINGS * torch.finfo(torch.float32).eps * expected.abs().max().item()
    errors = {n: (call() - expected).abs().max().item() for n, call in contestants.items()}
    assert all(error <= bound for error in errors.values()), f"{errors} > {bound:.3g}"
    contestants["torch.randn"] = functools.partial(torch.randn, batch, *shape, device=DEVICE)
    variance = contestants["torch.randn"]().square().mean().item()
    assert abs(variance - 1) < 6 * (2 / expected.numel()) ** 0.5, "torch.randn is not normal"
    repeats = IN_A_GRAPH if DEVICE == "cuda" else 1
    key = backends.Key(DEVICE, torch.float32)
    benchmark.group = f"philox_normal/{where}"
    benchmark.extra_info |= {
        "case": {"where": where, "backend": backends.chosen("philox_normal", key)},
        "bytes": repeats * expected.nbytes,
        "repeats": repeats,
        "check": {"bits of the reference": same, "difference": errors, "bound": bound},
    }
    laps = {
        n: functools.partial(list, [graph(c) if DEVICE == "cuda" else c])
        for n, c in contestants.items()
    }
    measure(benchmark, laps, skip=0, rounds=30)
