"""Whether what a bundle was made for is what is here: one line that says what would do.

An ONNX graph runs on any system and machine where ONNX Runtime knows its opset.  A TensorRT plan
runs with the version that built it, on GPUs of the compute capability it was built for, on that
system.  `check` is a function of two records, so that it can be tried without a GPU.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.manifest import Target

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx"),
}
EXTRAS = {"onnxruntime": "onnx", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
OPSET_OF_ALL = 21  # every onnxruntime that fastdiff supports (1.22 and later) knows it


@dataclass(frozen=True)
class Here:
    """What there is: version None where the target is not installed, the GPU's None without one."""

    version: str | None
    cuda: str | None
    driver: str | None
    compute_capability: str | None
    os: str
    machine: str


def look(target: str) -> Here:
    """What this process has for a target; looks at the GPU only where the target needs one."""
    cuda = driver = capability = None
    if target != "onnxruntime":
        import torch

        cuda = torch.version.cuda
        if torch.cuda.is_available():
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
            driver = _driver()
    return Here(
        version=_installed(target),
        cuda=cuda,
        driver=driver,
        compute_capability=capability,
        os=platform.system().lower(),
        machine=platform.machine().lower(),
    )


def check(target: Target, here: Here, opset: int = OPSET_OF_ALL) -> None:
    """Incompatible, with what would do, where a bundle of this target cannot run here.

    opset  the highest one of the bundle's graphs
    """
    if here.version is None:
        raise Incompatible(
            f"the bundle needs {target.name} {target.version}, which is not installed. "
            f"pip install 'fastdiff-engine[{EXTRAS[target.name]}]' would do"
        )
    if target.name == "onnxruntime":
        if opset > OPSET_OF_ALL and _numbers(here.version) < _numbers(target.version):
            raise Incompatible(
                f"the bundle has opset {opset} and was checked with onnxruntime {target.version}; "
                f"here is {here.version}. Install that version or a later one, or export again "
                f"with opset {OPSET_OF_ALL}"
            )
        return
    _check_plan(target, here)


def _check_plan(target: Target, here: Here) -> None:
    rebuild = (
        f"Rebuild it here (fastdiff export with --target {target.name}), or use ONNX "
        "(--target onnxruntime)"
    )
    if (target.os, target.machine) != (here.os, here.machine):
        raise Incompatible(
            f"the plans are for {target.os} on {target.machine}, and no plan runs on another "
            f"system; here is {here.os} on {here.machine}. {rebuild}"
        )
    if here.version != target.version:
        raise Incompatible(
            f"the plans need {target.name} {target.version} exactly; here is {here.version}. "
            f"Install that version, or: {rebuild[0].lower()}{rebuild[1:]}"
        )
    if here.compute_capability is None:
        raise Incompatible(
            f"the plans need an NVIDIA GPU that PyTorch can use; here is none. {rebuild}"
        )
    wanted = re.split(r"\s*,\s*", target.compute_capability) if target.compute_capability else []
    if wanted and here.compute_capability not in wanted:
        raise Incompatible(
            f"the plans are for GPUs of compute capability {', '.join(wanted)}; here is "
            f"{here.compute_capability}. {rebuild}"
        )
    if target.cuda and here.cuda and _numbers(target.cuda)[:1] != _numbers(here.cuda)[:1]:
        raise Incompatible(
            f"the plans were built with CUDA {target.cuda}, of another major version than that "
            f"of PyTorch here, {here.cuda}. {rebuild}"
        )
    if target.driver and here.driver and _numbers(here.driver) < _numbers(target.driver):
        raise Incompatible(
            f"the plans were built with the NVIDIA driver {target.driver}; here is the older "
            f"{here.driver}. Update the driver, or: {rebuild[0].lower()}{rebuild[1:]}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.31.1+cu13" is (1, 31, 1)."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _installed(target: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    for package in PACKAGES[target]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _driver() -> str | None:
    """The NVIDIA driver's version as Linux says it; None elsewhere."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d{3,}(\.\d+)+)\s", said)
    return found[1] if found else None


__all__ = ["Here", "check", "look"]
