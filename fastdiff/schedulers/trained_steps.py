"""What LCMScheduler and TCDScheduler share: noise levels of trained timesteps by value, and a step
counter that says which timestep is next and which step is the last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.schedulers.custom import vector, whole_steps
from fastdiff.schedulers.fused import tensor
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
    ) -> None:
        """Set the timesteps of a run; as diffusers, lists, arrays and tensors accepted.

        original_inference_steps  steps that the model was distilled with
        timesteps                 (N,) whole numbers, descending
        strength                  which part of the schedule is run, for image to image
        """
        whole_steps(num_inference_steps)
        if timesteps is not None:
            timesteps = vector("timesteps", timesteps).astype(int).tolist()
        base: Any = super()
        base.set_timesteps(num_inference_steps, None, original_inference_steps, timesteps, strength)
        self._place_timesteps(device)

    def _where(self, timestep: Any, sample: object, model_output: object) -> tuple[int, int]:
        """(t, index of the step) of the step to be made."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        tensor("sample", sample)
        tensor("model_output", model_output)
        if self._step_index is None:
            self._init_step_index(timestep)
        t, _ = self._time(timestep)
        i: int = self._step_index  # type: ignore[assignment]
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
