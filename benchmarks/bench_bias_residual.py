"""bias_residual after the second convolution of ResNet blocks: 2 reads and 1 write of the tensor.

At every shape of the blocks of SD1.5 at 512x512, SDXL at 1024x1024, and the decoder to both.

Peer: `((x + bias) + residual) * scale` in the dtype of x, eager and compiled.  Channels last, as
the U-Nets run on a GPU, and contiguous.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.pointwise import DEVICE, DTYPES, compare, draw
from fastdiff.ops.bias_residual import bias_residual

# On the CPU, where one thread takes its time, the first of one sample at a quarter of its area.
SHAPES = {
    "sd15 64x64": (2, 320, 64, 64),
    "sd15 32x32": (2, 640, 32, 32),
    "sd15 16x16": (2, 1280, 16, 16),
    "sd15 8x8": (2, 1280, 8, 8),
    "sdxl 128x128": (2, 320, 128, 128),
    "sdxl 64x64": (2, 640, 64, 64),
    "sdxl 32x32": (2, 1280, 32, 32),
    "vae 64x64": (1, 512, 64, 64),
    "vae 128x128": (1, 512, 128, 128),
    "vae 256x256": (1, 512, 256, 256),
    "vae 256x256, 256 channels": (1, 256, 256, 256),
    "vae 512x512, 128 channels": (1, 128, 512, 512),
    "vae 512x512": (1, 256, 512, 512),
    "vae 1024x1024": (1, 128, 1024, 1024),
}
CASES = SHAPES if DEVICE == "cuda" else {"sd15 32x32, 320": (1, 320, 32, 32)}
SCALE = 0.75
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def ours(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return bias_residual(x, bias, residual, scale=SCALE)


def formula(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return (x + bias[:, :, None, None] + residual) * SCALE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", CASES)
def test_bias_residual(benchmark: Any, compiles: bool, where: str, layout: str, dtype: str):
    shape = CASES[where]
    x, bias, residual = draw(shape, shape[:2], shape, dtype=dtype)
    x, residual = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, residual))
    moved = 3 * x.nbytes + bias.nbytes
    case = {"where": where, "layout": layout, "dtype": dtype}
    args = (ours, formula, (x, bias, residual), moved)
    compare(benchmark, compiles, "bias_residual", case, *args)
