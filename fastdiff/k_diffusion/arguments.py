"""What a caller of k-diffusion's interface gave, checked: names, what was got, what would do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.sampling import FLOATS, check_batch, check_function
from fastdiff.schedules.noise_levels import HIGHEST, LOWEST

Floats = NDArray[np.float64]


def check(
    model: object,
    x: object,
    extra_args: object,
    callback: object,
    disable: object,
    flow: object,
    noise_sampler: object,
) -> None:
    """Refuse what would fail, or quietly do something else, further down."""
    check_function("model", model, "model(x, sigma, **extra_args)")
    check_batch("x", x)
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise TypeError(
            "extra_args must be a dict of arguments for the model, or None; got "
            f"{type(extra_args).__name__}"
        )
    for name, what in (("callback", callback), ("noise_sampler", noise_sampler)):
        if what is not None and not callable(what):
            raise TypeError(f"{name} must be a function, or None; got {type(what).__name__}")
    if disable is not None and not isinstance(disable, bool):
        raise ValueError(f"disable must be True, False or None; got {disable!r:.60}")
    check_flow(flow)


def check_flow(flow: object) -> None:
    """Raise unless flow is a bool."""
    if not isinstance(flow, bool):
        raise ValueError(f"flow must be True or False; got {flow!r}")


def vector(name: str, values: object, *, least: int) -> Floats:
    """A one-dimensional tensor's finite numbers, read from its device once."""
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name} must be a one-dimensional tensor; got {type(values).__name__}. "
            "torch.tensor(..) makes one"
        )
    if values.ndim != 1 or len(values) < least or values.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be a one-dimensional float tensor, at least {least} long; got "
            f"{values.dtype} {tuple(values.shape)}"
        )
    numbers: Floats = values.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite; got {numbers.tolist()}")
    return numbers


def levels_of(sigmas: object, flow: bool) -> tuple[float, ...]:
    """The levels of a run."""
    numbers = vector("sigmas", sigmas, least=1)
    if (np.diff(numbers) > 0).any() or numbers[-1] < 0 or numbers[0] == 0:
        raise ValueError(
            "sigmas must go down, from above 0 (noisy) to at or above 0 (clean); "
            f"got {numbers.tolist()}"
        )
    if flow and numbers[0] > 1:
        raise ValueError(f"sigmas must be at most 1 with flow=True; got {numbers[0]:g}")
    outside = (numbers > HIGHEST) | ((numbers > 0) & (numbers < LOWEST))
    if outside.any():
        raise ValueError(
            f"sigmas must be 0 or in {LOWEST:g} .. {HIGHEST:g}, else no weight means anything in "
            f"float32; got {numbers[outside][0]:g}"
        )
    return tuple(numbers.tolist())


def like(what: str, value: object, x: Tensor) -> Tensor:
    """What a caller's function returned, if it can stand beside x."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what}, a tensor like x; got {type(value).__name__}")
    if value.shape != x.shape or value.device != x.device or value.dtype not in FLOATS:
        raise ValueError(
            f"{what}, a float tensor of shape {tuple(x.shape)} on {x.device}; got {value.dtype} "
            f"{tuple(value.shape)} on {value.device}"
        )
    return value
