"""Run one stage: in a process of its own, whose death loses one row, or (dry run) in this one.

The process writes a journal, one JSON line for a row begun and one for a row made; whoever waits
for it moves rows from there into the results file twice a second.  A process that dies is followed
by another one, which leaves out what is done and what killed the first.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.campaign.record import STAGE_STATUSES, Report, Row, save, stage_of, stale
from benchmarks.campaign.task import DeviceLost, OutOfTime, Task, words_of
from benchmarks.provenance import ROOT, commit

GRACE = 20.0  # seconds after its time that a stage may take to come to the end of a row
MOST_DEATHS = 8
LOST = 17  # exit status: the device is of no more use to the process
SHORT = 18  # exit status: out of time


class Options(NamedTuple):
    """What the command was asked for."""

    minutes: float = 8.0
    device: str = "cpu"
    dry: bool = False
    full: bool = False
    compiles: bool = True


Work = Callable[[Task], None]


class Open:
    """A stage being written: rows go into the report and onto the disk.  `asked`: what of "full"
    and "compiles" the stage is run with; a row without a peer that is asked for now is made anew,
    and stays until then."""

    def __init__(
        self,
        report: Report,
        name: str,
        path: Path,
        again: bool = False,
        asked: dict[str, bool] | None = None,
    ):
        asked = asked or {}
        self.report, self.path, self.lock = report, path, threading.RLock()
        before = stage_of(report, name)
        self.rows: list[Row] = [] if again else before["rows"]
        self.stale = {row["id"] for row in self.rows if stale(row, asked)}
        self.spent = 0.0 if again else before.get("seconds", 0.0)
        self.started = time.monotonic()
        self.stage: dict[str, Any] = {"status": "cut short", "why": "the run was cut off"}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.stage |= {"commit": commit(), "started": now, "asked": asked, "seconds": 0.0}
        self.stage["rows"] = self.rows
        report["stages"][name] = self.stage
        self.save()

    def done(self) -> frozenset[str]:
        with self.lock:
            return frozenset(row["id"] for row in self.rows) - self.stale

    def add(self, row: Row) -> None:
        """Unless it is there already, as a row is that all shards make."""
        with self.lock:
            if row["id"] in self.done():
                return
            kept = [i for i, old in enumerate(self.rows) if old["id"] == row["id"]]
            if kept:
                self.rows[kept[0]] = row
                self.stale.discard(row["id"])
            else:
                self.rows.append(row)
            self.save()

    def end(self, status: str, why: str = "") -> None:
        self.stage["status"] = status
        self.stage.pop("why")
        if why:
            self.stage["why"] = why
        self.save()

    def save(self) -> None:
        self.stage["seconds"] = round(self.spent + time.monotonic() - self.started, 1)
        save(self.report, self.path)


def here(stage: Open, work: Work, options: Options, context: dict[str, Any]) -> None:
    """Run the stage in this process."""
    task = make_task(options, stage.done(), context)
    task.emit = stage.add
    try:
        work(task)
    except OutOfTime:
        stage.end("cut short", f"its {options.minutes:g} minutes were over")
    except DeviceLost as error:
        stage.end("cut short", f"the device was lost: {error}")
    except Exception as error:
        stage.end("not run", words_of(error))
    else:
        stage.end("finished")


def make_task(options: Options, done: frozenset[str], context: dict[str, Any]) -> Task:
    deadline = time.monotonic() + 60 * options.minutes
    flags = (options.device, options.dry, options.full, options.compiles)
    return Task(*flags, deadline=deadline, done=done, context=context)


def apart(
    stage: Open,
    name: str,
    options: Options,
    context: dict[str, Any],
    command: tuple[str, ...] = (sys.executable, "-m", "benchmarks.campaign.runner"),
    grace: float = GRACE,
    shards: int = 1,
) -> None:
    """Run the stage in `shards` processes at a time, each with its part of the rows."""
    end = time.monotonic() + 60 * options.minutes

    def part(shard: int) -> tuple[str, str]:
        order = {"stage": name, "context": context, "shard": [shard, shards]}
        return one_after_another(stage, order, options, command, end, grace)

    with ThreadPoolExecutor(shards) as pool:
        ends = list(pool.map(part, range(shards)))
    stage.end(*max(ends, key=lambda found: STAGE_STATUSES.index(found[0])))


def one_after_another(
    stage: Open,
    order: dict[str, Any],
    options: Options,
    command: tuple[str, ...],
    end: float,
    grace: float,
) -> tuple[str, str]:
    """Processes, each of which begins where the one before ended; how that ended, and why."""
    over = ("cut short", f"its {options.minutes:g} minutes were over")
    for _ in range(MOST_DEATHS):
        with tempfile.TemporaryDirectory() as folder:
            journal, errors = Path(folder) / "journal", Path(folder) / "errors"
            asked = options._replace(minutes=(end - time.monotonic()) / 60)._asdict()
            order |= {"options": asked, "done": sorted(stage.done()), "journal": str(journal)}
            reader, line = Reader(journal, stage), [*command, str(Path(folder) / "order")]
            Path(line[-1]).write_text(json.dumps(order))
            with open(errors, "w") as log:
                child = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, text=True)
                try:
                    status = wait(child, reader, end + grace)
                finally:
                    child.kill()
                    child.wait()
            reader.read()
            last = (errors.read_text()[-2000:].strip().splitlines()[-1:] or [""])[0][:300]
        if status == 0:
            return "finished", ""
        if status is None and reader.begun:
            # what alone took most of the time would take it next time, too
            if time.monotonic() - reader.since > 30 * options.minutes:
                why = f"not done after {options.minutes:g} minutes, and stopped"
                stage.add({"id": reader.begun, "status": "failed", "why": why})
            return over
        if status is None or status == SHORT:
            return over
        if status != LOST:
            if not reader.begun:
                return "not run", f"the process ended with {status}: {last}"
            why = f"the process died of it, status {status}: {last}"
            stage.add({"id": reader.begun, "status": "failed", "why": why})
        if time.monotonic() > end:
            return over
    return "cut short", f"{MOST_DEATHS} processes died"


class Reader:
    """What of the journal is not yet in the report."""

    def __init__(self, journal: Path, stage: Open):
        self.journal, self.stage = journal, stage
        self.at, self.begun, self.since = 0, "", time.monotonic()

    def read(self) -> None:
        if not self.journal.exists():
            return
        with open(self.journal) as file:
            file.seek(self.at)
            while (line := file.readline()).endswith("\n"):
                self.at = file.tell()
                entry = json.loads(line)
                if "begin" in entry:
                    self.begun, self.since = entry["begin"], time.monotonic()
                else:
                    self.begun = ""
                    self.stage.add(entry["row"])


def wait(child: subprocess.Popen[str], reader: Reader, end: float) -> int | None:
    """The exit status; None: it had to be stopped."""
    while child.poll() is None:
        if time.monotonic() > end:
            return None
        try:
            child.wait(0.5)
        except subprocess.TimeoutExpired:
            reader.read()
    return child.returncode


def main(order: dict[str, Any]) -> int:
    """In the process of a stage."""
    from benchmarks.campaign.stages import stages

    options = Options(**order["options"])
    task = make_task(options, frozenset(order["done"]), order["context"])
    task.shard = (order["shard"][0], order["shard"][1])
    with open(order["journal"], "a", buffering=1) as journal:
        task = dataclasses.replace(
            task,
            begin=lambda name: print(json.dumps({"begin": name}), file=journal),
            emit=lambda row: print(json.dumps({"row": row}), file=journal),
        )
        try:
            stages()[order["stage"]].work(task)
        except OutOfTime:
            return SHORT
        except DeviceLost:
            return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
