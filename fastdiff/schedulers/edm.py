"""EDMEulerScheduler and EDMDPMSolverMultistepScheduler of diffusers, their steps fused.

Both are for networks with EDM's preconditioning (fastdiff/predictions.py, `edm`), on x = x_0 +
sigma n; the network is told c_noise = log(sigma) / 4.  arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.predictions import Conversion, edm
from fastdiff.schedulers.custom import as_many, descending, one_run, run_ends, vector, without_shift
from fastdiff.schedulers.euler import EulerStep
from fastdiff.schedulers.fused import Entry, Place, within
from fastdiff.schedulers.multistep import Multistep
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.quirks import parameters
from fastdiff.solvers.euler import euler
from fastdiff.solvers.row import Grid, Row
from fastdiff.table import encode

GIVEN = (1.0,)  # at the end of a place's numbers: x_0 is given
MOST = 88.0  # log of the largest level that float32 holds


def levels_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise levels (N,) of custom timesteps log(sigma) / 4, descending."""
    if (np.diff(values) > 0).any() or 4 * abs(values).max() > MOST:
        raise ValueError(
            "timesteps must be log(sigma) / 4 of the noise levels and go down, from noisy to "
            f"clean, within {-MOST / 4:g} .. {MOST / 4:g}; got {values.tolist()}"
        )
    return np.exp(4 * values)


