"""The table of a run on x = x_0 + sigma n (or a flow) whose network predicts x_0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan, rows_of
from fastdiff.registry import Solver
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.euler import euler
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
    """The solver with k-diffusion's rules where they are not those of fastdiff.plan."""
    if solver.row is not dpmpp:
        return solver
    options = {**solver.options}
    if "lower_order_final" in options:
        options["lower_order_final"] = False
    start = {} if "solver_type" in options else {"solver_type": "heun"}  # of order 3
    return replace(solver, options=options, preset={**solver.preset, **start})


def make(solver: Solver, sigmas: Floats, flow: bool, options: dict[str, Any]) -> Run:
    """The rows from sigmas[0] to sigmas[-1], (N + 1,) levels; options: all that the row takes."""
    if solver.row is euler and options["s_churn"] > 0:
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
    """Euler from sigma_hat = (1 + gamma) sigma on.

    The noise that leads to the next sigma_hat is part of the step before; that of the first call is
    left.  Noise is drawn for every call, used or not, as in k-diffusion.
    """
    inside = (s_tmin <= sigmas) & (sigmas <= s_tmax)
    gamma = np.where(inside, min(s_churn / (len(sigmas) - 1), np.sqrt(2) - 1), 0.0)
    gamma[-1] = 0.0
    hats, weights = sigmas * (1 + gamma), s_noise * sigmas * np.sqrt(gamma * (2 + gamma))

    def row(grid: Grid, i: int, k: int) -> Row:
        move = euler(Grid(np.ones(2), np.array([hats[i], sigmas[i + 1]])), 0, 0)
        return replace(move, next=replace(move.next, z=float(weights[i + 1])))

    some = bool(gamma.any())
    grid, ones = Grid(np.ones_like(hats), hats), np.ones_like(hats)
    rows, draws = rows_of(replace(solver, row=row, noise=some), grid, "sample", ones, 0, {})
    draws[-1] = False
    return Run(_plan(solver, rows, grid, draws), float(weights[0]) if some else None)


def _plan(solver: Solver, rows: Floats, grid: Grid, draws: NDArray[np.bool_]) -> Plan:
    about = {"solver": solver.name, "interface": "k-diffusion"}
    times, depths = grid.sigma[:-1], solver.depths
    return Plan(rows[:, None], times, grid.alpha, grid.sigma, draws, depths, about=about)
