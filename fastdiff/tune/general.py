"""The most general explicit table of N calls, and any deterministic plan written as one.

    x_{i+1} = c_i x_i + sum_{j <= i} w_ij m_j,   m_j the prediction of x_0 at row j

x_i and every m_j, j < i, lie in the span of the first sample and the outputs, so nothing explicit
is left out: N (N + 3) / 2 numbers.  The model times are N more: a network may do better when it is
told another level than the sample's (LD3, S4S).  One vector is kept, m, in a ring of N - 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan
from fastdiff.table import COLUMNS, GAIN, HEAD, HI, KE, KX, LO, E, M, X, width

Floats = NDArray[np.float64]
FEWEST, MOST = 2, 20  # calls: K = 55 of the 64 columns that a row may have


def general(plan: Plan) -> Plan:
    """The same run with the general rows; ValueError where the plan is not deterministic, clips,
    guides, or has another number of calls than 2 .. 20.

    Raises ValueError also where a row's sample holds nothing of the first one: then the weights are
    not unique.
    """
    n = plan.steps
    if not FEWEST <= n <= MOST:
        raise ValueError(f"plan must have {FEWEST} .. {MOST} calls; got {n}")
    rows = plan.rows[:, 0]
    clipped = bool(np.isfinite(rows[:, [LO, HI]]).any() or (rows[:, GAIN] != 1).any())
    if plan.guided or plan.draw.any() or clipped or plan.rows.shape[1] != 1:
        raise ValueError(
            "plan must be deterministic, without guidance and clipping, one for all samples; got "
            f"guided {plan.guided}, noise on {int(plan.draw.sum())} rows, clipping {clipped}, "
            f"{plan.rows.shape[1]} rows a step"
        )
    wide, depth = COLUMNS + plan.history, n - 1
    span = np.eye(1 + n)  # of (x at the start, m_0 .. m_{n-1})
    sample = span[0]
    slots = np.full((plan.history, 1 + n), np.nan)
    made = np.zeros((n, width(1, depth)))
    for i, row in enumerate(rows):
        estimate = span[1 + i]
        values = np.zeros((wide, 1 + n))
        values[X], values[M] = sample, estimate
        values[E] = (estimate - row[KX] * sample) / row[KE]
        values[COLUMNS:] = slots
        c = row[HEAD : HEAD + (1 + plan.keeps) * wide].reshape(1 + plan.keeps, wide)
        moved = [_combined(weights, values) for weights in c]
        if sample[0] == 0:
            raise ValueError(
                f"plan must keep its first sample in every row; row {i} has none of it"
            )
        factor = moved[0][0] / sample[0]
        weights = moved[0] - factor * sample
        line = made[i]
        line[:HEAD] = row[:HEAD]
        line[HEAD + X], line[HEAD + M] = factor, weights[1 + i]
        for j in range(i):
            line[HEAD + COLUMNS + j % depth] = weights[1 + j]
        line[HEAD + COLUMNS + depth + M] = 1.0  # keep m, which the last row need not
        line[-2] = row[-1 - plan.keeps]
        line[-1] = i % depth if i < n - 1 else -1
        if i == n - 1:
            line[HEAD + COLUMNS + depth + M] = 0.0
        for p in range(plan.keeps):
            slot = int(row[len(row) - plan.keeps + p])
            if slot >= 0:
                slots[slot] = moved[1 + p]
        sample = moved[0]
    return replace(plan, rows=made[:, None], depths=(depth,), about={})


def _combined(weights: Floats, values: Floats) -> Floats:
    used = weights != 0
    return np.asarray(weights[used] @ values[used])


def places(n: int) -> list[tuple[int, int]]:
    """(row, column) of the coefficients of a general table of n calls, n (n + 3) / 2 of them."""
    depth = n - 1
    return [
        (i, HEAD + column)
        for i in range(n)
        for column in (X, M, *(COLUMNS + j % depth for j in range(i)))
    ]


def parameters(plan: Plan) -> Floats:
    """Coefficients, then model times in thousands, of a general table: (n (n + 3) / 2 + n,)."""
    n = plan.steps
    weights = [plan.rows[i, 0, column] for i, column in places(n)]
    return np.array([*weights, *(plan.timesteps / 1000)])


def with_parameters(plan: Plan, values: Floats, last_time: float) -> Plan:
    """A general table with these numbers, its model times held in 0 .. last_time.

    ValueError where a number is none that a plan may hold.
    """
    n = plan.steps
    weights, times = values[:-n], np.clip(1000 * values[-n:], 0.0, last_time)
    rows = plan.rows.copy()
    for (i, column), value in zip(places(n), weights, strict=True):
        rows[i, 0, column] = value
    return replace(plan, rows=rows, timesteps=times)
