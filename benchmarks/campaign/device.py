"""What the numbers are measured on."""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module

from benchmarks.campaign.record import Row
from benchmarks.campaign.task import Task
from benchmarks.provenance import provenance

QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,temperature.gpu,ecc.mode.current,compute_mode,mig.mode.current"
)


def run(task: Task) -> None:
    task.measure("provenance", lambda: {"facts": provenance()}, benchmark="device")
    task.measure("backends", backends, benchmark="device")
    if task.device != "cuda":
        task.skip("properties", "torch sees no CUDA device", benchmark="device")
        return
    task.measure("properties", properties, benchmark="device")
    task.measure("nvidia-smi", smi, benchmark="device")


def backends() -> Row:
    """Which backend each op would take, or why none."""
    import torch

    from benchmarks.campaign.checks import op_names
    from fastdiff import backends

    device = "cuda" if torch.cuda.is_available() else "cpu"
    key, facts = backends.Key(device, torch.bfloat16), {}
    for op in op_names():
        import_module(f"fastdiff.ops.{op}")  # registers it
        facts[op] = {b: backends.why_not(op, b, key) or "can run" for b in backends.PREFERENCE}
    return {"facts": facts}


def properties() -> Row:
    import torch

    found = torch.cuda.get_device_properties(0)
    names = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    return {"facts": {name: getattr(found, name, None) for name in names}}


def smi() -> Row:
    """Clocks as they are found; nothing is set."""
    if shutil.which("nvidia-smi") is None:
        return {"status": "skipped", "why": "there is no nvidia-smi"}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return {"status": "skipped", "why": (done.stdout + done.stderr).strip()[:300] or "silent"}
    values = done.stdout.strip().splitlines()[0].split(", ")
    return {"facts": dict(zip(QUERY.split(","), values, strict=False))}
