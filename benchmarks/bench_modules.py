"""Whole networks on a CPU: diffusers' own, the same channels last, and after fastdiff.accelerate.

    built-in   the U-Net and the decoder of the model in this package, at the size that its pipeline
               runs them: one picture with guidance (two samples), and eight
    SD1.5      random weights in blocks of SD1.5's widths, fewer of them, on latents of 64x64
    VAE        random weights in a decoder of the widths of SD's, with fewer blocks, to 256x256

Two threads, float32.  Before anything is timed, the root mean square error against float64 of what
is accelerated must be at most twice that of diffusers, the worse of its two layouts, plus eps / 4
of the result.  Where nothing is timed for its own sake, small latents and narrow random blocks do.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff
from benchmarks import side_by_side
from benchmarks.side_by_side import OURS, measure
from fastdiff.cli.model import built_in

STOCK, LAST = "diffusers", "diffusers, channels last"
THREADS = 2  # as many as a user's machine has cores, at least; recorded with each case
Inputs = tuple[Tensor, ...]

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 256,
}
NARROW = {"norm_num_groups": 4}  # and fewer channels, where nothing is timed


class Network(NamedTuple):
    """make: the network, given whether it is to be small; latent: (samples, side); text: (tokens,
    width) of a U-Net's; checked: samples in the comparison with float64; rounds of the timing."""

    title: str
    make: Callable[[bool], Any]
    latent: tuple[int, int]
    text: tuple[int, int] | None
    checked: int
    rounds: int


def trained(part: str, small: bool) -> Any:
    if small:
        return drawn(SD15 if part == "unet" else VAE, small)
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    how = {"subfolder": part, "low_cpu_mem_usage": False, "local_files_only": True}
    return kinds[part].from_pretrained(built_in(), **how).eval()


def drawn(config: dict[str, Any], small: bool) -> Any:
    """Weights as their modules draw them."""
    if small:
        widths = tuple(width // 40 * 4 for width in config["block_out_channels"])
        config = config | NARROW | {"block_out_channels": widths}
    unet = "cross_attention_dim" in config
    torch.manual_seed(0)
    return (diffusers.UNet2DConditionModel if unet else diffusers.AutoencoderKL)(**config).eval()


UNET, DECODER = (functools.partial(trained, part) for part in ("unet", "vae"))
TEXT = (16, 128)  # of the built-in model
NETWORKS = [
    Network("built-in decoder", DECODER, (1, 16), None, 8, 20),
    Network("built-in decoder", DECODER, (8, 16), None, 8, 10),
    Network("built-in U-Net", UNET, (2, 16), TEXT, 8, 20),
    Network("built-in U-Net", UNET, (16, 16), TEXT, 16, 10),
    Network("U-Net of SD1.5's widths", functools.partial(drawn, SD15), (1, 64), (77, 768), 1, 8),
    Network("decoder of SD's VAE's widths", functools.partial(drawn, VAE), (1, 32), None, 1, 8),
]


def inputs(network: Network, samples: int, small: bool) -> Inputs:
    """A latent, and for a U-Net a text."""
    generator = torch.Generator().manual_seed(0)
    side = 8 if small else network.latent[1]
    shapes = [(samples, 4, side, side)]
    if network.text is not None:
        shapes.append((samples, *((7, SD15["cross_attention_dim"]) if small else network.text)))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def run(module: Any, latent: Tensor, *text: Tensor) -> Tensor:
    found: Tensor = (module(latent, 500, *text) if text else module.decode(latent)).sample
    return found


def contestants(module: Any) -> dict[str, Any]:
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    return {OURS: fastdiff.accelerate(copy.deepcopy(module)), STOCK: module, LAST: last}


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def check(found: dict[str, Any], given: Inputs) -> dict[str, Any]:
    """Errors against float64; AssertionError where ours is too large."""
    wide = copy.deepcopy(found[STOCK]).double()
    truth = run(wide, *(x.double() for x in given))
    errors = {name: rms(run(module, *given).double() - truth) for name, module in found.items()}
    eps = torch.finfo(torch.float32).eps
    bound = 2 * max(errors[STOCK], errors[LAST]) + eps / 4 * rms(truth)
    assert errors[OURS] <= bound, f"wrong by {errors[OURS]:.3g}, allowed {bound:.3g}"
    return {"rms error": errors, "bound": bound, "rms": rms(truth)}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.title} {n.latent[0]}")
def test_modules(benchmark: Any, network: Network):
    small = side_by_side.small(benchmark)
    samples, side = network.latent
    torch.set_num_threads(1 if small else THREADS)
    found = contestants(network.make(small))
    checked = check(found, inputs(network, 1 if small else network.checked, small))
    given = inputs(network, 1 if small else samples, small)
    latent = f"{samples}x4x{side}x{side}"
    case = {"network": network.title, "latent": latent, "dtype": "float32"}
    case["threads"] = f"{THREADS} threads"
    backends: dict[str, int] = {}
    for row in fastdiff.report(found[OURS]):
        backends[row.backend] = backends.get(row.backend, 0) + 1
    benchmark.group = "/".join(["modules", *case.values()])
    benchmark.extra_info |= {"case": case, "check": checked, "modules": backends}
    laps = {
        n: functools.partial(list, [functools.partial(run, m, *given)]) for n, m in found.items()
    }
    measure(benchmark, laps, skip=0, rounds=network.rounds)
