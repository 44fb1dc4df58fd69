"""DPMSolverMultistepScheduler of diffusers, its step fused; and set_timesteps with sigmas=."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.flow_levels import FlowLevels
from fastdiff.schedulers.multistep import Multistep
from fastdiff.schedulers.quirks import parameters

LEARNED = ("learned", "learned_range")


class DPMSolverMultistepScheduler(
    FlowLevels,
    Multistep,
    diffusers.DPMSolverMultistepScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.DPMSolverMultistepScheduler; arXiv:2211.01095.

    Configuration, attributes, random numbers and dtypes as there.  `numerics` is "faithful" (agrees
    with diffusers) or "exact" (fixes what schedulers/quirks.py lists).
    """

    _reads = (
        "algorithm_type",
        "solver_order",
        "solver_type",
        "prediction_type",
        "lower_order_final",
        "euler_at_final",
        "final_sigmas_type",
        "use_flow_sigmas",
        "variance_type",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: ArrayLike | Tensor | None = None,
        *,
        sigmas: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom sigmas.

        mu         the shift, with use_dynamic_shifting; else without effect on a flow, as in
                   diffusers' flow classes; a number of steps without it is shifted by flow_shift
        timesteps  (N,) descending: whole numbers, or T sigma of a flow; a list, array or tensor
        sigmas     (N,) or (N + 1,) descending noise levels: sigma / alpha, or sigma itself with
                   use_flow_sigmas; N of them end where final_sigmas_type says.  N of a flow are
                   shifted, and the network is told fractions of a timestep, as in
                   FlowMatchEulerDiscreteScheduler (flow_levels.py)
        """
        self._set_run(num_inference_steps, device, mu, timesteps, sigmas)

    def _stock_timesteps(self, steps: int | None, mu: float | None, timesteps: Any) -> None:
        super().set_timesteps(steps, None, mu, timesteps)

    def _options(self, config: dict[str, Any]) -> dict[str, Any]:
        order, sde = config["solver_order"], config["algorithm_type"].startswith("sde")
        data = config["algorithm_type"].endswith("++")
        return {
            "order": order,
            "solver_type": config["solver_type"],
            "predict": "data" if data else "noise",
            "eta": 1.0 if sde else 0.0,
            "lower_order_final": config["lower_order_final"],
            "euler_at_final": config["euler_at_final"] or config["final_sigmas_type"] == "zero",
            **parameters("DPMSolverMultistepScheduler", self.numerics, order=order, sde=sde),
        }

    def _facts(self, config: dict[str, Any]) -> Any:
        data, prediction = config["algorithm_type"].endswith("++"), config["prediction_type"]
        from_output = prediction == ("sample" if data else "epsilon")
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            config["variance_type"] in LEARNED,
            data,
            from_output,
            config["solver_order"],
            bounds if config["thresholding"] else None,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev = self._multistep(model_output, timestep, sample, generator, variance_noise)
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


__all__ = ["DPMSolverMultistepScheduler"]
