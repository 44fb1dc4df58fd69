"""DPMSolverSinglestepScheduler of diffusers, each call of a cycle fused; and set_timesteps with
sigmas=."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.schedulers.dpmsolver_multistep import LEARNED
from fastdiff.schedulers.flow_levels import FlowLevels
from fastdiff.schedulers.fused import Place, over
from fastdiff.schedulers.multistep import Multistep
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.quirks import parameters
from fastdiff.solvers.singlestep import update


class DPMSolverSinglestepScheduler(
    FlowLevels,
    Multistep,
    diffusers.DPMSolverSinglestepScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.DPMSolverSinglestepScheduler; arXiv:2206.00927, arXiv:2211.01095.

    Configuration, attributes, random numbers and dtypes as there: `order_list` has the order of
    each step, `sample` is where the cycle began, `model_outputs` what was predicted since.
    """

    _reads = (
        "algorithm_type",
        "solver_order",
        "solver_type",
        "prediction_type",
        "use_flow_sigmas",
        "variance_type",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    )
    _weights = staticmethod(update)
    order_list: list[int]
    sample: Tensor | None

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

        timesteps  (N,) whole numbers, descending; a list, array or tensor
        sigmas     (N,) or (N + 1,) descending noise levels: sigma / alpha, or sigma itself with
                   use_flow_sigmas, then shifted by flow_shift or exp(mu) if they are N.  N of them
                   end where final_sigmas_type says
        """
        self._set_run(num_inference_steps, device, mu, timesteps, sigmas)

    def _stock_timesteps(self, steps: int | None, mu: float | None, timesteps: Any) -> None:
        super().set_timesteps(steps, None, mu, timesteps)

    def _restart(self, steps: int) -> None:
        config = self.config
        self.num_inference_steps = steps
        self.model_outputs = [None] * config.solver_order
        self.sample = None
        whole = steps % config.solver_order == 0 and not self._ends_at_zero()
        if not config.lower_order_final and not whole:  # as in diffusers
            self.register_to_config(lower_order_final=True)
        self.order_list = self.get_order_list(steps)
        self._step_index = self._begin_index = None

    def _options(self, config: dict[str, Any]) -> dict[str, Any]:
        order, sde = config["solver_order"], config["algorithm_type"].startswith("sde")
        return {
            "solver_type": config["solver_type"],
            "predict": "data" if config["algorithm_type"].endswith("++") else "noise",
            "eta": 1.0 if sde else 0.0,
            **parameters("DPMSolverSinglestepScheduler", self.numerics, order=order, sde=sde),
        }

    def _facts(self, config: dict[str, Any]) -> Any:
        data, prediction = config["algorithm_type"].endswith("++"), config["prediction_type"]
        from_output = prediction == ("sample" if data else "epsilon")
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        learned = config["variance_type"] in LEARNED
        return learned, data, from_output, bounds if config["thresholding"] else None

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, _ = place
        known = sum(made is not None for made in self.model_outputs)
        last = min(len(self.sigmas) - 1, len(self.order_list))
        rest = [(j, min(self.order_list[j], known + 1 + j - i)) for j in range(i + 1, last)]
        return [place, *rest]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One call of a cycle, (B, *shape) -> (B, *shape); as diffusers, in one pass over
        memory."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        learned, data, from_output, threshold = self._state.facts
        wide = promote(sample, model_output)  # both are tensors
        if learned and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is the learned variance
        i: int = self._step_index  # type: ignore[assignment]
        if i >= len(self.order_list):
            raise over(i, len(self.order_list))
        past, use = self.model_outputs, self.order_list[i]
        while use > 1 and past[1 - use] is None:  # a run that begins in a cycle
            use -= 1
        place = (i, use)
        entry = rows[place]
        made = model_output.dtype if from_output else wide  # of what is kept
        history: list[Tensor] = []
        dtype = wide
        if use > 1:
            history, dtype = [*past[:-use:-1], self._begun()], made
            for tensor in history:
                if tensor.dtype is not dtype:
                    dtype = torch.promote_types(dtype, tensor.dtype)
        noise = None
        if entry.draw:
            noise = self._draw(model_output if from_output else sample, generator, made, i)
        prev, x0, kept = self._apply(
            rows,
            place,
            entry,
            sample,
            model_output,
            history,
            noise,
            dtype,
            made,
            0 if data else 1,
            threshold,
        )
        for j in range(1, len(past)):
            past[j - 1] = past[j]
        past[-1] = x0 if data else kept[0]
        if use == 1:
            self.sample = sample
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)

    def _begun(self) -> Tensor:
        """Where the cycle began."""
        if not isinstance(self.sample, Tensor):
            raise ValueError(
                "scheduler.sample must hold the sample that a cycle began with for a step of order "
                f"2 or 3; got {type(self.sample).__name__}. Set model_outputs and sample together, "
                "or neither"
            )
        return self.sample


__all__ = ["DPMSolverSinglestepScheduler"]
