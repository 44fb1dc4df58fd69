"""Time several ways to do the same work, in turn, in one process.

A machine is never quiet, and its clock rate, caches and neighbours change from second to second.
So the contestants take turns: in a round each makes one lap, and who goes first changes from round
to round.  What disturbs one disturbs the others, and ratios of medians stay.

    lap      the calls of one run, in order, each timed alone; `ready()` makes them, untimed
    skip     calls at the start of a lap that are made but not recorded (a solver's cold start)
    between  called before every call, untimed: something that uses the caches, as a network does

pytest-benchmark runs the rounds; its own statistics are those of whole rounds, the times of the
contestants are in extra_info["times"].
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

OURS = "fastdiff"
Call = Callable[[], object]


def measure(
    benchmark: Any,
    contestants: dict[str, Callable[[], list[Call]]],
    *,
    skip: int,
    rounds: int,
    between: Call | None = None,
) -> None:
    """Time the contestants, {name: ready}; one of them is "fastdiff".  One more round warms up."""
    order = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in order}

    def one_round() -> None:
        order.append(order.pop(0))
        for name in order:
            seconds[name] += lap(contestants[name](), between)[skip:]

    if benchmark.disabled:  # --benchmark-disable: does it run?
        benchmark.pedantic(lambda: [lap(ready()[:1], between) for ready in contestants.values()])
        return
    if not getattr(benchmark, "dry", False):  # a third of a second
        gc.collect()
    gc.disable()
    try:
        one_round()
        for times in seconds.values():
            times.clear()
        benchmark.pedantic(one_round, rounds=rounds)
    finally:
        gc.enable()
    benchmark.extra_info["times"] = {name: summary(times) for name, times in seconds.items()}


def small(benchmark: Any) -> bool:
    """Whether small operands do, for nothing is timed for its own sake: --benchmark-disable, or
    the campaign's dry run."""
    return bool(benchmark.disabled or getattr(benchmark, "dry", False))


def lap(calls: list[Call], between: Call | None) -> list[float]:
    """Seconds of each call, by the host's clock unless it has one of its own, `call.seconds()`."""
    seconds = []
    for call in calls:
        if between is not None:
            between()
        if (own := getattr(call, "seconds", None)) is not None:
            seconds.append(own())
            continue
        start = perf_counter()
        call()
        end = perf_counter()
        seconds.append(end - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Microseconds: the median, the fastest quartile (a quarter of the calls is faster), calls."""
    return {
        "median": round(statistics.median(seconds) * 1e6, 3),
        "fastest_quartile": round(statistics.quantiles(seconds, n=4)[0] * 1e6, 3),
        "calls": len(seconds),
    }
