"""channels_last: how the weights of a network's convolutions lie, and how they lay before.

A convolution whose weights are channels last returns activations that are, too, and everything here
keeps them so.  Values do not change, only their places; PyTorch's convolutions then sum in another
order, which is rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastdiff.accelerate import choice

DEVICES = ("cuda", "cpu")  # where it was measured not to be slower


def lay_out(network: nn.Module) -> None:
    """Lay weights out channels last, on devices where that pays; remember how they lay."""
    mine = choice.tally(network)
    if mine is None:
        return
    for name, weight in _weights(network):
        if weight.device.type in DEVICES and weight.stride() != _last(weight):
            if name not in mine.strides or mine.strides[name][0] != weight.shape:
                mine.strides[name] = weight.shape, weight.stride()
            _lay(weight, _last(weight))


def put_back(network: nn.Module) -> None:
    """Give every weight the strides that it had, whatever has wrapped its module since; one of
    another shape came later, with a layer that was replaced, and stays as it is."""
    mine = choice.tally(network)
    for name, weight in _weights(network):
        shape, former = mine.strides.get(name, (None, ())) if mine else (None, ())
        if weight.shape == shape and weight.stride() != former:
            _lay(weight, former)


def _weights(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            if type(weight) is nn.Parameter and type(weight.data) is Tensor and not weight.is_meta:
                yield name.replace(".base_layer", ""), weight  # LoRA may come and go


def _lay(weight: nn.Parameter, strides: tuple[int, ...]) -> None:
    again = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device)
    weight.data = again.copy_(weight.data)


def _last(weight: Tensor) -> tuple[int, ...]:
    """Strides of channels last; those of a 1x1 convolution, too, say so, for PyTorch looks at them
    to lay out what the convolution returns."""
    _, channels, height, width = weight.shape
    return channels * height * width, 1, width * channels, channels


def describe(network: nn.Module) -> str:
    """In words: how the weights lie, and why."""
    device = next((weight.device.type for _, weight in _weights(network)), "no device")
    if device not in DEVICES:
        return f"weights laid out as they were: channels_last has not been measured on {device}"
    return "weights of convolutions channels_last"
