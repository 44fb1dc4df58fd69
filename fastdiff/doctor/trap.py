"""What a trap and a finding are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastdiff.doctor.folder import Folder, Part

SEVERITIES = ("error", "warning", "note")


class Found(NamedTuple):
    """Where a trap lies: file, field, what is there, and what would do if the trap cannot say."""

    file: str
    field: str
    has: Any
    would_do: str = ""
    severity: str = ""


@dataclass(frozen=True)
class Trap:
    """One thing that goes wrong, readable in configs.

    severity  error: wrong pictures or none; warning: some are; note: costs, or waits for a change
    what      what goes wrong
    would_do  what to write there; a Found may say it better
    source    thread, paper or card
    """

    name: str
    severity: str
    what: str
    would_do: str
    source: str
    find: Callable[[Folder], Iterable[Found]]


@dataclass(frozen=True)
class Finding:
    """A trap in a folder."""

    name: str
    severity: str
    file: str
    field: str
    has: Any
    what: str
    would_do: str
    source: str


def at(part: Part, field: str, would_do: str = "", severity: str = "") -> Found:
    """The field of a part, with the value that holds."""
    return Found(part.file, field, part.get(field), would_do, severity)


__all__ = ["SEVERITIES", "Finding", "Found", "Trap", "at"]
