"""GEGLU: the gate of a transformer's feed-forward block, in one pass after its projection."""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GEGLU
from torch import Tensor

from fastdiff.accelerate import choice
from fastdiff.ops.geglu import geglu


class FastGEGLU(GEGLU):  # type: ignore[misc]
    USES = "geglu"
    WHAT = "value * gelu(gate) after the projection"

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = choice.weight(self.proj)
        unless = lambda: choice.OTHERS if args or kwargs else ""  # noqa: E731
        if choice.taken(self, "geglu", hidden_states, weight, unless=unless):
            return geglu(self.proj(hidden_states))
        y: Tensor = GEGLU.forward(self, hidden_states, *args, **kwargs)
        return y