class EDMEulerScheduler(EulerStep, diffusers.EDMEulerScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.EDMEulerScheduler; arXiv:2206.00364, algorithm 2 without its second
    half, the churn coming after the network as in diffusers.

    Configuration, attributes, random numbers and dtypes as there.
    """

    _reads = ("prediction_type", "sigma_data")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom timesteps.

        sigmas     (N,) places on the config's schedule, as diffusers takes them: 0 is sigma_max, 1
                   sigma_min (of the exponential schedule only their number counts there)
        timesteps  (N,) log(sigma) / 4 of the noise levels, descending
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        one_run(num_inference_steps, timesteps, sigmas)
        if timesteps is not None:
            times = vector("timesteps", timesteps)
            as_many(num_inference_steps, "timesteps", len(times))
            levels = levels_of(times)
            super().set_timesteps(len(levels))  # whatever else it sets
            last = 0.0 if self.config.final_sigmas_type == "zero" else levels[-1]
            self.sigmas = torch.from_numpy(np.append(levels, last).astype(np.float32))
            self.timesteps = torch.from_numpy(times.astype(np.float32))
        elif sigmas is not None:
            places = vector("sigmas", sigmas)
            as_many(num_inference_steps, "sigmas", len(places))
            inside = (np.diff(places) >= 0).all() and places[0] >= 0 and places[-1] <= 1
            if self.config.sigma_schedule == "karras" and not inside:
                raise ValueError(
                    "sigmas must be places on the config's schedule, going up from 0 (sigma_max) "
                    f"to 1 (sigma_min), as diffusers takes them; got {places.tolist()}. Noise "
                    "levels go in as timesteps=[log(sigma) / 4, ..]"
                )
            super().set_timesteps(num_inference_steps, None, torch.from_numpy(places))
        else:
            super().set_timesteps(num_inference_steps)
        self._place_timesteps(device)

    def _facts(self, config: dict[str, Any]) -> Any:
        return False  # x_0 is never the raw output

    def _row(self, grid: Grid, i: int, numbers: tuple[float, ...]) -> Row:
        if not numbers or numbers[0] == 0:
            return euler(grid, i, 0)
        churn, low, high, noise, *_ = numbers
        return euler(grid, i, 0, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=noise)

    def _conversions(self, grid: Grid) -> Callable[[int, Row, tuple[float, ...]], Conversion]:
        config = self._config
        prediction, data = config["prediction_type"], float(config["sigma_data"])

        def convert(i: int, row: Row, numbers: tuple[float, ...]) -> Conversion:
            level = float(grid.sigma[i]) if row.churn is None else row.churn[1]
            if numbers[4:] == GIVEN:  # x_0 itself takes the place of the output
                inverse = 1 / level if level else 0.0
                return Conversion(0.0, 1.0, inverse, -inverse)
            return edm(prediction, level, data)

        return convert

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
        pred_original_sample: Tensor | None = None,
    ) -> EDMEulerSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        numbers: tuple[float, ...] = (s_churn, s_tmin, s_tmax, s_noise) if s_churn else ()
        if pred_original_sample is not None:
            numbers = (s_churn, s_tmin, s_tmax, s_noise, *GIVEN)
        prev, x0 = self._euler_step(
            model_output, timestep, sample, numbers, generator, pred_original_sample
        )
        if not return_dict:
            return prev, x0
        return EDMEulerSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


class EDMDPMSolverMultistepScheduler(
    Multistep,
    diffusers.EDMDPMSolverMultistepScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.EDMDPMSolverMultistepScheduler; arXiv:2211.01095 and 2206.00364.

    Configuration, attributes, random numbers and dtypes as there; also sde-dpmsolver++ of order 3,
    which is not implemented there.
    """

    _reads = (
        "algorithm_type",
        "solver_order",
        "solver_type",
        "prediction_type",
        "sigma_data",
        "lower_order_final",
        "euler_at_final",
        "final_sigmas_type",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    )

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

        timesteps  (N,) log(sigma) / 4 of the noise levels, descending
        sigmas     (N,) or (N + 1,) descending noise levels; N of them end where final_sigmas_type
                   says
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        steps = num_inference_steps
        one_run(steps, timesteps, sigmas)
        if timesteps is None and sigmas is None:
            super().set_timesteps(steps, None)
        else:
            last = 0.0 if self._ends_at_zero() else float(self.config.sigma_min)
            if timesteps is not None:
                times = vector("timesteps", timesteps)
                as_many(steps, "timesteps", len(times))
                body = levels_of(times)
            else:
                body = vector("sigmas", sigmas)
                descending("sigmas", body)
                if run_ends(body, steps):
                    body, last = body[:-1], float(body[-1])
                if body[-1] <= 0:
                    raise ValueError(
                        f"sigmas must be above 0 but for the last one; got {[*body, last]}"
                    )
                times = np.log(body) / 4
            last = min(last, float(body[-1]))
            self.sigmas = torch.from_numpy(np.append(body, last).astype(np.float32))
            self.timesteps = torch.from_numpy(times.astype(np.float32))
            self._restart(len(body))
        self._place_timesteps(device)

    def _options(self, config: dict[str, Any]) -> dict[str, Any]:
        order, sde = config["solver_order"], config["algorithm_type"].startswith("sde")
        return {
            "order": order,
            "solver_type": config["solver_type"],
            "predict": "data",
            "eta": 1.0 if sde else 0.0,
            "lower_order_final": config["lower_order_final"],
            "euler_at_final": config["euler_at_final"] or config["final_sigmas_type"] == "zero",
            **parameters("EDMDPMSolverMultistepScheduler", self.numerics, order=order, sde=sde),
        }

    def _facts(self, config: dict[str, Any]) -> Any:
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            False,
            True,
            False,
            config["solver_order"],
            bounds if config["thresholding"] else None,
        )

    def _builder(self) -> Callable[[Place], Entry]:
        config, sigmas = self._config, self._levels()
        grid, weights = Grid(np.ones_like(sigmas), sigmas), self._weights
        options = self._options(config)
        prediction, data = config["prediction_type"], float(config["sigma_data"])

        def build(place: Any) -> Entry:
            i, k = place
            within(i, sigmas)
            move = weights(grid, i, k, **options)
            numbers = edm(prediction, float(sigmas[i]), data)
            return Entry(encode(Row(move), numbers), draw=options["eta"] > 0, reads=len(move.h))

        return build

    def _drawn(
        self, model_output: Tensor, sample: Tensor, generator: torch.Generator | None, i: int
    ) -> Any:
        return self._draw(sample, generator, promote(sample, model_output), i)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev = self._multistep(model_output, timestep, sample, generator, None)
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


__all__ = ["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"]
