"""A benchmarks/bench_<stem>.py as a stage: every case is a row.

An op that failed a check on this device (stage "correctness") is not timed.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.campaign import under_pytest
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import RED, Task
from benchmarks.provenance import ROOT

DRY_CASES = 1
DRY_COMPILED = "geglu"  # where a dry run tries torch.compile, once


def run(name: str, task: Task) -> None:
    path = ROOT / "benchmarks" / f"bench_{name}.py"
    if task.device == "cuda" and not on_devices(path.read_text()):
        task.skip(path.name, "it times the CPU only: python -m benchmarks", benchmark=name)
        return
    if red := task.context.get("red", {}).get(name):
        task.skip(path.name, RED.format(red))
        return

    def what(item: pytest.Item) -> Row:
        return {"benchmark": name}

    def keep(items: list[Any]) -> list[Any]:
        return items[:DRY_CASES] if task.dry else items

    args = [str(path), "-o", "python_files=bench_*.py"]
    compiles = task.compiles and (not task.dry or name == DRY_COMPILED)
    args += [] if compiles else ["--no-compile"]
    if not under_pytest.run(task, args, what, keep):
        raise RuntimeError(f"{path.name} has no cases")


def on_devices(source: str) -> bool:
    """Whether a benchmark goes where the device is; those of host code do not."""
    return "DEVICE" in source or '"cuda"' in source
