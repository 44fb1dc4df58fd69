"""DEISMultistepScheduler of diffusers, its step fused; and set_timesteps with timesteps, sigmas.

DEIS in log(rho), rho = sigma / alpha, integrates a polynomial through the last predictions of the
noise over rho.  As log(rho) = -lambda, that is the exponential integral of DPM-Solver with slopes
taken whole ("heun") and the right weight of the second difference.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.flow_levels import FlowLevels
from fastdiff.schedulers.multistep import Multistep


class DEISMultistepScheduler(
    FlowLevels,
    Multistep,
    diffusers.DEISMultistepScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.DEISMultistepScheduler; arXiv:2204.13902.

    Configuration, attributes and dtypes as there.
    """

    _reads = (
        "solver_order",
        "prediction_type",
        "lower_order_final",
        "use_flow_sigmas",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    )

    _noise_by_data = True

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom sigmas.

        mu         the shift, with use_dynamic_shifting; else without effect on a flow, as in
                   diffusers' flow classes; a number of steps without it is shifted by flow_shift
        sigmas     (N,) or (N + 1,) descending noise levels: sigma / alpha, or sigma itself with
                   use_flow_sigmas.  N of a flow are shifted as FlowMatchEulerDiscreteScheduler
                   does (flow_levels.py) and end at 0, N others at the least trained level; a step
                   to 0 takes the prediction of x_0
        timesteps  (N,) descending: whole numbers, or T sigma of a flow
        """
        self._set_run(num_inference_steps, device, mu, timesteps, sigmas)

    def _stock_timesteps(self, steps: int | None, mu: float | None, timesteps: Any) -> None:
        if timesteps is None:
            super().set_timesteps(steps, None, mu)
            return
        levels = np.asarray(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5)
        self._set_sigmas(np.interp(timesteps, np.arange(len(levels)), levels), None, None)
        whole = np.minimum(timesteps.round(), len(levels) - 1)
        self.timesteps = torch.from_numpy(whole.astype(np.int64))

    def _options(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "order": config["solver_order"],
            "solver_type": "heun",
            "predict": "noise",
            "lower_order_final": config["lower_order_final"],
        }

    def _facts(self, config: dict[str, Any]) -> Any:
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            False,
            False,
            False,
            config["solver_order"],
            bounds if config["thresholding"] else None,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev = self._multistep(model_output, timestep, sample, None, None)
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


__all__ = ["DEISMultistepScheduler"]
