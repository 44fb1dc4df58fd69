"""The record of a run, written after every contestant (record_file.py).

    {"schema": 1, "made": versions, "conditions": .., "floors": .., "refused": [..], "rows": [..]}

A row is {"family", "solver", "side", "spacing", "class", "config", "metric", "results"}, with
results [{"budget", "calls", "errors": {mixture: number}}, ..]; errors is null where the samples
are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fastdiff.accuracy.contestants import (
    CLASSES_LEFT_OUT,
    EXCLUDED,
    LEFT_OUT,
    SPACINGS,
    Contestant,
    contestants,
    spacings,
    without_peer,
)
from fastdiff.accuracy.problem import FAMILIES, FLOORS, MIXTURES, POINTS, SAMPLES, SEED, Problem
from fastdiff.accuracy.runs import BUDGETS, OutOfReach, measure
from fastdiff.record_file import Kind, Record, made, save

WHOSE = frozenset({"family", "solver", "side", "spacing"})
KIND = Kind(
    "fastdiff bench accuracy",
    schema=1,
    parts={"floors": dict, "excluded": list, "refused": list},
    keys={
        "rows": WHOSE | {"results", "metric"},
        "refused": WHOSE | {"reason"},
        "excluded": frozenset(),
    },
)
load = KIND.load


def conditions(budgets: Iterable[int], points: int, samples: int, seed: int) -> Record:
    """Everything that a number depends on besides versions and who ran."""
    return {
        "families": {name: {"noise": n, "prediction": p} for name, (n, p) in FAMILIES.items()},
        "mixtures": {
            name: dict(zip(("weights", "means", "stds"), map(list, numbers), strict=True))
            for name, numbers in MIXTURES.items()
        },
        "budgets": list(budgets),
        "points": points,
        "samples": samples,
        "seed": seed,
        "floor_draws": FLOORS,
        "dtype": "float64",
    }


def run(
    path: Path,
    *,
    budgets: tuple[int, ...] = BUDGETS,
    families: tuple[str, ...] = tuple(FAMILIES),
    solvers: frozenset[str] | None = None,
    points: int = POINTS,
    samples: int = SAMPLES,
    seed: int = SEED,
    fresh: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measure what the file does not hold yet, and write it; the whole record.

    Rows of the file whose contestant is no more are dropped.  Raises ValueError where it is of
    other conditions or versions, or no record.
    """
    record: Record = {
        "schema": KIND.schema,
        "made": made(),
        "conditions": conditions(budgets, points, samples, seed),
        "floors": {},
        "excluded": excluded(),
        "refused": [],
        "rows": [],
    }
    if path.exists() and not fresh:
        record = _resumed(path, record)
    done = {_key(row) for name in ("rows", "refused") for row in record[name]}
    for family in families:
        problem = Problem(family, points, samples, seed)
        for who in contestants(family):
            if who.key in done or (solvers is not None and who.solver not in solvers):
                continue
            record["floors"] = record["floors"] or problem.floors()
            name, row = _row(problem, who, budgets)
            record[name].append(row)
            save(path, record)
            tell(" ".join(who.key))
    save(path, record)
    return record


def excluded() -> list[Record]:
    """Who does not run, and why."""
    found = [
        {"solver": solver, "family": family, "side": "both", "reason": why}
        for (solver, family), why in EXCLUDED.items()
    ]
    for family in FAMILIES:
        found += [
            {"solver": solver, "family": family, "side": "diffusers", "reason": why}
            for solver, why in without_peer(family).items()
        ]
    found += [
        {"solver": name, "family": "all", "side": "diffusers", "reason": why}
        for name, why in CLASSES_LEFT_OUT.items()
    ]
    for family in FAMILIES:
        found += [
            {"spacing": name, "family": family, "side": "both", "reason": "needs SciPy"}
            for name in SPACINGS[family]
            if name not in spacings(family)
        ]
    return found + [
        {"spacing": name, "family": "all", "side": "fastdiff", "reason": why}
        for name, why in LEFT_OUT.items()
    ]


def _resumed(path: Path, wanted: Record) -> Record:
    """The record of a file, less who is no contestant any more."""
    found = KIND.resumed(path, wanted)
    now = {who.key for family in FAMILIES for who in contestants(family)}
    kept = {name: [r for r in found[name] if _key(r) in now] for name in ("rows", "refused")}
    return {**found, **kept, "excluded": wanted["excluded"]}


def _row(problem: Problem, who: Contestant, budgets: tuple[int, ...]) -> tuple[str, Record]:
    """("rows", what was measured), or ("refused", why nothing was)."""
    row = {
        "family": who.family,
        "solver": who.solver,
        "side": who.side,
        "spacing": who.spacing,
        "class": who.scheduler,
        "config": dict(who.config),
        "metric": "w1" if who.noise else "rms",
    }
    try:
        return "rows", {**row, "results": [measure(problem, who, b) for b in budgets]}
    except (OutOfReach, ValueError, IndexError) as error:
        # of diffusers: a config that it refuses when it runs; ours is not to be refused
        if who.side == "fastdiff":
            raise
        return "refused", {**row, "reason": str(error)}


def _key(row: Record) -> tuple[str, str, str, str]:
    return row["family"], row["solver"], row["side"], row["spacing"]
