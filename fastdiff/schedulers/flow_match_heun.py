"""FlowMatchHeunDiscreteScheduler of diffusers, each of its two calls a step fused.

s^ = (1 + gamma) s,  nu^2 = s^^2 - s^2          churn, gamma = 0 without s_churn
x^ = x + nu z,  v^ = (s / s^) v,  h = s' - s^   kept for the second call
x' = x^ + h v^                                  first call, at s
x' = x^ + h (v^ + v') / 2                       second call, at s'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_heun_discrete import (
    FlowMatchHeunDiscreteSchedulerOutput,
)
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import as_many, one_run, vector
from fastdiff.schedulers.flow_levels import shiftable
from fastdiff.schedulers.flow_match import FlowMatch
from fastdiff.schedulers.fused import Entry, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.timestep import INTEGERS, an_index
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode

_VELOCITY = Conversion(kx=0.0, ke=0.0, qx=0.0, qe=1.0)  # "n" is the velocity; nobody asks for x_0


class FlowMatchHeunDiscreteScheduler(
    FlowMatch,
    diffusers.FlowMatchHeunDiscreteScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.FlowMatchHeunDiscreteScheduler; arXiv:2206.00364, algorithm 2.

    Configuration, attributes, random numbers and dtypes as there; N steps are 2 N - 1 calls of the
    network, the last without a second one.  Beside a float64 network `sample` keeps its digits,
    which diffusers cuts to float32.
    """

    _reads = ("shift", "num_train_timesteps")  # they are in the sigmas already
    dt: Any
    prev_derivative: Any
    sample: Any
    sigma_min: float
    sigma_max: float

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
        timesteps: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom levels.

        sigmas     (N,) descending noise levels, which the config's shift, or mu, then shifts
        mu         the shift, if the config it was made from has use_dynamic_shifting; else it has
                   no effect, as in diffusers' other flow classes
        timesteps  (N,) descending, what the network gets: T sigma, not shifted
        """
        one_run(num_inference_steps, timesteps, sigmas)
        config = self.config
        dynamic = mu is not None and bool(config.get("use_dynamic_shifting"))
        kind = config.get("time_shift_type", "exponential")
        if mu is not None:
            mu = shiftable(mu, kind)
        shift = config.shift
        if dynamic:
            assert mu is not None
            shift = mu if kind == "linear" else math.exp(mu)
        if sigmas is not None or timesteps is not None:
            self._set_own(num_inference_steps, sigmas, timesteps, shift)
        elif dynamic:
            assert num_inference_steps is not None
            even = np.linspace(self.sigma_max, self.sigma_min, num_inference_steps)
            self._set_own(None, even, None, shift)
        else:
            diffusers.FlowMatchHeunDiscreteScheduler.set_timesteps(self, num_inference_steps, None)
        self._place_timesteps(device)
        self._place_sigmas(device)

    def _set_own(self, steps: int | None, sigmas: Any, timesteps: Any, shift: float) -> None:
        name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
        levels, trained = vector(name, given), self.config.num_train_timesteps
        if (np.diff(levels) >= 0).any() or levels[-1] <= 0:
            raise ValueError(f"{name} must go down and stay above 0; got {levels.tolist()}")
        as_many(steps, name, len(levels))
        diffusers.FlowMatchHeunDiscreteScheduler.set_timesteps(self, len(levels), None)
        if timesteps is not None:
            times, levels = levels, levels / trained
        else:
            levels = shift * levels / (1 + (shift - 1) * levels)
            times = levels * trained
        twice = [torch.from_numpy(np.repeat(v, 2)[1:].astype(np.float32)) for v in (levels, times)]
        self.sigmas, self.timesteps = torch.cat([twice[0], torch.zeros(1)]), twice[1]

    def _index_of(self, timestep: Any) -> int | None:
        """Of a level's two calls, a run begins with the one that leaves it, as diffusers."""
        index, values = super()._index_of(timestep), self._timestep_values()
        if index is not None and values[index : index + 2] == 2 * values[index : index + 1]:
            index += 1
        return index

    def _facts(self, config: dict[str, Any]) -> Any:
        return self._levels().tolist()

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas = self._levels()

        def build(place: Any) -> Entry:
            i, gamma, noise, step, keeps = place
            within(i, sigmas)
            if step is not None:
                move = Weights(n=step / 2, h=(step / 2, 1.0))
                return Entry(encode(Row(move), _VELOCITY), draw=gamma > 0, reads=2)
            now, then = float(sigmas[i]), float(sigmas[i + 1])
            nu = noise * now * math.sqrt(gamma * (2 + gamma))
            slope = 1 / (1 + gamma)
            move = Weights(x=1.0, n=slope * (then - now * (1 + gamma)), z=nu)
            kept = (Weights(n=slope), Weights(x=1.0, z=nu))[:keeps]
            return Entry(encode(Row(move, kept), _VELOCITY), draw=gamma > 0, reads=0)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        """With the churn of this call, which may end where sigma leaves its bounds."""
        i, gamma, noise, step, keeps = place
        levels, places, first = self._state.facts, [place], keeps or 1
        for j in range(i + 1, len(levels) - 1):
            if step is None:
                step = levels[j] - levels[j - 1] * (1 + gamma)
                places.append((j, gamma, noise, step, 0))
            else:
                step = None
                places.append((j, gamma, noise, None, first))
        return places

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
    ) -> FlowMatchHeunDiscreteSchedulerOutput | tuple[Tensor]:
        """One call, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if "dt" not in self.__dict__:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if isinstance(timestep, INTEGERS):
            raise an_index()
        if s_churn < 0:
            raise ValueError(f"s_churn must be 0 or more; got {s_churn:g}")
        if self._step_index is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        levels, i = state.facts, self._step_index
        assert i is not None
        within(i, levels)
        second = self.dt is not None
        now = levels[i - 1 if second else i]
        gamma = 0.0
        if s_churn and s_tmin <= now <= s_tmax:
            gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
        promote(sample, model_output)  # both are tensors
        out = model_output.dtype
        wide = torch.promote_types(torch.float32, out)  # what diffusers computes in, and keeps
        own = gamma == 0 and sample.dtype is wide  # then the step begins with the sample itself
        keeps = 0 if second else 1 if own else 2
        step = float(self.dt) if second else None
        place = (i, gamma, s_noise if gamma else 1.0, step, keeps)
        entry = rows[place]
        noise = self._draw(model_output, generator, None, i) if entry.draw else None
        history = (self.prev_derivative, self.sample) if second else ()
        prev, _, kept = self._apply(
            rows, place, entry, sample, model_output, history, noise, out, wide, keeps
        )
        if second:
            self.prev_derivative = self.dt = self.sample = None
        else:
            self.prev_derivative = kept[0]
            self.dt = levels[i + 1] - now * (1 + gamma)
            self.sample = sample if own else kept[1]
        self._step_index = i + 1
        return FlowMatchHeunDiscreteSchedulerOutput(prev) if return_dict else (prev,)


__all__ = ["FlowMatchHeunDiscreteScheduler"]
