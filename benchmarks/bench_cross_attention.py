"""cross_attention at the layers of SD1.5 (512x512) and SDXL (1024x1024), two samples, 77 tokens.

Peers: sdpa.py.  The call is bound by memory: q and out once, k and v of 77 tokens beside them.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.pointwise import DEVICE
from benchmarks.sdpa import Shape, compare, operands
from benchmarks.side_by_side import OURS
from fastdiff import backends
from fastdiff.ops.cross_attention import cross_attention, why_not

SHAPES: dict[str, Shape] = {
    "sd15 cross 4096": (2, 8, 4096, 77, 40),
    "sd15 cross 1024": (2, 8, 1024, 77, 80),
    "sd15 cross 256": (2, 8, 256, 77, 160),
    "sd15 cross 64": (2, 8, 64, 77, 160),
    "sdxl cross 4096": (2, 10, 4096, 77, 64),
    "sdxl cross 1024": (2, 20, 1024, 77, 64),
}
LONGER: dict[str, Shape] = {
    "sdxl cross 4096, 154 keys": (2, 10, 4096, 154, 64),
    "sdxl cross 1024, 333 keys": (2, 20, 1024, 333, 64),
}
CASES = SHAPES | LONGER if DEVICE == "cuda" else {"sd15 cross 64, a head": (1, 1, 64, 77, 40)}
DTYPES = ("bfloat16", "float16") if DEVICE == "cuda" else ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", CASES)
def test_cross_attention(benchmark: Any, compiles: bool, where: str, dtype: str):
    shape = CASES[where]
    q, k, _ = operands(shape, dtype)
    backend = backends.chosen("cross_attention", backends.Key(q.device.type, q.dtype))
    if why_not(q, k) is not None:
        backend = "reference"
    case = {"where": where, "dtype": dtype, "backend": backend}
    compare(benchmark, compiles, "cross_attention", case, {OURS: cross_attention}, shape, dtype)
