"""What a tuned table is compared to: every deterministic sampler with every spacing.

They are those of `fastdiff bench accuracy`.  Solvers that draw noise follow no trajectory, so
their distance to one says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from fastdiff.accuracy.contestants import OURS, Contestant, contestants
from fastdiff.plan import Plan
from fastdiff.registry import find
from fastdiff.tune.subject import Start, Subject, distance

Scores = dict[str, float | None]  # name -> RMS distance, None where it is not finite


def candidates() -> Iterator[Contestant]:
    """Deterministic solvers of the registry, each with every spacing of a beta schedule."""
    for who in contestants("vp"):
        if who.side == OURS and not who.noise:
            yield who


def name_of(who: Contestant) -> str:
    """Solver and spacing, as a key."""
    return f"{who.solver}, {who.spacing}"


def plan_of(subject: Subject, who: Contestant, steps: int) -> Plan:
    """Its plan with so many calls; ValueError where it has none."""
    return subject.plan(who.row or who.solver, steps, who.spacing, **who.options)


def of_one_call(who: Contestant) -> bool:
    """Whether every row is a step of its own, so that a grid has a level for each row."""
    return find(who.row or who.solver).points is None


def rank(
    subject: Subject,
    start: Start,
    target: Tensor,
    steps: int,
    done: Scores,
    after: Callable[[], Any] = lambda: None,
    among: frozenset[str] | None = None,
) -> list[tuple[float, str]]:
    """(RMS distance to the target, name), the nearest first.

    done   scores that are known; what is measured is added
    after  called after each measurement
    among  names to measure; None: all
    """
    for who in candidates():
        name = name_of(who)
        if name in done or (among is not None and name not in among):
            continue
        try:
            plan = plan_of(subject, who, steps)
        except ValueError:  # too few calls for one step of this solver
            done[name] = None
            continue
        found = distance(subject.run(plan, start), target)
        done[name] = found if found < float("inf") else None
        after()
    return sorted((value, name) for name, value in done.items() if value is not None)
