"""What every `step` asks of its tensors, and the noise that it draws."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.schedulers.guidance import Deferred


def draw(
    like: Tensor,
    generator: torch.Generator | list[torch.Generator] | None,
    dtype: torch.dtype | None = None,
    step: int | None = None,
) -> Tensor:
    """Unit normal noise for a model output, with the random numbers that diffusers would draw.

    step: has no effect; the key of other noise (seeded.py).
    """
    tensor("model_output", like)
    dtype = dtype or like.dtype
    if isinstance(generator, list) and len(generator) != 1 and len(generator) < like.shape[0]:
        raise ValueError(
            f"generator must be one generator or one per sample ({like.shape[0]}); got a list of "
            f"{len(generator)}"
        )
    # what randn_tensor comes to, without its 4 us
    if type(like) is Tensor and not isinstance(generator, list):
        device = like.device
        if generator is None or generator.device.type == device.type:
            return torch.randn(like.shape, generator=generator, device=device, dtype=dtype)
    drawn: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype)
    return drawn


def promote(sample: Tensor, model_output: Tensor) -> torch.dtype:
    """The dtype that PyTorch gives a sum of the two."""
    try:
        a, b = sample.dtype, model_output.dtype
        return a if a is b else torch.promote_types(a, b)
    except (AttributeError, TypeError):
        tensor("sample", sample)
        tensor("model_output", model_output)
        raise


def tensor(name: str, value: object) -> None:
    """Raise unless an argument of `step` is a tensor."""
    if not isinstance(value, (Tensor, Deferred)):
        raise TypeError(
            f"{name} must be a tensor of shape (B, *shape); got {type(value).__name__}. Pass what "
            "the network returned (.sample of a diffusers model) and the sample that it was given"
        )


__all__ = ["draw", "promote", "tensor"]
