"""Tests and benchmarks of pytest, each a row of a stage.

The plugin leaves out what is done, stops when the time is up, and hands every row over as soon as
it is made.  Its fixture `benchmark` stands for that of pytest-benchmark, which is not loaded: the
rounds are those of benchmarks/side_by_side.py anyhow, and end with the time of the stage.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign.record import Row
from benchmarks.campaign.task import WORDS, DeviceLost, OutOfTime, Task
from benchmarks.provenance import ROOT
from benchmarks.results import COMPILED

DRY_ROUNDS = 2
DTYPES = ("float32", "float16", "bfloat16")


class Recorder:
    """What a benchmark needs of pytest-benchmark's fixture."""

    disabled = False

    def __init__(self, task: Task):
        self.task, self.extra_info, self.group = task, dict[str, Any](), None
        self.dry = task.dry

    def pedantic(self, target: Callable[[], object], rounds: int = 1, **_: object) -> None:
        most = min(rounds, DRY_ROUNDS) if self.task.dry else rounds
        for done in range(most):
            if done >= DRY_ROUNDS and self.task.left() <= 0:
                break
            target()


class Plugin:
    """task; keep: which of the collected items; what: the fixed part of an item's row."""

    def __init__(
        self, task: Task, what: Callable[[pytest.Item], Row], keep: Callable[[list[Any]], list[Any]]
    ):
        self.task, self.what, self.keep = task, what, keep
        self.stopped: Exception | None = None
        self.recorder: Recorder | None = None
        self.seen = 0

    @pytest.fixture
    def benchmark(self) -> Recorder:
        self.recorder = Recorder(self.task)
        return self.recorder

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = self.keep(items)
        self.seen += len(kept)
        kept = self.task.share(kept)
        items[:] = [item for item in kept if item.nodeid not in self.task.done]

    def pytest_collectreport(self, report: Any) -> None:
        name = f"collecting {report.nodeid}"
        if report.failed and name not in self.task.done:
            self.seen += 1
            row = {"id": name, "benchmark": Path(report.nodeid).stem.removeprefix("bench_")}
            self._hand_over(row | {"status": "failed", "why": last_words(str(report.longrepr))})
        elif report.skipped and name not in self.task.done:  # a module that asks to be left out
            self.seen += 1
            row = {"id": name, "benchmark": Path(report.nodeid).stem.removeprefix("test_")}
            self._hand_over(row | {"status": "skipped", "why": reason(report.longrepr)})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.recorder = None
        try:
            self.task.wants(item.nodeid)
        except OutOfTime as error:
            self._stop(item.session, error)
        return (yield)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.stopped:
            pytest.skip("the time is up")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
        report: Any = yield
        if self.stopped:
            return report
        row = {"id": item.nodeid, **self.what(item), **left_out(item, self.task)}
        extra = dict(self.recorder.extra_info) if self.recorder else {}
        row |= {"case": extra["case"]} if "case" in extra else {}
        try:
            if report.failed and not (report.when == "teardown" and "times" in extra):
                why = last_words(str(report.longreprtext))
                self.task.hand_over(row | {"status": "failed", "why": why})
            elif report.skipped:
                why = reason(report.longrepr)
                self.task.hand_over(row | {"status": "skipped", "why": why})
            elif report.when == "call":
                status = "measured" if "times" in extra else "passed"
                self.task.hand_over(row | {"status": status} | repeats(item, self.task) | extra)
        except DeviceLost as error:
            self._stop(item.session, error)
        return report

    def _hand_over(self, row: Row) -> None:
        try:
            self.task.hand_over(row)
        except DeviceLost as error:
            self.stopped = error

    def _stop(self, session: pytest.Session, error: Exception) -> None:
        self.stopped = error
        session.shouldstop = str(error) or "the time is up"


def run(
    task: Task,
    args: list[str],
    what: Callable[[pytest.Item], Row],
    keep: Callable[[list[Any]], list[Any]] = lambda items: items,
) -> int:
    """pytest on `args`; how many items were there.  Raises what ended it before its end."""
    plugin = Plugin(task, what, keep)
    # a configuration of its own: neither the options of a test run nor strictness about markers
    args = [*args, "-p", "no:benchmark", "-p", "no:cacheprovider", "-q", "-W", "ignore"]
    args += [
        "-o",
        "addopts=",
        "--tb=short",
        "--capture=no",
        f"--rootdir={ROOT}",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    with redirect_stdout(io.StringIO()) as said:
        status = int(pytest.main(args, plugins=[plugin]))
    if plugin.stopped:
        raise plugin.stopped
    if status not in (0, 1, 5) and not plugin.seen:
        raise RuntimeError(f"pytest ended with {status}: {last_words(said.getvalue())}")
    return plugin.seen


def left_out(item: Any, task: Task) -> Row:
    """A row that would have torch.compile, which this run leaves out, says so."""
    without = not task.compiles and "compiles" in getattr(item, "fixturenames", ())
    return {"left out": COMPILED} if without else {}


def repeats(item: pytest.Item, task: Task) -> Row:
    """How many calls a benchmark's graph has, if its record does not say."""
    module = getattr(item, "module", None)
    known = task.device == "cuda" and hasattr(module, "IN_A_GRAPH")
    return {"repeats": module.IN_A_GRAPH} if known else {}  # type: ignore[union-attr]


def last_words(text: str) -> str:
    """The error of a traceback, in pytest's short form."""
    lines = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    found = " ".join(lines) or " ".join(text.split())[-WORDS:]
    return found if len(found) <= WORDS else found[:WORDS] + " .."


def reason(longrepr: Any) -> str:
    """Why a test was skipped."""
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ") or "skipped"


def dtype_of(name: str) -> str:
    """The dtype that a test's name bears, or "any"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((dtype for dtype in DTYPES if dtype in words), "any")
