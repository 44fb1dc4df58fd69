"""DDPMScheduler of diffusers, its step fused and without stalls; arXiv:2006.11239.

A learned variance is a product of two network outputs: those steps run diffusers' own code,
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.custom import without_shift
from fastdiff.schedulers.fused import Entry, Place
from fastdiff.schedulers.quirks import rounded_chain
from fastdiff.schedulers.stateless import (
    BOUNDED,
    StatelessStep,
    first_conversion,
    step_grid,
    to_tensor,
)
from fastdiff.solvers.ddpm import ddpm
from fastdiff.table import encode

LEARNED = ("learned", "learned_range")


class DDPMScheduler(StatelessStep, diffusers.DDPMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.DDPMScheduler."""

    custom_timesteps: bool
    _reads = (*BOUNDED, "variance_type")
    variance_type: str

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: ArrayLike | Tensor | None = None,
        *,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom sigmas.

        timesteps  (N,) whole numbers, descending; a list, array or tensor
        sigmas     (N,) descending sigma / alpha; the nearest trained timesteps are taken
        mu         refused: there is no flow schedule to shift
        """
        if num_inference_steps is not None and (timesteps is not None or sigmas is not None):
            raise ValueError("pass one of num_inference_steps, timesteps or sigmas; got two")
        without_shift(self, mu)
        custom = self._custom_timesteps(num_inference_steps, timesteps, sigmas)
        if custom is not None:
            self.timesteps = to_tensor(custom)
            self.custom_timesteps = True
        else:
            super().set_timesteps(num_inference_steps)
        self._place_timesteps(device)

    def _builder(self) -> Callable[[Place], Entry]:
        config, levels = self._config, self._levels()
        clip = self._clip(config)
        prediction = config["prediction_type"]
        bounded = config["thresholding"] or config["clip_sample"]
        faithful = self.numerics == "faithful"
        variance = "large" if "large" in (config["variance_type"] or "") else "small"

        def build(place: Any) -> Entry:
            t, prev = place
            grid = step_grid(levels, t, prev, 1.0)
            chain = rounded_chain(levels, t, prev) if faithful else None
            row = ddpm(grid, 0, 0, variance=variance, chain=chain)
            numbers = first_conversion(prediction, grid, bounded)
            return Entry(encode(row, numbers, clip=clip, draws=t > 0), draw=t > 0, reads=0)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        t, _ = place
        times = [int(v) for v in self._timestep_values()]
        if t not in times or not (self.custom_timesteps or self.num_inference_steps):
            return [place]
        first = times.index(t)
        return [place, *zip(times[first:], [*times[first + 1 :], -1], strict=True)]

    def _previous(self, t: int, index: int | None) -> int:
        if not (self.custom_timesteps or self.num_inference_steps):
            return t - 1
        times = self._timestep_values()
        if index is None:
            if t not in times:
                raise ValueError(
                    f"timestep must be one of scheduler.timesteps after set_timesteps; got {t}"
                )
            index = times.index(t)
        return int(times[index + 1]) if index + 1 < len(times) else -1

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape), at any of the timesteps; as diffusers."""
        if self.variance_type in LEARNED or self._internal_dict.variance_type in LEARNED:
            self._reference(f"variance_type={self.variance_type!r}", draws=True)
            out: DDPMSchedulerOutput | tuple[Tensor, Tensor] = super().step(
                model_output, timestep, sample, generator, return_dict
            )
            return out
        state, rows = self._ready()
        t, index = self._time(timestep)
        place = (t, self._previous(t, index))
        noise = None
        if t > 0:
            step = self._sought(t) if index is None else index
            noise = self._draw(model_output, generator, None, step)
        prev, x0 = self._stateless(state, rows, place, sample, model_output, noise)
        if not return_dict:
            return prev, x0
        return DDPMSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


__all__ = ["DDPMScheduler"]
