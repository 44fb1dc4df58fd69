"""Correctness on the device: tests/test_on_device.py, and the tests of the kernels themselves.

No number of an op stands in a table while a check of it on the device is red, whichever came first:
`red` is asked before an op is timed, `believed` whenever a report is shown.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign import under_pytest
from benchmarks.campaign.record import Report, Row, rows_of
from benchmarks.campaign.task import RED, Task
from benchmarks.provenance import ROOT
from benchmarks.side_by_side import OURS

PARTS = ("_reference", "_checks")  # of an op's contract
KERNELS = ("test_kernel_", "test_triton_")  # tests of an op's file that launch a kernel
STAGES = ("correctness", "sanitizer", "tests")  # that judge the ops
PLANTED = "a planted write beyond the end"  # sanitizer.py: whether the tool sees anything
TIMED = {  # benchmarks that are not named as the op whose times they have
    "group_norm_set": ("group_norm",),
    "group_norm_large": ("group_norm",),
    "affine_step_graph": ("affine_step", "philox_normal"),
    "affine_step_scheduler": ("affine_step", "philox_normal"),
    "scheduler_step": ("affine_step",),
    "scheduler_step_after_work": ("affine_step",),
    "modules": (),  # of a CPU
    "engine": (),  # of a CPU, and of other runtimes
}
KEPT = ("id", "benchmark", "case", "shape", "left out")  # of a row that is not believed
# Compilers, not kernels: the same on a machine without a device, and slow.
ELSEWHERE = "not compiles and not compile_everywhere and not interpreter"


@functools.cache
def op_names() -> list[str]:
    """The ops that there are."""
    files = {path.stem for path in (ROOT / "fastdiff" / "ops").glob("[!_]*.py")}
    return sorted(name for name in files if not name.endswith(PARTS))


def run(task: Task) -> None:
    """One row a test of tests/test_on_device.py: op, backend and dtype."""

    def keep(items: list[Any]) -> list[Any]:
        """What needs a device; in a dry run, which has none, what stands for it on the CPU, and
        of each one an op: `make test` runs that file as it is."""
        instead = "test_the_reference_passes" if task.dry else "nothing"
        found = [i for i in items if i.get_closest_marker("gpu") or i.name.startswith(instead)]
        if not task.dry:
            return found
        return list(
            {(i.originalname, i.callspec.params["op"]): i for i in reversed(found)}.values()
        )

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
    """{op: in words} of the ops of which a check on the device is red, in any of the three stages.

    A row that names no op (a file that cannot be collected, a process that died in front of the
    name) stands against all of them; one about the sanitizer itself against none.
    """
    rows = [row for row in rows_of(report, *STAGES) if PLANTED not in row["id"]]
    failed = [(row, ops_of(row)) for row in rows if row["status"] == "failed"]
    found = {}
    for op in sorted({op for _, ops in failed for op in ops}):
        mine = [row for row, ops in failed if op in ops]
        total = len({row["id"] for row in rows if op in ops_of(row)})
        found[op] = f"{len(mine)} of {total} fail, first {mine[0]['id']}"
    return found


def ops_of(row: Row) -> list[str]:
    """What a row of a check is about.  That of a process which died has no case, only an id."""
    if (op := row.get("case", {}).get("op")) in op_names():
        return [op]
    names = sorted(op_names(), key=len, reverse=True)  # cross_attention before attention
    found = re.search(rf"(?<![a-z])({'|'.join(names)})(?![a-z])", row["id"])
    return [found[1]] if found else op_names()


def believed(report: Report) -> Report:
    """The report as it may be shown: what was timed of an op that is red by now has failed.

    The file keeps the times: a check that was wrong and is made again brings them back.
    """
    if not (found := red(report)):
        return report
    stages = {}
    for name, stage in report["stages"].items():
        stages[name] = {**stage, "rows": [judged(row, found) for row in stage["rows"]]}
    return {**report, "stages": stages}


def judged(row: Row, found: dict[str, str]) -> Row:
    """The row; as a failed one, if it is measured and an op of it is in `found`."""
    ops = [op for op in timed(row) if op in found] if row["status"] == "measured" else []
    if not ops:
        return row
    why = RED.format("; ".join(f"{op}: {found[op]}" for op in ops))
    left = {key: value for key, value in row.items() if key in KEPT}
    return {**left, "status": "failed", "why": why}


def timed(row: Row) -> list[str]:
    """The ops whose times a row has."""
    name = row.get("benchmark", "")
    if name == "model":
        ours = str(row.get("case", {}).get("contestant", "")).startswith(OURS)
        return op_names() if ours else []
    return list(TIMED.get(name, [name]))


def counts(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, int]]:
    """{(op, backend, dtype): {status: how many}}"""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in rows:
        case = row.get("case", {})
        key = (case.get("op", "?"), case.get("backend", "any"), case.get("dtype", "any"))
        entry = found.setdefault(key, {})
        entry[row["status"]] = entry.get(row["status"], 0) + 1
    return found
