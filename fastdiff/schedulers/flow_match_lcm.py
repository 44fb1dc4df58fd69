"""FlowMatchLCMScheduler of diffusers: latent consistency on a flow, step and noise fused."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMSchedulerOutput
from torch import Tensor

from fastdiff.schedulers.flow_match import FlowMatch
from fastdiff.schedulers.operands import tensor


class FlowMatchLCMScheduler(FlowMatch, diffusers.FlowMatchLCMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.FlowMatchLCMScheduler; arXiv:2310.04378, on the levels of a flow.

    Configuration, attributes, random numbers and dtypes as there.  With scale_factors, which change
    the size of the sample between steps, diffusers' own step runs.
    """

    _reads = ("use_dynamic_shifting", "num_train_timesteps")  # neither matters to a row
    _scale_factors: Any
    _upscale_mode: str | None
    _init_size: Any

    def _stochastic(self, config: dict[str, Any]) -> bool:
        return True

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FlowMatchLCMSchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if self._scale_factors and self._upscale_mode:
            self._reference("scale_factors change the size of the sample", draws=True)
            done: Any = super().step(model_output, timestep, sample, generator, return_dict)
            return done
        tensor("model_output", model_output)
        drawn = torch.promote_types(torch.float32, model_output.dtype)
        first = self._init_size is None or self._step_index is None
        prev = self._flow_step(model_output, timestep, sample, generator, drawn)
        if first:
            self._init_size = model_output.size()[2:]  # as diffusers leaves it
        return FlowMatchLCMSchedulerOutput(prev) if return_dict else (prev,)


__all__ = ["FlowMatchLCMScheduler"]
