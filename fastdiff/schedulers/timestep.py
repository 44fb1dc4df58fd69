"""Where a timestep stands in `scheduler.timesteps`, without asking the device.

Pipelines hand `step` an element of `timesteps`, which is a view: its address says which one.  Only
a timestep that is no view (a number, a copy) is looked up by value, and counted; diffusers does
that on every first step, and DDIM and DDPM index with it on every step: 2 to 13 stalls of a GPU
each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INTEGERS = (int, torch.IntTensor, torch.LongTensor)  # no timestep where timesteps are fractions


def an_index() -> ValueError:
    """The error of a whole number where a timestep must be an element of `timesteps`."""
    return ValueError(
        "timestep must be an element of scheduler.timesteps, a float; got an integer. "
        "An index from enumerate(timesteps) is not a timestep"
    )


def view_index(timesteps: Tensor, timestep: Any) -> int | None:
    """i if timestep is timesteps[i] by address, else None; never reads the values."""
    if not isinstance(timestep, Tensor) or not isinstance(timesteps, Tensor):
        return None
    if timestep.dtype != timesteps.dtype or timestep.device != timesteps.device:
        return None
    count = timesteps.numel()  # len() of a tensor takes 1 us more
    if timestep.numel() != 1 or timesteps.dim() != 1 or not count:
        return None
    try:
        start, here = timesteps.data_ptr(), timestep.data_ptr()
    except RuntimeError:  # tensors without memory, as while tracing
        return None
    stride = timesteps.element_size() * (timesteps.stride(0) or 1)
    index, rest = divmod(here - start, stride)
    return index if start and rest == 0 and 0 <= index < count else None


def host_value(timestep: Any) -> float:
    """A timestep as a number; for a tensor on a device this waits for the device."""
    if isinstance(timestep, Tensor):
        if timestep.numel() != 1:
            raise ValueError(
                "timestep must be one number, an element of scheduler.timesteps; got a tensor of "
                f"shape {tuple(timestep.shape)}. Per-sample timesteps are not possible here"
            )
        return float(timestep.detach().to("cpu", torch.float64))
    try:
        return float(timestep)
    except (TypeError, ValueError):
        raise ValueError(
            "timestep must be a number or an element of scheduler.timesteps; got "
            f"{type(timestep).__name__}"
        ) from None


def by_value(values: list[float], wanted: float) -> int | None:
    """Index of a value; of several equal ones the second, as diffusers (img2img starts there)."""
    matches = [i for i, value in enumerate(values) if value == wanted]
    return matches[min(1, len(matches) - 1)] if matches else None
