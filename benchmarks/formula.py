"""DPM++ 2M's update as a user would write it: eager, and through torch.compile.

    m = kx x + ke e;   x' = cx x + cm m + ch h        in float32, results in the dtype of x

h is the m of the call before, which the caller keeps, as any solver of second order must.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.plan import Plan

COLUMNS = [1, 2, 7, 8, 11]  # kx, ke, and x, m, h_1 of the first row of C; fastdiff/table.py
Update = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def formula(x: Tensor, e: Tensor, h: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """(x', m); row (5,) float32."""
    kx, ke, cx, cm, ch = row.unbind()
    m = kx * x.float() + ke * e.float()
    return (cx * x.float() + cm * m + ch * h.float()).to(x.dtype), m.to(x.dtype)


def compiled() -> Update:
    """The formula through torch.compile, nothing left over from other shapes or dtypes."""
    torch._dynamo.reset()
    update: Update = torch.compile(formula, fullgraph=True, dynamic=False)
    return update


def calls(
    update: Update, plan: Plan, x: Tensor, e: Tensor, h: Tensor
) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """One call for every step of the plan; each returns x' and m, and keeps m."""
    rest = set(range(7, 12)) - set(COLUMNS)
    assert not plan.rows[:, 0, sorted(rest)].any()  # the other weights are 0
    kept = [h]

    def step(row: Tensor) -> tuple[Tensor, Tensor]:
        x_next, kept[0] = update(x, e, kept[0], row)
        return x_next, kept[0]

    rows = torch.from_numpy(plan.rows[:, 0, COLUMNS]).float()
    return [functools.partial(step, row) for row in rows]
