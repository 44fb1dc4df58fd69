"""upsample_conv at the upsamplers of SD1.5, SDXL and the VAE decoder.

Peer: `conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)`, as diffusers' Upsample2D,
eager and compiled, in the same layout.  Ours makes its weights anew in each call.  Where nothing is
timed for its own sake, 128 channels do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pointwise import DEVICE, ROUNDINGS, compare, draw
from benchmarks.side_by_side import small
from fastdiff.ops.upsample_conv import upsample_conv

# (N, C, H, W); O = C.  On the CPU, where one thread takes its time, smaller ones with 1024 pixels
# and more, which is where `pays` says yes.
SHAPES = {
    "sd15 8x8": (2, 1280, 8, 8),
    "sd15 16x16": (2, 1280, 16, 16),
    "sd15 32x32": (2, 640, 32, 32),
    "sdxl 32x32": (2, 1280, 32, 32),
    "sdxl 64x64": (2, 640, 64, 64),
    "vae 64x64": (1, 512, 64, 64),
    "vae 128x128": (1, 512, 128, 128),
    "vae 256x256": (1, 512, 256, 256),
    "vae 256x256, 256 channels": (1, 256, 256, 256),
    "vae 512x512": (1, 256, 512, 512),
}
ON_CPU = {
    "32x32, 128 channels": (1, 128, 32, 32),
    "32x32, 320 channels": (1, 320, 32, 32),
}
CASES = SHAPES if DEVICE == "cuda" else ON_CPU
DTYPES = ("float32", "bfloat16") if DEVICE == "cuda" else ("float32",)
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", CASES)
def test_upsample_conv(benchmark: Any, compiles: bool, where: str, layout: str, dtype: str):
    batch, channels, *sides = CASES[where]
    channels = min(channels, 128) if small(benchmark) else channels
    shape = (batch, channels, *sides)
    x, weight, bias = draw(shape, (channels, channels, 3, 3), (channels,), dtype=dtype)
    x, weight = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, weight))
    weight /= (9 * channels) ** 0.5  # results of about unit variance
    moved = x.nbytes + 4 * x.nbytes + weight.nbytes
    flops = 2 * 4 * channels * 4 * x.numel()  # four taps of each of four times the pixels
    case = {"where": where, "layout": layout, "dtype": dtype}
    roundings = ROUNDINGS + (9 * channels) ** 0.5  # of a sum, like a random walk
    args = (upsample_conv, formula, (x, weight, bias), moved, roundings)
    compare(benchmark, compiles, "upsample_conv", case, *args, flops=flops)
