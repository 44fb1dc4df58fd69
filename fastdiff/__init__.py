"""fastdiff: a solver is a table of numbers, a step is one kernel.

    from fastdiff.schedulers import DPMSolverMultistepScheduler   # drop-in for diffusers' class
    fastdiff.accelerate(pipe)                                     # or: swap it in a pipeline
    plan = fastdiff.plan("dpmpp_2m", steps=20)                    # or: your own loop
    x = fastdiff.sample(denoise, noise, plan)

Importing this package imports neither torch nor NumPy: every name below is fetched when it is
first used.  The scheduler classes say `__module__ = "fastdiff"`, so a saved pipeline names this
package and no file inside it; diffusers' loader also looks up SchedulerMixin here.
"""

import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diffusers import SchedulerMixin as SchedulerMixin

    from fastdiff import k_diffusion, training
    from fastdiff.accelerate import accelerate, report, restore
    from fastdiff.backends import use_backend
    from fastdiff.engine.export import export
    from fastdiff.engine.load import load_engine
    from fastdiff.few_step import few_step
    from fastdiff.plan import Plan, plan
    from fastdiff.plan_batch import batch
    from fastdiff.sampling import sample
    from fastdiff.schedulers import (
        DDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        EDMDPMSolverMultistepScheduler,
        EDMEulerScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        FlowMatchLCMScheduler,
        HeunDiscreteScheduler,
        IPNDMScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        SASolverScheduler,
        SCMScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
        sampler,
    )
    from fastdiff.schedulers.table import TableScheduler
    from fastdiff.schedules import NoiseSchedule

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "NoiseSchedule",
    "PNDMScheduler",
    "Plan",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "TableScheduler",
    "UniPCMultistepScheduler",
    "accelerate",
    "batch",
    "export",
    "few_step",
    "k_diffusion",
    "load_engine",
    "plan",
    "report",
    "restore",
    "sample",
    "sampler",
    "training",
    "use_backend",
]

_HOME = {  # public name -> the module it lives in
    "DDIMScheduler": "fastdiff.schedulers",
    "DDPMScheduler": "fastdiff.schedulers",
    "DEISMultistepScheduler": "fastdiff.schedulers",
    "DPMSolverMultistepScheduler": "fastdiff.schedulers",
    "DPMSolverSinglestepScheduler": "fastdiff.schedulers",
    "EDMDPMSolverMultistepScheduler": "fastdiff.schedulers",
    "EDMEulerScheduler": "fastdiff.schedulers",
    "EulerAncestralDiscreteScheduler": "fastdiff.schedulers",
    "EulerDiscreteScheduler": "fastdiff.schedulers",
    "FlowMatchEulerDiscreteScheduler": "fastdiff.schedulers",
    "FlowMatchHeunDiscreteScheduler": "fastdiff.schedulers",
    "FlowMatchLCMScheduler": "fastdiff.schedulers",
    "HeunDiscreteScheduler": "fastdiff.schedulers",
    "KDPM2AncestralDiscreteScheduler": "fastdiff.schedulers",
    "KDPM2DiscreteScheduler": "fastdiff.schedulers",
    "LMSDiscreteScheduler": "fastdiff.schedulers",
    "IPNDMScheduler": "fastdiff.schedulers",
    "NoiseSchedule": "fastdiff.schedules",
    "PNDMScheduler": "fastdiff.schedulers",
    "SASolverScheduler": "fastdiff.schedulers",
    "Plan": "fastdiff.plan",
    "SCMScheduler": "fastdiff.schedulers",
    "SchedulerMixin": "diffusers",
    "LCMScheduler": "fastdiff.schedulers",
    "TCDScheduler": "fastdiff.schedulers",
    "TableScheduler": "fastdiff.schedulers.table",
    "UniPCMultistepScheduler": "fastdiff.schedulers",
    "accelerate": "fastdiff.accelerate",
    "batch": "fastdiff.plan_batch",
    "export": "fastdiff.engine.export",
    "few_step": "fastdiff.few_step",
    "load_engine": "fastdiff.engine.load",
    "plan": "fastdiff.plan",
    "report": "fastdiff.accelerate",
    "restore": "fastdiff.accelerate",
    "sample": "fastdiff.sampling",
    "sampler": "fastdiff.schedulers",
    "use_backend": "fastdiff.backends",
}

_MODULES = ("k_diffusion", "training")  # public modules, fetched the same way

logging.getLogger("fastdiff").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastdiff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}; it has {__all__}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "SchedulerMixin", "__version__"})


class _Package(ModuleType):
    """`fastdiff.plan` is the function, also after `from fastdiff.plan import Plan`.

    Importing a submodule binds it in its package.  For the names that are both a function and a
    module (plan, accelerate, few_step) that binding is ignored; `sys.modules` still holds the
    module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not (Path(__file__).parent / "kernels").is_dir():
    # A checkout: the kernels lie beside the package, and must not be a top-level package
    # themselves, for that name belongs to a library which diffusers imports.
    _spec = ModuleSpec("fastdiff.kernels", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).parents[1] / "kernels")]
    kernels = sys.modules["fastdiff.kernels"] = importlib.util.module_from_spec(_spec)
