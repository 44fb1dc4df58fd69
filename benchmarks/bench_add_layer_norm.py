"""add_layer_norm at the transformer blocks of SD1.5 and SDXL: 2 reads and 2 writes of (rows, D).

Peer: `total = x + residual; layer_norm(total)`, eager and compiled, which returns total too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pointwise import DEVICE, DTYPES, compare, draw
from fastdiff.ops.add_layer_norm import add_layer_norm

# (tokens of two samples, D); on the CPU, where one thread takes its time, a part of the first.
SHAPES = {
    "sd15 64x64": (8192, 320),
    "sd15 32x32": (2048, 640),
    "sd15 16x16": (512, 1280),
    "sd15 8x8": (128, 1280),
    "sdxl 64x64": (8192, 640),
    "sdxl 32x32": (2048, 1280),
}
CASES = SHAPES if DEVICE == "cuda" else {"sd15 64x64, 1024 rows": (1024, 320)}


def formula(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias, 1e-5), total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", CASES)
def test_add_layer_norm(benchmark: Any, compiles: bool, where: str, dtype: str):
    shape = CASES[where]
    operands = draw(shape, shape, shape[1:], shape[1:], dtype=dtype)
    moved = 4 * operands[0].nbytes + 2 * operands[2].nbytes
    case = {"where": where, "dtype": dtype}
    args = (add_layer_norm, formula, operands, moved)
    compare(benchmark, compiles, "add_layer_norm", case, *args)
