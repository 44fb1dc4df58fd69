"""Distances on seeds and prompts that the search never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.tune.subject import Start, Subject, distance


def score(subject: Subject, plan: Plan, start: Start, target: Tensor) -> float:
    """RMS distance of a plan's end points to the target, (B, C, H, W).

    Raises ValueError where the plan was tuned on one of these seeds or prompts.
    """
    refuse_training(plan.about.get("tuned"), start)
    return distance(subject.run(plan, start), target)


def refuse_training(tuned: Mapping[str, Any] | None, start: Start) -> None:
    """ValueError unless a plan's training seeds and prompts are all others than these."""
    if tuned is None:
        return
    seeds = sorted(set(tuned["seeds"]) & set(start.seeds))
    if seeds:
        raise ValueError(
            f"seeds must be others than those the plan was tuned on; got {seeds[:5]} of them. "
            f"Seeds from {max(tuned['seeds']) + 1} on would do"
        )
    prompts = sorted(set(tuned["prompts"]) & set(start.prompts))
    if prompts:
        raise ValueError(
            f"prompts must be others than those the plan was tuned on; got {prompts[0]!r}. Prompts "
            "that are not in the plan's tuned.prompts would do"
        )
