"""scheduler.step(.., return_dict=False) of the classes against the installed diffusers.

The step index is begun at 0 and the timestep is an element of scheduler.timesteps, as in a
pipeline.  Sample and model output are the same tensors for all contestants, on every step.  For
DPM++ 2M a third contestant takes part: torch.compile of the bare formula

    m = kx x + ke e;   x' = cx x + cm m + ch h

which has no scheduler around it, no state but m, and no checks: the honest competitor of a kernel.

A lap makes 16 steps in a row, the way such things are usually timed.  In a pipeline a network runs
between two steps and takes the caches; `test_scheduler_step_after_work` has a convolution there.

Before anything is timed, six chained steps of fastdiff are compared with those of diffusers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff
import fastdiff.schedulers
from benchmarks import formula
from benchmarks.side_by_side import OURS, Call, measure
from fastdiff.ops.affine_step import affine_step

SHAPES = {"1x4x64x64": 65_536, "1x4x128x128": 262_144, "8x4x128x128": 2_097_152}  # bytes in float32
DTYPES = ("float32", "bfloat16")
STEPS, SKIP, TIMED = 20, 4, 12
CHECKED = 6  # chained steps
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOWS = ("FlowMatchEulerDiscreteScheduler",)  # which have none


class Case(NamedTuple):
    """A class, its configuration, and how many latents a fused step must read and write."""

    name: str
    config: dict[str, Any]
    latents: int


SAMPLERS = {
    # x, e, h -> x', x_0
    "dpmpp_2m": Case("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 5),
    # x, e, z, h -> x', x_0
    "dpmpp_2m_sde": Case(
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
        6,
    ),
    # x, e -> x', x_0
    "ddim": Case("DDIMScheduler", {"clip_sample": False}, 4),
    "euler": Case("EulerDiscreteScheduler", {}, 4),
    # x, e, z -> x', x_0
    "euler_a": Case("EulerAncestralDiscreteScheduler", {}, 5),
    "ddpm": Case("DDPMScheduler", {"clip_sample": False}, 5),
    # x, e, h_1, h_2, where the step began -> x', x_0, where this one begins
    "unipc_2": Case("UniPCMultistepScheduler", {}, 8),
    # x, e -> x', x_0, and in turn x, e, m_1, where the cycle began -> x', x_0
    "dpmpp_2s": Case("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}, 5),
    # x, e, n_1 -> x', n
    "deis_2": Case("DEISMultistepScheduler", {}, 5),
    # x, e, z -> x', what is denoised
    "lcm": Case("LCMScheduler", {}, 5),
    # x, v -> x'
    "flow_euler": Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 3),
}


def rounds(shape: str) -> int:
    """Enough for a median to stand still, in about a second."""
    return max(10, min(100, 20_000_000 // SHAPES[shape]))


def prepared(scheduler: Any) -> Any:
    """At the start of a run, as a pipeline leaves it."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True  # Euler asks for it, and warns otherwise
    return scheduler


def steps(scheduler: Any, model_output: Tensor, sample: Tensor) -> list[Call]:
    """The calls of one run, ready to be made in order."""
    prepared(scheduler)
    return [
        functools.partial(scheduler.step, model_output, t, sample, return_dict=False)
        for t in list(scheduler.timesteps)[: SKIP + TIMED]
    ]


def chained(scheduler: Any, outputs: list[Tensor], sample: Tensor) -> list[Tensor]:
    """All that the last of these steps returns, one for each output, each step starting from the
    sample of the one before: the sample, and of some classes x_0."""
    prepared(scheduler)
    torch.manual_seed(1)  # for the samplers that draw noise
    returned = [sample]
    for output, t in zip(outputs, scheduler.timesteps, strict=False):
        returned = list(scheduler.step(output, t, returned[0], return_dict=False))
    return returned


