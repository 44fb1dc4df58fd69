"""EulerDiscreteScheduler and EulerAncestralDiscreteScheduler of diffusers, their steps fused.

Both work on x / alpha, in noise levels sigma / alpha; arXiv:2206.00364.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import (
    descending,
    one_run,
    sigmas_to_run,
    times_to_run,
    vector,
    whole_steps,
    without_shift,
)
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.models import of_betas
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.timestep import INTEGERS, an_index
from fastdiff.solvers.euler import euler, euler_ancestral
from fastdiff.solvers.row import Grid, Row
from fastdiff.table import conversion, encode

logger = logging.getLogger("fastdiff")


class EulerStep(FusedStep):
    """What the two share: the grid, the dtypes, and diffusers' refusals."""

    sigmas: Tensor
    alphas_cumprod: Tensor
    config: Any
    is_scale_input_called: bool

    # the spacing is in the sigmas already; one entry alone would come back without its tuple
    _reads = ("prediction_type", "timestep_spacing")

    def _row(self, grid: Grid, i: int, numbers: tuple[float, ...]) -> Row:
        raise NotImplementedError

    def _conversions(self, grid: Grid) -> Callable[[int, Row, tuple[float, ...]], Conversion]:
        """How the network's output of a step is converted, closed over numbers only."""
        prediction = of_betas(self._config["prediction_type"])
        scales = 1 / np.sqrt(1 + grid.sigma**2)

        def convert(i: int, row: Row, numbers: tuple[float, ...]) -> Conversion:
            return conversion(prediction, grid, i, float(scales[i]), row.churn)

        return convert

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas = self._levels()
        grid = Grid(np.ones_like(sigmas), sigmas)
        make, convert = type(self)._row, self._conversions(grid)

        def build(place: Any) -> Entry:
            i, numbers = place
            within(i, sigmas)
            row = make(None, grid, i, numbers)  # type: ignore[arg-type]
            k = convert(i, row, numbers)
            drawn = row.churn is not None or make is EulerAncestralDiscreteScheduler._row
            return Entry(encode(row, k), draw=drawn, reads=0)

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        """True if x_0 is the raw output."""
        return config["prediction_type"] in ("sample", "original_sample")

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, numbers = place
        return [(j, numbers) for j in range(i, len(self.sigmas) - 1)]

    def _euler_step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        numbers: tuple[float, ...],
        generator: torch.Generator | None,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x', x_0) of a step.  given: x_0, where the caller knows it, as the row expects."""
        if isinstance(timestep, INTEGERS):
            raise an_index()
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
        place = (i, numbers)
        entry = rows[place]
        promote(sample, model_output)  # both are tensors
        noise = self._draw(model_output, generator, None, i) if entry.draw else None
        out = model_output.dtype
        # diffusers takes the sample in float32
        x0_dtype = out if state.facts else torch.promote_types(torch.float32, out)
        prev, x0, _ = self._apply(
            rows,
            place,
            entry,
            sample,
            model_output if given is None else given,
            (),
            noise,
            out,
            x0_dtype,
        )
        self._step_index = i + 1
        return prev, x0 if given is None else given


class EulerDiscreteScheduler(EulerStep, diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.EulerDiscreteScheduler."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        *,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, lists, arrays and tensors accepted.

        timesteps  (N,) descending
        sigmas     (N + 1,) descending sigma / alpha, the last one final
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        whole_steps(num_inference_steps)
        if timesteps is not None:
            timesteps = vector("timesteps", timesteps)
        if sigmas is not None:
            sigmas = vector("sigmas", sigmas)
            descending("sigmas", sigmas)
        super().set_timesteps(num_inference_steps, None, timesteps, sigmas)
        self._place_timesteps(device)

    def _row(self, grid: Grid, i: int, numbers: tuple[float, ...]) -> Row:
        if not numbers:
            return euler(grid, i, 0)
        churn, low, high, noise = numbers
        return euler(grid, i, 0, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=noise)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        numbers = (s_churn, s_tmin, s_tmax, s_noise) if s_churn else ()
        prev, x0 = self._euler_step(model_output, timestep, sample, numbers, generator)
        if not return_dict:
            return prev, x0
        return EulerDiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


class EulerAncestralDiscreteScheduler(
    EulerStep,
    diffusers.EulerAncestralDiscreteScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.EulerAncestralDiscreteScheduler; also with prediction_type "sample"."""

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
        if timesteps is None and sigmas is None:
            assert num_inference_steps is not None
            super().set_timesteps(num_inference_steps)
            self._place_timesteps(device)
            return
        if timesteps is None:
            assert sigmas is not None
            levels, times = sigmas_to_run(sigmas, num_inference_steps, self.alphas_cumprod)
        else:
            levels, times = times_to_run(timesteps, num_inference_steps, self.alphas_cumprod)
        self.sigmas, self.timesteps = torch.from_numpy(levels), torch.from_numpy(times)
        self.num_inference_steps = len(times)
        self._step_index = self._begin_index = None
        self._place_timesteps(device)

    def _row(self, grid: Grid, i: int, numbers: tuple[float, ...]) -> Row:
        return euler_ancestral(grid, i, 0)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev, x0 = self._euler_step(model_output, timestep, sample, (), generator)
        if not return_dict:
            return prev, x0
        return EulerAncestralDiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


__all__ = ["EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"]
