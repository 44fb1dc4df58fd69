"""compute-sanitizer over every kernel once, at an odd size: memcheck, and racecheck.

Tensors are allocated one by one (PYTORCH_NO_CUDA_MEMORY_CACHING), since inside a block of PyTorch's
pool memcheck sees no borders.  A planted write beyond the end must be found, or the rest says
nothing.  Where the tool is missing or refuses the device, that is recorded; it is no failure.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.campaign.checks import PLANTED, op_names
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import OutOfTime, Task
from benchmarks.provenance import ROOT

LAUNCH = [sys.executable, "-m", "benchmarks.campaign.launch_once"]
SUMMARY = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)")
NAMES = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
# What PyTorch asks of the driver and does not get is no error of a kernel; allocations lie apart.
OPTIONS = {"memcheck": ["--report-api-errors", "no", "--padding", "256"], "racecheck": []}
SECONDS = 240


def run(task: Task) -> None:
    tool = next((found for name in NAMES if (found := shutil.which(name))), None)
    if task.device != "cuda":
        task.measure("without the tool", bare, benchmark="sanitizer")
        return
    if tool is None:
        task.skip("compute-sanitizer", "it is not installed", benchmark="sanitizer")
        return
    runs = [("memcheck", PLANTED), *((kind, op) for op in op_names() for kind in OPTIONS)]
    for kind, op in task.share(runs):
        case = {"tool": kind, "op": op}
        seconds = min(SECONDS, max(1, task.left()))
        look = planted if op == PLANTED else functools.partial(examine, kind=kind, op=op)
        make = functools.partial(look, tool=tool, seconds=seconds)
        task.measure(f"{kind} {op}", make, benchmark="sanitizer", case=case)


def bare() -> Row:
    """The launches alone, on the CPU: that the script runs."""
    from benchmarks.campaign import launch_once

    return {"facts": {op: launch_once.launch(op) for op in op_names()}}


def command(tool: str, kind: str, *what: str) -> list[str]:
    return [tool, "--tool", kind, *OPTIONS[kind], *LAUNCH, *what]


def said(command: list[str], seconds: float) -> tuple[str, int | None]:
    """(output, findings); no findings: the tool did not come to its summary."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )
    text = run.stdout + run.stderr
    found = SUMMARY.findall(text)
    return text, int(found[-1]) if found else None


def planted(tool: str, seconds: float) -> Row:
    try:
        text, findings = said(command(tool, "memcheck", "--planted"), seconds)
    except subprocess.TimeoutExpired:
        return too_long(seconds)
    if findings is None or refused(text):
        return {"status": "skipped", "why": f"the tool does not work here: {tail(text)}"}
    assert findings > 0, f"memcheck does not see {PLANTED}: {tail(text)}"
    return {"findings": findings}


def examine(tool: str, seconds: float, kind: str, op: str) -> Row:
    try:
        text, findings = said(command(tool, kind, op), seconds)
    except subprocess.TimeoutExpired:
        return too_long(seconds)
    if findings is None or refused(text):
        return {"status": "skipped", "why": f"the tool does not work here: {tail(text)}"}
    if "launched nothing" in text:
        return {"status": "skipped", "why": text[text.index("launched nothing") :].splitlines()[0]}
    assert findings == 0, f"{findings} findings: {tail(text)}"
    return {"findings": 0}


def too_long(seconds: float) -> Row:
    """Stopped; raises where that was for want of time in this run, of which the next has more."""
    if seconds < SECONDS:
        raise OutOfTime
    return {"status": "skipped", "why": f"not done after {seconds:.0f} s"}


def refused(text: str) -> bool:
    """Whether the tool, not the kernel, says no."""
    return "Device not supported" in text or "Target application terminated before" in text


def tail(text: str) -> str:
    """What the tool said, without its marks."""
    lines = [line.lstrip("= ").strip() for line in text.splitlines() if line.startswith("====")]
    return " | ".join(line for line in lines if line)[:500] or text[-300:].strip()


def path() -> Path:
    """Of the script that is run under the tool."""
    return ROOT / "benchmarks" / "campaign" / "launch_once.py"
