"""Pictures of one sampler at one number of steps; the reference trajectory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastdiff.sampling import sample
from fastdiff.shapes import checkpoint
from fastdiff.shapes.oracle import judge
from fastdiff.tune.subject import Start, Subject

REFERENCE = 1000  # calls, one at every trained time
AT_ONCE = 4  # pictures of a reference run, which is saved when they are done


@dataclass(frozen=True)
class Result:
    """What one batch gave.

    evaluations  calls of the network for a picture; a guided one counts as one
    right        pictures that the oracle finds right; None where a latent is not finite
    squares      sum over the compared pictures of the squared distance to the reference
    compared     how many were compared
    seconds      of the clock; cpu_seconds: of the process; from noise to pictures
    """

    evaluations: int
    count: int
    right: int | None
    squares: float | None
    compared: int
    seconds: float
    cpu_seconds: float


@torch.no_grad()
def measure(
    subject: Subject, scheduler: Any, steps: int, start: Start, reference: Tensor | None
) -> Result:
    """Run a scheduler in the loop of a pipeline; reference (M, C, H, W): of the first M pictures.

    Noise in steps comes from a generator for each picture, seeded with its seed, as its start does:
    a picture does not depend on its batch.
    """
    network, x = subject.network(start.prompts), subject.noise(start.seeds)
    clock, process, calls = time.perf_counter(), time.process_time(), 0
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    extra = {}
    if "generator" in signature(scheduler.step).parameters:
        # of its own, else the first noise of a step is that of the start
        extra["generator"] = [torch.Generator().manual_seed(2**32 + seed) for seed in start.seeds]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, return_dict=False, **extra)[0]
        calls += 1
    count = len(start.seeds)
    if not x.isfinite().all():
        spent = (time.perf_counter() - clock, time.process_time() - process)
        return Result(calls, count, None, None, 0, *spent)
    pictures = subject.pictures(x)
    spent = (time.perf_counter() - clock, time.process_time() - process)
    right = sum(judge(p, words).right for p, words in zip(pictures, start.prompts, strict=True))
    squares, compared = None, 0 if reference is None else len(reference)
    if reference is not None and compared:
        squares = float((x[:compared].double() - reference).square().sum())
    return Result(calls, count, int(right), squares, compared, *spent)


def reference_of(
    subject: Subject,
    start: Start,
    path: Path,
    calls: int = REFERENCE,
    *,
    origin: Mapping[str, Any] = MappingProxyType({}),
    tell: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """End points (M, C, H, W) float64 of DPM-Solver++ 2M with that many calls, all in float64.

    They are kept in the file, AT_ONCE pictures after the others, with origin, what they depend on
    besides calls and pictures; what the file has of another origin is made anew.
    """
    of = {"calls": calls, **origin}
    saved = _saved(path)
    if saved.get("of") != of:
        saved = {"of": of, "parts": []}
    made = subject.reference(calls)
    unet = None
    for i, part in enumerate(start.parts(AT_ONCE)):
        if i < len(saved["parts"]) and len(saved["parts"][i]) >= len(part.seeds):
            continue
        del saved["parts"][i:]  # a part of fewer pictures, the last one of a smaller run
        unet = unet or copy.deepcopy(subject.pipe.unet).double()
        network = subject.network(part.prompts, unet)
        saved["parts"].append(sample(network, subject.noise(part.seeds).double(), made))
        checkpoint.save(path, saved)
        tell(f"reference: {i + 1} of {len(start.parts(AT_ONCE))} parts")
    return torch.cat(saved["parts"])[: len(start.seeds)]


def _saved(path: Path) -> dict[str, Any]:
    """What is in the file; ValueError where that is nothing of ours."""
    cause: Exception | None = None
    try:
        found = checkpoint.load(path) or {}
        if isinstance(found, dict):
            return found
    except (RuntimeError, EOFError, UnpicklingError) as error:
        cause = error
    raise ValueError(
        f"{path} must be what `fastdiff bench quality` keeps of its reference; it cannot be "
        "read. Without the file it is made anew"
    ) from cause
