"""TensorRT's two flavours behind one face: `tensorrt` (10.9 to 11) and `tensorrt-rtx`.

    tensorrt_build.py  an ONNX file to plans     tensorrt_run.py  a plan that runs on torch tensors
    tensorrt_refit.py  new weights for an engine  tensorrt_bundle.py  the plans of a bundle

Their Python modules look alike.  What differs is here: tensorrt builds on the GPU that will run
the plan and keeps a timing cache; tensorrt-rtx builds with no GPU for a list of compute
capabilities, compiles the rest when it runs and keeps a runtime cache of that.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastdiff.engine import here
from fastdiff.engine.errors import Incompatible

LOG = logging.getLogger("fastdiff.engine.tensorrt")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = {"tensorrt": (10, 9), "tensorrt-rtx": (1, 4)}
# What a plan of tensorrt-rtx is built for where nothing is asked: its own default, written down.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True)
class Flavour:
    """One of the two, imported: its module, and the logger that all of its objects share."""

    target: str
    trt: Any
    logger: Any
    problems: deque[str]  # what the logger said as an error, the newest last

    @property
    def version(self) -> str:
        """The exact version: a plan runs on no other."""
        return str(self.trt.__version__)

    @property
    def portable(self) -> bool:
        """Whether plans are built with no GPU, for several compute capabilities."""
        return self.target == "tensorrt-rtx"

    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that tensorrt-rtx knows: "7.5" for SM75, "12.0" for SM120."""
        names = [n for n in self.trt.ComputeCapability.__members__ if n.startswith("SM")]
        return tuple(f"{int(n[2:]) // 10}.{int(n[2:]) % 10}" for n in names)

    @contextmanager
    def listening(self) -> Iterator[deque[str]]:
        """The errors that are logged inside the `with` block."""
        self.problems.clear()
        yield self.problems


def load(target: str) -> Flavour:
    """The flavour of a target; Incompatible where it is not installed, or too old."""
    if target not in MODULES:
        raise ValueError(f"target must be one of {', '.join(MODULES)}; got {target!r}")
    try:
        module = importlib.import_module(MODULES[target])
    except (ImportError, OSError) as error:  # OSError: its libraries are not there
        raise Incompatible(
            f"target {target} needs the Python package {MODULES[target]}, which cannot be imported "
            f"({error}). Install it: pip install 'fastdiff-engine[{target}]', or use a bundle of "
            "target onnxruntime"
        ) from None
    return of_module(target, module)


@functools.cache
def of_module(target: str, module: Any) -> Flavour:
    """The flavour of a module that looks like TensorRT's; one logger for a process, as it asks."""
    version = tuple(int(n) for n in module.__version__.split(".")[:2])
    if version < OLDEST[target]:
        oldest = ".".join(map(str, OLDEST[target]))
        raise Incompatible(
            f"target {target} needs version {oldest} or newer; {module.__version__} is installed. "
            f"Install it: pip install -U 'fastdiff-engine[{target}]'"
        )
    problems: deque[str] = deque(maxlen=20)
    return Flavour(target, module, _logger(module, problems), problems)


def _logger(trt: Any, problems: deque[str]) -> Any:
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.ERROR)
            if level == logging.ERROR:
                problems.append(" ".join(message.split()))
            LOG.log(level, "%s", message)

    return Logger()


def capability() -> str | None:
    """The compute capability of torch's current GPU, "9.0"; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability())


def check_device(flavour: Flavour) -> str:
    """The compute capability of the GPU here; Incompatible where this flavour cannot run on it."""
    found = capability()
    if found is None:
        raise Incompatible(
            f"target {flavour.target} runs on an NVIDIA GPU, and torch sees none "
            "(torch.cuda.is_available() is False). Use a bundle of target onnxruntime"
        )
    if flavour.portable and found not in flavour.capabilities():
        raise Incompatible(_not_rtx(found, flavour))
    return found


def check_capabilities(flavour: Flavour, wanted: tuple[str, ...]) -> None:
    """Incompatible where one of the compute capabilities is none that plans are built for."""
    for name in wanted:
        if name not in flavour.capabilities():
            raise Incompatible(_not_rtx(name, flavour))


def _not_rtx(name: str, flavour: Flavour) -> str:
    hopper = " (Hopper and Blackwell data centre GPUs)" if name in ("9.0", "10.0", "10.3") else ""
    return (
        f"tensorrt-rtx {flavour.version} supports compute capability "
        f"{', '.join(flavour.capabilities())}; got {name}{hopper}. Use target tensorrt there"
    )


def environment(flavour: Flavour, capabilities: tuple[str, ...]) -> dict[str, str | None]:
    """What a plan depends on besides its graph: part of the cache's key.

    A plan of tensorrt is of one GPU and driver; one of tensorrt-rtx of the capabilities it is for.
    """
    from fastdiff import __version__

    found, portable = here.look(flavour.target), flavour.portable
    return {
        "target": flavour.target,
        "version": flavour.version,
        "fastdiff": __version__,
        "os": found.os,
        "machine": found.machine,
        "compute_capability": ",".join(capabilities) if portable else found.compute_capability,
        "device": None if portable else _device_name(),
        "driver": None if portable else found.driver,
        "cuda": None if portable else found.cuda,
    }


def _device_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


__all__ = ["Flavour", "capability", "check_device", "environment", "load"]
