"""Ports of the transformers of Stable Diffusion 3 and of Flux.

Flux has no height and width of its own: a latent comes as patches, each with its place in img_ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.manifest import Port
from fastdiff.engine.networks import PORT, Network, TimeProjection, twin

ROTARY_AXES = 3  # of an id of Flux: picture, row, column


class TransformerModule(nn.Module):
    """A transformer of diffusers called with the ports' tensors in order."""

    def __init__(self, transformer: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.transformer = twin(transformer)
        times = self.transformer._modules["time_text_embed"] = twin(transformer.time_text_embed)
        times._modules["time_proj"] = TimeProjection(transformer.time_text_embed.time_proj)
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's answer, like hidden_states."""
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        answer: Tensor = self.transformer(**given, return_dict=False)[0]
        return answer


def sd3(module: Any, dtype: torch.dtype) -> Network:
    """SD3Transformer2DModel: a latent, its time, text and pooled text."""
    config, word = module.config, PORT[dtype]
    side = ["height", "width"]
    inputs = [
        Port(name="hidden_states", dtype=word, shape=["batch", config.in_channels, *side]),
        Port(name="timestep", dtype="float32", shape=["batch"]),
        *_texts(config, word),
    ]
    out = Port(name="out_sample", dtype=word, shape=["batch", config.out_channels, *side])
    return _network(module, inputs, out, multiple=config.patch_size)


def flux(module: Any, dtype: torch.dtype) -> Network:
    """FluxTransformer2DModel: patches of a latent, time in 0..1, guidance's scale, text, places."""
    config, word = module.config, PORT[dtype]
    inputs = [
        Port(name="hidden_states", dtype=word, shape=["batch", "patches", config.in_channels]),
        Port(name="timestep", dtype="float32", shape=["batch"]),
        *_texts(config, word),
        Port(name="img_ids", dtype="float32", shape=["patches", ROTARY_AXES]),
        Port(name="txt_ids", dtype="float32", shape=["tokens", ROTARY_AXES]),
    ]
    if config.guidance_embeds:
        inputs.append(Port(name="guidance", dtype="float32", shape=["batch"]))
    channels = config.out_channels or config.in_channels
    out = Port(name="out_sample", dtype=word, shape=["batch", "patches", channels])
    return _network(module, inputs, out, unit=1e-3)


def _texts(config: Any, word: Any) -> list[Port]:
    width, pooled = config.joint_attention_dim, config.pooled_projection_dim
    return [
        Port(name="encoder_hidden_states", dtype=word, shape=["batch", "tokens", width]),
        Port(name="pooled_projections", dtype=word, shape=["batch", pooled]),
    ]


def _network(module: Any, inputs: list[Port], out: Port, **options: Any) -> Network:
    wrapped = TransformerModule(module, [port.name for port in inputs]).eval()
    return Network("transformer", wrapped, tuple(inputs), (out,), **options)


KINDS: dict[str, Callable[[Any, torch.dtype], Network]] = {
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
}

__all__ = ["KINDS", "flux", "sd3"]
