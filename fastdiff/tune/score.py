"""Distances on seeds and prompts that the search never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.tune.subject import Start, Subject, distance

NOISES = 2**32  # a generator of the CPU heeds 32 bits of its seed: seeds s and s + 2^32 are one


def score(subject: Subject, plan: Plan, start: Start, target: Tensor) -> float:
    """RMS distance of a plan's end points to the target, (B, C, H, W).

    Raises ValueError where the plan was tuned on one of these seeds or prompts.
    """
    refuse_training(plan.about.get("tuned"), start)
    return distance(subject.run(plan, start), target)


def refuse_training(tuned: Mapping[str, Any] | None, start: Start) -> None:
    """ValueError unless a plan's training seeds and prompts are all others than these: another
    noise, and another text to a tokenizer that heeds neither case nor spaces, as CLIP's."""
    if tuned is None:
        return
    noises = {seed % NOISES for seed in tuned["seeds"]}
    seeds = sorted(seed for seed in set(start.seeds) if seed % NOISES in noises)
    if seeds:
        raise ValueError(
            f"seeds must be others than those the plan was tuned on, of which 32 bits count; got "
            f"{seeds[:5]} of them. Seeds from {max(noises) + 1} on would do"
        )
    texts = set(map(_text, tuned["prompts"]))
    prompts = sorted(prompt for prompt in set(start.prompts) if _text(prompt) in texts)
    if prompts:
        raise ValueError(
            f"prompts must be others than those the plan was tuned on; got {prompts[0]!r}. Prompts "
            "that are not in the plan's tuned.prompts would do"
        )


def _text(prompt: str) -> str:
    return " ".join(prompt.lower().split())
