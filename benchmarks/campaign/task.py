"""What a stage is given, and how it hands over its rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.campaign.record import Row, check_row

# After one of these the process can use the device no more: the rest needs a new one.
STICKY = ("CUDA error", "Triton Error [CUDA]", "CUDA driver error")
T = TypeVar("T")
RED = "no number, for its check on this device is red: {}"
WORDS = 600  # of an error, at most, in characters


class OutOfTime(Exception):
    """The stage's time is up; what is left is for the next run."""


class DeviceLost(Exception):
    """The process cannot go on: a kernel has broken its context."""


@dataclass
class Task:
    """One stage, on one device.

    begin(id)    says that a row is being worked on, so that a crash can be laid at its door
    emit(row)    hands a row over; it is on disk before the next one begins
    """

    device: str = "cpu"
    dry: bool = False
    full: bool = False
    compiles: bool = True
    deadline: float = float("inf")  # time.monotonic()
    done: frozenset[str] = frozenset()
    begin: Callable[[str], None] = lambda _: None
    emit: Callable[[Row], None] = lambda _: None
    context: dict[str, Any] = field(default_factory=dict)
    shard: tuple[int, int] = (0, 1)  # which of how many processes that share the rows

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def share(self, things: list[T]) -> list[T]:
        """What of these is this process's part."""
        first, step = self.shard
        return things[first::step]

    def wants(self, name: str) -> bool:
        """Whether this row is still to be made; raises when there is no time for it."""
        if name in self.done:
            return False
        if self.left() <= 0:
            raise OutOfTime
        self.begin(name)
        return True

    def hand_over(self, row: Row) -> None:
        check_row(row)
        self.emit(row)
        if row["status"] == "failed" and any(words in row["why"] for words in STICKY):
            raise DeviceLost(row["why"])

    def measure(self, name: str, make: Callable[[], Row], **what: Any) -> None:
        """The row that `make` returns, without what is the same for all: id, status, and `what`.
        An AssertionError is a red check; any error makes a row without times."""
        if not self.wants(name):
            return
        try:
            made = make()
            status = "measured" if "times" in made else "passed"
            row = {"id": name, **what, "status": status, **made}
        except OutOfTime:  # not this row's fault: the next run makes it
            raise
        except Exception as error:
            row = {"id": name, **what, "status": "failed", "why": words_of(error)}
        self.hand_over(row)

    def skip(self, name: str, why: str, **what: Any) -> None:
        if self.wants(name):
            self.hand_over({"id": name, **what, "status": "skipped", "why": why})


def words_of(error: BaseException) -> str:
    """What went wrong, short enough for a table of results."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return text if len(text) <= WORDS else text[:WORDS] + " .."
