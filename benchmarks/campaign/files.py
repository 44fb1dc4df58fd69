"""Which file a campaign goes on with, if --out does not say.

benchmarks/results/GPU-DATE.json, and GPU-DATE-2.json where that is there already.  The newest file
of the same GPU, versions and code is continued, whatever day it was begun on, until it has all that
is asked for.  What is of another commit or of other versions is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.campaign import record
from benchmarks.campaign.record import Report

Asked = dict[str, dict[str, bool]]  # of each stage: {"full": .., "compiles": ..}


def begun(provenance: dict[str, Any]) -> list[Path]:
    """Files of this kind of GPU, the newest first."""
    name = gpu_name(provenance)
    found = [(results.dated(path), path) for path in results.RESULTS.glob("*.json")]
    mine = [(date, path) for date, path in found if date and date.name == name]
    return [path for _, path in sorted(mine, key=lambda each: each[0][:2], reverse=True)]


def gpu_name(provenance: dict[str, Any]) -> str:
    """nvidia-h200"""
    return "-".join((provenance["gpus"] or ["no gpu"])[0].lower().split())


def fresh(provenance: dict[str, Any]) -> Path:
    """benchmarks/results/nvidia-h200-2026-11-21.json, or the first -2, -3 .. that is not there."""
    stem = f"{gpu_name(provenance)}-{provenance['date'][:10]}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(p for n in names if not (p := results.RESULTS / f"{n}.json").exists())


def choose(provenance: dict[str, Any], asked: Asked, again: bool = False) -> tuple[Path, str]:
    """The file, and in words why that one."""
    others = []
    for path in begun(provenance):
        try:
            report = record.load(path)
        except (ValueError, KeyError) as error:
            others.append(f"{path.name} cannot be read ({error})")
            continue
        if words := record.differences(report, provenance, dry_run=False):
            others.append(f"{path.name} is of another run ({words})")
            continue
        day = report["provenance"]["date"][:10]
        there = f"{path}, begun {day}, the same GPU, versions and code"
        if again:
            return path, f"going on with {there}"
        if missing := unfinished(report, asked):
            return path, f"going on with {there}; to do: {', '.join(missing)}"
        if day == provenance["date"][:10]:
            return path, f"nothing is left to do in {there}; --again measures anew"
        others.append(f"{path.name} is finished")
        break
    new = fresh(provenance)
    return new, f"a new file, {new}" + "".join(f"; {other}" for other in others[:1])


def unfinished(report: Report, asked: Asked) -> list[str]:
    """Stages that do not have all that is asked for."""
    return [n for n, a in asked.items() if not record.covers(record.stage_of(report, n), a)]
