"""Who runs: the drop-in class of every sampler that the model's network is for."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from fastdiff.accuracy.contestants import EXCLUDED
from fastdiff.registry import SOLVERS
from fastdiff.schedulers import CLASSES, sampler

STEPS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 50)
STUDENT_STEPS = (1, 2, 4, 6, 8)
STUDENT = "lcm"  # the sampler of a consistency model
SPACING = "trailing"  # the model's own
LEFT_OUT = {name: why for (name, family), why in EXCLUDED.items() if family == "vp"} | {
    "ipndm": "its class has levels of its own, not those of the model"
}


def samplers() -> tuple[str, ...]:
    """Names of the registry, without those that are left out."""
    return tuple(name for name in SOLVERS if name not in LEFT_OUT)


def scheduler_of(name: str, config: Mapping[str, Any]) -> Any:
    """A new scheduler with the betas and the prediction of a model's config, trailing spacing.

    Classes without that spacing (DPMSolverSinglestepScheduler) have their only one, linspace, which
    begins at the same level.  Raises ValueError where its class cannot run that model.
    """
    cls = next(c for c in CLASSES if c.__name__ == SOLVERS[name].scheduler[0])
    has = "timestep_spacing" in signature(cls.__init__).parameters
    return sampler(name, spacing=SPACING if has else None, **config)
