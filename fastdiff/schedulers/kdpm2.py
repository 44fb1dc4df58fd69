"""KDPM2DiscreteScheduler and KDPM2AncestralDiscreteScheduler of diffusers, both calls fused.

Between two levels lies a third, `sigmas_interpol`, where the second call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import (
    KDPM2AncestralDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.schedulers.custom import (
    one_run,
    sigmas_to_run,
    times_to_run,
    without_shift,
)
from fastdiff.schedulers.fused import Entry, Place, over
from fastdiff.schedulers.models import of_betas
from fastdiff.schedulers.two_calls import TwoCalls
from fastdiff.solvers.euler import euler
from fastdiff.solvers.kdpm2 import split
from fastdiff.solvers.row import Grid, Row, Weights
from fastdiff.table import conversion, encode


class Middle(TwoCalls):
    """What the two share: a place says from where to where, (i, to) or (i, from, at, to, up)."""

    sigmas_interpol: Tensor
    _reads = ("prediction_type", "timestep_spacing")
    _eta = 0.0  # of custom levels, 1: ancestral

    def _stock_timesteps(self, steps: int, trained: int | None) -> None:
        """diffusers' own set_timesteps, on the host."""
        raise NotImplementedError

    def _set_run(
        self,
        steps: int | None,
        device: str | torch.device | None,
        trained: int | None,
        timesteps: ArrayLike | Tensor | None,
        sigmas: ArrayLike | Tensor | None,
        mu: float | None,
    ) -> None:
        without_shift(self, mu)
        one_run(steps, timesteps, sigmas)
        if timesteps is None and sigmas is None:
            assert steps is not None
            self._stock_timesteps(steps, trained)
        else:
            if sigmas is not None:
                levels, times = sigmas_to_run(sigmas, steps, self.alphas_cumprod)
            else:
                assert timesteps is not None
                levels, times = times_to_run(timesteps, steps, self.alphas_cumprod)
            self._stock_timesteps(len(times), trained)  # whatever else it sets
            self._set_levels(levels.astype(np.float64), times)
        if str(device).startswith("mps"):
            self.timesteps = self.timesteps.float()
        # the levels stay on the host, where they are read; diffusers keeps some on the device
        self._place_timesteps(device)

    def _sigma_to_t(self, sigma: Any, log_sigmas: Any) -> Any:
        """As diffusers, bit by bit; a level in a tensor without a second for a thousand of them."""
        if isinstance(sigma, Tensor) and isinstance(log_sigmas, Tensor):
            return time_between(sigma, log_sigmas)
        base: Any = super()
        return base._sigma_to_t(sigma, log_sigmas)

    def _set_levels(self, levels: NDArray[np.float64], times: NDArray[Any]) -> None:
        """Levels (N + 1,) and times (N,) in the order in which diffusers holds them."""
        found = [split(a, b, (a - b) * (a + b), self._eta) for a, b in pairwise(levels)]
        downs, ups = (np.array(v) for v in zip(*found, strict=True))
        between = np.sqrt(levels[:-1] * downs)
        between[-1] = levels[-1]  # the last step is one call
        known = np.log(np.asarray(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5))
        middle = np.interp(np.log(between[:-1]), known, np.arange(len(known)))
        self.timesteps = torch.from_numpy(
            np.concatenate([times[:1], np.stack([middle, times[1:]], axis=1).ravel()])
        ).to(torch.from_numpy(times).dtype)
        self.sigmas = _held(levels)
        self._hold(between, downs, ups)

    def _hold(
        self, between: NDArray[np.float64], downs: NDArray[np.float64], ups: NDArray[np.float64]
    ) -> None:
        """Set the attributes other than sigmas."""
        raise NotImplementedError

    def _builder(self) -> Callable[[Place], Entry]:
        sigmas, prediction = self._levels(), of_betas(self._config["prediction_type"])

        def build(place: Any) -> Entry:
            if len(place) == 2:
                i, to = place
                now, up = float(sigmas[i]), None
                row = Row(euler(Grid(np.ones(2), np.array([now, to])), 0, 0).next)
            else:
                _, begin, now, to, up = place
                row = Row(Weights(n=to - begin, z=up or 0.0, h=(1.0,)))
            grid = Grid(np.ones(2), np.array([now, 0.0]))
            numbers = conversion(prediction, grid, 0, (1 + now**2) ** -0.5, None)
            return Entry(encode(row, numbers), draw=up is not None, reads=len(row.next.h))

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        self._state.others.clear()  # a schedule is read again whole
        return super()._facts(config)

    def _place(self, i: int, first: bool) -> tuple[Any, ...]:
        raise NotImplementedError

    def _noisy(self, i: int, level: float) -> float:
        """A level of step i where the network is called; without noise the run is over."""
        if level == 0:
            raise over(i, len(self.timesteps))
        return level

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, first = place[0], len(place) == 2
        steps = range(i, len(self.timesteps))
        return [place, *(self._place(j, ((j - i) % 2 == 0) == first) for j in steps[1:])]

    def _middle_step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        first = self.sample is None
        if i >= len(self.sigmas):
            raise over(i, len(self.timesteps))
        place = self._place(i, first)
        entry = rows[place]
        kept = None if first else self._left("sample")
        noise = self._draw(model_output, generator, None, i) if entry.draw else None
        prev, x0, _ = self._half(rows, place, entry, model_output, sample, kept, noise)
        self.sample = sample if first else None
        self._step_index = i + 1
        return prev, x0


