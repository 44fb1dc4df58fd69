"""The results file of a campaign, schema 2: read, resumed, written whole or not at all.

    {"schema": 2, "dry_run": .., "provenance": {..}, "stages": {name: {
        "status": "finished" | "cut short" | "not run", "why": .., "commit": .., "started": ..,
        "asked": {"full": .., "compiles": ..}, "seconds": .., "rows": [..]}}}

A stage that was cut short keeps its rows and goes on from them; so does one that is finished, where
more is asked for than was asked for then (`covers`).  A row with "left out" was made without that
peer, and is made anew by a run that has it.  Rows have a status:

    measured    with times, in microseconds
    passed      a check without a time
    failed      a check that is red, or an error: why, and no times
    skipped     does not apply here: why
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 2
STATUSES = ("measured", "passed", "failed", "skipped")
STAGE_STATUSES = ("finished", "cut short", "not run")
# What the stages of one file must share: the device, the versions, the code.
SAME = ("gpus", "driver", "python", "torch", "cuda", "cudnn", "triton", "diffusers")
SAME += ("commit", "sources")

Report = dict[str, Any]
Row = dict[str, Any]


def new(provenance: dict[str, Any], dry_run: bool) -> Report:
    return {"schema": SCHEMA, "dry_run": dry_run, "provenance": provenance, "stages": {}}


def check_row(row: Row) -> None:
    """Refuse a row that says nothing, or more than it may."""
    if not row.get("id"):
        raise ValueError(f"a row must have an id; got {row}")
    if row.get("status") not in STATUSES:
        raise ValueError(f"status of {row['id']} must be among {STATUSES}; got {row.get('status')}")
    if ("times" in row) != (row["status"] == "measured"):
        raise ValueError(f"{row['id']}: only what was measured, and so was right, has times")
    if row["status"] in ("failed", "skipped") and not row.get("why"):
        raise ValueError(f"{row['id']} is {row['status']} and must say why")


def check(report: Report) -> None:
    """Refuse what `save` would not have written."""
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}; got {report.get('schema')!r}")
    for key, kind in (("dry_run", bool), ("provenance", dict), ("stages", dict)):
        if not isinstance(report.get(key), kind):
            raise ValueError(f"{key} must be a {kind.__name__}; got {report.get(key)!r}")
    for name, stage in report["stages"].items():
        if stage["status"] not in STAGE_STATUSES:
            raise ValueError(f"status of stage {name} must be among {STAGE_STATUSES}")
        if stage["status"] != "finished" and not stage.get("why"):
            raise ValueError(f"stage {name} is {stage['status']} and must say why")
        for row in stage["rows"]:
            check_row(row)
        ids = [row["id"] for row in stage["rows"]]
        if len(ids) != len(set(ids)):
            raise ValueError(f"stage {name} has an id twice")


def save(report: Report, path: Path) -> None:
    """Write JSON, one line a row.  Who reads the file finds the old one or the new one."""
    check(report)
    stages = []
    for name, stage in report["stages"].items():
        head = json.dumps({k: v for k, v in stage.items() if k != "rows"})
        rows = ",\n".join("   " + json.dumps(row) for row in stage["rows"])
        rows = f"[\n{rows}\n  ]" if rows else "[]"
        stages.append(f' {json.dumps(name)}: {head[:-1]}, "rows": {rows}}}')
    text = f'{{\n"schema": {SCHEMA},\n"dry_run": {json.dumps(report["dry_run"])},\n'
    text += f'"provenance": {json.dumps(report["provenance"], indent=1)},\n'
    text += '"stages": {\n' + ",\n".join(stages) + "\n}\n}\n"
    write(path, text)


def write(path: Path, text: str) -> None:
    """The whole text or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def load(path: Path) -> Report:
    """A report written by `save`."""
    report = json.loads(path.read_text())
    try:
        check(report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return dict(report)


def resumed(path: Path, provenance: dict[str, Any], dry_run: bool) -> Report:
    """What is there already, or an empty report."""
    if not path.exists():
        return new(provenance, dry_run)
    report = load(path)
    if words := differences(report, provenance, dry_run):
        raise ValueError(f"{path} is of another run ({words}): choose another --out")
    return report


def differences(report: Report, provenance: dict[str, Any], dry_run: bool) -> str:
    """Why a report cannot be continued here, in words; "" if it can.  Of a dry run, which has no
    numbers, nothing but that must agree."""
    if report["dry_run"] != dry_run:
        return f"dry_run {report['dry_run']}, here {dry_run}"
    there, keys = report["provenance"], () if dry_run else SAME
    differ = [k for k in keys if there.get(k) != provenance.get(k)]
    return "; ".join(f"{k} {there.get(k)!r}, here {provenance.get(k)!r}" for k in differ)


def covers(stage: dict[str, Any], asked: dict[str, bool]) -> bool:
    """Whether a stage has come to its end, and left nothing out that is asked for now."""
    had = stage.get("asked", {})
    wanted = [key for key, value in asked.items() if value]
    return bool(stage["status"] == "finished" and all(had.get(key) for key in wanted))


def stale(row: Row, asked: dict[str, bool]) -> bool:
    """Whether a row was made without something that is there now."""
    return bool(row.get("left out") and asked.get("compiles"))


def stage_of(report: Report, name: str) -> dict[str, Any]:
    """The record of a stage, empty if it has not run."""
    empty: dict[str, Any] = {"status": "not run", "why": "not asked for", "rows": []}
    return dict(report["stages"].get(name, empty))


def rows_of(report: Report, *stages: str) -> list[Row]:
    """Rows of these stages, or of all."""
    names = stages or tuple(report["stages"])
    return [row for name in names for row in stage_of(report, name)["rows"]]
