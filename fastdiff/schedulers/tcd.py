"""TCDScheduler of diffusers: trajectory consistency, its step and its noise fused.

x_s = a_s d + s_s n,     s = floor((1 - gamma) t')
x'  = (a' / a_s) x_s + sqrt(1 - a'^2 / a_s^2) z
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput
from torch import Tensor

from fastdiff.schedulers.fused import Entry, Place
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.stateless import first_conversion, step_grid
from fastdiff.schedulers.trained_steps import TrainedSteps
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode


class TCDScheduler(TrainedSteps, diffusers.TCDScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.TCDScheduler; arXiv:2402.19159.

    Configuration, attributes, random numbers and dtypes as there; clip_sample and thresholding of
    the config have no effect there and none here.
    """

    _reads = ("prediction_type", "num_train_timesteps")

    def _facts(self, config: dict[str, Any]) -> Any:
        return None

    def _builder(self) -> Callable[[Place], Entry]:
        prediction, levels = self._config["prediction_type"], self._levels()

        def build(place: Any) -> Entry:
            t, then, final, ends, eta = place
            grid = step_grid(levels, t, then, 1.0 if final is None else final)
            # diffusers multiplies in float32
            middle = int(np.floor(np.float32(1 - eta) * np.float32(then)))
            p, p1 = float(levels[middle]), float(grid.alpha[1]) ** 2
            noised = Weights(d=math.sqrt(p), n=math.sqrt(1 - p))
            numbers = first_conversion(prediction, grid, False)
            if eta == 0 or ends:
                return Entry(encode(Row(noised), numbers), draw=False, reads=0)
            ratio = math.sqrt(p1 / p)
            row = Row(
                Weights(d=ratio * noised.d, n=ratio * noised.n, z=math.sqrt(max(0.0, 1 - p1 / p))),
                (noised,),
            )
            return Entry(encode(row, numbers), draw=True, reads=0)

        return build

    def _place(self, t: int, i: int, eta: float) -> tuple[Any, ...]:
        return t, *self._next(i, 0), self._at_end(i), eta

    def _ahead(self, place: Any) -> Iterable[Place]:
        times, eta = [int(v) for v in self._timestep_values()], place[-1]
        return [place, *(self._place(t, i, eta) for i, t in enumerate(times) if t < place[0])]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.3,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> TCDSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory.

        eta: gamma of the paper, how much of the noise is fresh, 0 to 1.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta (gamma of the paper) must be a number from 0 to 1; got {eta!r}")
        t, i = self._where(timestep, sample, model_output)
        _, rows = self._ready()
        place = self._place(t, i, float(eta))
        entry, dtype = rows[place], promote(sample, model_output)
        noise = self._draw(model_output, generator, dtype, i) if entry.draw else None
        prev, _, kept = self._apply(
            rows, place, entry, sample, model_output, (), noise, dtype, dtype, int(entry.draw)
        )
        self._step_index = i + 1
        noised = kept[0] if entry.draw else prev
        if not return_dict:
            return prev, noised
        return TCDSchedulerOutput(prev_sample=prev, pred_noised_sample=noised)


__all__ = ["TCDScheduler"]
