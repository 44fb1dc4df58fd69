"""What the schedulers share whose step is two calls of the network, one `step` each: Heun, KDPM2.

Which half is next is seen in stock's own attributes, as is what the first half leaves behind for
the second; they may be replaced or set back between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.schedulers.fused import Entry, FusedStep, Place, Rows, over
from fastdiff.schedulers.operands import promote


class TwoCalls(FusedStep):
    """Mixed into a diffusers scheduler class that works on sigma / alpha, alpha = 1."""

    sigmas: Tensor
    alphas_cumprod: Tensor
    config: Any
    sample: Tensor | None = None

    def _facts(self, config: dict[str, Any]) -> Any:
        """(x_0 is the raw output, the noise levels)."""
        return config["prediction_type"] == "sample", self._levels().tolist()

    def _index_of(self, timestep: Any) -> int | None:
        """Of two equal neighbours a run begins at the second, where the next step does."""
        index = super()._index_of(timestep)
        if index is not None and index % 2:
            values = self._timestep_values()
            index += int(values[index + 1 : index + 2] == [values[index]])
        return index

    def _left(self, *names: str) -> list[Tensor]:
        """What the first half left in these attributes."""
        left = [self.__dict__.get(name) for name in names]
        for name, value in zip(names, left, strict=True):
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name} must hold a tensor for the second half of a step; got "
                    f"{type(value).__name__}. Set all that a first half leaves, or none"
                )
        return left  # type: ignore[return-value]

    def _half(
        self,
        rows: Rows,
        place: Place,
        entry: Entry,
        model_output: Tensor,
        sample: Tensor,
        kept: Sequence[Tensor] | None,
        noise: Tensor | None = None,
        keeps: int = 0,
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """(x', x_0, vectors to keep) of a half; kept: what the second one reads, None for the
        first."""
        wide = dtype = promote(sample, model_output)
        for tensor in kept or ():
            dtype = torch.promote_types(dtype, tensor.dtype)
        prev, x0, made = self._apply(
            rows, place, entry, sample, model_output, kept or (), noise, dtype, wide, keeps
        )
        if wide is not model_output.dtype and self._state.facts[0]:
            x0 = x0.to(model_output.dtype)  # it is the output itself
        return prev, x0, made


def ended(i: int, sigmas: NDArray[np.float64]) -> None:
    """Raise unless there is noise at sigmas[i], where a second half asks the network."""
    if i >= len(sigmas) or sigmas[i] == 0:
        raise over(i, len(sigmas) - 1)


__all__ = ["TwoCalls", "ended"]
