"""affine_step with guidance, history and noise: alone in a graph, and as a scheduler's step.

At the latents of SD1.5 at 512x512 and of SDXL at 1024x1024, both for two samples.

graph   one step of DPM++ 2M SDE: reads x, u, c, h, z, writes x' and m, in a graph of 20; with noise
        that is given, and with noise that the kernel draws from a seed a sample.  Peers: each
        backend that can run, and the formula in eager PyTorch and through torch.compile; of noise
        that is drawn, over philox_normal's reference, which is operators.
step    scheduler.step of DPM++ 2M SDE after guidance, host and device, until the device is done;
        peer: that of diffusers
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks.campaign.clock import Timer, compare, timer
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import RED, Task
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS
from fastdiff import backends
from fastdiff.ops.affine_step import affine_step_out, affine_step_ref, row_size
from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal, philox_normal_ref

SHAPES, TINY = {"2x4x64x64": (2, 4, 64, 64), "2x4x128x128": (2, 4, 128, 128)}, (2, 4, 8, 8)
MOST = f"{COMPILED}, max-autotune"
NOISE = 10  # roundings of the noise that is drawn, of numbers no larger than the largest of it
GUIDANCE = 7.5
#      g, kx, ke, kz, lo, hi, gain, then x' = cx x + cm m + ce e + cz z + ch h, and c_in
ROW = [GUIDANCE, 1.3, -0.8, 0, -float("inf"), float("inf"), 1, 0.6, 0.9, 0, 0.3, -0.4, 1]
STEPS, TIMED = 20, 16
Update = Callable[..., tuple[Tensor, Tensor]]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIG = {**BETAS, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}


def run(task: Task) -> None:
    for op in ("affine_step", "philox_normal"):  # the noise that is drawn is checked against it
        if red := task.context.get("red", {}).get(op):
            task.skip(op, RED.format(red), benchmark="affine_step_graph")
            return
    for shape, dtype in itertools.product(SHAPES, ("float32", "bfloat16")):
        case = {"shape": shape, "dtype": dtype}
        for noise in ("given", "drawn"):
            what = {"benchmark": "affine_step_graph", "case": {**case, "noise": noise}}
            make = functools.partial(graph, task, shape, dtype, noise == "drawn")
            task.measure(f"graph {shape} {dtype}, noise {noise}", make, **what)
        make = functools.partial(scheduler_step, task, shape, dtype)
        what = {"benchmark": "affine_step_scheduler", "case": case}
        task.measure(f"step {shape} {dtype}", make, **what)


def formula(x: Tensor, u: Tensor, c: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(x', m) in the dtype of x, which may be another than that of z."""
    kind = x.dtype
    x, u, c, h, z = (t.float() for t in (x, u, c, h, z))
    e = u + GUIDANCE * (c - u)
    m = ROW[1] * x + ROW[2] * e
    return (ROW[7] * x + ROW[8] * m + ROW[10] * z + ROW[11] * h).to(kind), m.to(kind)


