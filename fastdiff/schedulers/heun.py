"""HeunDiscreteScheduler of diffusers, each of its two calls a step fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.custom import descending, one_run, sigmas_to_run, vector, without_shift
from fastdiff.schedulers.fused import Entry, Place, within
from fastdiff.schedulers.models import of_betas
from fastdiff.schedulers.two_calls import TwoCalls, ended
from fastdiff.solvers.euler import euler
from fastdiff.solvers.heun import again
from fastdiff.solvers.row import NOISE, Grid, Row
from fastdiff.table import OFF, Clip, conversion, encode, noise_from_data


class HeunDiscreteScheduler(TwoCalls, diffusers.HeunDiscreteScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.HeunDiscreteScheduler; arXiv:2206.00364, algorithm 1.

    Configuration, attributes and dtypes as there: every inner timestep comes twice, and `dt`,
    `prev_derivative` and `sample` hold what the first call leaves for the second.
    """

    _reads = ("prediction_type", "clip_sample", "clip_sample_range")
    dt: float | Tensor | None
    prev_derivative: Tensor | None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: ArrayLike | Tensor | None = None,
        *,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the 2 N - 1 timesteps of a run of N steps; as diffusers, plus custom sigmas.

        timesteps  (N,) descending
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (0 if left out)
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        one_run(num_inference_steps, timesteps, sigmas)
        if sigmas is not None:
            levels, times = sigmas_to_run(sigmas, num_inference_steps, self.alphas_cumprod)
            super().set_timesteps(len(times), None)  # whatever else it sets
            self.sigmas = torch.from_numpy(_twice(levels[:-1], levels[-1:]))
            self.timesteps = torch.from_numpy(_twice(times))
        else:
            if timesteps is not None:
                timesteps = vector("timesteps", timesteps)
                descending("timesteps", timesteps)
            super().set_timesteps(num_inference_steps, None, num_train_timesteps, timesteps)
        self._place_timesteps(device)

    def _builder(self) -> Callable[[Place], Entry]:
        config, sigmas = self._config, self._levels()
        grid, scales = Grid(np.ones_like(sigmas), sigmas), 1 / np.sqrt(1 + sigmas**2)
        prediction, clip = of_betas(config["prediction_type"]), OFF
        if config["clip_sample"]:
            clip = Clip(-config["clip_sample_range"], config["clip_sample_range"])

        def build(place: Any) -> Entry:
            i, dt = place
            if dt is None:
                within(i, sigmas)
                row = Row(euler(grid, i, 0).next, (NOISE,))
            else:
                ended(i, sigmas)
                row = Row(again(dt, 1.0))
            if clip is not OFF:
                row = noise_from_data(row, 1.0, float(sigmas[i]))
            numbers = conversion(prediction, grid, i, float(scales[i]), None)
            return Entry(encode(row, numbers, clip=clip), draw=False, reads=len(row.next.h))

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, dt = place
        levels, places = self._state.facts[1], []
        for j in range(i, len(levels) - 1):
            places.append((j, dt))
            dt = levels[j + 1] - levels[j] if dt is None else None
        return places

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> HeunDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One call of two, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if self._step_index is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        dt, kept = self.dt, None
        if dt is not None:
            dt, kept = float(dt), self._left("prev_derivative", "sample")
        place = (i, dt)
        entry = rows[place]
        prev, x0, made = self._half(
            rows, place, entry, model_output, sample, kept, keeps=int(dt is None)
        )
        if dt is None:
            levels = state.facts[1]
            self.dt, self.prev_derivative, self.sample = levels[i + 1] - levels[i], made[0], sample
        else:
            self.dt = self.prev_derivative = self.sample = None
        self._step_index = i + 1
        if not return_dict:
            return prev, x0
        return HeunDiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


def _twice(
    first: np.ndarray[Any, Any], last: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Every value twice but the first one, then the last."""
    return np.concatenate(
        [first[:1], np.repeat(first[1:], 2), () if last is None else last]
    ).astype(first.dtype)


__all__ = ["HeunDiscreteScheduler"]
