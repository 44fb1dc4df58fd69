"""pytest plugin: our classes in the collected test modules of diffusers, and how they stepped.

Loaded by name (`-p classes`) in the process that runs the suite, where `tests` is diffusers'.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import diffusers  # before the checkout's conftest can put its own src on the path
import pytest

import fastdiff
from fastdiff import schedulers

NAMES = (
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDPMScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "IPNDMScheduler",
    "SCMScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
)
OURS = {getattr(diffusers, name): getattr(schedulers, name) for name in NAMES}
tested: set[type] = set()
made: list[Any] = []  # every instance, for its report at the end


def substitute(module: ModuleType) -> None:
    """Put our class wherever a module, or a test class in it, names the one it replaces."""
    for key, value in list(vars(module).items()):
        if inspect.isclass(value) and value in OURS:
            setattr(module, key, OURS[value])
        listed = getattr(value, "scheduler_classes", None)
        if inspect.isclass(value) and isinstance(listed, tuple):
            value.scheduler_classes = tuple(OURS.get(cls, cls) for cls in listed)
            tested.update(cls for cls in value.scheduler_classes if cls in OURS.values())


def remember(cls: type) -> None:
    """Note every new instance, however it is made (from_config and deepcopy included)."""
    plain = cls.__new__

    def noting(new: type, *args: Any, **kwargs: Any) -> Any:
        instance = plain(new) if plain is object.__new__ else plain(new, *args, **kwargs)
        made.append(instance)
        return instance

    cls.__new__ = noting  # type: ignore[method-assign]


for ours in OURS.values():
    remember(ours)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for name, module in list(sys.modules.items()):  # also the base class's, which is not collected
        if name.startswith("tests.schedulers."):
            substitute(module)


def counted() -> tuple[Counter[str], Counter[str]]:
    """(fused steps by class, whatever else was counted by class and reason), from the reports."""
    fused: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for instance in made:
        name = type(instance).__name__
        for row in fastdiff.report(instance):
            for what, calls in row.calls.items():
                if what == "fused":
                    fused[name] += calls
                else:
                    other[f"{name}: {what}"] += calls
    return fused, other


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("steps of our classes")
    fused, other = counted()
    for cls in OURS.values():
        if cls in tested:
            terminalreporter.write_line(f"{cls.__name__}: {fused[cls.__name__]} fused steps")
    for text, calls in sorted(other.items()):
        if calls:
            terminalreporter.write_line(f"  {calls} x {text}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    fused, _ = counted()
    idle = sorted(cls.__name__ for cls in tested if not fused[cls.__name__])
    if exitstatus == pytest.ExitCode.OK and idle:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nno step of {', '.join(idle)} was fused")
