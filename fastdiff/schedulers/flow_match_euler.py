"""FlowMatchEulerDiscreteScheduler of diffusers, its step fused: deterministic or stochastic.

x' = x + (s' - s) v                      v, the velocity, as the network returns it
x' = (1 - s') (x - s v) + s' z           stochastic_sampling
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import vector, whole_steps
from fastdiff.schedulers.fused import Entry, FusedStep, Place, draw, promote, within
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode

_INTEGERS = (int, torch.IntTensor, torch.LongTensor)


class FlowMatchEulerDiscreteScheduler(
    FusedStep,
    diffusers.FlowMatchEulerDiscreteScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.FlowMatchEulerDiscreteScheduler; arXiv:2403.03206.

    Configuration, attributes, random numbers and dtypes as there.  With per_token_timesteps, whose
    numbers are tensors, diffusers' own step runs.
    """

    _reads = ("stochastic_sampling", "num_train_timesteps")
    sigmas: Tensor
    config: Any

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
        timesteps: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, lists, arrays and tensors accepted.

        sigmas     (N,) levels, shifted by the config's shift or by mu
        mu         the shift, with use_dynamic_shifting
        timesteps  (N,) what the network gets
        """
        whole_steps(num_inference_steps)
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("pass one of num_inference_steps, timesteps or sigmas; got none")
        given = {"sigmas": sigmas, "timesteps": timesteps}
        values = {n: None if v is None else vector(n, v) for n, v in given.items()}
        super().set_timesteps(num_inference_steps, None, mu=mu, **values)
        self._place_timesteps(device)
        state, levels = self._state, self._levels()
        self.sigmas = self.sigmas.to(device)  # diffusers has them there
        state.levels, state.levels_of = levels, self.sigmas

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas, stochastic = self._levels(), self._config["stochastic_sampling"]

        def build(place: Any) -> Entry:
            i = place
            within(i, sigmas)
            now, then = float(sigmas[i]), float(sigmas[i + 1])
            # "n" is what the network returns: the velocity
            numbers = Conversion(kx=1.0, ke=-now, qx=0.0, qe=1.0)
            if stochastic:
                row = Row(Weights(d=1 - then, z=then))
            else:
                # diffusers takes the difference of float32 numbers
                step = float(np.float32(then) - np.float32(now))
                row = Row(Weights(x=1.0, n=step))
            return Entry(encode(row, numbers), draw=stochastic, reads=0)

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        return config["stochastic_sampling"]

    def _ahead(self, place: Any) -> Iterable[Place]:
        return range(place, len(self.sigmas) - 1)

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
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if isinstance(timestep, _INTEGERS):
            raise ValueError(
                "timestep must be an element of scheduler.timesteps, a float; got an integer. "
                "An index from enumerate(timesteps) is not a timestep"
            )
        if per_token_timesteps is not None:
            self._reference("per_token_timesteps are a tensor's numbers")
            done: Any = super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator,
                per_token_timesteps, return_dict,
            )  # fmt: skip
            return done
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        entry = rows[i]
        promote(sample, model_output)  # both are tensors
        noise = None
        if entry.draw:  # diffusers brings the sample to float32 first
            noise = draw(sample, generator, torch.float32)
        out = model_output.dtype
        prev, _, _ = self._apply(rows, i, entry, sample, model_output, (), noise, out, out)
        self._step_index = i + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev) if return_dict else (prev,)


__all__ = ["FlowMatchEulerDiscreteScheduler"]
