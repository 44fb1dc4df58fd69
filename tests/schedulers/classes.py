"""The drop-in classes, the classes of diffusers that they replace, and what a report counted.

`FASTDIFF_TEST_SCHEDULERS=diffusers` puts diffusers' own classes in the place of ours.  What is
mathematics and contract must then still pass, which tests the tests; what counts fused steps fails.
"""

import importlib
import itertools
import os
from inspect import signature
from typing import Any, NamedTuple

import diffusers

import fastdiff

DPM = "DPMSolverMultistepScheduler"
DDIM = "DDIMScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
EULER = "EulerDiscreteScheduler"
EULER_A = "EulerAncestralDiscreteScheduler"
DDPM = "DDPMScheduler"
UNIPC = "UniPCMultistepScheduler"
DEIS = "DEISMultistepScheduler"
LCM = "LCMScheduler"
TCD = "TCDScheduler"
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
FLOW_LCM = "FlowMatchLCMScheduler"
FLOW_HEUN = "FlowMatchHeunDiscreteScheduler"
HEUN = "HeunDiscreteScheduler"
KDPM2 = "KDPM2DiscreteScheduler"
LMS = "LMSDiscreteScheduler"
KDPM2_A = "KDPM2AncestralDiscreteScheduler"
EDM_EULER = "EDMEulerScheduler"
EDM_DPM = "EDMDPMSolverMultistepScheduler"
EDM = (EDM_EULER, EDM_DPM)
PNDM = "PNDMScheduler"
SA = "SASolverScheduler"
NAMES = (DPM, DDIM, EULER, EULER_A, DDPM, UNIPC, DEIS, LCM, TCD)
NAMES += (FLOW_EULER, FLOW_LCM, FLOW_HEUN, HEUN, KDPM2, KDPM2_A, LMS, SINGLE, *EDM, PNDM, SA)


PLAIN_TIMES = {  # diffusers' own, in whose place conftest.py puts a faster one
    name: getattr(diffusers, name)._sigma_to_t for name in (KDPM2, KDPM2_A)
}
PLAIN_INITS = {name: getattr(diffusers, name).__init__ for name in PLAIN_TIMES}


def takes(name: str, argument: str) -> bool:
    """Whether the constructor of diffusers' class has this option."""
    return argument in signature(stock(name)).parameters


def stock(name: str) -> Any:
    """diffusers' class of that name."""
    return getattr(diffusers, name)


def calls(name: str, steps: int) -> int:
    """How often `step` is called in a run of that many steps."""
    if name == PNDM:  # PLMS, whose first step is two calls
        return steps + 1
    return steps if stock(name).order == 1 else 2 * steps - 1


def whole(name: str, timesteps: Any) -> Any:
    """Of all timesteps those where a whole step begins."""
    if name == PNDM:
        return timesteps[[0, *range(2, len(timesteps))]]
    return timesteps[:: stock(name).order]


# what tests ask of a class; never its place in NAMES
WITH_BETAS = tuple(name for name in NAMES if takes(name, "beta_start"))
FLOWS = tuple(name for name in NAMES if name not in (*WITH_BETAS, *EDM))
WITH_INDEX = tuple(n for n in NAMES if hasattr(stock(n), "step_index"))  # not DDIM, DDPM, PNDM
WITH_SIGMAS = tuple(name for name in NAMES if hasattr(stock(name)(), "sigmas"))
WITH_GENERATOR = tuple(n for n in NAMES if "generator" in signature(stock(n).step).parameters)
WITH_HISTORY = tuple(name for name in NAMES if hasattr(stock(name)(), "model_outputs"))
ONE_RESULT = (  # the sample alone
    *(DPM, SINGLE, UNIPC, DEIS, FLOW_EULER, FLOW_LCM, FLOW_HEUN, EDM_DPM, PNDM, SA),
)
UNKNOWN_IS_LAST = (DPM, SINGLE, UNIPC, DEIS, EDM_DPM, SA)  # a timestep that is nowhere: the last
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_fresh = itertools.count()


def base(name: str) -> dict[str, Any]:
    """Stable Diffusion's betas, for a class that has betas; and its PNDM is PLMS."""
    return SD | plms(name) if name in WITH_BETAS else {}


def plms(name: str) -> dict[str, Any]:
    return {"skip_prk_steps": True} if name == PNDM else {}


def unused(name: str) -> dict[str, Any]:
    """Like base, of a schedule that nobody has made yet: no row of it is anywhere."""
    j = next(_fresh)
    if name in EDM:
        return {"sigma_max": 79 + 1e-4 * j}
    if name in WITH_BETAS:
        return base(name) | {"beta_end": 0.0119 + 1e-7 * j}
    return {"shift": 2 + 1e-4 * j}


HOME = os.environ.get("FASTDIFF_TEST_SCHEDULERS", "fastdiff.schedulers")


def ours(name: str) -> Any:
    """The class under test."""
    return getattr(importlib.import_module(HOME), name)


def both(name: str, **config: Any) -> tuple[Any, Any]:
    """One instance of ours that follows diffusers in everything, and one of theirs."""
    mine = ours(name)(**config)
    mine.numerics = "faithful"
    return mine, stock(name)(**config)


class Counted(NamedTuple):
    """What the report of a scheduler says about its steps."""

    fused: int
    reference: dict[str, int]  # reason -> steps that diffusers' code or PyTorch ran
    looked_up: int  # timesteps found by value


def counted(scheduler: Any) -> Counted:
    """Read the one row that `fastdiff.report` has for a scheduler."""
    (row,) = fastdiff.report(scheduler)
    other = {k: n for k, n in row.calls.items() if k.startswith("reference")}
    return Counted(row.calls["fused"], other, row.calls.get("timesteps looked up by value", 0))
