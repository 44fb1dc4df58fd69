"""TableScheduler: a plan as a scheduler, for tables that no solver of the registry makes.

Learned coefficients (S4S, DyWeight, AdaSDE, ..) are a plan's JSON with `"solver": null`: rows,
timesteps and noise levels, see fastdiff/plan_file.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.schedulers.fused import Entry, FusedStep, Place, State, draw, over, promote
from fastdiff.schedulers.rows import Rows
from fastdiff.table import check_rings


class TableScheduler(FusedStep, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A drop-in scheduler that runs the rows of a plan, one fused step each.

    table  a fastdiff.Plan, the file that Plan.save wrote, or its JSON as a dict (as a saved
           pipeline has it in scheduler_config.json)

    Raises ValueError that names the field of the plan, what it got and what would do; also for a
    plan with guidance: a pipeline guides by itself.
    """

    order = 1
    numerics = "exact"
    plan: Plan

    def __init__(self, table: Plan | str | os.PathLike[str] | Mapping[str, Any] | None = None):
        self.plan = plan = _plan(table)
        self.register_to_config(table=json.loads(plan.to_json()))
        whole = bool((plan.timesteps == np.round(plan.timesteps)).all())
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
        fine = isinstance(begin_index, int) and 0 <= begin_index < len(rows)
        if not fine:
            raise ValueError(f"begin_index must be in 0 .. {len(rows) - 1}; got {begin_index!r}")
        try:
            check_rings(rows[begin_index:], self.plan.depths)
        except ValueError as error:
            raise ValueError(
                f"begin_index must be 0 for this table, whose rows read what those before keep; "
                f"got {begin_index}. A table that was made for a later begin would do"
            ) from error
        self._begin_index = begin_index

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Begin a run: its timesteps are the table's, and so is their number."""
        if num_inference_steps not in (None, self.plan.steps):
            raise ValueError(
                f"num_inference_steps must be {self.plan.steps}, the rows of the table, or None; "
                f"got {num_inference_steps!r}"
            )
        self.num_inference_steps = self.plan.steps
        self._step_index = self._begin_index = None
        self._ring = []
        self.timesteps = self._times
        self._place_timesteps(device)

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
                self.set_begin_index(begin)
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
        for name, value in (("original_samples", original_samples), ("noise", noise)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor (B, *shape); got {type(value).__name__}")
        given = torch.as_tensor(timesteps).reshape(-1)
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
        i = self._index(timestep)
        rows = self._ready()[1]
        entry = rows[i]
        wide = torch.promote_types(dtype, torch.float32)
        if len(self._ring) != self.plan.history:
            self._ring = [torch.empty_like(sample, dtype=wide) for _ in range(self.plan.history)]
        noise = draw(model_output, generator, wide) if entry.draw else None
        prev, x0, kept = self._apply(
            rows, i, entry, sample, model_output, self._ring, noise, dtype, wide, self.plan.keeps
        )
        for slot, vector in zip(self._slots[i], kept, strict=True):
            if slot >= 0:
                self._ring[slot] = vector
        self._step_index = i + 1
        if not return_dict:
            return prev, x0
        return DDIMSchedulerOutput(prev_sample=prev, pred_original_sample=x0)


def _plan(table: object) -> Plan:
    """The plan that a table is or holds, if a scheduler can run it."""
    if isinstance(table, (str, os.PathLike)):
        plan = Plan.load(os.fspath(table))
    elif isinstance(table, Mapping):
        plan = Plan.from_json(json.dumps(dict(table)))
    elif isinstance(table, Plan):
        plan = table
    else:
        raise ValueError(
            "table must be a fastdiff.Plan, the path of a file that Plan.save wrote, or its JSON "
            f"as a dict; got {type(table).__name__}"
        )
    if plan.guided:
        raise ValueError(
            "guided of the table must be false: a pipeline guides by itself, and hands step one "
            "output; got true. Make the plan without guidance"
        )
    if plan.rows.shape[1] != 1:
        raise ValueError(
            "rows of the table must have shape (N, 1, K), the same for every sample; got "
            f"{plan.rows.shape}"
        )
    return plan


TableScheduler.__module__ = "fastdiff"  # a saved pipeline names the package, no file in it

__all__ = ["TableScheduler"]
