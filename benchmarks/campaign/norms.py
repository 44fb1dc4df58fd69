"""All GroupNorms of a model in one CUDA graph, as often as it has them, bf16.

SD1.5 at 512x512 has 61 (16 without SiLU, in front of transformers), SDXL at 1024x1024 46 (11), both
for two samples; the VAE's decoder of one 1024x1024 picture 30 (1).  Shapes, counts and places are
those of diffusers' configurations, read on the meta device.

    own inputs      every norm reads its own tensor, which is not in the L2
    shared inputs   norms of one shape read one tensor in a row: a small one is in the L2

Each shape of SDXL and the VAE above 16 MB stands for itself, too (group_norm_large): a graph of as
many norms, each of its own tensor, as make half a gigabyte, but at least four.

In a model the tensor was written by the kernel before; the truth lies between the two, and the
target is judged by the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.campaign.clock import Timer, captured, compare, on_the_device, on_the_host
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import RED, Task
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, Call

GROUPS, EPS = 32, 1e-5
CONTIGUOUS = "eager, contiguous"
ROUNDINGS = 8  # of bf16, of numbers no larger than the largest result


class Norm(NamedTuple):
    """A shape, how often it is there, and how often without SiLU."""

    shape: tuple[int, ...]
    number: int
    bare: int = 0


SETS = {
    "sd15": [
        Norm((2, 320, 64, 64), 13, 5),
        Norm((2, 640, 32, 32), 11, 5),
        Norm((2, 640, 64, 64), 2),
        Norm((2, 960, 64, 64), 1),
        Norm((2, 1280, 16, 16), 11, 5),
        Norm((2, 1920, 32, 32), 1),
        Norm((2, 2560, 16, 16), 2),
        Norm((2, 1280, 32, 32), 1),
        Norm((2, 1280, 8, 8), 12, 1),
        Norm((2, 960, 32, 32), 1),
        Norm((2, 2560, 8, 8), 3),
        Norm((2, 1920, 16, 16), 1),
        Norm((2, 320, 32, 32), 1),
        Norm((2, 640, 16, 16), 1),
    ],
    "sdxl": [
        Norm((2, 320, 128, 128), 8),
        Norm((2, 640, 64, 64), 11, 5),
        Norm((2, 1280, 32, 32), 16, 6),
        Norm((2, 640, 128, 128), 2),
        Norm((2, 960, 128, 128), 1),
        Norm((2, 1920, 64, 64), 1),
        Norm((2, 2560, 32, 32), 2),
        Norm((2, 1280, 64, 64), 1),
        Norm((2, 960, 64, 64), 1),
        Norm((2, 1920, 32, 32), 1),
        Norm((2, 320, 64, 64), 1),
        Norm((2, 640, 32, 32), 1),
    ],
    "vae": [
        Norm((1, 128, 1024, 1024), 6),
        Norm((1, 256, 512, 512), 5),
        Norm((1, 256, 1024, 1024), 1),
        Norm((1, 512, 256, 256), 6),
        Norm((1, 512, 512, 512), 1),
        Norm((1, 512, 128, 128), 10),
        Norm((1, 512, 16384), 1, 1),
    ],
}
LARGE = 16_000_000  # bytes of a tensor; above that a kernel is bound by memory
TOGETHER = 500_000_000  # bytes of the tensors that take turns: many times the L2
TINY = [Norm((2, 64, 4, 4), 2, 1), Norm((1, 32, 7), 1)]


def run(task: Task) -> None:
    if red := task.context.get("red", {}).get("group_norm"):
        task.skip("group_norm", RED.format(red), benchmark="group_norm_set")
        return
    for name, norms in SETS.items():
        norms = TINY if task.dry else norms
        for inputs in ("own", "shared"):
            case = {"set": name, "inputs": inputs, "dtype": "bfloat16"}
            make = functools.partial(measure, task, norms, inputs == "own")
            task.measure(f"{name} {inputs}", make, benchmark="group_norm_set", case=case)
        if task.dry:
            break
    for name in ("sdxl", "vae"):
        for norm in SETS[name]:
            size = 2 * torch.Size(norm.shape).numel()
            if size < LARGE:
                continue
            several = max(4, round(TOGETHER / size))
            one = Norm((1, 32, 4, 4), 2) if task.dry else Norm(norm.shape, several)
            where = "x".join(map(str, norm.shape))
            case = {"model": name, "where": where, "dtype": "bfloat16"}
            make = functools.partial(measure, task, [one], True)
            task.measure(f"{name} {where}", make, benchmark="group_norm_large", case=case)
            if task.dry:
                return


def ours(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    from fastdiff.ops.group_norm import group_norm

    y: Tensor = group_norm(x, GROUPS, weight, bias, eps=EPS, silu=silu)
    return y


def native(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    y = F.group_norm(x, GROUPS, weight, bias, EPS)
    return F.silu(y) if silu else y


def tensors(norms: list[Norm], own: bool, device: str) -> list[list[Tensor]]:
    """For each norm of a shape its inputs, channels last."""
    draw = torch.Generator(device).manual_seed(0)
    made = []
    for norm in norms:
        shape = (norm.shape[0], *norm.shape[2:], norm.shape[1])
        kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": device, "generator": draw}
        made.append([torch.randn(shape, **kind) for _ in range(norm.number if own else 1)])
    return [[x.movedim(-1, 1) for x in each] for each in made]


def measure(task: Task, norms: list[Norm], own: bool) -> Row:
    inputs = tensors(norms, own, task.device)
    rows = [x.nbytes for each, n in zip(inputs, norms, strict=True) for x in each[:1] * n.number]
    parameters: dict[int, Any] = {
        n.shape[1]: tuple(torch.randn(n.shape[1], device=task.device).bfloat16() for _ in range(2))
        for n in norms
    }
    runs: dict[str, Callable[..., Tensor]] = {OURS: ours, "eager": native}
    if task.compiles and not task.dry:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64  # a shape each
        runs[COMPILED] = torch.compile(native, fullgraph=True, dynamic=False)
    check: dict[str, float] = {}
    for norm, each in zip(norms, inputs, strict=True):
        for silu in {norm.bare < norm.number, not norm.bare}:
            truth = native(each[0].double(), *(p.double() for p in parameters[norm.shape[1]]), silu)
            bound = ROUNDINGS * torch.finfo(torch.bfloat16).eps * truth.abs().max().item()
            given = {name: (one, each[0]) for name, one in runs.items()}
            given[CONTIGUOUS] = (native, each[0].contiguous())
            for name, (one, x) in given.items():
                got = one(x, *parameters[norm.shape[1]], silu)
                error = (got.double() - truth).abs().max().item()
                assert error <= bound, f"{name} at {norm.shape}: {error:.3g} > {bound:.3g}"
                check[name] = max(check.get(name, 0.0), error / bound)
            del truth

    def all_norms(one: Callable[..., Tensor]) -> None:
        for norm, each in zip(norms, inputs, strict=True):
            for i in range(norm.number):
                one(each[i % len(each)], *parameters[norm.shape[1]], i >= norm.bare)

    timers = {n: timer(task.device, functools.partial(all_norms, r)) for n, r in runs.items()}
    if own:  # what eager can do if nothing is channels last
        plain = [[x.contiguous() for x in each] for each in inputs]

        def contiguous() -> None:
            for norm, each in zip(norms, plain, strict=True):
                for i, x in enumerate(each):
                    native(x, *parameters[norm.shape[1]], i >= norm.bare)

        timers[CONTIGUOUS] = timer(task.device, contiguous)
    times = compare(task, timers, seconds=2.0)
    found = {"largest error / bound": check}
    without = {} if task.compiles else {"left out": COMPILED}
    moved = 3 * sum(rows)  # two reads and a write
    return {"bytes": moved, "repeats": len(rows), "check": found, "times": times} | without


def timer(device: str, call: Call) -> Timer:
    """One graph of the whole set."""
    return on_the_device(captured(call).replay, 1) if device == "cuda" else on_the_host(call)
