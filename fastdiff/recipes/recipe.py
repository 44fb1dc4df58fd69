"""What a recipe says, and in what words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def frozen(**values: Any) -> Mapping[str, Any]:
    """A mapping that nobody changes."""
    return MappingProxyType(values)


@dataclass(frozen=True)
class Guidance:
    """Scales of classifier-free guidance that a checkpoint takes; 0 to 1 is without guidance.

    ranges  (low, high), both ends included
    """

    default: float
    ranges: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    @property
    def free(self) -> bool:
        """Whether the model is run without guidance only."""
        return all(high <= 1 for _, high in self.ranges)

    def takes(self, scale: float) -> bool:
        return any(low <= scale <= high for low, high in self.ranges)

    def __str__(self) -> str:
        return " or ".join(
            f"{low:g}" if low == high else f"{low:g} {'up' if high == math.inf else f'to {high:g}'}"
            for low, high in self.ranges
        )


@dataclass(frozen=True)
class Network:
    """The denoiser that a checkpoint is for, told by its config.

    part     the pipeline's attribute
    config   what its config must hold; a key that it lacks counts as None
    classes  names of classes, one of which it must be; empty: any
    """

    name: str
    part: str
    config: Mapping[str, Any] = field(default_factory=frozen)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """What differs at one number of steps."""

    config: Mapping[str, Any] = field(default_factory=frozen)
    call: Mapping[str, Any] = field(default_factory=frozen)
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Recipe:
    """How one kind of distilled checkpoint is sampled.

    scheduler    class of fastdiff and diffusers
    family       of the noise: "vp" (betas), "flow", "trigflow"
    predictions  what the scheduler before may say the network predicts
    config       options of the scheduler that are set; all others stay those of the pipeline
    steps        numbers of steps that there are checkpoints for, or that the one is made for
    each         whether every number of steps has a checkpoint of its own
    guidance     without a guidance embedding in the network; `embedded`: with one
    timesteps    where the steps lie, if not where the scheduler's spacing puts them
    eta          gamma of TCD; None: the pipeline's argument is left alone
    call         further arguments of the pipeline's call
    by_steps     what differs at a number of steps
    known        what is known beyond the numbers, and where the sources are silent
    """

    name: str
    scheduler: str
    family: str
    predictions: tuple[str, ...]
    network: Network
    steps: tuple[int, ...]
    guidance: Guidance
    config: Mapping[str, Any]
    sources: tuple[str, ...]
    known: str
    each: bool = False
    embedded: Guidance | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None
    call: Mapping[str, Any] = field(default_factory=frozen)
    by_steps: Mapping[int, Variant] = field(default_factory=dict)

    def options(self, steps: int) -> dict[str, Any]:
        """Options of the scheduler for a number of steps."""
        return {**self.config, **self._variant(steps).config}

    def arguments(self, steps: int) -> dict[str, Any]:
        """Arguments of the call for a number of steps, besides guidance and eta."""
        own: dict[str, Any] = {"num_inference_steps": steps}
        if self.timesteps is not None:
            own |= {"timesteps": list(self.timesteps)}
        given = {**own, **self.call, **self._variant(steps).call}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}

    def guided(self, steps: int, embedded: bool = False) -> Guidance:
        """The guidance for a number of steps; embedded: the network takes the scale as an input."""
        if embedded and self.embedded is not None:
            return self.embedded
        return self._variant(steps).guidance or self.guidance

    def steps_in_words(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        if len(self.steps) > 2 and self.steps == tuple(range(first, last + 1)):
            return f"{first} to {last}"
        return ", ".join(map(str, self.steps))

    def _variant(self, steps: int) -> Variant:
        return self.by_steps.get(steps, Variant())


__all__ = ["Guidance", "Network", "Recipe", "Variant", "frozen"]
