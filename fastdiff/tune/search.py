"""The grid of a solver, then the coefficients of a general table, fitted to end points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.accuracy.contestants import Contestant
from fastdiff.plan import Plan
from fastdiff.tune.gauss_newton import Batch, State, fit
from fastdiff.tune.general import general, parameters, with_parameters
from fastdiff.tune.subject import Start, Subject
from fastdiff.tune.untuned import plan_of

Floats = NDArray[np.float64]
# of a difference: error of first order against float32's rounding, about 1e-6 of an end point
# times go down: the first one is the last that was trained
LEVEL, WEIGHT, TIME = 2e-3, 1e-3, -5e-4


def batches(subject: Subject, start: Start, target: Tensor) -> list[Batch]:
    """The fit's batches."""
    parts = start.parts()
    ends = torch.split(target, [len(part.seeds) for part in parts])
    return [
        Batch(subject.network(part.prompts), subject.noise(part.seeds), end)
        for part, end in zip(parts, ends, strict=True)
    ]


def on_grid(subject: Subject, who: Contestant, steps: int) -> Callable[[Floats], Plan]:
    """log(sigma / alpha) of rows 1 .. N - 1 -> the solver's plan on those levels.

    The first level stays, and the last step ends at the data.
    """
    top = float(_ratios(plan_of(subject, who, steps))[0])

    def make(values: Floats) -> Plan:
        levels = np.array([top, *np.exp(values)])
        if not (np.diff(levels) < 0).all():
            raise ValueError(f"levels must descend; got {levels.tolist()}")
        return subject.plan(who.row or who.solver, steps, levels, **who.options)

    return make


def grid(
    subject: Subject,
    who: Contestant,
    steps: int,
    data: list[Batch],
    *,
    iterations: int,
    saved: State | None,
    after: Callable[[State], Any],
) -> tuple[Plan, State]:
    """A solver on the levels that are best for it, from those of its spacing."""
    make = on_grid(subject, who, steps)
    start = np.log(_ratios(plan_of(subject, who, steps))[1:steps])
    state = saved or State(start, [])
    deltas = np.full(len(start), LEVEL)
    state = fit(make, data, state, deltas, iterations=iterations, after=after)
    return make(state.values), state


def coefficients(
    begin: Plan,
    last_time: float,
    data: list[Batch],
    *,
    iterations: int,
    saved: State | None,
    after: Callable[[State], Any],
) -> tuple[Plan, State]:
    """The general table that is best, from that of a plan; its model times are fitted, too."""
    base = general(begin)
    state = saved or State(parameters(base), [])
    deltas = np.full(len(state.values), WEIGHT)
    deltas[-base.steps :] = TIME

    def make(values: Floats) -> Plan:
        return with_parameters(base, values, last_time)

    state = fit(make, data, state, deltas, iterations=iterations, after=after)
    return make(state.values), state


def _ratios(plan: Plan) -> Floats:
    """sigma / alpha at each row, whatever the solver scales its sample by."""
    return np.asarray(plan.sigma[:-1] / plan.alpha[:-1])
