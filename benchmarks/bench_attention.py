"""attention at the self-attention layers of SD1.5, SDXL, SD3, Flux and the VAE; two samples (one
where the name says so), on a CUDA device; peers: sdpa.py.

    fastdiff          attention(), which takes what its table of measurements names
    fastdiff triton   kernels/attention.py

The times of this file and of bench_cross_attention.py make that table: attention_table.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.pointwise import DEVICE
from benchmarks.sdpa import Attention, Shape, compare, operands
from benchmarks.side_by_side import OURS
from fastdiff import backends
from fastdiff.ops.attention import attention, attention_choice, why_not

SHAPES: dict[str, Shape] = {
    "sd15 self 4096": (2, 8, 4096, 4096, 40),
    "sd15 self 1024": (2, 8, 1024, 1024, 80),
    "sd15 self 256": (2, 8, 256, 256, 160),
    "sd15 self 64": (2, 8, 64, 64, 160),
    "sdxl self 4096": (2, 10, 4096, 4096, 64),
    "sdxl self 1024": (2, 20, 1024, 1024, 64),
    "sd3 joint 4096 + 333": (2, 24, 4429, 4429, 64),
    "flux joint 4096 + 512, one sample": (1, 24, 4608, 4608, 128),
    "vae 128x128, one sample": (1, 1, 16384, 16384, 512),
    "vae 64x64, one sample": (1, 1, 4096, 4096, 512),
}
CASES = SHAPES if DEVICE == "cuda" else {"sd15 self 64, a head": (1, 1, 64, 64, 160)}
DTYPES = ("bfloat16", "float16") if DEVICE == "cuda" else ("float32", "bfloat16")


def forced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with backends.use_backend("triton"):
        return attention(q, k, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", CASES)
def test_attention(benchmark: Any, compiles: bool, where: str, dtype: str):
    shape = CASES[where]
    q, k, v = operands(shape, dtype)
    with torch.no_grad():
        case = {"where": where, "dtype": dtype, "backend": attention_choice(q, k, v).name}
    ours: dict[str, Attention] = {OURS: attention}
    if why_not(q) is None:
        ours["fastdiff triton"] = forced
    compare(benchmark, compiles, "attention", case, ours, shape, dtype)
