"""`fastdiff info`: what is installed, what this machine has, what runs each op here and why."""

import importlib
import json as json_format
import os
import pkgutil
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff import backends
from fastdiff import ops as ops_package

SCHEMA = 1
PACKAGES = ("torch", "numpy", "diffusers", "transformers", "safetensors", "triton")
OPTIONAL = ("onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13")


def collect() -> dict[str, Any]:
    """Everything that is printed, in values that JSON can hold."""
    return {
        "schema": SCHEMA,
        "fastdiff": fastdiff.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "native": _native(),
        "cpu": _cpu(),
        "devices": _devices(),
        "ops": _ops(),
    }


def print_info(json: bool = False) -> None:
    """Print what `collect` found, as JSON or for people."""
    info = collect()
    print(json_format.dumps(info, indent=2) if json else _text(info))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    """The extension as it was built and as it runs, or what its absence costs."""
    info = backends.build_info()
    if reason := backends.why_no_native():
        cost = "A step runs as PyTorch operators: the same numbers, about ten times slower"
        remedy = "see that there is a C++ compiler (g++ or clang++) and install fastdiff again"
        return info | {"native": False, "reason": f"{reason}. {cost}. To mend it, {remedy}"}
    from fastdiff import _C

    return info | {"native": True, "reason": None, "isa": _C.isa(), "isas": _C.isas()}


def _cpu() -> dict[str, Any]:
    lines: list[str] = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {}
    for line in reversed(lines):
        name, _, value = line.partition(":")
        found[name.strip()] = value.strip()
    flags = (found.get("flags") or found.get("Features") or "").split()
    telling = ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16")
    return {
        "name": found.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "features": [flag for flag in (*telling, "asimd", "sve") if flag in flags],
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _devices() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        memory = round(properties.total_memory / 2**30, 1)
        devices.append({"name": properties.name, "capability": capability, "memory_gib": memory})
    return devices


def _ops() -> dict[str, Any]:
    """Per op and kind of device: the chosen backend, and each other one's reason."""
    for module in pkgutil.iter_modules(ops_package.__path__):
        importlib.import_module(f"{ops_package.__name__}.{module.name}")
    found: dict[str, Any] = {}
    for op in backends.ops():
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            key = backends.Key(device, torch.float32)
            reasons = {b: backends.why_not(op, b, key) for b in backends.PREFERENCE}
            found.setdefault(op, {})[device] = {
                "chosen": backends.chosen(op, key),
                "backends": reasons,
            }
    return found


def _text(info: dict[str, Any]) -> str:
    native, cpu = info["native"], info["cpu"]
    lines = [f"fastdiff {info['fastdiff']}, Python {info['python']}, {info['platform']}"]
    lines += [
        f"  {name:20s} {found or 'not installed'}" for name, found in info["packages"].items()
    ]
    lines += ["", "native extension"]
    if native["native"]:
        isas = ", ".join(native["isas"])
        lines += [f"  built by             {native.get('compiler', 'unknown')}"]
        lines += [f"  instruction set      {native['isa']} (available: {isas})"]
        cuda = native.get("nvcc") or "no: there are no CUDA sources, GPU ops run on Triton"
        lines += [f"  CUDA kernels         {cuda}"]
    else:
        lines += [f"  {native['reason']}"]
    policy = cpu["wait_policy"] or "not set"
    lines += ["", f"CPU  {cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['features'])}"]
    lines += [f"  threads              {cpu['threads']} (OMP_WAIT_POLICY {policy})"]
    for device in info["devices"]:
        lines.append(
            f"GPU  {device['name']}, sm {device['capability']}, {device['memory_gib']} GiB"
        )
    if not info["devices"]:
        lines.append("GPU  none: torch sees no CUDA device")
    for op, places in info["ops"].items():
        for device, place in places.items():
            lines += ["", f"op {op} on {device}: {place['chosen']}"]
            for backend, reason in place["backends"].items():
                lines.append(f"  {backend:20s} {reason or 'can run'}")
    return "\n".join(lines)
