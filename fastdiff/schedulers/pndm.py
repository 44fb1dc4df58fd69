"""PNDMScheduler of diffusers, its step fused: PLMS, or a Runge-Kutta start of twelve calls and then
linear multistep.

    x' = (a' / a) X + a' (sh' - sh) n,    sh = sigma / alpha

with n the predicted noise of a combination of raw outputs, X the sample or the one that the step
began with.  diffusers combines what the network returned and takes the noise out of the sum (a v is
turned once, with X), so what is kept is the raw output.

A step goes from t to t - T // n in "faithful", as in diffusers, also where the spacing is another;
"exact", and custom timesteps, go to the next entry of `timesteps` (schedulers/quirks.py).  A run of
those that begins later finds its calls as a whole run makes them: within a Runge-Kutta step it goes
by single steps to where the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import without_shift
from fastdiff.schedulers.fused import Entry, Place, Rows, over
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.stateless import ByTimestep, step_grid
from fastdiff.solvers.adams import EQUAL, MOST
from fastdiff.solvers.row import Row, Weights
from fastdiff.table import encode

PREDICTIONS = ("epsilon", "v_prediction")
RAW = Conversion(0.0, 1.0, 0.0, 1.0)  # nothing asks for x_0; n stands for the raw output
RUNGE_KUTTA = 12  # calls: three steps of four
BOTH = (0.5, 0.5)
OUTPUT = (1.0,)  # a copy: the network may use its memory again


class Combination(NamedTuple):
    """Weights of the raw output of this call, then of history; of the slope, and of what is kept.

    stored  the step begins with the last vector of history, not with the sample
    """

    slope: tuple[float, ...]
    kept: tuple[tuple[float, ...], ...] = ()
    stored: bool = False


class PNDMScheduler(ByTimestep, diffusers.PNDMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.PNDMScheduler; arXiv:2202.09778.

    Configuration, attributes and dtypes as there: `counter` says which call is next, `ets` holds
    raw outputs, newest last, `cur_model_output` and `cur_sample` what a step is made from.
    """

    _reads = ("prediction_type", "num_train_timesteps", "skip_prk_steps")
    counter: int
    cur_model_output: Any
    cur_sample: Tensor | None
    ets: list[Any]
    final_alpha_cumprod: Tensor
    prk_timesteps: NDArray[Any]
    plms_timesteps: NDArray[Any]
    _timesteps: NDArray[Any]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run of N steps, N + 1 calls, or N + 9 with the Runge-Kutta start;
        as diffusers, plus custom ones.

        timesteps  (N,) whole numbers, descending
        sigmas     (N,) descending sigma / alpha; the nearest trained timesteps are taken
        mu         refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        custom = self._custom_timesteps(num_inference_steps, timesteps, sigmas)
        steps = num_inference_steps if custom is None else len(custom)
        assert steps is not None
        least = 1 if self.config.skip_prk_steps else 4
        if not least <= steps <= self.config.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be {least} .. {self.config.num_train_timesteps} with "
                f"skip_prk_steps={self.config.skip_prk_steps}; got {steps}"
            )
        if custom is None:
            super().set_timesteps(steps)
            ascending = self._timesteps.astype(np.int64)
        else:
            self._timesteps = ascending = custom[::-1].copy()
            self.num_inference_steps = steps
            self.ets, self.counter, self.cur_model_output = [], 0, 0
        self._by_stride = custom is None
        if custom is not None or self.numerics == "exact":
            self._arrange(ascending[::-1])
        self._place_timesteps(device)

    def _arrange(self, times: NDArray[np.int64]) -> None:
        """The calls of a run over these times (N,): the second one twice, or Runge-Kutta's."""
        if self.config.skip_prk_steps:
            self.prk_timesteps = np.array([])
            self.plms_timesteps = np.concatenate([times[:2], times[1:]])
        else:
            first, last = times[:3], times[1:4]
            half = last + (first - last) // 2
            self.prk_timesteps = np.stack([first, half, half, last], axis=1).reshape(-1)
            self.plms_timesteps = times[3:].copy()
        calls = np.concatenate([self.prk_timesteps, self.plms_timesteps]).astype(np.int64)
        self.timesteps = torch.from_numpy(calls)

    def _builder(self) -> Callable[[Place], Entry]:
        levels, prediction = self._levels(), self._config["prediction_type"]

        def build(place: Any) -> Entry:
            weights, t, prev, final = place
            if prediction not in PREDICTIONS:
                raise ValueError(
                    f"prediction_type must be {' or '.join(PREDICTIONS)}; got {prediction!r}"
                )
            if not 0 <= t < len(levels):
                raise ValueError(
                    f"timestep must leave the step within 0 .. {len(levels) - 1}; it would begin "
                    f"at {t}"
                )
            grid = step_grid(levels, t, prev, final)
            a, a1 = float(grid.alpha[0]), float(grid.alpha[1])
            if a == 0:
                raise ValueError(
                    "alphas_cumprod must be above 0 where a step begins; it has no signal at "
                    f"timestep {t}"
                )
            start, length = a1 / a, -grid.cross(0, 1) / a
            if prediction == "v_prediction":  # n = a v + s X
                start, length = start + length * float(grid.sigma[0]), length * a
            now, *past = (length * w for w in weights.slope)
            last = (start,) if weights.stored else ()
            move = Weights(0.0 if last else start, n=now, h=(*past, *last))
            keep = []
            for share, *before in weights.kept:
                rest = len(move.h) - len(before)
                keep.append(Weights(n=share, h=(*before, *(0.0,) * rest)))
            return Entry(encode(Row(move, tuple(keep)), RAW), draw=False, reads=len(move.h))

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        """How far diffusers steps: T."""
        return config["num_train_timesteps"]

    # ---- which step a call is -----------------------------------------------------------------

    def _index(self, t: int, index: int | None) -> int | None:
        """Where in `timesteps` a call stands; by value, of equal ones at the counter's.  None if
        every step is one stride."""
        if self._strides():
            return None
        if index is None:
            times = self._timestep_values() if isinstance(self.timesteps, Tensor) else []
            there = [i for i, value in enumerate(times) if value == t]
            index = self.counter if self.counter in there else next(iter(there), None)
        return index

    def _strides(self) -> bool:
        return self.numerics == "faithful" and bool(self.__dict__.get("_by_stride", True))

    def _next(self, index: int) -> int:
        times = self._timestep_values()
        return int(times[index + 1]) if index + 1 < len(times) else -1

    def _place(self, weights: Combination, t: int, prev: int) -> Place:
        # the last level by value, since anybody may replace it or write to it
        return weights, t, max(prev, -1), None if prev >= 0 else float(self.final_alpha_cumprod)

    def _prk(self, counter: int, t: int, index: int | None, left: bool, stored: bool) -> Place:
        """The place of a Runge-Kutta call; left: there is a sum of slopes, stored: a start."""
        part = counter % 4
        stride = self._state.facts // (self.num_inference_steps or 1)
        if counter >= len(self.prk_timesteps):
            raise over(counter, len(self.prk_timesteps))
        if self._strides() or index is None:
            prev = t if part % 2 else t - stride // 2
        elif part and not left:  # the run began within this step
            return self._place(Combination(OUTPUT), t, self._next(index))
        else:
            prev = t if part % 2 else self._next(index)
        begins = int(self.prk_timesteps[counter // 4 * 4])
        share, before = (1 / 6, 1 / 3, 1 / 3, 1 / 6)[part], (1.0,) if left else ()
        if part == 3:
            weights = Combination((share, *before), stored=stored)
        else:
            kept = ((share, *before), OUTPUT)[: 1 if part else 2]
            weights = Combination((1.0, *(0.0 for _ in before)), kept, stored)
        return self._place(weights, begins, prev)

    def _again(self, counter: int, index: int | None) -> bool:
        """Whether a call is the second one of the first step, whose output is not kept."""
        if counter != 1:
            return False
        # a run that begins elsewhere has no timestep twice; diffusers takes the next one for it
        return self._strides() or index in (1, None)

    def _plms(self, counter: int, t: int, index: int | None, known: int) -> Place:
        """The place of a multistep call with `known` raw outputs of calls before."""
        stride = self._state.facts // (self.num_inference_steps or 1)
        if self._again(counter, index):
            begins = t + stride
            if not self._strides() and index == 1:
                begins = int(self._timestep_values()[0])
            if known == 1:
                return self._place(Combination(BOTH, stored=True), begins, t)
            return self._place(Combination((0.0, *EQUAL[min(known, MOST)])), begins, t)
        prev = t - stride if self._strides() or index is None else self._next(index)
        return self._place(Combination(EQUAL[min(known + 1, MOST)], (OUTPUT,)), t, prev)

    def _ahead(self, place: Any) -> Iterable[Place]:
        times = [int(t) for t in self._timestep_values()]
        left, stored, known = _is(self.cur_model_output), _is(self.cur_sample), len(self.ets)
        counter, first = self.counter, None
        places: list[Place] = []
        for i, t in enumerate(times):
            prk = counter < len(self.prk_timesteps)
            here: Any
            if prk:
                here = self._prk(counter, t, i, left, stored and counter % 4 > 0)
            elif known or counter != 1:
                here = self._plms(counter, t, i, known)
            else:
                break
            if first is None and here != place:
                continue
            first = i if first is None else first
            places.append(here)
            known += int(counter % 4 == 0 if prk else not self._again(counter, i))
            left, stored, counter = (prk and bool(here[0].kept)), True, counter + 1
        return places or [place]

    # ---- the step -----------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One call, (B, *shape) -> (B, *shape): step_prk while the start lasts, then step_plms."""
        self._begun(timestep)
        first = self.counter < len(self.prk_timesteps) and not self.config.skip_prk_steps
        call = self.step_prk if first else self.step_plms
        return call(model_output, timestep, sample, return_dict)

    def step_prk(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One call of the Runge-Kutta start; as diffusers, in one pass over memory."""
        self._begun(timestep)
        _, rows = self._ready()
        counter, total = self.counter, self.cur_model_output
        part, left = counter % 4, _is(total)
        start = self.cur_sample if part and self.cur_sample is not None else None
        t, index = self._time(timestep)
        place = self._prk(counter, t, self._index(t, index), left, start is not None)
        history = [total] if left else []
        prev, kept = self._combine(rows, place, model_output, sample, history, start)
        if part == 0:
            self.ets.append(kept[1].to(model_output.dtype))
            self.cur_sample = sample
        self.cur_model_output = kept[0] if part < 3 and len(kept) else 0
        self.counter = counter + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)

    def step_plms(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One multistep call; as diffusers, in one pass over memory."""
        self._begun(timestep)
        past, counter = self.ets, self.counter
        whole = self._strides() or counter < len(self.prk_timesteps)
        if whole and not self.config.skip_prk_steps and len(past) < 3:
            raise ValueError(
                f"step_plms needs three raw outputs in ets; got {len(past)}. Run the "
                f"{RUNGE_KUTTA} calls of step_prk first, or set skip_prk_steps=True"
            )
        _, rows = self._ready()
        t, index = self._time(timestep)
        index = self._index(t, index)
        again, start = self._again(counter, index), None
        if again:
            if not past or (len(past) == 1 and self.cur_sample is None):
                raise ValueError(
                    "ets and cur_sample must hold what the first call left for the second; got "
                    f"{len(past)} outputs and {type(self.cur_sample).__name__}"
                )
            history = past[: -1 - MOST : -1]
            start = self.cur_sample if len(past) == 1 else None
        else:
            history = past[:-MOST:-1]
        place = self._plms(counter, t, index, len(history))
        prev, kept = self._combine(rows, place, model_output, sample, history, start)
        if start is not None:
            self.cur_sample = None
        elif not again:
            if not past and counter == 0:
                self.cur_sample = sample
            self.ets = [*past[1 - MOST :], kept[0]]
        self.counter = counter + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)

    def _begun(self, timestep: Any) -> None:
        """Before a call: raise without a run; where one begins later, count what it left out."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if self.config.skip_prk_steps or self._strides():
            return
        if not self.ets and not _is(self.cur_model_output):  # no call has left anything yet
            t, index = self._time(timestep)
            self.counter = self._index(t, index) or 0

    def _combine(
        self,
        rows: Rows,
        place: Any,
        model_output: Tensor,
        sample: Tensor,
        outputs: list[Any],
        start: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """(next sample, what is kept) of a place; start: what the step begins with, if not the
        sample."""
        weights = place[0]
        promote(sample, model_output)  # names what is no tensor
        wide = model_output.dtype
        for one in outputs:
            if isinstance(one, Tensor):  # else it is named below
                wide = torch.promote_types(wide, one.dtype)
        began = sample if start is None else start
        dtype = torch.promote_types(wide, began.dtype)
        history = outputs if start is None else [*outputs, start]
        if weights.kept == (OUTPUT,):
            wide = model_output.dtype
        prev, _, kept = self._apply(
            rows, place, rows[place], sample, model_output, history, None, dtype, wide,
            len(weights.kept),
        )  # fmt: skip
        return prev, kept


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


__all__ = ["PNDMScheduler"]
