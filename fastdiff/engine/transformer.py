"""What takes the place of a transformer of diffusers in a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.engine.face import Engine, refuse, tensor

if TYPE_CHECKING:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput


class EngineTransformer(Engine):
    """SD3Transformer2DModel or FluxTransformer2DModel in an engine: `pipe.transformer = engine`."""

    graph = "transformer"
    needs = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        timestep: Tensor | float | None = None,
        *,
        img_ids: Tensor | None = None,
        txt_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The network's answer, like hidden_states; timestep as its class takes it.

        Raises Incompatible for an argument that the exported graph does not have.
        """
        refuse(others)
        axes = len(self._ports["hidden_states"].shape)
        batch = len(tensor("hidden_states", hidden_states, axes))
        given: dict[str, Any] = {
            "hidden_states": hidden_states,
            "timestep": None if timestep is None else self._times(timestep, batch),
            "encoder_hidden_states": encoder_hidden_states,
            "pooled_projections": pooled_projections,
        }
        for name, value in (("img_ids", img_ids), ("txt_ids", txt_ids)):
            if value is not None:
                given[name] = tensor(name, value, 2).to(torch.float32)
        if guidance is not None:
            given["guidance"] = self._times(guidance, batch)
        answer = self._runner.run(given)["out_sample"]
        if not return_dict:
            return (answer,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=answer)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Nothing: an engine keeps no cache between calls, which pipelines ask for by name."""
        yield


__all__ = ["EngineTransformer"]
