"""Plans of single samples as one plan of a batch: steps, levels, solver, guidance may all differ.

A shorter plan stays where it ends: its rows are followed by x' = x, at its last time and level,
which write nothing and draw nothing.  Plans that keep fewer vectors, or fewer of each, get slots
that they do not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan
from fastdiff.plan_fields import of_sample
from fastdiff.table import (
    COLUMNS,
    GAIN,
    HEAD,
    HI,
    LO,
    MAX_COLUMNS,
    MAX_VECTORS,
    G,
    X,
    width,
)

Floats = NDArray[np.float64]


def batch(plans: Sequence[Plan]) -> Plan:
    """A plan that runs sample b as plans[b] does, with the same bits as alone.

    plans   B plans of one sample each, all with guidance or all without

    The result has the rows (N, B, K) of the longest, timesteps, alpha, sigma and draw of each
    sample (.., B), and noise_scale and c_in (B,), so that `fastdiff.sample` calls
    denoise(x, t) with t (B,).  The same bits: if the network gives them for a sample whatever
    the batch, and noise is drawn from seeds or a list of generators.

    Raises TypeError or ValueError that names the plan, what it is and what would do.
    """
    plans = _checked(plans)
    if len(plans) == 1:
        return plans[0]
    keeps = max(plan.keeps for plan in plans)
    depths = tuple(
        max((plan.depths[p] for plan in plans if p < plan.keeps), default=0) for p in range(keeps)
    )
    _check_size(plans, depths)
    steps = max(plan.steps for plan in plans)
    last = np.minimum(np.arange(steps + 1)[:, None], [plan.steps for plan in plans])  # (N + 1, B)
    rows = np.stack([_rows(plan, depths, steps) for plan in plans], axis=1)
    levels = [of_sample(plan, 0) for plan in plans]

    def along(values: Sequence[NDArray[Any]], places: NDArray[np.int_]) -> NDArray[Any]:
        return np.stack([v[places[:, b]] for b, v in enumerate(values)], axis=1)

    called = np.minimum(last[:-1], [plan.steps - 1 for plan in plans])
    draw = along([plan.draw.reshape(plan.steps) for plan in plans], called) & (called == last[:-1])
    return Plan(
        rows,
        along([plan.timesteps.reshape(plan.steps) for plan in plans], called),
        along([alpha for alpha, *_ in levels], last),
        along([sigma for _, sigma, *_ in levels], last),
        draw,
        depths,
        np.array([scale for *_, scale, _ in levels]),
        np.array([c_in for *_, c_in in levels]),
        plans[0].guided,
        {"solver": None, "batch": [dict(plan.about) for plan in plans]},
    )


def _checked(plans: object) -> list[Plan]:
    if not isinstance(plans, Sequence) or not plans:
        raise TypeError(f"plans must be a list of one or more fastdiff.Plan; got {plans!r:.60}")
    for b, plan in enumerate(plans):
        if not isinstance(plan, Plan):
            raise TypeError(f"plans[{b}] must be a fastdiff.Plan; got {type(plan).__name__}")
        if plan.rows.shape[1] != 1:
            raise ValueError(
                f"plans[{b}] must be of one sample, rows (N, 1, K); got {plan.rows.shape}. Give "
                "each sample a plan of its own"
            )
        if plan.guided != plans[0].guided:
            words = "without guidance", "with guidance"
            raise ValueError(
                f"plans must all be with guidance or all without; got plans[0] "
                f"{words[plans[0].guided]} and plans[{b}] {words[plan.guided]}. guidance=1.0 is "
                "one that changes nothing"
            )
    return list(plans)


def _check_size(plans: list[Plan], depths: tuple[int, ...]) -> None:
    """Raise where rings that hold the kept vectors of every plan are more than a row has room for.

    Each of the plans fits; two of them need not, one with many kept vectors, one with deep rings.
    """
    keeps, history = len(depths), sum(depths)
    columns = width(keeps, history)
    if columns <= MAX_COLUMNS and keeps + history <= MAX_VECTORS:
        return
    most = max(range(len(plans)), key=lambda b: plans[b].keeps)
    deep = max(range(len(plans)), key=lambda b: plans[b].history)
    raise ValueError(
        f"plans must fit into rows of {MAX_COLUMNS} columns and {MAX_VECTORS} vectors together; "
        f"got {columns} and {keeps + history}, with depths {plans[most].depths} of plans[{most}] "
        f"and {plans[deep].depths} of plans[{deep}]. Batches of their own would do"
    )


def _rows(plan: Plan, depths: tuple[int, ...], steps: int) -> Floats:
    """The plan's rows for rings of these depths, and after them rows that leave the sample."""
    keeps, history, own = len(depths), sum(depths), plan.keeps
    place = [  # of a slot of the plan's rings, there
        sum(depths[:p]) + j for p, depth in enumerate(plan.depths) for j in range(depth)
    ]
    out = np.zeros((steps, width(keeps, history)))
    head, end = out[:, :HEAD], HEAD + (1 + keeps) * (COLUMNS + history)
    c = out[:, HEAD:end].reshape(steps, 1 + keeps, COLUMNS + history)
    given, n = plan.rows[:, 0], plan.steps
    mine = given[:, HEAD : HEAD + (1 + own) * (COLUMNS + plan.history)]
    mine = mine.reshape(n, 1 + own, COLUMNS + plan.history)
    head[:n] = given[:, :HEAD]
    head[n:, [G, GAIN]] = 1.0
    head[n:, LO], head[n:, HI] = -np.inf, np.inf
    c[:n, : 1 + own, :COLUMNS] = mine[..., :COLUMNS]
    c[:n, : 1 + own, [COLUMNS + slot for slot in place]] = mine[..., COLUMNS:]
    c[n:, 0, X] = 1.0
    scales = given[:, given.shape[1] - 1 - own]
    out[:, end] = scales[np.minimum(np.arange(steps), n - 1)]
    out[:, end + 1 :] = -1.0
    for p in range(own):
        slots = given[:, given.shape[1] - own + p].astype(int)
        out[:n, end + 1 + p] = [place[slot] if slot >= 0 else -1 for slot in slots]
    return out


__all__ = ["batch"]
