"""What schedulers share whose rows are chosen by a timestep's value; of them DDIMScheduler and
DDPMScheduler have no step counter at all.

Any whole timestep in any order works, also one that is not in `timesteps`.  A place begins with
(t, previous t) or ends with them; noise levels come from `alphas_cumprod`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import as_many, descending, one_run, vector
from fastdiff.schedulers.fused import FusedStep, Place, Rows, State
from fastdiff.schedulers.models import of_betas
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.timestep import by_value, host_value, view_index
from fastdiff.solvers.row import Grid
from fastdiff.table import OFF, Clip, conversion

BOUNDED = (  # config entries of a class that may bound x_0
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "num_train_timesteps",
)
BEYOND = 1e18  # stands for 1 / 0 where the result is bounded anyway


class ByTimestep(FusedStep):
    """Mixed into a diffusers scheduler class that works on timesteps and `alphas_cumprod`."""

    _source = "alphas_cumprod"

    alphas_cumprod: Tensor
    config: Any

    def _following(self, call: Callable[..., Tensor], *args: Any) -> Tensor:
        """Run stock's code that moves alphas_cumprod to a device; the rows stay valid."""
        self._ready()
        levels = self._levels()
        out = call(*args)
        state, moved = self._state, self.alphas_cumprod
        if moved is not state.source:
            state.source = state.levels_of = moved
            state.levels = levels
            state.version = None if moved.is_inference() else moved._version
        return out

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As diffusers."""
        call: Callable[..., Tensor] = super().add_noise  # type: ignore[misc]
        return self._following(call, original_samples, noise, timesteps)

    def _time(self, timestep: Any) -> tuple[int, int | None]:
        """(t, its index in timesteps or None)."""
        index = view_index(self.timesteps, timestep)
        if index is not None:
            return int(self._timestep_values()[index]), index
        if isinstance(timestep, Tensor):
            self._state.counts["timesteps looked up by value"] += 1
        value = host_value(timestep)
        t, top = int(value), len(self.alphas_cumprod)
        if t != value or not 0 <= t < top:
            raise ValueError(f"timestep must be a whole number in 0 .. {top - 1}; got {value:g}")
        return t, None

    def _custom_timesteps(
        self,
        num_inference_steps: int | None,
        timesteps: ArrayLike | Tensor | None,
        sigmas: ArrayLike | Tensor | None,
    ) -> NDArray[np.int64] | None:
        """Custom timesteps, or the trained ones nearest to custom sigmas, or None."""
        one_run(num_inference_steps, timesteps, sigmas)
        if timesteps is None and sigmas is None:
            return None
        top = int(self.config.num_train_timesteps)
        ends = False
        if timesteps is not None:
            times = vector("timesteps", timesteps)
        else:
            levels = self._levels()
            values = vector("sigmas", sigmas)
            descending("sigmas", values)
            ends = len(values) > 1 and bool(values[-1] == 0)
            values = values[:-1] if ends else values
            known = np.log(np.maximum((1 - levels) / np.maximum(levels, 1e-30), 1e-30)) / 2
            logs = np.log(np.maximum(values, 1e-30))
            times = np.interp(logs, known, np.arange(top)).round()
        whole = times.astype(np.int64)
        falling = (whole == times).all() and (np.diff(whole) < 0).all()
        if not falling or whole[0] >= top or whole[-1] < 0:
            raise ValueError(
                f"timesteps must be whole numbers that go down, within {top - 1} .. 0; "
                f"got {times.tolist()}"
            )
        name = "timesteps" if sigmas is None else "sigmas"
        as_many(num_inference_steps, name, len(whole), ends)
        return whole


class StatelessStep(ByTimestep):
    """Of DDIMScheduler and DDPMScheduler."""

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As diffusers."""
        call: Callable[..., Tensor] = super().get_velocity  # type: ignore[misc]
        return self._following(call, sample, noise, timesteps)

    def _stateless(
        self,
        state: State,
        rows: Rows,
        place: Place,
        sample: Tensor,
        model_output: Tensor,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(x', x_0) of a place."""
        direct, threshold, _ = state.facts
        dtype = promote(sample, model_output)
        x0_dtype = model_output.dtype if direct else dtype
        entry = rows[place]
        out = self._apply(
            rows, place, entry, sample, model_output, (), noise, dtype, x0_dtype, 0, threshold
        )
        return out[0], out[1]

    def _sought(self, t: int) -> int | None:
        """The place of a timestep that is no view, where noise is keyed by it."""
        return by_value(self._timestep_values(), t) if "_draw" in self.__dict__ else None

    @staticmethod
    def _clip(config: dict[str, Any]) -> Clip:
        if config["thresholding"] or not config["clip_sample"]:
            return OFF
        return Clip(-config["clip_sample_range"], config["clip_sample_range"])

    def _facts(self, config: dict[str, Any]) -> Any:
        """(x_0 is the raw output, bounds of thresholding or None, trained steps)."""
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            config["prediction_type"] == "sample",
            bounds if config["thresholding"] else None,
            config["num_train_timesteps"],
        )


def first_conversion(prediction: str, grid: Grid, bounded: bool) -> Conversion:
    """x_0 and n at the first level of the step; bounded: x_0 is clipped or thresholded.

    Without signal (alpha = 0, rescale_betas_zero_snr) an epsilon says nothing of x_0 but, once it
    is bounded, its sign: diffusers divides by 0 and clamps the infinity.
    """
    prediction = of_betas(prediction)
    if grid.alpha[0] > 0 or prediction != "epsilon":
        return conversion(prediction, grid, 0, 1.0, None)
    if not bounded:
        raise ValueError(
            "prediction_type 'epsilon' cannot start where there is no signal (alphas_cumprod = 0, "
            "rescale_betas_zero_snr=True); such models predict 'v_prediction' or 'sample', or use "
            "timestep_spacing='leading'"
        )
    return Conversion(BEYOND, -BEYOND * float(grid.sigma[0]), 0.0, 1.0)


def step_grid(levels: NDArray[np.float64], t: int, prev: int, final: float) -> Grid:
    """The two noise levels of a step; prev < 0 means the final one, alphas_cumprod = final."""
    cumulative = np.array([levels[t], levels[prev] if prev >= 0 else final])
    return Grid(np.sqrt(cumulative), np.sqrt(1 - cumulative))


def to_tensor(times: NDArray[np.int64]) -> Tensor:
    """int64 timesteps as diffusers holds them."""
    return torch.from_numpy(times)
