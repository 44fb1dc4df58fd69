"""geglu at the feed-forward blocks of SD1.5 and SDXL: 2 reads and 1 write of (rows, D).

Peer: `hidden, gate = x.chunk(2, -1); hidden * gelu(gate)`, as diffusers' GEGLU, eager and compiled.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pointwise import DEVICE, DTYPES, compare, draw
from fastdiff.ops.geglu import geglu

# (tokens of two samples, 2D); on the CPU, where one thread takes its time, a part of the first.
SHAPES = {
    "sd15 64x64": (8192, 2560),
    "sd15 32x32": (2048, 5120),
    "sd15 16x16": (512, 10240),
    "sd15 8x8": (128, 10240),
    "sdxl 64x64": (8192, 5120),
    "sdxl 32x32": (2048, 10240),
}
CASES = SHAPES if DEVICE == "cuda" else {"sd15 64x64, 256 rows": (256, 2560)}


def formula(x: Tensor) -> Tensor:
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", CASES)
def test_geglu(benchmark: Any, compiles: bool, where: str, dtype: str):
    operands = draw(CASES[where], dtype=dtype)
    (x,) = operands
    moved = x.nbytes + x.nbytes // 2
    case = {"where": where, "dtype": dtype}
    compare(benchmark, compiles, "geglu", case, geglu, formula, operands, moved)