def drawing(x: Tensor, u: Tensor, c: Tensor, h: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of noise that is drawn in it."""
    z = philox_normal_ref(seeds, x.shape[1:], None, 0, STEP_STREAM, torch.float32)
    return formula(x, u, c, h, z)


def peers(task: Task, update: Update, plainest: bool) -> dict[str, Update]:
    """The formula in eager PyTorch and compiled; a dry run compiles the plainest case alone."""
    found = {"eager formula": update}
    if task.compiles and (plainest or not task.dry):
        torch._dynamo.reset()  # nothing left over from other shapes or dtypes
        found[COMPILED] = torch.compile(update, fullgraph=True, dynamic=False)
    if COMPILED in found and update is formula and not task.dry:
        # of some operations; the generator's hundreds would be compiled for minutes
        options: dict[str, Any] = {"mode": "max-autotune-no-cudagraphs"}
        found[MOST] = torch.compile(update, fullgraph=True, dynamic=False, **options)
    return found


def graph(task: Task, where: str, dtype: str, drawn: bool) -> Row:
    kind = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(0)
    shape = TINY if task.dry else SHAPES[where]
    x, u, c, h, z = (torch.randn(shape, generator=draw).to(task.device, kind) for _ in range(5))
    assert len(ROW) == row_size(0, 1)
    seeds = torch.tensor([3, (5 << 32) + 4], device=task.device)
    noise: dict[str, Any] = {"seeds": seeds} if drawn else {"noise": z}
    if drawn:  # the kernel's noise is float32, whatever x is
        z = philox_normal(seeds, shape[1:], stream=STEP_STREAM)
    rows = torch.tensor(ROW, device=task.device)[None, None]
    outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def call(name: str, backend: str | None) -> Any:
        x_next, m = (torch.full_like(x, float("nan")) for _ in range(2))
        outputs[name] = (x_next, m)
        given: dict[str, Any] = {"uncond": u, "history": [h], **noise, "x_next": x_next, "x0": m}
        one = functools.partial(affine_step_out, x, c, rows, **given)

        if backend is None:
            return one

        def forced() -> None:
            with fastdiff.use_backend(backend):
                one()

        return forced

    def peer(name: str, update: Update) -> None:
        outputs[name] = update(x, u, c, h, seeds if drawn else z)

    key = backends.Key(task.device, kind)
    able = [b for b in backends.PREFERENCE[:3] if not backends.why_not("affine_step", b, key)]
    calls = {OURS: call(OURS, None)}
    calls |= {f"fastdiff {b}": call(f"fastdiff {b}", b) for b in able}
    plainest = (where, dtype, drawn) == (next(iter(SHAPES)), "float32", False)
    for name, update in peers(task, drawing if drawn else formula, plainest).items():
        calls[name] = functools.partial(peer, name, update)
    wide = affine_step_ref(
        *(x.double(), u.double(), c.double(), [h.double()], z.double()),
        *(rows, None, 0, torch.float64, torch.float64),
    )[:2]
    errors: dict[str, float] = {}
    for name, one in calls.items():
        one()
        for got, truth in zip(outputs[name], wide, strict=True):
            assert (got.shape, got.dtype) == (x.shape, kind), name
            # five roundings at most, each of a number no larger than the largest term
            largest = max(t.abs().max().item() for t in (truth, *wide, GUIDANCE * c, GUIDANCE * u))
            bound = 8 * torch.finfo(torch.float32).eps * largest
            bound += torch.finfo(kind).eps * truth.abs().max().item()
            if drawn and truth is wide[0]:  # by a compiler, which may fuse what is rounded there
                bound += NOISE * torch.finfo(torch.float32).eps * ROW[10] * z.abs().max().item()
            error = (got.double() - truth).abs().max().item()
            assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}"  # NaN is red, too
            errors[name] = max(errors.get(name, 0.0), error / bound)
    timers = {name: timer(task.device, one) for name, one in calls.items()}
    row = {"bytes": (6 if drawn else 7) * x.nbytes, "check": {"largest error / bound": errors}}
    row |= {"backend": backends.chosen("affine_step", key), "kernels": kernels(task, calls[OURS])}
    without = {} if task.compiles else {"left out": COMPILED}
    return row | {"times": compare(task, timers)} | without


def kernels(task: Task, call: Any) -> int | str:
    """How many kernels a call launches; or why that is not known."""
    if task.device != "cuda":
        return "not on a CUDA device"
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the profiler says: {error}"
    found = [event for event in seen.events() if event.device_type.name == "CUDA"]
    return len(found) or "the profiler saw none"


def scheduler_step(task: Task, where: str, dtype: str) -> Row:
    """Guidance in eager PyTorch, then a scheduler's step: a lap of 16, divided by 16."""
    import diffusers

    from benchmarks.bench_scheduler_step import CHECKED, chained, compared

    kind = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(0)
    shape = TINY if task.dry else SHAPES[where]
    sample, *outputs = (
        torch.randn(shape, generator=draw).to(task.device, kind) for _ in range(1 + CHECKED)
    )
    name = "DPMSolverMultistepScheduler"
    both = {OURS: getattr(fastdiff.schedulers, name), "diffusers": getattr(diffusers, name)}
    made = {side: cls(**CONFIG) for side, cls in both.items()}
    check = compared(*(chained(made[side], outputs, sample) for side in (OURS, "diffusers")))

    def laps(scheduler: Any) -> Timer:
        uncond, cond = outputs[:2]

        def seconds() -> float:
            scheduler.set_timesteps(STEPS, device=task.device)
            scheduler.set_begin_index(0)
            moments = list(scheduler.timesteps)[:TIMED]
            _wait(task)
            start = time.perf_counter()
            for t in moments:
                e = uncond + GUIDANCE * (cond - uncond)
                scheduler.step(e, t, sample, return_dict=False)
            _wait(task)
            return (time.perf_counter() - start) / TIMED

        return seconds

    times = compare(task, {side: laps(scheduler) for side, scheduler in made.items()})
    return {"bytes": 8 * sample.nbytes, "check": check, "times": times}


def _wait(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.synchronize()
