"""python -m benchmarks [--engine] [--out FILE] [-k EXPRESSION]: run them, write JSON, print ratios.

The JSON (schema 1) holds the provenance and, for every case, the times of each contestant; no
ratio is stored, since all follow from it.  A whole run goes to benchmarks/results/cpu-DATE.json,
and the tables of README.md and docs/performance.md are made from it.  With --engine the run is that
of engines, bench_engine.py alone, and goes to benchmarks/results/engine-DATE.json: five minutes of
its own.  With -k nothing is written, with --out nothing but that file, and on a machine with a GPU
only with --out: the numbers of a GPU come from `python -m benchmarks.campaign`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.provenance import ROOT
from benchmarks.results import RESULTS, TARGETS, case_name, ratio, save

HERE = Path(__file__).parent
OPENMP = ("OMP_", "GOMP_", "KMP_", "MKL_")  # variables that slow or speed PyTorch's threads
ENGINE = HERE / "bench_engine.py"


def run(out: Path | None, expression: str, engine: bool = False) -> int:
    """pytest on bench_*.py, of engines or all others; its report, condensed, goes to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        found = [ENGINE] if engine else sorted({*HERE.glob("bench_*.py")} - {ENGINE}, reverse=True)
        files = [str(path) for path in found]
        args = [*files, "-o", "python_files=bench_*.py", "-q", "-p", "no:cacheprovider"]
        args += ["-W", "ignore", "--benchmark-quiet", f"--benchmark-json={raw}"]
        args += ["--rootdir", str(ROOT), *(["-k", expression] if expression else [])]
        status = int(pytest.main(args))
        if status or not raw.exists() or not raw.stat().st_size:
            print("no numbers: a check before the timing failed, or nothing was selected")
            return status or 1
        report = condense(json.loads(raw.read_text()))
    print_ratios(report)
    if out is not None:
        save(report, out)
        print(f"\nwritten: {out}")
    elif not expression and report["provenance"]["gpus"]:
        print("\nnot written: on a GPU, python -m benchmarks.campaign; or --out FILE")
    elif not expression:
        path = RESULTS / f"{'engine' if engine else 'cpu'}-{report['provenance']['date'][:10]}.json"
        save(report, path)
        print(f"\nwritten: {path}")
        return table.main([])
    return 0


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """Provenance and, for every case, what it was, what it moved, how it was checked, the times."""
    cases = []
    for entry in raw["benchmarks"]:
        cases.append({"benchmark": entry["group"].split("/")[0], **entry["extra_info"]})
    return {"schema": 1, "provenance": raw["machine_info"]["fastdiff"], "cases": cases}


def print_ratios(report: dict[str, Any]) -> None:
    """One line a contestant and case; then the targets."""
    facts = report["provenance"]
    usual = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    threads = sorted({case["case"].get("threads", usual) for case in report["cases"]})
    print(f"\n{facts['cpu']}, {' or '.join(threads)}, load {facts['load_average']}")
    print("microseconds, median / fastest quartile; ratio to fastdiff in both\n")
    for case in report["cases"]:
        print(case_name(case))
        for name, time in sorted(case["times"].items(), key=lambda item: item[1]["median"]):
            ratios = [ratio(case, name, kind) for kind in ("median", "fastest_quartile")]
            print(
                f"  {name:40} {time['median']:9.1f} / {time['fastest_quartile']:9.1f}"
                f"   {ratios[0]:6.2f} / {ratios[1]:6.2f}"
            )
    print("\ntargets")
    for target in TARGETS:
        found = next((c for c in report["cases"] if case_name(c) == target.case), None)
        if found is None or target.peer not in found["times"]:
            continue
        got = ratio(found, target.peer, target.statistic)
        verdict = "reached" if got >= target.ratio else "MISSED"
        print(
            f"  {target.case} against {target.peer}, {target.statistic}: "
            f"{got:.2f}, wanted {target.ratio:g}: {verdict}"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON to write, and nothing else")
    parser.add_argument("--engine", action="store_true", help="engines, in the place of all else")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="which cases, as in pytest")
    options = parser.parse_args(argv)
    kept = options.out is None and not options.k
    # OMP_WAIT_POLICY=passive: eager PyTorch's U-Net took 76 to 119 ms instead of 33 to 39
    if kept and (found := sorted(name for name in os.environ if name.startswith(OPENMP))):
        parser.error(
            f"{', '.join(found)} must not be set for numbers that are kept: a peer's threads would "
            f"be others than its users'. Try env -u {' -u '.join(found)} python -m benchmarks"
            f"{' --engine' * options.engine}"
        )
    return run(options.out, options.k, options.engine)


if __name__ == "__main__":
    sys.exit(main())
