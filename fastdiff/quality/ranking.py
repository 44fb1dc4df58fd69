"""Rows of a record, summed over the batches that are there."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastdiff.shapes.evaluate import wilson

ELEMENTS = 4 * 16 * 16  # of the built-in model's latent


class Row(NamedTuple):
    """A sampler at a number of steps.

    right, low, high  share of right pictures and Wilson's 95 % interval; None: a latent was not
                      finite
    rms, compared     RMS distance per element to the reference, over so many pictures
    cpu_ms, clock_ms  a picture, of the process and of the clock
    """

    model: str
    sampler: str
    scheduler: str
    steps: int
    evaluations: int
    pictures: int
    right: float | None
    low: float | None
    high: float | None
    rms: float | None
    compared: int
    cpu_ms: float
    clock_ms: float


def rows(record: dict[str, Any]) -> list[Row]:
    """All of them, in the order of the record."""
    return [_summed(row) for row in record["rows"] if row["parts"]]


def _summed(row: dict[str, Any]) -> Row:
    parts = row["parts"]
    count = sum(p["count"] for p in parts)
    right = low = high = rms = None
    if all(p["right"] is not None for p in parts):
        good = sum(p["right"] for p in parts)
        right = round(good / count, 4)
        low, high = (round(v, 4) for v in wilson(good, count))
    compared = sum(p["compared"] for p in parts)
    squares = [p["squares"] for p in parts if p["squares"] is not None]
    if squares:
        rms = round((sum(squares) / (compared * ELEMENTS)) ** 0.5, 6)
    cpu, clock = (
        round(1000 * sum(p[name] for p in parts) / count, 1) for name in ("cpu_seconds", "seconds")
    )
    return Row(
        *(row["model"], row["sampler"], row["class"], row["steps"], parts[0]["evaluations"]),
        pictures=count,
        right=right,
        low=low,
        high=high,
        rms=rms,
        compared=compared,
        cpu_ms=cpu,
        clock_ms=clock,
    )


def best(found: list[Row], steps: int) -> Row | None:
    """The teacher's sampler that is right most often with at most so many calls.

    Of equals the nearest to the reference, for deterministic ones have a distance that counts.
    """
    fit = [r for r in found if r.model == "teacher" and r.evaluations <= steps and r.right]
    return max(fit, key=lambda r: (r.right or 0, -(r.rms or 9.0)), default=None)
