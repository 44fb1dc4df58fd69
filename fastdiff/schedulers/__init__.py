"""Drop-in schedulers: diffusers' names, configs, contract and random numbers, one fused step.

    from fastdiff.schedulers import DPMSolverMultistepScheduler     # instead of diffusers
    import

Each is a subclass of the class it replaces.  They say `__module__ = "fastdiff"`, so that a saved
pipeline names the package, not a file in it, and loads after `import fastdiff` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import SchedulerMixin

from fastdiff.registry import SOLVERS, Solver, find
from fastdiff.schedulers.ddim import DDIMScheduler
from fastdiff.schedulers.ddpm import DDPMScheduler
from fastdiff.schedulers.deis_multistep import DEISMultistepScheduler
from fastdiff.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from fastdiff.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from fastdiff.schedulers.edm import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from fastdiff.schedulers.euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from fastdiff.schedulers.flow_levels import is_flow
from fastdiff.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from fastdiff.schedulers.flow_match_heun import FlowMatchHeunDiscreteScheduler
from fastdiff.schedulers.flow_match_lcm import FlowMatchLCMScheduler
from fastdiff.schedulers.heun import HeunDiscreteScheduler
from fastdiff.schedulers.ipndm import IPNDMScheduler
from fastdiff.schedulers.kdpm2 import (
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from fastdiff.schedulers.lcm import LCMScheduler
from fastdiff.schedulers.lms import LMSDiscreteScheduler
from fastdiff.schedulers.models import kind_of, runs
from fastdiff.schedulers.option_checks import checked
from fastdiff.schedulers.pndm import PNDMScheduler
from fastdiff.schedulers.sasolver import SASolverScheduler
from fastdiff.schedulers.scm import SCMScheduler
from fastdiff.schedulers.spaced import fits, levels_for
from fastdiff.schedulers.tcd import TCDScheduler
from fastdiff.schedulers.unipc_multistep import UniPCMultistepScheduler
from fastdiff.schedules.spacing import AYS

CLASSES: tuple[type[SchedulerMixin], ...] = (
    DPMSolverMultistepScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DDPMScheduler,
    UniPCMultistepScheduler,
    DEISMultistepScheduler,
    LCMScheduler,
    TCDScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LMSDiscreteScheduler,
    IPNDMScheduler,
    SCMScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EDMDPMSolverMultistepScheduler,
    PNDMScheduler,
    SASolverScheduler,
)
for _class in CLASSES:
    _class.__module__ = "fastdiff"

# what a spacing's name means in a config; a class without that flag does not know the spacing
_SPACING_CONFIG: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
}


def sampler(name: str, *, spacing: str | None = None, **config: Any) -> SchedulerMixin:
    """The configured drop-in scheduler for a sampler's name ("dpmpp_2m_sde", "Euler a", ..).

    spacing  karras, exponential, beta, lu, linspace, leading, trailing; ays_sd, ays_sdxl, ays_svd,
             which the scheduler holds as its attribute `spacing`, for no config of diffusers names
             them; the class's default if None
    config   anything else of the class's config; Stable Diffusion's betas unless given.  To keep a
             model's own, give the whole of it: sampler(name, **pipe.scheduler.config)

    Of a whole config (told by its _class_name or _use_default_values; of a class here, or PNDM,
    DEIS, UniPC and their like) the class takes what it knows; name and spacing replace the rest.
    That of a flow (SD3, Flux, Wan, ..) makes a scheduler of that flow, its shift as flow_shift or
    the other way round, that of an EDM model (Playground v2.5, ..) EDM's class of the name; a name
    whose class has not the levels of the model raises ValueError.
    An option given by itself must act: one that the class does not know, or that name or spacing
    contradicts, raises ValueError, and so does a value that the option cannot have.
    """
    solver = find(name, argument="name")
    kind = kind_of(config)
    class_name, preset = _fitting(solver, kind, name, config)
    chosen = _CLASS[class_name]
    known = _options(chosen)
    whole = not _WHOLE.isdisjoint(config)
    foreign = {k for k in config if k.startswith("_")} | _foreign() if whole else set()
    carried: dict[str, Any] = {}
    if whole and kind == "flow":
        if "shift" in known and "flow_shift" in config:
            checked("flow_shift", config["flow_shift"])  # here, for it becomes shift
            config = {"shift": config["flow_shift"]} | config
        elif "use_flow_sigmas" in known and is_flow(config):
            # pipelines ask for base_shift and its like
            carried = {k: v for k, v in config.items() if k[0] != "_" and k not in known}
            checked("shift", config["shift"])  # here, for it becomes flow_shift
            flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            config = flow | {"flow_shift": config["shift"]} | config
    if unknown := config.keys() - known - foreign:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of {class_name}; it takes "
            f"{', '.join(sorted(known))}"
        )
    for option in config.keys() & known:
        checked(option, config[option])
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    # flows and IPNDM have none; of a flow only the last level may depend on them, as in diffusers
    values = {k: v for k, v in betas.items() if k in known and kind != "flow"}
    values |= {k: v for k, v in config.items() if k in known} | dict(preset)
    if spacing is not None:
        flags = _flags(solver.name, class_name, known, spacing)
        values |= {flag: False for f in _SPACING_CONFIG.values() for flag in f if flag in known}
        values.pop("timestep_spacing", None)
        values |= flags
    if class_name in ("DDIMScheduler", "DDPMScheduler"):
        values.setdefault("clip_sample", False)  # latents are not bounded by 1
    made = chosen(**values)
    made.register_to_config(**carried)
    if spacing in AYS:
        levels_for(made, str(spacing), 1)  # refuses a model that the table is not for
        made.spacing = spacing
    for option in () if whole else config:
        value, got = made.config[option], config[option]
        if value is got or value == got:  # the very object, where it is an array
            continue
        if option in preset or spacing is None:
            has = [s.name for s in SOLVERS.values() if s.scheduler[1].get(option) == got]
            hint = f"Samplers with {got!r}: {', '.join(has)}" if has else "Leave it out"
            raise ValueError(f"{option} must be {value!r} for {solver.name!r}; got {got!r}. {hint}")
        raise ValueError(
            f"{option} must be {value!r} beside spacing={spacing!r}; got {got!r}. Give one of them"
        )
    return made


def _flags(name: str, class_name: str, known: set[str], spacing: object) -> dict[str, Any]:
    """What a spacing is in a class's config; ValueError where the class does not know it."""
    choices = {s: flags for s, flags in _SPACING_CONFIG.items() if flags.keys() <= known}
    if "sigma_schedule" in known:  # EDM's word for it
        choices |= {s: {"sigma_schedule": s} for s in ("karras", "exponential")}
    if fits(class_name, known):
        choices |= {table: {} for table in AYS}
    if not isinstance(spacing, str) or spacing not in choices:
        what = f"one of {', '.join(choices)}" if choices else "None: its levels are its own"
        raise ValueError(f"spacing of {name!r} must be {what}; got {spacing!r}")
    return choices[spacing]


