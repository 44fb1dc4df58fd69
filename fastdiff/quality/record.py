"""The record of a run, written after every measurement (record_file.py).

    {"schema": 1, "made": versions, "conditions": .., "refused": {..}, "student": .., "rows": [..]}

`student` is the hash of its weights (null: none has run); `refused` says why a class refuses
"sampler, steps".  A row is {"model", "sampler", "class", "steps", "parts"}, a part the Result of
one batch of pictures and its number.  More pictures may be asked for later: they are more parts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdiff.quality.ranking import Row, rows
from fastdiff.quality.runs import REFERENCE, measure, reference_of
from fastdiff.quality.samplers import (
    LEFT_OUT,
    SPACING,
    STEPS,
    STUDENT,
    STUDENT_STEPS,
    samplers,
    scheduler_of,
)
from fastdiff.record_file import ELSEWHERE, Kind, Record, made
from fastdiff.record_file import save as save_rows
from fastdiff.shapes.evaluate import prompts_for
from fastdiff.tune.subject import Start, Subject

KIND = Kind(
    "fastdiff bench quality",
    schema=1,
    parts={"refused": dict, "left_out": dict},
    keys={"rows": frozenset({"model", "sampler", "class", "steps", "parts"})},
)
load = KIND.load
SEED = 300_000  # of picture 0: no seed of `fastdiff tune MODEL`


@dataclass(frozen=True)
class Task:
    """What is asked for: pictures in batches, how many of the first are compared to a reference."""

    pictures: int = 64
    batch: int = 16
    compared: int = 8
    steps: tuple[int, ...] = STEPS
    samplers: tuple[str, ...] = ()
    calls: int = REFERENCE

    def start(self) -> Start:
        """Prompts of two objects that training never saw, a seed each."""
        return Start(
            tuple(prompts_for(self.pictures, one=False, seed=0)),
            tuple(range(SEED, SEED + self.pictures)),
        )


def conditions(subject: Subject, task: Task, origin: Record) -> Record:
    """Everything that a number depends on besides versions, sampler, steps and picture."""
    return {
        **origin,
        "guidance": subject.guidance,
        "spacing": SPACING,
        "batch": task.batch,
        "compared": task.compared,
        "reference_calls": task.calls,
        "seed": SEED,
    }


def run(
    folder: Path,
    subject: Subject,
    config: dict[str, Any],
    task: Task,
    origin: Record,
    *,
    student: Subject | None = None,
    student_weights: str | None = None,
    fresh: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measure what folder/quality.json does not hold yet; the whole record.

    The first batch is measured at every number of steps, few first, then the next one: a run that
    is cut has compared all on the same pictures, but for the last batch.  A batch that was of fewer
    pictures, the last one of a smaller run, is measured again as a whole.
    student_weights  hash of the student's, which are none of the conditions of the others' rows
    Raises ValueError where the file is of other conditions, versions or students, or no record.
    """
    path = folder / "quality.json"
    wanted = conditions(subject, task, origin)
    record: Record = {"schema": KIND.schema, "made": made(), "conditions": wanted}
    record |= {"left_out": LEFT_OUT, "refused": {}, "student": None, "rows": []}
    if path.exists() and not fresh:
        record = {**record, **KIND.resumed(path, record), "left_out": record["left_out"]}
    if student is not None:
        _same_student(path, record, student_weights)
        record["student"] = student_weights
    whole = task.start()
    compared = min(task.compared, task.pictures, task.batch)
    reference = None
    if compared:
        origin = {"made": record["made"], "conditions": wanted}
        reference = reference_of(
            *(subject, whole.first(compared), folder / "quality-reference.pt", task.calls),
            origin=origin,
            tell=tell,
        )
    chosen = task.samplers or samplers()
    for number, start in enumerate(whole.parts(task.batch)):
        target = reference if number == 0 else None
        for steps in task.steps:
            jobs = [("teacher", subject, name) for name in chosen]
            if student is not None and steps in STUDENT_STEPS:
                jobs.append(("student", student, STUDENT))
            for model, who, name in jobs:
                row = _row(record, model, name, steps)
                key = f"{name}, {steps}"
                there = [p["count"] for p in row["parts"] if p["batch"] == number]
                if (there and there[0] >= len(start.seeds)) or key in record["refused"]:
                    continue
                try:
                    scheduler = scheduler_of(name, config)
                    scheduler.set_timesteps(steps)
                except ValueError as error:  # the class cannot run this model, or so few steps
                    record["refused"][key] = str(error)
                    continue
                given = target if model == "teacher" else None
                result = measure(who, scheduler, steps, start, given)
                row["class"] = type(scheduler).__name__
                others = [p for p in row["parts"] if p["batch"] != number]
                row["parts"] = [*others, {"batch": number, **asdict(result)}]
                save(path, record)
                tell(f"{model} {name}, {steps} steps, batch {number}: {result.right}")
    save(path, record)
    return record


def _same_student(path: Path, record: Record, weights: str | None) -> None:
    """Raise where rows of a student are there and it was another one."""
    there = record["student"]
    if there != weights and any(row["model"] == "student" for row in record["rows"]):
        raise ValueError(
            f"{path} was measured with a student of weights {there!s:.16}; now they are "
            f"{weights!s:.16}. {ELSEWHERE}"
        )


def _row(record: Record, model: str, name: str, steps: int) -> Record:
    """The row of a measurement, new where there is none."""
    for row in record["rows"]:
        if (row["model"], row["sampler"], row["steps"]) == (model, name, steps):
            found: Record = row
            return found
    row = {"model": model, "sampler": name, "class": "", "steps": steps, "parts": []}
    record["rows"].append(row)
    return row


def save(path: Path, record: Record) -> None:
    """Write it; rows without a part are left out."""
    save_rows(path, {**record, "rows": [row for row in record["rows"] if row["parts"]]})


def as_csv(record: Record) -> str:
    """A line a row, summed over its parts."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row.__annotations__)
    for row in rows(record):
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()
