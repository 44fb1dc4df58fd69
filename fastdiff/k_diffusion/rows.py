"""The table of a run on x = x_0 + sigma n (or a flow) whose network predicts x_0."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan, rows_of
from fastdiff.registry import SOLVERS, Solver
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.heun import heun
from fastdiff.solvers.kdpm2 import kdpm2
from fastdiff.solvers.row import Grid, Row

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """A plan for alpha = 1 (flow: 1 - sigma), its levels those at which the network is called.

    first  weight of the noise that is added before the first call; None: none is drawn
    call   row -> (step from one of the caller's levels to the next, which call of the network)
    """

    plan: Plan
    first: float | None = None
    call: Callable[[int], tuple[int, int]] = lambda row: (row, 0)


def as_there(solver: Solver) -> Solver:
    """The solver with k-diffusion's rules and options where they are not those of fastdiff.plan."""
    if solver.row in (heun, kdpm2) and not solver.options:
        return replace(solver, row=_without_churn(solver.row), options=SOLVERS["euler"].options)
    if solver.row is not dpmpp:
        return solver
    options = {**solver.options}
    if "lower_order_final" in options:
        options["lower_order_final"] = False
    start = {} if "solver_type" in options else {"solver_type": "heun"}  # of order 3
    return replace(solver, options=options, preset={**solver.preset, **start})


def _without_churn(row: Callable[..., Row]) -> Callable[..., Row]:
    """The row of a whole step's calls; churn comes in between two steps."""

    @functools.wraps(row)
    def plain(
        grid: Grid,
        i: int,
        k: int,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> Row:
        if s_churn > 0:
            raise ValueError(f"s_churn must be 0 within a step of two calls; got {s_churn:g}")
        return row(grid, i, k)

    return plain


def make(solver: Solver, sigmas: Floats, flow: bool, options: dict[str, Any]) -> Run:
    """The rows from sigmas[0] to sigmas[-1], (N + 1,) levels; options: all that the row takes."""
    if options.get("s_churn", 0.0) > 0:
        if flow:
            raise ValueError(
                "s_churn must be 0 with flow=True, for churn adds noise without scaling the "
                f"signal; got {options['s_churn']:g}"
            )
        return _churned(solver, sigmas, **options)
    points = _points(solver, sigmas, options)
    grid = Grid(1 - points if flow else np.ones_like(points), points)
    rows, draws = rows_of(solver, grid, "sample", np.ones_like(points), 0, options)
    # as k-diffusion: also where the weight is 0 for want of a step, but not for the last x_0
    draws &= (points[1:] > 0) & (options.get("eta", 1.0) > 0)
    return Run(_plan(solver, rows, grid, draws), call=solver.call)


def _points(solver: Solver, sigmas: Floats, options: dict[str, Any]) -> Floats:
    """The levels of the rows; the step to level 0 is one row also where others are two."""
    if solver.points is None:
        return sigmas
    steps = len(sigmas) - 1
    if sigmas[-1] == 0:
        return solver.points(sigmas, solver.rows(steps), **options)
    # a step that ends above 0 is whole, as if another one to 0 followed
    return solver.points(np.append(sigmas, 0.0), solver.rows(steps + 1), **options)[:-1]


def _churned(
    solver: Solver, sigmas: Floats, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Run:
    """Each step from sigma_hat = (1 + gamma) sigma on.

    The noise that leads to the next sigma_hat is part of the step before; that of the first call is
    left.  Noise is drawn for every step, used or not, as in k-diffusion.
    """
    inside = (s_tmin <= sigmas) & (sigmas <= s_tmax)
    gamma = np.where(inside, min(s_churn / (len(sigmas) - 1), np.sqrt(2) - 1), 0.0)
    gamma[-1] = 0.0
    hats, weights = sigmas * (1 + gamma), s_noise * sigmas * np.sqrt(gamma * (2 + gamma))
    moves: list[Row] = []
    points, ends = [hats[0]], []
    for hat, sigma, next_hat, weight in zip(
        hats[:-1], sigmas[1:], hats[1:], weights[1:], strict=True
    ):
        local = np.array([hat, sigma])
        if solver.points is not None and sigma > 0:  # two calls, as if a step to 0 followed
            local = solver.points(np.append(local, 0.0), 3)
            points.append(local[1])
        grid = Grid(np.ones_like(local), local)
        moves += [solver.row(grid, j, j) for j in range(max(1, len(local) - 2))]
        moves[-1] = replace(moves[-1], next=replace(moves[-1].next, z=float(weight)))
        points.append(next_hat)
        ends.append(len(moves) - 1)
    some = bool(gamma.any())
    whole = Grid(np.ones(len(points)), np.array(points))

    def row(grid: Grid, i: int, k: int, **_: object) -> Row:
        return moves[i]

    each = replace(solver, row=row, noise=some, evaluations=1)
    scales, noise = np.ones_like(whole.sigma), {"s_noise": s_noise}
    rows, _ = rows_of(each, whole, "sample", scales, 0, noise)
    draws = np.zeros(len(moves), dtype=bool)
    draws[ends[:-1]] = some
    first = float(weights[0]) if some else None
    return Run(_plan(solver, rows, whole, draws), first, solver.call)


def _plan(solver: Solver, rows: Floats, grid: Grid, draws: NDArray[np.bool_]) -> Plan:
    about = {"solver": solver.name, "interface": "k-diffusion"}
    times, depths = grid.sigma[:-1], solver.depths
    return Plan(rows[:, None], times, grid.alpha, grid.sigma, draws, depths, about=about)