_WHOLE = {"_class_name", "_use_default_values"}  # keys that only a scheduler's own config has


_CLASS = {c.__name__: c for c in CLASSES}


def _fitting(
    solver: Solver, kind: str, given: str, config: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """The class of a solver that runs a kind of model, with its config for the solver's name; the
    one that the given name is of, if it is of one."""
    wanted = next((n for n in _CLASS if n.lower() == given.lower()), None)

    def classes(one: Solver) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, preset in (one.scheduler, *one.also):
            # image to image asks for scale_noise
            levels = hasattr(_CLASS[name], "scale_noise") or "flow_shift" in config
            if runs(kind, name, _options(_CLASS[name]), levels):
                yield name, preset

    fitting = (one for one in classes(solver) if wanted in (None, one[0]))
    found = next(fitting, None)
    if found is None:
        fits = [one.name for one in SOLVERS.values() if next(classes(one), None)]
        raise ValueError(
            f"name must be of a solver with the levels of {_MODELS[kind]}, since the config is of "
            f"one: {', '.join(fits)}; got {given!r}"
        )
    return found


_MODELS = {
    "flow": "a flow",
    "edm": "an EDM model",
    "trigflow": "a trigflow model",
    "betas": "a model with betas",
}


def _options(cls: type[SchedulerMixin]) -> set[str]:
    """Names of a class's options."""
    return set(cls._get_init_keys(cls)) - {"self"}


def _foreign() -> set[str]:
    """Config keys of other classes: a pipeline's config carries them along."""
    return {key for c in CLASSES for key in _options(c)}


__all__ = [
    "CLASSES",
    "SOLVERS",
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
    "PNDMScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "SchedulerMixin",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "sampler",
]
