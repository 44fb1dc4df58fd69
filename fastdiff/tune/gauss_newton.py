"""min over p of the mean over samples of rho(d): Gauss-Newton with Levenberg-Marquardt damping.

    d = RMS of r = end(plan(p)) - target of one sample
    rho(d) = 2 c^2 ((1 + d^2 / c^2)^{1/2} - 1),  w = (1 + d^2 / c^2)^{-1/2}
    (J^T w J + mu diag(J^T w J)) step = -J^T w r

rho is d^2 for d below c, the median where the fit began, and linear far above: a few samples that
fall to another side of a decision of the network have derivatives as large as their distance, and
plain squares would fit those few alone (pseudo-Huber; Charbonnier et al. 1997).
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
    """Where a fit is: parameters, rho's mean^{1/2} after each iteration, damping, calls so far, c.

    A call is one of the network for one sample.
    """

    values: Floats
    history: list[float]
    damping: float = DAMPING
    calls: int = 0
    done: bool = False
    scale: float = 0.0


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
    ends = [b.trace.end for b in batches if b.trace is not None]
    if not state.history:
        state.scale = float(torch.cat(_distances(ends, batches)).median())
        state.history = [_robust(ends, batches, state.scale)]
    while len(state.history) <= iterations and not state.done:
        normal, gradient = _equations(make, batches, state, deltas)
        before = now = state.history[-1]
        for _ in range(TRIES):
            step = np.linalg.solve(
                normal + state.damping * np.diag(np.maximum(np.diag(normal), 1e-12)), -gradient
            )
            now = _tried(make, batches, state, state.values + step)
            if now < before:
                state.damping *= EASIER
                break
            state.damping *= HARDER
        state.history.append(min(now, before))
        state.done = not now <= (1 - ENOUGH) * before
        after(state)
    return state


def _tried(
    make: Callable[[Floats], Plan], batches: list[Batch], state: State, values: Floats
) -> float:
    """The distance at these parameters; where it is less they are the state's, traces and all."""
    try:
        plan = make(values)
    except ValueError:
        return float("inf")
    traces = [rollout(b.network, b.noise, plan, b.trace) for b in batches]
    state.calls += sum(t.calls * len(b.noise) for t, b in zip(traces, batches, strict=True))
    now = _robust([t.end for t in traces], batches, state.scale)
    if now < state.history[-1]:
        state.values = values
        for batch, trace in zip(batches, traces, strict=True):
            batch.trace = trace
        return now
    return float("inf")  # of NaN, too


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
        end = batch.trace.end
        (distances,) = _distances([end], [batch])
        weights = (1 + (distances / (state.scale or 1.0)) ** 2).pow(-0.25)[:, None]  # w^{1/2}
        columns = []
        for plan, delta in zip(moved, signs, strict=True):
            trace = rollout(batch.network, batch.noise, plan, batch.trace)
            state.calls += trace.calls * len(batch.noise)
            column = (trace.end - end).double().flatten(1) / delta
            columns.append((weights * column).reshape(-1))
        jacobian = torch.stack(columns)
        residual = (weights * (end - batch.target).double().flatten(1)).reshape(-1)
        normal += (jacobian @ jacobian.T).numpy()
        gradient += (jacobian @ residual).numpy()
    return normal, gradient


def _distances(ends: list[Tensor], batches: list[Batch]) -> list[Tensor]:
    """RMS of each sample, (B,) float64, of each batch."""
    return [
        (end.double() - b.target.double()).flatten(1).square().mean(1).sqrt()
        for end, b in zip(ends, batches, strict=True)
    ]


def _robust(ends: list[Tensor], batches: list[Batch], scale: float) -> float:
    """The mean of rho over all samples, its root."""
    d = torch.cat(_distances(ends, batches))
    if scale == 0:  # the fit began at the target
        return float(d.square().mean().sqrt())
    return float((2 * scale**2 * ((1 + (d / scale) ** 2).sqrt() - 1)).mean().sqrt())
