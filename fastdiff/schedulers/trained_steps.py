"""What LCMScheduler and TCDScheduler share: noise levels of trained timesteps by value, and a step
counter that says which timestep is next and which step is the last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.schedulers.custom import without_shift
from fastdiff.schedulers.fused import over
from fastdiff.schedulers.operands import tensor
from fastdiff.schedulers.stateless import StatelessStep


class TrainedSteps(StatelessStep):
    """Mixed into a diffusers scheduler class that jumps between trained timesteps."""

    num_inference_steps: int | None
    final_alpha_cumprod: Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        original_inference_steps: int | None = None,
        timesteps: Any = None,
        strength: float = 1.0,
        *,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom sigmas.

        original_inference_steps  steps that the model was distilled with
        timesteps                 (N,) whole numbers, descending
        strength                  which part of the schedule is run, for image to image
        sigmas                    (N,) descending sigma / alpha; the nearest trained timesteps
        mu                        refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        if num_inference_steps is not None and timesteps is not None:
            raise ValueError("pass num_inference_steps or timesteps, not both; got both")
        custom = self._custom_timesteps(num_inference_steps, timesteps, sigmas)
        steps, times = (num_inference_steps, None) if custom is None else (None, custom.tolist())
        base: Any = super()
        base.set_timesteps(steps, None, original_inference_steps, times, strength)
        self._place_timesteps(device)

    def _where(self, timestep: Any, sample: object, model_output: object) -> tuple[int, int]:
        """(t, index of the step) of the step to be made."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        tensor("sample", sample)
        tensor("model_output", model_output)
        if self._step_index is None:
            self._init_step_index(timestep)
        i: int = self._step_index  # type: ignore[assignment]
        steps = self.timesteps.numel()  # len() of a tensor takes 1 us more
        if i >= steps:
            raise over(i, steps)
        t, _ = self._time(timestep)
        return t, i

    def _next(self, i: int, last: int) -> tuple[int, float | None]:
        """(timestep after step i, alphas_cumprod there if it is not a trained one)."""
        times = self._timestep_values()
        then = int(times[i + 1]) if i + 1 < len(times) else last
        # by value, since anybody may replace it or write to it
        return then, None if then >= 0 else float(self.final_alpha_cumprod)

    def _at_end(self, i: int) -> bool:
        return self.num_inference_steps is not None and i == self.num_inference_steps - 1


__all__ = ["TrainedSteps"]