def difference(ours: Tensor, theirs: Tensor, kind: torch.dtype) -> tuple[float, float]:
    """(RMS of the difference, bound): four roundings a step, in the dtype that is handed on."""
    error = (ours.double() - theirs.double()).square().mean().sqrt().item()
    size = theirs.double().square().mean().sqrt().item()
    return error, 4 * torch.finfo(kind).eps * math.sqrt(CHECKED) * size


def compared(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, list[float]]:
    """What stands in the record; AssertionError where one of them differs."""
    found: dict[str, list[float]] = {"rms difference": [], "bound": []}
    for mine, stock in zip(ours, theirs, strict=True):
        assert (mine.shape, mine.dtype) == (stock.shape, stock.dtype)
        error, bound = difference(mine, stock, theirs[0].dtype)  # x_0 may be wider
        which = len(found["bound"])
        assert error <= bound, f"result {which} differs by {error:.3g} > {bound:.3g}"
        found["rms difference"].append(error)
        found["bound"].append(bound)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scheduler_step(benchmark: Any, compiles: bool, sampler: str, shape: str, dtype: str):
    contestants = checked_contestants(benchmark, compiles, sampler, shape, dtype)
    benchmark.group = f"scheduler_step/{shape}/{dtype}"
    measure(benchmark, contestants, skip=SKIP, rounds=rounds(shape))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim"])
def test_scheduler_step_after_work(benchmark: Any, compiles: bool, sampler: str):
    shape, dtype = "1x4x64x64", "float32"
    contestants = checked_contestants(benchmark, compiles, sampler, shape, dtype)
    benchmark.group = f"scheduler_step_after_work/{shape}/{dtype}"
    layer, features = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 64, 64)
    between = functools.partial(layer, features)  # 1 MB in, 1 MB out: all of a core's own cache
    measure(benchmark, contestants, skip=SKIP, rounds=8, between=between)


def checked_contestants(
    benchmark: Any, compiles: bool, sampler: str, shape: str, dtype: str
) -> dict[str, Callable[[], list[Call]]]:
    """Who takes part, after six chained steps of fastdiff were found right."""
    case, kind = SAMPLERS[sampler], getattr(torch, dtype)
    size = tuple(map(int, shape.split("x")))
    torch.manual_seed(0)
    sample, *outputs = (torch.randn(size).to(kind) for _ in range(1 + CHECKED))
    config = case.config if case.name in FLOWS else BETAS | case.config
    ours = getattr(fastdiff.schedulers, case.name)(**config)
    theirs = getattr(diffusers, case.name)(**config)

    check = compared(chained(ours, outputs, sample), chained(theirs, outputs, sample))
    counts = fastdiff.report(ours).rows[0].calls
    assert counts["fused"] == CHECKED
    assert not any(name.startswith("reference") for name in counts)

    contestants: dict[str, Callable[[], list[Call]]] = {
        OURS: lambda: steps(ours, outputs[0], sample),
        "diffusers": lambda: steps(theirs, outputs[0], sample),
    }
    if sampler == "dpmpp_2m" and compiles:
        calls = compiled_steps(outputs[0], sample)
        contestants["torch.compile of the formula"] = lambda: calls

    benchmark.extra_info |= {
        "case": {"sampler": sampler, "shape": shape, "dtype": dtype},
        "bytes": case.latents * sample.nbytes,
        "check": check,
    }
    return contestants


def compiled_steps(output: Tensor, sample: Tensor) -> list[Call]:
    """The calls of torch.compile's DPM++ 2M, after comparing one with affine_step."""
    plan, past = fastdiff.plan("dpmpp_2m", steps=STEPS), torch.randn_like(sample)
    calls = formula.calls(formula.compiled(), plan, sample, output, past)
    row = torch.from_numpy(plan.rows[SKIP : SKIP + 1]).float()
    want = affine_step(sample, output, row, history=[past], keeps=1)
    compared(list(calls[SKIP]()), list(want[:2]))
    return list(calls[: SKIP + TIMED])
