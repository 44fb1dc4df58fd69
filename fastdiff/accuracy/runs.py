"""One contestant at one budget: sampled, its calls counted, its errors taken."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from fastdiff.accuracy.contestants import OURS, SHIFT, Contestant
from fastdiff.accuracy.problem import Problem
from fastdiff.plan import Plan, plan
from fastdiff.sampling import sample
from fastdiff.schedules import NoiseSchedule

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)


class OutOfReach(Exception):
    """No run of this contestant fits into the budget; the text says why."""


def measure(problem: Problem, who: Contestant, budget: int) -> dict[str, Any]:
    """{"budget", "calls", "errors"} of the longest run with at most `budget` calls.

    errors is None where the samples are not finite.  Raises OutOfReach where there is no run.
    """
    seen: list[float] = []
    run = ours if who.side == OURS else theirs
    got = run(problem, who, budget, seen)
    if len(seen) > budget:
        raise RuntimeError(f"{who.key} called the network {len(seen)} times for {budget}")
    errors = problem.errors(got, who.noise) if got.isfinite().all() else None
    return {"budget": budget, "calls": len(seen), "errors": errors}


def plan_of(problem: Problem, who: Contestant, budget: int) -> Plan:
    """fastdiff's plan with that many calls; it stops at the data."""
    noise, spacing = problem.schedule, who.spacing
    if spacing == "shift 3":
        noise, spacing = NoiseSchedule.flow(shift=SHIFT), "linspace"
    return plan(
        who.row or who.solver,
        steps=budget,
        noise=noise,
        spacing=spacing,
        prediction=problem.prediction,
        **who.options,
    )


def ours(problem: Problem, who: Contestant, budget: int, seen: list[float]) -> Tensor:
    """fastdiff.sample in float64."""
    made = plan_of(problem, who, budget)
    g = torch.Generator().manual_seed(problem.seed + 1)
    return sample(problem.network(seen), problem.start(who.noise), made, generator=g)


def theirs(problem: Problem, who: Contestant, budget: int, seen: list[float]) -> Tensor:
    """diffusers' class in the loop of its pipelines, float64 latents."""
    scheduler = _longest(who, budget)
    network, x = problem.network(seen), problem.start(who.noise)
    step = signature(scheduler.step).parameters
    extra = dict(who.options)
    if "generator" in step:
        extra["generator"] = torch.Generator().manual_seed(problem.seed + 1)
    torch.manual_seed(problem.seed + 1)  # for classes that draw without a generator
    if problem.family == "vp" and float(scheduler.init_noise_sigma) != 1:
        # a sample at the first level whose scaled form is z, to the last bit of diffusers' levels
        x = x * (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5
    if hasattr(scheduler, "set_begin_index"):
        # else a time that rounding repeats is taken for the second one, and the run fails
        scheduler.set_begin_index(0)
    for t in scheduler.timesteps:
        entry = x
        if hasattr(scheduler, "scale_model_input"):
            entry = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(entry, t), t, x, return_dict=False, **extra)[0]
    return x


def _longest(who: Contestant, budget: int) -> Any:
    """diffusers' scheduler with the most timesteps that fit: each is a call."""
    preset = {k: v for k, v in who.config.items() if k in ("skip_prk_steps", "solver_order")}
    steps = _steps(who.scheduler, tuple(sorted(preset.items())), budget)
    try:
        return _set(who.scheduler, who.config, steps)
    except (ValueError, IndexError) as error:
        raise OutOfReach(f"diffusers refuses {steps} steps: {error}") from error


@functools.cache
def _steps(cls: str, preset: tuple[tuple[str, Any], ...], budget: int) -> int:
    """The most steps of a class with at most so many calls; a spacing does not change it."""
    steps = budget
    while steps > 0:
        try:
            calls = len(_set(cls, dict(preset), steps).timesteps)
        except (ValueError, IndexError) as error:
            raise OutOfReach(f"{cls} refuses {steps} steps: {error}") from error
        if calls <= budget:
            return steps
        # calls are about proportional to steps: one more than that, and no step twice
        steps = min(steps - 1, steps * budget // calls + 1)
    raise OutOfReach(f"one step of {cls} takes more than {budget} calls")


def _set(cls: str, config: Mapping[str, Any], steps: int) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of diffusers' own
        scheduler = getattr(diffusers, cls)(**config)
        scheduler.set_timesteps(steps)
    return scheduler
