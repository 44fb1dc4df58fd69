"""Correctness on the device: tests/test_on_device.py, and the tests of the kernels themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign import under_pytest
from benchmarks.campaign.record import Report, Row, rows_of
from benchmarks.campaign.task import Task
from benchmarks.provenance import ROOT

PARTS = ("_reference", "_checks")  # of an op's contract
KERNELS = ("test_kernel_", "test_triton_")  # tests of an op's file that launch a kernel
# Compilers, not kernels: the same on a machine without a device, and slow.
ELSEWHERE = "not compiles and not compile_everywhere and not interpreter"


def op_names() -> list[str]:
    """The ops that there are."""
    files = {path.stem for path in (ROOT / "fastdiff" / "ops").glob("[!_]*.py")}
    return sorted(name for name in files if not name.endswith(PARTS))


def run(task: Task) -> None:
    """One row a test of tests/test_on_device.py: op, backend and dtype."""

    def keep(items: list[Any]) -> list[Any]:
        """What needs a device; in a dry run, which has none, what stands for it on the CPU."""
        instead = "test_the_reference_passes" if task.dry else "nothing"
        return [i for i in items if i.get_closest_marker("gpu") or i.name.startswith(instead)]

    if not under_pytest.run(task, [str(ROOT / "tests" / "test_on_device.py")], what, keep):
        raise RuntimeError("tests/test_on_device.py has no tests")


def tests(task: Task) -> None:
    """The tests of the kernels, which use the device where there is one; in a dry run one of each
    file, which says that it needs a device or the interpreter."""

    def keep(items: list[Any]) -> list[Any]:
        found = [i for i in items if launches(i)]
        firsts = {Path(i.fspath): i for i in reversed(found)}
        return list(firsts.values()) if task.dry else found

    under_pytest.run(task, [*map(str, kernel_tests()), "-k", ELSEWHERE], what, keep)


def kernel_tests() -> list[Path]:
    """Files with tests that launch a kernel: test_<op>_triton.py, or test_<op>.py."""
    own = [ROOT / "tests" / f"test_{name}.py" for name in op_names()]
    own = [path for path in own if path.exists()]
    found = [path for path in own if any(f"def {name}" in path.read_text() for name in KERNELS)]
    return [*sorted((ROOT / "tests").glob("test_*_triton.py")), *found]


def launches(item: pytest.Item) -> bool:
    return Path(item.fspath).stem.endswith("_triton") or item.name.startswith(KERNELS)


def what(item: pytest.Item) -> Row:
    """Which op, backend and dtype a test is about."""
    names = getattr(item, "callspec", None)
    given = {} if names is None else names.params
    stem = Path(item.fspath).stem.removeprefix("test_")
    case = {"op": str(given.get("op", re.sub(r"_(triton|cuda|cpu|torch)$", "", stem)))}
    if "backend" in given:
        case["backend"] = str(given["backend"])
    case["dtype"] = under_pytest.dtype_of(item.name)
    return {"benchmark": "check", "case": case}


def red(report: Report) -> dict[str, str]:
    """{op: in words} of the ops whose correctness on the device is red."""
    rows = [row for row in rows_of(report, "correctness") if "case" in row]
    found = {}
    for op in sorted({row["case"]["op"] for row in rows}):
        mine = [row for row in rows if row["case"]["op"] == op]
        failed = [row for row in mine if row["status"] == "failed"]
        if failed:
            found[op] = f"{len(failed)} of {len(mine)} fail, first {failed[0]['id']}"
    return found


def counts(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, int]]:
    """{(op, backend, dtype): {status: how many}}"""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in rows:
        case = row.get("case", {})
        key = (case.get("op", "?"), case.get("backend", "any"), case.get("dtype", "any"))
        entry = found.setdefault(key, {})
        entry[row["status"]] = entry.get(row["status"], 0) + 1
    return found
