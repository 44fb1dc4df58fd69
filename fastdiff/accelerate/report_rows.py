"""What runs on a kernel, what does not, and why: the rows behind `fastdiff.report`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReportRow:
    """One object.

    name     where it hangs ("scheduler", "unet", ..)
    kind     "scheduler" or "module", and its class
    backend  the backend that runs it, or "stock" if it is left alone
    why      the reason for that choice
    calls    counts: steps on a kernel, on the reference by reason, timesteps looked up by value
    """

    name: str
    kind: str
    backend: str
    why: str
    calls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Rows of a scheduler, a module or a pipeline."""

    rows: tuple[ReportRow, ...]

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            lines.append(f"{row.name:16} {row.kind:44} {row.backend:10} {row.why}")
            lines += [f"{'':16}   {count:6} {what}" for what, count in sorted(row.calls.items())]
        return "\n".join(lines)
