"""What a number depends on besides the code: machine, instruction set, versions, commit, load."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
THREADS = 1
# What is measured, and what measures; results and pages are made of it.
CODE = ("fastdiff", "kernels", "csrc", "benchmarks")
SUFFIXES = (".py", ".json", ".h", ".cpp", ".cu", ".cuh")
BUT_RESULTS = (".", ":!benchmarks/results", ":!docs", ":!*.md")


def provenance() -> dict[str, Any]:
    """Everything that goes into the JSON beside the times."""
    import torch

    import fastdiff
    from fastdiff import backends

    build = backends.build_info()
    isa = None
    if build["native"]:
        from fastdiff import _C

        isa = _C.isa()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "isa": isa,
        "compiler": build.get("compiler"),
        "threads": THREADS,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
        "diffusers": version("diffusers"),
        "onnxruntime": version("onnxruntime") or version("onnxruntime-gpu"),
        "openvino": version("openvino"),
        "fastdiff": fastdiff.__version__,
        "commit": commit(),
        "sources": sources(),
    }


def version(package: str) -> str | None:
    """What is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of the GPU's driver, if there is one that answers."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return (run.stdout.splitlines() or [""])[0].strip() or None


def cpu() -> str:
    """The CPU as /proc/cpuinfo names it, with family and model, for names are often cut short."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split("\t: ", 1) for line in map(_tidy, lines) if "\t: " in line)
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _tidy(line: str) -> str:
    name, _, value = line.partition(":")
    return f"{name.strip()}\t: {value.strip()}"


def commit() -> str:
    """The last commit that changed more than results and pages, with -dirty if tracked files
    differ from it; in a copy without git what FASTDIFF_COMMIT says."""
    try:
        found = git("log", "-1", "--format=%h", "--abbrev=12", "--", *BUT_RESULTS).strip()
        changed = git("diff", "--name-only", "HEAD", "--", *BUT_RESULTS).strip()
    except (OSError, subprocess.CalledProcessError):
        found, changed = "", ""
    if not found:
        return os.environ.get("FASTDIFF_COMMIT", "unknown")
    return f"{found}-dirty" if changed else found


def git(*args: str) -> str:
    command = ["git", "-C", str(ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sources() -> str:
    """A hash of the code, which says what -dirty does not, and needs no git."""
    found = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT)
            if path.suffix in SUFFIXES and inside.parts[:2] != ("benchmarks", "results"):
                found.update(f"{inside.as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]
