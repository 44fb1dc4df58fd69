"""What the campaign runs on a device before it times anything: which tests, and the sanitizer."""

import re

import pytest

from benchmarks.campaign import checks, sanitizer
from benchmarks.campaign.task import OutOfTime, Task
from fastdiff import backends
from tests.on_device import CHECKS
from tests.on_device.cases import DTYPES

PARTS = {"launch", "replayed", "written", "edges"}  # tests/on_device/__init__.py


@pytest.mark.parametrize("op", checks.op_names())
def test_every_op_has_every_check_on_a_device_in_every_dtype(op):
    assert set(CHECKS[op]) >= PARTS
    assert set(CHECKS[op]) & {"numbers", "bits"}
    assert set(DTYPES) == {"float32", "float16", "bfloat16"}
    assert op in backends.ops()


@pytest.fixture(scope="module")
def kernel_rows():
    """The rows of the stage `tests` in a dry run: one test a file."""
    rows = []
    checks.tests(Task(dry=True, emit=rows.append))
    return rows


def test_the_tests_of_every_kernel_are_run(kernel_rows):
    assert {row["case"]["op"] for row in kernel_rows} == set(checks.op_names())
    assert not [row for row in kernel_rows if row["status"] == "failed"]
    names = " ".join(row["id"] for row in kernel_rows)
    assert "test_abs_quantile.py::test_triton_bits" in names
    assert "test_philox_normal.py::test_triton_bits" in names


def test_no_test_that_launches_a_kernel_is_left_out():
    """Tests that are skipped where there is neither a device nor the interpreter launch one."""
    skips = re.compile(
        r"@(?:runs_kernels|pytest\.mark\.skipif\(\s*DEVICE == \"cpu\" and not INTERPRETED)"
        r".*?\ndef (test_\w+)",
        re.DOTALL,
    )
    files = {path.name for path in checks.kernel_tests()}
    for name in checks.op_names():
        for path in (checks.ROOT / "tests").glob(f"test_{name}*.py"):
            for test in skips.findall(path.read_text()):
                assert path.name in files, f"{path.name}::{test}"
                whole = path.stem.endswith("_triton")
                assert whole or test.startswith(checks.KERNELS), f"{path.name}::{test}"


def test_the_sanitizer_watches_every_op_by_both_tools(monkeypatch, tmp_path):
    """In order: the planted write first, for without it the rest says nothing."""
    tool, rows, lines = tmp_path / "compute-sanitizer", [], []
    tool.write_text("")
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tool))

    def said(command, seconds):
        lines.append(command)
        return "", int("--planted" in command)

    monkeypatch.setattr(sanitizer, "said", said)
    sanitizer.run(Task(device="cuda", emit=rows.append))
    assert {row["status"] for row in rows} == {"passed"}
    assert rows[0]["id"] == f"memcheck {sanitizer.PLANTED}"
    found = [(row["case"]["tool"], row["case"]["op"]) for row in rows[1:]]
    wanted = [(kind, op) for op in checks.op_names() for kind in ("memcheck", "racecheck")]
    assert found == wanted
    for (kind, op), line in zip(wanted, lines[1:], strict=True):
        assert line[1:3] == ["--tool", kind]
        assert line[-1] == op


def test_a_tool_that_had_too_little_time_is_run_again(tmp_path):
    """Nothing is written down of a row for which the stage had no time left."""
    tool, rows = tmp_path / "tool", []
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    task = Task(emit=rows.append)
    for look in (
        lambda: sanitizer.examine(str(tool), 0.1, "memcheck", "geglu"),
        lambda: sanitizer.planted(str(tool), 0.1),
    ):
        with pytest.raises(OutOfTime):
            task.measure("x", look)
    assert not rows
    assert sanitizer.too_long(sanitizer.SECONDS)["status"] == "skipped"
