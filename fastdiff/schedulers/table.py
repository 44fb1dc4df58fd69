"""TableScheduler: a plan as a scheduler, for tables that no solver of the registry makes.

Learned coefficients (S4S, DyWeight, AdaSDE, ..) are a plan's JSON with `"solver": null`: rows,
timesteps and noise levels, see fastdiff/plan_file.py.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.schedulers.custom import vector
from fastdiff.schedulers.flow_levels import noisy, shiftable
from fastdiff.schedulers.fused import Entry, FusedStep, Place, State, over
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.rows import Rows
from fastdiff.schedulers.table_arguments import (
    check_generator,
    check_noise,
    check_steps,
    plan_of,
)
from fastdiff.table import check_rings

LIKE = 1e-5  # of the largest: what pipelines hand over went through float32, and through a shift


class TableScheduler(FusedStep, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A drop-in scheduler that runs the rows of a plan, one fused step each.

    table            a fastdiff.Plan, the file that Plan.save wrote, or its JSON as a dict (as a
                     saved pipeline has it in scheduler_config.json)
    use_flow_sigmas  whether its levels are those of a flow, which the table itself tells; in the
                     config for pipelines (Flux) that ask

    Raises ValueError that names the field of the plan, what it got and what would do; also for a
    plan with guidance: a pipeline guides by itself.
    """

    order = 1
    numerics = "exact"
    plan: Plan

    def __init__(
        self,
        table: Plan | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        use_flow_sigmas: bool | None = None,
    ):
        self.plan = plan = plan_of(table)
        whole = bool((plan.timesteps == np.round(plan.timesteps)).all())
        # of a flow alpha + sigma = 1; Flux passes no levels of its own where the config says so
        self.flow = bool(np.allclose(plan.alpha + plan.sigma, 1, rtol=0, atol=LIKE))
        if use_flow_sigmas not in (None, self.flow):
            raise ValueError(
                f"use_flow_sigmas must be {self.flow} for this table, or None; got "
                f"{use_flow_sigmas!r}"
            )
        self.register_to_config(table=json.loads(plan.to_json()), use_flow_sigmas=self.flow)
        self._times = torch.tensor(plan.timesteps, dtype=torch.int64 if whole else torch.float32)
        self.timesteps = self._times
        self.init_noise_sigma = plan.noise_scale
        self._scales = (plan.c_in, *plan.rows[:, 0, -1 - plan.keeps].tolist())
        self._slots = plan.rows[:, 0, plan.rows.shape[2] - plan.keeps :].astype(int).tolist()
        self._ring: list[Tensor] = []
        self.num_inference_steps = None
        self._step_index = self._begin_index = None

    @property
    def step_index(self) -> int | None:
        """Row of the next step; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Row that the run begins with, if a pipeline set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later row (image to image); ValueError where that reads what is not there."""
        rows = self.plan.rows[:, 0]
        try:
            whole = -1 if isinstance(begin_index, bool) else operator.index(begin_index)
        except TypeError:
            whole = -1
        if not 0 <= whole < len(rows):
            raise ValueError(f"begin_index must be in 0 .. {len(rows) - 1}; got {begin_index!r}")
        self._begins_at(whole)
        self._begin_index = whole

    def _begins_at(self, begin_index: int) -> None:
        """Raise unless the table can be run from this row on."""
        rows = self.plan.rows[:, 0]
        try:
            check_rings(rows[begin_index:], self.plan.depths)
        except ValueError as error:
            raise ValueError(
                f"begin_index must be 0 for this table, whose rows read what those before keep; "
                f"got {begin_index}. A table that was made for a later begin would do"
            ) from error

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
        timesteps: ArrayLike | Tensor | None = None,
    ) -> None:
        """Begin a run: its timesteps are the table's, and so is their number.

        What pipelines pass besides must be of the table, to LIKE of the largest; else ValueError:

        sigmas     (N,) or (N + 1,) its levels: sigma of a flow, sigma / alpha of another model;
                   of a flow also what exp(mu) shifts to them, s -> s e^mu / (1 + (e^mu - 1) s)
        mu         that shift; without sigmas it has no effect, as the levels are there already
        timesteps  (N,) its timesteps
        """
        check_steps(num_inference_steps, self.plan.steps)
        if sigmas is not None and timesteps is not None:
            raise ValueError("pass timesteps or sigmas, not both; got both")
        if mu is not None and not self.flow:
            raise ValueError(f"mu must be None: the levels of this table are of no flow; got {mu}")
        if mu is not None:
            shiftable(mu, "exponential")
        if sigmas is not None:
            self._own_sigmas(vector("sigmas", sigmas), mu)
        if timesteps is not None:
            given, own = vector("timesteps", timesteps), self.plan.timesteps
            if not _alike(given, own):
                raise ValueError(
                    f"timesteps must be those of the table, {_few(own)}; got {_few(given)}. Leave "
                    "them out, or make a table for them: fastdiff.plan(.., spacing=timesteps)"
                )
        self.num_inference_steps = self.plan.steps
        self._step_index = self._begin_index = None
        self._ring = []
        self.timesteps = self._times
        self._place_timesteps(device)

    def _own_sigmas(self, given: NDArray[np.float64], mu: float | None) -> None:
        """Raise unless sigmas, as they are or shifted by exp(mu), are the levels of the table."""
        own = self._ratios()
        shifts = [1.0] if mu is None else [1.0, float(np.exp(mu))]
        for shift in shifts:
            levels = shift * given / (1 + (shift - 1) * given)
            if _alike(levels, own[: len(levels)]) and len(levels) in (len(own) - 1, len(own)):
                return
        name = "sigma" if self.flow else "sigma / alpha"
        raise ValueError(
            f"sigmas must be the levels of the table ({name}), {_few(own)}, the last one at will; "
            f"got {_few(given)}{'' if mu is None else f' and mu={mu:g}'}. Pass those "
            "(pipe(.., sigmas=..)), or make a table for yours: fastdiff.plan(.., spacing=sigmas)"
        )

    def _ratios(self) -> NDArray[np.float64]:
        """The levels as pipelines pass them, (N + 1,)."""
        alpha, sigma = self.plan.alpha, self.plan.sigma
        if self.flow:
            return sigma
        return np.divide(sigma, alpha, out=np.full_like(sigma, np.inf), where=alpha > 0)

    def _ready(self) -> tuple[State, Rows]:
        state = self._state
        if state.rows is None:
            state.rows = Rows(self._builder())
        return state, state.rows

    def _builder(self) -> Callable[[Place], Entry]:
        plan = self.plan

        def build(place: Any) -> Entry:
            numbers, draws = plan.rows[place, 0].copy(), bool(plan.draw[place])
            return Entry(numbers, draw=draws, reads=plan.history)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        return range(place, self.plan.steps)

    def _index(self, timestep: Any) -> int:
        """The row of the next step; a run starts with the first question."""
        if self._step_index is None:
            self._init_step_index(timestep)
            if self._begin_index is None and self._step_index:
                begin, self._step_index = self._step_index, None
                self._begins_at(begin)
                self._step_index = begin
            self._ring = []
        i: int = self._step_index  # type: ignore[assignment]
        if i >= self.plan.steps:
            raise over(i, self.plan.steps)
        return i

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network gets: c_in * sample, in the sample's dtype."""
        scale = self._scales[self._index(timestep)]
        return sample if scale == 1 else sample * scale

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma n, (B, *shape), at the levels of timesteps (B,) of the table.

        Inside a run with a begin the level is that of the next step, as in diffusers.
        """
        given = check_noise(original_samples, noise, timesteps)
        if self._begin_index is None:
            found = [self._index_of(t) for t in given]
            if None in found:
                raise ValueError(
                    f"timesteps must be of scheduler.timesteps, {self.plan.timesteps.tolist()}; "
                    f"got {given.tolist()}"
                )
            at = [i for i in found if i is not None]
        else:
            here = self._begin_index if self._step_index is None else self._step_index
            at = [here] * len(given)
        alpha, sigma = (
            torch.tensor(levels[at], dtype=torch.float32)
            .to(original_samples.device, original_samples.dtype)
            .reshape(-1, *[1] * (original_samples.ndim - 1))
            for levels in (self.plan.alpha, self.plan.sigma)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """add_noise with the arguments of a flow's pipeline: alpha x_0 + sigma n, (B, *shape)."""
        noisy(self, sample, timestep, noise)
        assert noise is not None
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One row, (B, *shape) -> (B, *shape) in the dtype of sample + model_output; x_0 and what
        is kept are float32 (float64 where one of the two is)."""
        dtype = promote(sample, model_output)
        check_generator(generator)
        i = self._index(timestep)
        if self._ring and self._ring[0].shape != sample.shape:
            raise ValueError(
                "sample must have the shape of the steps before, whose vectors this one reads, "
                f"{tuple(self._ring[0].shape)}; got {tuple(sample.shape)}. Another run begins with "
                "set_timesteps"
            )
        rows = self._ready()[1]
        entry = rows[i]
        wide = torch.promote_types(dtype, torch.float32)
        ring = self._ring
        if len(ring) != self.plan.history:
            ring = [torch.empty_like(sample, dtype=wide) for _ in range(self.plan.history)]
        noise = self._draw(model_output, generator, wide, i) if entry.draw else None
        prev, x0, kept = self._apply(
            rows, i, entry, sample, model_output, ring, noise, dtype, wide, self.plan.keeps
        )
        for slot, made in zip(self._slots[i], kept, strict=True):
            if slot >= 0:
                ring[slot] = made
        self._ring, self._step_index = ring, i + 1
        if not return_dict:
            return prev, x0
        return DDIMSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


def _alike(given: NDArray[np.float64], own: NDArray[np.float64]) -> bool:
    return given.shape == own.shape and bool((np.abs(given - own) <= LIKE * own.max()).all())


def _few(values: NDArray[np.float64]) -> str:
    """The numbers, those in the middle left out where they are many."""
    shown = [f"{v:.6g}" for v in values]
    return f"[{', '.join(shown if len(shown) < 9 else [*shown[:4], '..', *shown[-3:]])}]"


TableScheduler.__module__ = "fastdiff"  # a saved pipeline names the package, no file in it

__all__ = ["TableScheduler"]
