"""min over p of |end(plan(p)) - target|^2: Gauss-Newton with Levenberg-Marquardt damping.

    (J^T J + mu diag(J^T J)) d = -J^T r

J by forward differences: a number of row i changes nothing before row i, so its column costs the
calls of the rows after it.  More 1963; Nocedal & Wright, Numerical Optimization, section 10.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.tune.rollout import Trace, rollout
from fastdiff.tune.subject import Network

Floats = NDArray[np.float64]
DAMPING, EASIER, HARDER = 1e-2, 0.2, 5.0
TRIES = 8  # of a larger damping before a minimum is believed
ENOUGH = 1e-3  # of the distance: an iteration that gains less is the last


@dataclass
class Batch:
    """One batch of the fit."""

    network: Network
    noise: Tensor
    target: Tensor
    trace: Trace | None = None


@dataclass
class State:
    """Where a fit is: parameters, damping, RMS distance after each iteration, calls so far.

    A call is one of the network for one sample.
    """

    values: Floats
    history: list[float]
    damping: float = DAMPING
    calls: int = 0
    done: bool = False


def fit(
    make: Callable[[Floats], Plan],
    batches: list[Batch],
    state: State,
    deltas: Floats,
    *,
    iterations: int,
    after: Callable[[State], None] = lambda state: None,
) -> State:
    """Go on from a state until `iterations` are done or an iteration gains nothing worth it.

    make    parameters -> plan; ValueError where there is none, which is then a step too far
    deltas  (parameters,) of the differences
    after   called after every iteration, to save it
    """
    for batch in batches:
        batch.trace = rollout(batch.network, batch.noise, make(state.values))
        state.calls += batch.trace.calls * len(batch.noise)
    state.history = state.history or [_distance(batches)]
    while len(state.history) <= iterations and not state.done:
        normal, gradient = _equations(make, batches, state, deltas)
        before, found = state.history[-1], False
        for _ in range(TRIES):
            step = np.linalg.solve(
                normal + state.damping * np.diag(np.maximum(np.diag(normal), 1e-12)), -gradient
            )
            found = _taken(make, batches, state, state.values + step)
            if found:
                state.damping *= EASIER
                break
            state.damping *= HARDER
        state.history.append(_distance(batches))
        state.done = not found or state.history[-1] > (1 - ENOUGH) * before
        after(state)
    return state


def _taken(
    make: Callable[[Floats], Plan], batches: list[Batch], state: State, values: Floats
) -> bool:
    """Whether these parameters are nearer; if so they are the state's, and their traces kept."""
    try:
        plan = make(values)
    except ValueError:
        return False
    traces = [rollout(b.network, b.noise, plan, b.trace) for b in batches]
    state.calls += sum(t.calls * len(b.noise) for t, b in zip(traces, batches, strict=True))
    now = _rms([t.end for t in traces], batches)
    if not now < _distance(batches):  # not of NaN
        return False
    state.values = values
    for batch, trace in zip(batches, traces, strict=True):
        batch.trace = trace
    return True


def _equations(
    make: Callable[[Floats], Plan], batches: list[Batch], state: State, deltas: Floats
) -> tuple[Floats, Floats]:
    """J^T J and J^T r over all batches, in float64."""
    count = len(state.values)
    normal, gradient = np.zeros((count, count)), np.zeros(count)
    moved, signs = [], []
    for p, delta in enumerate(deltas):
        for sign in (1.0, -1.0):  # backwards where forwards leaves what a plan may hold
            values = state.values.copy()
            values[p] += sign * delta
            try:
                moved.append(make(values))
            except ValueError:
                if sign < 0:
                    raise
                continue
            signs.append(sign * delta)
            break
    for batch in batches:
        assert batch.trace is not None
        columns = []
        for plan, delta in zip(moved, signs, strict=True):
            trace = rollout(batch.network, batch.noise, plan, batch.trace)
            state.calls += trace.calls * len(batch.noise)
            columns.append(((trace.end - batch.trace.end).double() / delta).reshape(-1))
        jacobian = torch.stack(columns)
        residual = (batch.trace.end - batch.target).double().reshape(-1)
        normal += (jacobian @ jacobian.T).numpy()
        gradient += (jacobian @ residual).numpy()
    return normal, gradient


def _distance(batches: list[Batch]) -> float:
    return _rms([b.trace.end for b in batches if b.trace is not None], batches)


def _rms(ends: list[Tensor], batches: list[Batch]) -> float:
    squares = sum(
        float((end.double() - b.target.double()).square().sum())
        for end, b in zip(ends, batches, strict=True)
    )
    return float((squares / sum(b.target.numel() for b in batches)) ** 0.5)
