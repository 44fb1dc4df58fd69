"""FlowMatchEulerDiscreteScheduler of diffusers, its step fused: deterministic or stochastic."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from fastdiff.schedulers.flow_match import FlowMatch


class FlowMatchEulerDiscreteScheduler(
    FlowMatch,
    diffusers.FlowMatchEulerDiscreteScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.FlowMatchEulerDiscreteScheduler; arXiv:2403.03206.

    Configuration, attributes, random numbers and dtypes as there.  With per_token_timesteps, whose
    numbers are tensors, diffusers' own step runs.
    """

    _reads = ("stochastic_sampling", "num_train_timesteps")

    def _stochastic(self, config: dict[str, Any]) -> bool:
        return bool(config["stochastic_sampling"])

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory.

        s_churn, s_tmin, s_tmax, s_noise have no effect, as there.
        """
        if per_token_timesteps is not None:
            draws = self._stochastic(self._config)
            self._reference("per_token_timesteps are a tensor's numbers", draws)
            done: Any = super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator,
                per_token_timesteps, return_dict,
            )  # fmt: skip
            return done
        prev = self._flow_step(model_output, timestep, sample, generator)
        return FlowMatchEulerDiscreteSchedulerOutput(prev) if return_dict else (prev,)


__all__ = ["FlowMatchEulerDiscreteScheduler"]
