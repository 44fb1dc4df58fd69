"""LCMScheduler of diffusers: latent consistency models, their step and its noise fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from torch import Tensor

from fastdiff.schedulers.fused import Entry, Place
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.stateless import BOUNDED, first_conversion, step_grid
from fastdiff.schedulers.trained_steps import TrainedSteps
from fastdiff.solvers.consistency import consistency
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode

SIGMA_DATA = 0.5  # of the boundary condition, fixed in diffusers


class LCMScheduler(TrainedSteps, diffusers.LCMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.LCMScheduler; arXiv:2310.04378.

    Configuration, attributes, random numbers and dtypes as there.
    """

    _reads = (*BOUNDED, "timestep_scaling")

    def _builder(self) -> Callable[[Place], Entry]:
        config, levels = self._config, self._levels()
        clip, prediction = self._clip(config), config["prediction_type"]
        bounded = config["thresholding"] or config["clip_sample"]
        scaling = config["timestep_scaling"]

        def build(place: Any) -> Entry:
            t, then, final, ends = place
            grid = step_grid(levels, t, then, 1.0 if final is None else final)
            scaled = t * scaling
            total = scaled**2 + SIGMA_DATA**2
            c_out, c_skip = scaled / total**0.5, SIGMA_DATA**2 / total
            denoised = Weights(x=c_skip, d=c_out)
            if ends:
                row = Row(denoised)
            else:
                row = Row(consistency(grid, 0, 0, c_out=c_out, c_skip=c_skip).next, (denoised,))
            numbers = first_conversion(prediction, grid, bounded)
            return Entry(encode(row, numbers, clip=clip), draw=not ends, reads=0)

        return build

    def _place(self, t: int, i: int) -> tuple[Any, ...]:
        return t, *self._next(i, t), self._at_end(i)

    def _ahead(self, place: Any) -> Iterable[Place]:
        times = [int(v) for v in self._timestep_values()]
        return [place, *(self._place(t, i) for i, t in enumerate(times) if t < place[0])]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        t, i = self._where(timestep, sample, model_output)
        state, rows = self._ready()
        place = self._place(t, i)
        entry, dtype = rows[place], promote(sample, model_output)
        threshold = state.facts[1]
        noise = self._draw(model_output, generator, dtype, i) if entry.draw else None
        prev, _, kept = self._apply(
            rows, place, entry, sample, model_output, (), noise, dtype, dtype, int(entry.draw),
            threshold,
        )  # fmt: skip
        self._step_index = i + 1
        self.sigma_data = SIGMA_DATA  # as diffusers leaves it
        denoised = kept[0] if entry.draw else prev
        if not return_dict:
            return prev, denoised
        return LCMSchedulerOutput(prev_sample=prev, denoised=denoised)


__all__ = ["LCMScheduler"]
