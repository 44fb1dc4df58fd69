"""Measure everything on one GPU, in stages that can be cut off and resumed.

After every row the results file is whole, and beside it lies the same as text.  Run again, the
command goes on where it was cut off, in the newest file of the same GPU, versions and commit; a
stage that is finished is left out, unless --full or torch.compile, left out then, adds to it.  What
one stage loses, a missing package or a kernel that takes the process with it, the others do not.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.campaign import files, record, runner, show
from benchmarks.campaign.checks import red
from benchmarks.campaign.stages import stages
from benchmarks.results import RESULTS

MOST_MINUTES = 8.0


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from benchmarks.provenance import provenance

    facts = provenance()
    device = "cuda" if facts["gpus"] and not options.dry_run else "cpu"
    if device == "cpu" and not options.dry_run:
        print("torch sees no CUDA device; python -m benchmarks.campaign --dry-run tries the path")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        path, words = options.out or Path(folder) / "dry-run.json", ""
        if not options.out and not options.dry_run:
            each = {name: asked(options, name) for name in stages()}
            path, words = files.choose(facts, each, options.again)
            print(words, flush=True)
        try:
            report = record.resumed(path, facts, options.dry_run)
        except ValueError as error:
            print(error)
            return 2
        run(report, path, options, device)
        if options.out or not options.dry_run:
            print(f"\nwritten: {path}, {path.with_suffix('.txt')}")
        print("\n" + "\n".join([*show.head(report), "", *show.summary(report)]))
    return status(report, {name: asked(options, name) for name in chosen(options.stage)})


def run(report: record.Report, path: Path, options: argparse.Namespace, device: str) -> None:
    """The stages that were asked for and are not finished."""
    end = time.monotonic() + 60 * options.within
    flags: dict[str, Any] = {"dry": options.dry_run, "full": options.full, "device": device}
    flags["compiles"] = not options.no_compile
    for name in chosen(options.stage):
        there, wanted = record.stage_of(report, name), asked(options, name)
        if record.covers(there, wanted) and not options.again:
            print(f"{name}: finished before", flush=True)
            continue
        minutes = min(options.minutes, (end - time.monotonic()) / 60)
        if minutes < 0.25:
            print(f"{name}: no time left", flush=True)
            break
        print(f"{name}: {stages()[name].about}", flush=True)
        stage = runner.Open(report, name, path, options.again, wanted)
        order = runner.Options(minutes=minutes, **flags)
        context = {"red": red(report)}
        if options.dry_run:  # a process for each stage would take most of the time
            runner.here(stage, stages()[name].work, order, context)
        else:
            runner.apart(stage, name, order, context, shards=stages()[name].shards)
        print("\n".join(show.stage_lines(report, name)), flush=True)
        record.write(path.with_suffix(".txt"), show.text(report))


def asked(options: argparse.Namespace, name: str) -> dict[str, bool]:
    """What of that which makes a difference to a stage is asked for."""
    everything = {"full": options.full, "compiles": not options.no_compile}
    return {key: everything[key] for key in stages()[name].depends}


def chosen(patterns: list[str]) -> list[str]:
    """Names of stages, in order."""
    names = list(stages())
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)] if patterns else names


def status(report: record.Report, wanted: files.Asked) -> int:
    """1 if a row is red or a stage did not come to its end."""
    found = [record.stage_of(report, name) for name in wanted]
    failed = [row for stage in found for row in stage["rows"] if row["status"] == "failed"]
    return 1 if failed or files.unfinished(report, wanted) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "\n".join(f"  {name:22} {stage.about}" for name, stage in stages().items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.campaign",
        description=__doc__,
        epilog=f"stages, in order:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stage", action="append", default=[], metavar="NAME", help="only these; may be model_*")
    add("--minutes", type=float, default=MOST_MINUTES, metavar="M", help="of a stage, at most 8")
    add("--within", type=float, default=1e6, metavar="M", help="minutes of the whole command")
    add("--full", action="store_true", help="what is long, too: models at batch 8 and in fp16")
    add("--again", action="store_true", help="finished stages, too, from their beginning")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--dry-run", action="store_true", help="the whole path at tiny sizes on the CPU")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: an unfinished GPU-DATE.json, or a new one",
    )
    options = parser.parse_args(argv)
    if unknown := [p for p in options.stage if not chosen([p])]:
        parser.error(f"--stage must name some of {', '.join(stages())}; got {', '.join(unknown)}")
    if not 0 < options.minutes <= MOST_MINUTES:
        parser.error(f"--minutes must be above 0 and at most 8; got {options.minutes:g}")
    if options.dry_run and options.out and RESULTS in options.out.resolve().parents:
        parser.error(f"--out of a dry run must not lie in {RESULTS}: it has no numbers")
    if options.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    return options


if __name__ == "__main__":
    sys.exit(main())
