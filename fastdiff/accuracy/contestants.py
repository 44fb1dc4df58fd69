"""Who runs: every solver of the registry, and the class of diffusers behind it.

What does not run is in `EXCLUDED`, with the reason; a test holds both against the registry.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from fastdiff.registry import SOLVERS

OURS, THEIRS = "fastdiff", "diffusers"


@dataclass(frozen=True)
class Variant:
    """A solver with options.  step: diffusers has them in step, not in the config."""

    solver: str
    options: Mapping[str, Any]
    step: bool = False
    noise: bool = False

    @property
    def name(self) -> str:
        return f"{self.solver}({', '.join(f'{k}={v}' for k, v in self.options.items())})"


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# what a spacing's name is in a config of diffusers
_FLAGS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
}
SHIFT = 3.0  # as Stable Diffusion 3 has it
SPACINGS: dict[str, tuple[str, ...]] = {
    "vp": tuple(_FLAGS),
    "flow": ("karras", "exponential", "beta", "linspace", "shift 3"),
}
LEFT_OUT = {  # of fastdiff's spacings
    "lu": "is exponential under another name",
    "leading, trailing of a flow": "are linspace there: its time is its noise level",
    "ays_sd, ays_sdxl, ays_svd": "were optimised for the networks of their models, not for these",
}

_CONSISTENCY = (
    "its network returns the end of the ODE, not the mean of the data: with that one it is exact, "
    "with the mean its error says nothing"
)
EXCLUDED: dict[tuple[str, str], str] = {  # (solver, family) -> why
    ("lcm", "vp"): _CONSISTENCY,
    ("lcm", "flow"): _CONSISTENCY,
    ("flow_lcm", "flow"): _CONSISTENCY,
    ("tcd", "vp"): _CONSISTENCY,
    ("tcd", "flow"): _CONSISTENCY,
    ("scm", "vp"): _CONSISTENCY,
    ("scm", "flow"): _CONSISTENCY,
    ("flow_heun", "vp"): "a flow's sampler",
    ("flow_lcm", "vp"): "a flow's sampler",
    ("flow_euler", "vp"): "a flow's sampler; its row is that of ddim",
    ("ipndm_v", "vp"): "is lms, the same row",
    ("ipndm_v", "flow"): "is lms, the same row",
    ("ddim", "flow"): "is flow_euler there, the same row",
    ("euler", "flow"): "is flow_euler there, the same row",
}
# options that make another method of a solver; with the spacings that are best at few calls
VARIANTS: tuple[Variant, ...] = (
    Variant("ddim", {"eta": 1.0}, step=True, noise=True),
    Variant("euler", {"s_churn": 2.0}, step=True, noise=True),
    Variant("dpmpp_2m", {"solver_type": "heun"}),
    Variant("dpmpp_2m_sde", {"solver_type": "heun"}, noise=True),
    Variant("unipc_2", {"solver_type": "bh1"}),
    Variant("unipc_3", {"solver_type": "bh1"}),
)
VARIED = {"vp": ("karras", "exponential", "trailing"), "flow": ("linspace", "shift 3")}
CLASSES_LEFT_OUT = {
    "IPNDMScheduler": "has levels of its own, not those of the model",
    "EDMEulerScheduler": "for networks with EDM's preconditioning",
    "EDMDPMSolverMultistepScheduler": "for networks with EDM's preconditioning",
    "CosineDPMSolverMultistepScheduler": "for networks with EDM's preconditioning",
    "DPMSolverSDEScheduler": "needs torchsde",
}


@dataclass(frozen=True)
class Contestant:
    """One solver with one spacing on one side, for any number of calls.

    row      the registry's name where `solver` names a variant of it, too
    options  of the row on our side, of `step` on theirs
    """

    family: str
    solver: str
    side: str
    spacing: str
    noise: bool
    scheduler: str = ""  # diffusers' class
    config: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.family, self.solver, self.side, self.spacing


def contestants(family: str) -> Iterator[Contestant]:
    """All of a family, ours before theirs."""
    for solver in SOLVERS.values():
        if (solver.name, family) in EXCLUDED:
            continue
        for spacing in spacings(family):
            yield Contestant(family, solver.name, OURS, spacing, solver.noise)
        yield from _stock(family, solver.name, *solver.scheduler, solver.noise)
    for one in VARIANTS:
        yield from _varied(family, one)


def _varied(family: str, one: Variant) -> Iterator[Contestant]:
    """A solver with an option, on both sides."""
    solver = SOLVERS[one.solver]
    if (one.solver, family) in EXCLUDED:
        return
    for spacing in spacings(family):
        if spacing in VARIED[family]:
            yield Contestant(
                *(family, one.name, OURS, spacing, one.noise), row=one.solver, options=one.options
            )
    cls, preset = solver.scheduler
    config = preset if one.step else {**preset, **one.options}
    for who in _stock(family, one.name, cls, config, one.noise):
        if who.spacing in VARIED[family]:
            yield replace(who, row=one.solver, options=one.options if one.step else {})


def spacings(family: str) -> tuple[str, ...]:
    """Those of a family that run here: beta needs SciPy."""
    scipy = importlib.util.find_spec("scipy") is not None
    return tuple(s for s in SPACINGS[family] if s != "beta" or scipy)


def without_peer(family: str) -> dict[str, str]:
    """Solvers that run here, of which diffusers has nothing in this family; and why."""
    found = {}
    for solver in SOLVERS.values():
        if (solver.name, family) not in EXCLUDED and not _fits(family, solver.scheduler[0]):
            cls = solver.scheduler[0]
            why = CLASSES_LEFT_OUT.get(cls, "is not for this family")
            found[solver.name] = f"{cls} {why}"
    return found


def _fits(family: str, cls: str) -> bool:
    if family == "vp":
        return not cls.startswith("FlowMatch") and cls not in CLASSES_LEFT_OUT
    return cls.startswith("FlowMatch") or "use_flow_sigmas" in _options(cls)


def _options(cls: str) -> set[str]:
    import diffusers

    return set(signature(getattr(diffusers, cls)).parameters)


def _stock(
    family: str, name: str, cls: str, preset: Mapping[str, Any], noise: bool
) -> Iterator[Contestant]:
    """A class of diffusers with every spacing that it knows."""
    if not _fits(family, cls):
        return
    known = _options(cls)
    for spacing in spacings(family):
        if family == "vp":
            flags: dict[str, Any] | None = _FLAGS[spacing]
            base = {**_BETAS, **({"clip_sample": False} if "clip_sample" in known else {})}
            if "set_alpha_to_one" in known and cls == "PNDMScheduler":
                base["set_alpha_to_one"] = True  # ends at the data, as the others do
        else:
            flags, base = _of_flow(cls, spacing)
        if flags is not None and flags.keys() <= known:
            config = {**base, **flags, **preset}
            yield Contestant(family, name, THEIRS, spacing, noise, cls, config)


def _of_flow(cls: str, spacing: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(flags, base) of a flow; Karras' and other levels of the rest are those of betas."""
    own = cls.startswith("FlowMatch")
    shift = "shift" if own else "flow_shift"
    base = {} if own else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if spacing == "linspace":
        return {shift: 1.0}, base
    if spacing == "shift 3":
        return {shift: SHIFT}, base
    return (_FLAGS[spacing] if own else None), base
