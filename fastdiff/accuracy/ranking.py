"""What is best at a budget: the smallest geometric mean of the errors over the mixtures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One result; ties stay in the order of the record."""

    score: float
    solver: str
    side: str
    spacing: str
    calls: int
    errors: dict[str, float]


def score(errors: dict[str, float]) -> float:
    """The geometric mean: no mixture counts more for being harder."""
    return math.exp(sum(map(math.log, errors.values())) / len(errors))


def ranked(
    record: dict[str, Any], family: str, metric: str, budget: int, side: str | None = None
) -> list[Entry]:
    """All results of a family and a metric at one budget, the best first."""
    found = [
        Entry(
            score(result["errors"]),
            *(row["solver"], row["side"], row["spacing"]),
            *(result["calls"], result["errors"]),
        )
        for row in record["rows"]
        if (row["family"], row["metric"]) == (family, metric) and side in (None, row["side"])
        for result in row["results"]
        if result["budget"] == budget and result["errors"] is not None
    ]
    return sorted(found, key=lambda entry: entry.score)


def of_solver(entries: Iterable[Entry], solver: str) -> Entry | None:
    """The first one of a solver: that with its best spacing."""
    return next((entry for entry in entries if entry.solver == solver), None)


def solvers(record: dict[str, Any], family: str, metric: str) -> list[str]:
    """Those that ran, in the order of the record."""
    rows = record["rows"]
    kind = (family, metric)
    return list(dict.fromkeys(r["solver"] for r in rows if (r["family"], r["metric"]) == kind))
