"""IPNDMScheduler of diffusers, its step fused: Adams-Bashforth with the weights of equal steps.

Its levels are betas = sigma and alphas, its times 2 / pi atan2(sigma, alpha) from 1 to 0, and its
network predicts v.  History lives in stock's `ets`, newest last, read back every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.predictions import convert
from fastdiff.schedulers.custom import as_many, descending, one_run, run_ends, vector, without_shift
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.quirks import least_signal
from fastdiff.solvers.adams import EQUAL, MOST
from fastdiff.solvers.row import NOISE, Row, Weights
from fastdiff.table import encode


class IPNDMScheduler(FusedStep, diffusers.IPNDMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.IPNDMScheduler; arXiv:2202.09778.

    Configuration, attributes and dtypes as there; of `ets` the last four are kept.
    """

    _source = "betas"
    # the step depends on nothing in the config; one entry would come back without its tuple
    _reads = ("num_train_timesteps", "num_train_timesteps")
    alphas: Tensor
    betas: Tensor
    ets: list[Any]

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

        timesteps  (N,) descending, in 1 .. 0
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (0 if left out)
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        one_run(num_inference_steps, timesteps, sigmas)
        if timesteps is None and sigmas is None:
            assert num_inference_steps is not None
            super().set_timesteps(num_inference_steps)
        else:
            self._set_times(num_inference_steps, timesteps, sigmas)
        self._place_timesteps(device)

    def _set_times(self, steps: int | None, timesteps: Any, sigmas: Any) -> None:
        if sigmas is not None:
            name, values = "sigmas", vector("sigmas", sigmas)
            times = np.arctan(values) * 2 / np.pi
        else:
            name, values = "timesteps", vector("timesteps", timesteps)
            times = values
        descending(name, values)
        if times[0] > 1:
            raise ValueError(f"timesteps must be within 1 .. 0; got {times.tolist()}")
        ends = name == "sigmas" and run_ends(values, steps)
        if name == "timesteps":
            as_many(steps, name, len(times))
        run = torch.from_numpy(times if ends else np.append(times, 0.0))
        self.betas, self.alphas = (f(run * torch.pi / 2).float() for f in (torch.sin, torch.cos))
        self.alphas[run == 1] = 0.0  # the cosine of a rounded pi / 2 is not
        self.timesteps = run[:-1].float()
        self.num_inference_steps = len(run) - 1
        self.ets = []
        self._step_index = self._begin_index = None

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas, least = self._levels(), least_signal(self.numerics)

        def build(place: Any) -> Entry:
            i, known, a, a1 = place
            within(i, sigmas)
            s, s1 = float(sigmas[i]), float(sigmas[i + 1])
            older: tuple[float, ...] = ()
            if a == 0 and least == 0:  # x / a is infinite: x' = a' d + s' n is the same line
                move = Weights(d=a1, n=s1)
            else:
                x = a1 / max(a, least)
                now, *past = ((s1 - x * s) * w for w in EQUAL[known])
                older = tuple(past)
                move = Weights(x=x, n=now, h=older)
            numbers = convert("v_prediction", a, s)
            return Entry(encode(Row(move, (NOISE,)), numbers), draw=False, reads=len(older))

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        self._state.others.clear()  # a schedule is read again whole
        return None

    def _place(self, i: int, known: int) -> tuple[int, int, float, float]:
        alphas = self._others("alphas")
        if i + 1 >= len(alphas):
            return i, known, 1.0, 1.0  # refused with the betas, which are as many
        return i, known, alphas[i], alphas[i + 1]

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, known = place[:2]
        steps = range(i, len(self.betas) - 1)
        return [self._place(j, min(known + j - i, MOST)) for j in steps]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        past = self.ets
        place = self._place(i, min(len(past) + 1, MOST))
        entry = rows[place]
        wide = dtype = promote(sample, model_output)
        reads = entry.reads
        history = past[: -1 - reads : -1] if reads else ()
        for one in history:
            if isinstance(one, Tensor):  # else it is named below
                dtype = torch.promote_types(dtype, one.dtype)
        prev, _, kept = self._apply(
            rows, place, entry, sample, model_output, history, None, dtype, wide, 1
        )
        self.ets = [*past[1 - MOST :], kept[0]]
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


__all__ = ["IPNDMScheduler"]
