"""python -m benchmarks.attention_table RESULTS.json [..]: the table that attention() chooses by.

Takes the times of bench_attention.py and bench_cross_attention.py in results of a GPU, of
`python -m benchmarks` or of the campaign, and writes fastdiff/ops/attention_table.json.  What that
says of other devices stays; what it says of the same device is replaced.

Where several measurements fall into one class (fastdiff/ops/_attention_table.py), only who was
measured in all of them stands for election, with the sum of his times; and nobody who lost to
PyTorch's own choice in one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import flash, sdpa
from benchmarks.campaign.checks import believed
from benchmarks.campaign.record import rows_of
from benchmarks.side_by_side import OURS
from fastdiff.ops import _attention_table as format_

Record = dict[str, Any]
NAMES = {n: n.removeprefix("sdpa ") for n in (*sdpa.KINDS, *(f"sdpa {n}" for n in flash.NAMES))}
NAMES |= {"sdpa": "torch", f"{OURS} triton": "triton"}
Class = tuple[str, int, str, str, bool]


def records(report: Record) -> Iterable[Record]:
    """Those of attention with times, of either schema; none of an op whose checks are red."""
    rows = rows_of(believed(report)) if "stages" in report else report["cases"]
    wanted = ("attention", "cross_attention")
    return (r for r in rows if r.get("benchmark") in wanted and "times" in r and "shape" in r)


def times(record: Record) -> dict[str, float]:
    """{name of the table: microseconds of one call}."""
    names = dict(NAMES)
    if record["benchmark"] == "cross_attention" and record["case"].get("backend") == "triton":
        names[OURS] = "cross_attention"
    return {
        names[who]: round(found["median"] / record.get("repeats", 1), 3)
        for who, found in record["times"].items()
        if who in names
    }


def device(report: Record) -> Record:
    """The entry of the table that a report makes."""
    facts = report["provenance"]
    if not facts.get("gpus"):
        raise ValueError("the results are not of a GPU: provenance has no gpus")
    classes: dict[Class, list[dict[str, float]]] = defaultdict(list)
    for record in records(report):
        shape = record["shape"]
        lengths = (format_.length_class(shape["N"]), format_.length_class(shape["M"], True))
        dtype, masked = record["case"]["dtype"], bool(record.get("masked", False))
        classes[dtype, shape["D"], *lengths, masked].append(times(record))
    keys = ("dtype", "width", "queries", "keys", "masked")
    rows = []
    for class_, measured in sorted(classes.items()):
        found = elected(measured)
        row = dict(zip(keys, class_, strict=True))
        rows.append(row | {"fastest": format_.fastest(found), "microseconds": found})
    return {
        "device": facts["gpus"][0],
        "driver": str(facts.get("driver", "unknown")),
        "torch": str(facts.get("torch", "unknown")),
        "triton": str(facts.get("triton", "unknown")),
        "date": facts["date"][:10],
        "rows": rows,
    }


def elected(measured: list[dict[str, float]]) -> dict[str, float]:
    """Times summed over the measurements of a class, of those who may be chosen."""
    names = set.intersection(*(set(each) for each in measured))
    names = {n for n in names if all(each[n] <= each["torch"] for each in measured)} or {"torch"}
    if len(measured) == 1:  # who lost stays, for the reader
        names = set(measured[0])
    return {n: round(sum(each[n] for each in measured), 3) for n in sorted(names)}


def merged(table: Record, entries: list[Record]) -> Record:
    """The table with the entries in place of what it says of their devices."""
    new = {entry["device"] for entry in entries}
    kept = [entry for entry in table["devices"] if entry["device"] not in new]
    return {"schema": format_.SCHEMA, "devices": [*kept, *entries]}


def text(table: Record) -> str:
    """JSON, one row a line."""
    parts = []
    for entry in table["devices"]:
        head = json.dumps({k: v for k, v in entry.items() if k != "rows"})[:-1]
        rows = ",\n".join(f"  {json.dumps(row)}" for row in entry["rows"])
        parts.append(f'{head}, "rows": [\n{rows}\n]}}')
    return f'{{"schema": {table["schema"]}, "devices": [{", ".join(parts)}]}}\n'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_table")
    parser.add_argument("results", type=Path, nargs="+", help="JSON with times of a GPU")
    parser.add_argument("--out", type=Path, default=format_.PATH)
    options = parser.parse_args(argv)
    entries = [device(json.loads(path.read_text())) for path in options.results]
    old = format_.PATH if not options.out.exists() else options.out
    table = merged(json.loads(old.read_text()), entries)
    format_.read(table, "the new table")
    options.out.write_text(text(table))
    for entry in entries:
        for row in entry["rows"]:
            where = f"{row['dtype']} {row['width']} {row['queries']} x {row['keys']}"
            print(f"{entry['device']}: {where}: {row['fastest']} {row['microseconds']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
