"""What runs on a kernel, what does not, and why: the rows behind `fastdiff.report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReportRow:
    """One object.

    name     where it hangs ("scheduler", "unet", "unet.mid_block.resnets.0", ..)
    kind     "scheduler" or "module", and its class
    backend  the backend that runs it; "torch" if PyTorch's operators are better here; of attention
             whom its chooser took at the last call (fastdiff.ops.attention), or "chosen" before
             one, or "diffusers" where set_attention_backend asked for another; "swapped" for a
             network, whose modules have rows of their own; "stock" if left alone; "none" where
             use_backend asks for what cannot run here
    why      the reason for that choice
    calls    counts: steps on a kernel, on the reference by reason, timesteps looked up by value;
             of a module "fused", "torch: ..", "stock: ..", with the reason, and "attention by .."
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
        """One line for each component and for each kind of module in it that fares alike, and the
        sums of their calls."""
        alike: dict[tuple[str, ...], list[ReportRow]] = {}
        for row in self.rows:
            component = row.name.partition(".")[0]
            alike.setdefault((component, row.kind, row.backend, row.why), []).append(row)
        lines = []
        for (component, kind, backend, why), rows in alike.items():
            name = rows[0].name if len(rows) == 1 else f"{component}, {len(rows)} times"
            lines.append(f"{name:24} {kind:44} {backend:10} {why}")
            calls = sum((Counter(row.calls) for row in rows), Counter())
            lines += [f"{'':24}   {count:6} {what}" for what, count in sorted(calls.items())]
        return "\n".join(lines)
