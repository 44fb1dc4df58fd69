"""DDIMScheduler of diffusers, its step fused and without stalls; arXiv:2010.02502.

In "faithful" the previous timestep is t - T // n, as in diffusers, also where the spacing is
another; "exact" steps to the next entry of `timesteps` (schedulers/quirks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.custom import without_shift
from fastdiff.schedulers.fused import Entry, Place
from fastdiff.schedulers.stateless import (
    BOUNDED,
    StatelessStep,
    first_conversion,
    step_grid,
    to_tensor,
)
from fastdiff.solvers.ddim import ddim
from fastdiff.table import encode, noise_from_data


class DDIMScheduler(StatelessStep, diffusers.DDIMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.DDIMScheduler."""

    final_alpha_cumprod: Tensor
    _reads = BOUNDED

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

        timesteps  (N,) whole numbers, descending
        sigmas     (N,) descending sigma / alpha; the nearest trained timesteps are taken
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        custom = self._custom_timesteps(num_inference_steps, timesteps, sigmas)
        if custom is not None:
            self.timesteps = to_tensor(custom)
            self.num_inference_steps = len(custom)
        else:
            super().set_timesteps(num_inference_steps)
        # the stride of diffusers' previous timestep means nothing between custom timesteps
        self._by_stride = custom is None
        self._place_timesteps(device)

    def _builder(self) -> Callable[[Place], Entry]:
        config, levels = self._config, self._levels()
        clip = self._clip(config)
        prediction = config["prediction_type"]
        bounded = config["thresholding"] or config["clip_sample"]

        def build(place: Any) -> Entry:
            t, prev, eta, clipped, final = place
            if eta < 0:
                raise ValueError(f"eta must be 0 or more; got {eta:g}. diffusers takes 0 .. 1")
            grid = step_grid(levels, t, prev, final)
            row = ddim(grid, 0, 0, eta=eta)
            if clipped:
                row = noise_from_data(row, float(grid.alpha[0]), float(grid.sigma[0]))
            numbers = first_conversion(prediction, grid, bounded)
            return Entry(encode(row, numbers, clip=clip), draw=eta > 0, reads=0)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        t, _, eta, clipped, _ = place
        times = [int(v) for v in self._timestep_values()]
        after = [(i, v) for i, v in enumerate(times) if v < t] if t in times else []
        return [place, *(self._place(v, i, eta, clipped) for i, v in after)]

    def _place(self, t: int, index: int | None, eta: float, clipped: bool) -> tuple[Any, ...]:
        prev = self._previous(t, index)
        if prev >= 0:
            return t, prev, eta, clipped, None
        # by value, since anybody may replace it or write to it
        return t, -1, eta, clipped, float(self.final_alpha_cumprod)

    def _previous(self, t: int, index: int | None) -> int:
        stride = self._state.facts[2] // (self.num_inference_steps or 1)
        if self.numerics == "faithful" and self.__dict__.get("_by_stride", True):
            return int(t - stride)
        times = self._timestep_values()
        if index is None:
            index = times.index(t) if t in times else None
        if index is None:
            return int(t - stride)
        return int(times[index + 1]) if index + 1 < len(times) else -1

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape), at any whole timestep; as diffusers."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        state, rows = self._ready()
        t, index = self._time(timestep)
        noise = None
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("pass generator or variance_noise, not both; got both")
            noise = variance_noise
            if noise is None:
                step = self._sought(t) if index is None else index
                noise = self._draw(model_output, generator, None, step)
        place = self._place(t, index, eta, use_clipped_model_output)
        prev, x0 = self._stateless(state, rows, place, sample, model_output, noise)
        if not return_dict:
            return prev, x0
        return DDIMSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


__all__ = ["DDIMScheduler"]