class KDPM2DiscreteScheduler(Middle, diffusers.KDPM2DiscreteScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.KDPM2DiscreteScheduler; also with prediction_type "sample".

    Configuration, attributes and dtypes as there: a middle between every two timesteps, and
    `sample` holds what the first call leaves for the second.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the 2 N - 1 timesteps of a run of N steps; as diffusers, plus custom ones.

        timesteps  (N,) descending
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (0 if left out)
        mu         refused: there is no flow schedule to shift
        """
        self._set_run(num_inference_steps, device, num_train_timesteps, timesteps, sigmas, mu)

    def _stock_timesteps(self, steps: int, trained: int | None) -> None:
        super().set_timesteps(steps, None, trained)

    def _hold(
        self, between: NDArray[np.float64], downs: NDArray[np.float64], ups: NDArray[np.float64]
    ) -> None:
        self.sigmas_interpol = _held(np.append(0.0, between))

    def _place(self, i: int, first: bool) -> tuple[Any, ...]:
        levels, between = self._state.facts[1], self._others("sigmas_interpol")
        if first:
            self._noisy(i, levels[i])
            return i, between[i + 1]
        return i, levels[i - 1], self._noisy(i, between[i]), levels[i], None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> KDPM2DiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One call of two, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev, x0 = self._middle_step(model_output, timestep, sample, None)
        if not return_dict:
            return prev, x0
        return KDPM2DiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


class KDPM2AncestralDiscreteScheduler(
    Middle,
    diffusers.KDPM2AncestralDiscreteScheduler,  # type: ignore[misc]
):
    """Drop-in for diffusers.KDPM2AncestralDiscreteScheduler; also with prediction_type "sample".

    Configuration, attributes, random numbers and dtypes as there.
    """

    sigmas_up: Tensor
    sigmas_down: Tensor
    _eta = 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the 2 N - 1 timesteps of a run of N steps; as diffusers, plus custom ones.

        timesteps  (N,) descending
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (0 if left out)
        mu         refused: there is no flow schedule to shift
        """
        self._set_run(num_inference_steps, device, num_train_timesteps, timesteps, sigmas, mu)

    def _stock_timesteps(self, steps: int, trained: int | None) -> None:
        super().set_timesteps(steps, None, trained)
        last = len(self.timesteps) - 1
        if not (self.sigmas_interpol[:last:2] > 0).all():
            # sigma_down^2 is a difference of float32 numbers there: 0, or the root of less
            levels = torch.cat([self.sigmas[:1], self.sigmas[1 : last + 2 : 2]])
            self._set_levels(levels.double().numpy(), self.timesteps[::2].numpy())

    def _hold(
        self, between: NDArray[np.float64], downs: NDArray[np.float64], ups: NDArray[np.float64]
    ) -> None:
        self.sigmas_interpol = _held(np.append(between, 0.0))
        self.sigmas_down = _held(np.append(downs, 0.0))
        self.sigmas_up = _held(np.append(ups, 0.0))

    def _place(self, i: int, first: bool) -> tuple[Any, ...]:
        levels, between = self._state.facts[1], self._others("sigmas_interpol")
        if first:
            self._noisy(i, levels[i])
            return i, between[i]
        at = self._noisy(i, between[i - 1])
        down, up = self._others("sigmas_down")[i - 1], self._others("sigmas_up")[i - 1]
        return i, levels[i - 1], at, down, up

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> KDPM2AncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """One call of two, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        prev, x0 = self._middle_step(model_output, timestep, sample, generator)
        if self.sample is not None:  # as diffusers leaves it; nobody reads it
            i: int = self._step_index - 1  # type: ignore[operator]
            self.dt = self._others("sigmas_interpol")[i] - self._state.facts[1][i]
        if not return_dict:
            return prev, x0
        return KDPM2AncestralDiscreteSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


def time_between(sigma: Tensor, log_sigmas: Tensor) -> Tensor:
    """The model time of one level, linear in log sigma; log_sigmas (T,) go up."""
    # NumPy's logarithm, as there: that of PyTorch differs in the last bit
    log = torch.as_tensor(np.log(np.maximum(sigma.numpy(), 1e-10)))
    below = int(torch.searchsorted(log_sigmas, log, right=True)) - 1
    below = min(max(below, 0), len(log_sigmas) - 2)
    low, high = log_sigmas[below], log_sigmas[below + 1]
    w = ((low - log) / (low - high)).clamp(0, 1)
    return (1 - w) * below + w * (below + 1)


def _held(levels: NDArray[np.float64]) -> Tensor:
    """Float32 values as diffusers holds them: the first once, the others twice, the last again."""
    held = np.concatenate([levels[:1], np.repeat(levels[1:], 2), levels[-1:]])
    return torch.from_numpy(held.astype(np.float32))


__all__ = ["KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "time_between"]
