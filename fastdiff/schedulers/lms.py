"""LMSDiscreteScheduler of diffusers, its step fused: Adams-Bashforth on the noise levels as they
are.  History lives in stock's `derivatives`, newest last, read back every step."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.custom import (
    one_run,
    sigmas_to_run,
    times_to_run,
    without_shift,
)
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.models import of_betas
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.quirks import parameters_of_lms
from fastdiff.solvers.adams import adams
from fastdiff.solvers.row import NOISE, Grid, Row, Weights
from fastdiff.table import conversion, encode, trimmed

logger = logging.getLogger("fastdiff")


class LMSDiscreteScheduler(FusedStep, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.LMSDiscreteScheduler: linear multistep in sigma / alpha.

    Configuration, attributes and dtypes as there; the weights are exact integrals.
    """

    _reads = ("prediction_type", "timestep_spacing")
    sigmas: Tensor
    alphas_cumprod: Tensor
    config: Any
    derivatives: list[Any]
    is_scale_input_called: bool

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom ones.

        timesteps  (N,) descending
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (0 if left out)
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        one_run(num_inference_steps, timesteps, sigmas)
        if sigmas is not None:
            levels, times = sigmas_to_run(sigmas, num_inference_steps, self.alphas_cumprod)
        elif timesteps is not None:
            levels, times = times_to_run(timesteps, num_inference_steps, self.alphas_cumprod)
        else:
            assert num_inference_steps is not None
            super().set_timesteps(num_inference_steps)
            self._place_timesteps(device)
            return
        self.sigmas, self.timesteps = torch.from_numpy(levels), torch.from_numpy(times)
        self.num_inference_steps = len(times)
        self._step_index = self._begin_index = None
        self.derivatives = []
        self._place_timesteps(device)

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas, prediction = self._levels(), of_betas(self._config["prediction_type"])
        grid, scales = Grid(np.ones_like(sigmas), sigmas), 1 / np.sqrt(1 + sigmas**2)
        by_place = parameters_of_lms(self.numerics)

        def build(place: Any) -> Entry:
            i, order, known = place
            within(i, sigmas)
            # the order that the place in the grid allows, or what is known of this run
            move = adams(grid, i, i if by_place else known - 1, order=order).next
            move = trimmed(Weights(move.x, move.d, move.n, h=move.h[: known - 1]))
            numbers = conversion(prediction, grid, i, float(scales[i]), None)
            return Entry(encode(Row(move, (NOISE,)), numbers), draw=False, reads=len(move.h))

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        """True if x_0 is the raw output."""
        return config["prediction_type"] == "sample"

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, order, known = place
        return [(j, order, min(known + j - i, order)) for j in range(i, len(self.sigmas) - 1)]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> LMSDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory.

        order: how many predictions the polynomial goes through, at most
        """
        order = _order(order)
        if not self.is_scale_input_called and not self.__dict__.get("_warned"):
            self.__dict__["_warned"] = True
            logger.warning(
                "%s.step without scale_model_input: the network must get the scaled sample",
                type(self).__name__,
            )
        if self._step_index is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        past = self.derivatives
        place = (i, order, min(len(past) + 1, order))
        entry = rows[place]
        wide = dtype = promote(sample, model_output)
        reads = entry.reads
        history = past[: -1 - reads : -1] if reads else ()
        for one in history:
            if isinstance(one, Tensor):  # else it is named below
                dtype = torch.promote_types(dtype, one.dtype)
        prev, x0, kept = self._apply(
            rows, place, entry, sample, model_output, history, None, dtype, wide, 1
        )
        past.append(kept[0])
        if len(past) > order:
            past.pop(0)
        self._step_index = i + 1
        if state.facts and wide is not model_output.dtype:
            x0 = x0.to(model_output.dtype)  # it is the output itself
        if not return_dict:
            return prev, x0
        return LMSDiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


def _order(order: Any) -> int:
    try:
        whole = -1 if isinstance(order, bool) else operator.index(order)
    except TypeError:
        whole = -1
    if whole < 1:
        raise ValueError(f"order must be a whole number of at least 1; got {order!r}")
    return whole


__all__ = ["LMSDiscreteScheduler"]
