"""The modules that are exported, each with the names, shapes and dtypes of its inputs and outputs.

Names are those that optimum gives them, so that its users find them.  Every time is a float32 of
each sample (batch,): schedules of Karras call between whole numbers, and samples of a batch may
be at times of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine import profiles
from fastdiff.engine.manifest import Kind, Port

TORCH: dict[Kind, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}
PORT = {value: name for name, value in TORCH.items()}


@dataclass(frozen=True)
class Network:
    """A module whose forward takes the inputs in order and returns the outputs in order.

    multiple   that height and width of a sample must be a multiple of
    highest    one above the largest number in an int64 input
    unit       of its times: 0.001 where 1000 steps are 0..1
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    multiple: int = 1
    highest: int = 2
    unit: float = 1.0

    def example(
        self, sizes: dict[str, int], *, seed: int = 0, times: Sequence[float] = (500.5, 7.0)
    ) -> list[Tensor]:
        """Inputs for these sizes of the axes, of each port's dtype: normal noise, times in turn."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for port in self.inputs:
            shape = shape_of(port, sizes)
            if port.dtype.startswith("int"):
                value = torch.randint(self.highest, shape, generator=generator)
            elif port.name == "timestep":
                value = self.unit * torch.tensor([times[i % len(times)] for i in range(shape[0])])
            elif port.name == "guidance":  # Flux's, by pipelines' default
                value = torch.full(shape, 3.5)
            elif port.name == "time_ids":  # sizes of pictures and crops, in pixels
                value = torch.randint(1024, shape, generator=generator)
            else:
                value = torch.randn(shape, generator=generator)
            made.append(value.to(TORCH[port.dtype]))
        return made

    def axes(self) -> set[str]:
        """Names of the axes that differ from call to call."""
        named = [d for port in self.inputs for d in port.shape if isinstance(d, str)]
        return {name.partition("/")[0] for name in named}


def shape_of(port: Port, sizes: Mapping[str, int]) -> list[int]:
    """The shape of a port for these sizes of the axes."""
    return [dim if isinstance(dim, int) else profiles.size(dim, sizes) for dim in port.shape]


class TimeProjection(nn.Module):
    """diffusers' Timesteps with its frequencies as constants.

    The exporter would compute their exponential itself, one rounding off PyTorch's: at time 1000
    that is 6e-5 in the angle, and the error of the built-in U-Net three times PyTorch's own.
    """

    frequencies: Tensor

    def __init__(self, projection: Any, *, keep_dtype: bool = False) -> None:
        super().__init__()
        self.keep_dtype = keep_dtype
        half = projection.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32)
        exponent = exponent / (half - projection.downscale_freq_shift)
        frequencies = torch.exp(exponent) * projection.scale
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.flip = projection.flip_sin_to_cos
        self.odd = projection.num_channels % 2

    def _apply(self, fn: Any, recurse: bool = True) -> TimeProjection:
        return self  # float32 whatever the network's dtype, as in diffusers

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) to (B, channels), float32, or the dtype of the times."""
        angle = timesteps[:, None].float() * self.frequencies
        parts = [torch.sin(angle), torch.cos(angle)]
        out = torch.cat(parts[::-1] if self.flip else parts, dim=-1)
        out = nn.functional.pad(out, (0, 1)) if self.odd else out
        return out.to(timesteps.dtype) if self.keep_dtype else out


class UNetModule(nn.Module):
    """A UNet2DConditionModel called with the ports' tensors in order."""

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.unet = twin(unet)
        for name in ("time_proj", "add_time_proj"):
            if hasattr(unet, name):
                # diffusers joins SDXL's to the pooled text and then casts both: the graph, which
                # has no join of two dtypes, casts first
                keep = name == "add_time_proj"
                self.unet._modules[name] = TimeProjection(getattr(unet, name), keep_dtype=keep)
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's answer, like sample."""
        given = dict(zip(self.names, inputs, strict=True))
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
        down = tuple(given[name] for name in self.names if name.startswith("down_block_"))
        optional: dict[str, Any] = {
            name: given[name]
            for name in ("class_labels", "timestep_cond", "mid_block_additional_residual")
            if name in given
        }
        if down:
            optional["down_block_additional_residuals"] = down
        answer: Tensor = self.unet(
            given["sample"],
            given["timestep"],
            given["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
            **optional,
        )[0]
        return answer


def unet(module: Any, dtype: torch.dtype, *, controlnet: bool = False) -> Network:
    """The ports of a UNet2DConditionModel, in a dtype.  Raises ValueError for what has none."""
    config = module.config
    _refuse_unet(config)
    word, channels = PORT[dtype], config.in_channels
    ports = [
        Port(name="sample", dtype=word, shape=["batch", channels, "height", "width"]),
        Port(name="timestep", dtype="float32", shape=["batch"]),
        Port(
            name="encoder_hidden_states",
            dtype=word,
            shape=["batch", "tokens", _text_width(config)],
        ),
    ]
    if config.num_class_embeds is not None:
        ports.append(Port(name="class_labels", dtype="int64", shape=["batch"]))
    if config.time_cond_proj_dim is not None:
        width = config.time_cond_proj_dim
        ports.append(Port(name="timestep_cond", dtype=word, shape=["batch", width]))
    if config.addition_embed_type == "text_time":
        total = config.projection_class_embeddings_input_dim
        ids = 6 if total - 6 * config.addition_time_embed_dim > 0 else 5  # SDXL; its refiner
        pooled = total - ids * config.addition_time_embed_dim
        ports.append(Port(name="text_embeds", dtype=word, shape=["batch", pooled]))
        ports.append(Port(name="time_ids", dtype=word, shape=["batch", ids]))
    if controlnet:
        ports += _residuals(module, word)
    return Network(
        "unet",
        UNetModule(module, [port.name for port in ports]).eval(),
        tuple(ports),
        (
            Port(
                name="out_sample",
                dtype=word,
                shape=["batch", config.out_channels, "height", "width"],
            ),
        ),
        multiple=2**module.num_upsamplers,
        highest=config.num_class_embeds or 2,
    )


def _text_width(config: Any) -> int:
    width = config.cross_attention_dim
    if config.encoder_hid_dim is not None:
        return int(config.encoder_hid_dim)
    return int(width if isinstance(width, int) else width[0])


def _refuse_unet(config: Any) -> None:
    for name, known, remedy in (
        (
            "addition_embed_type",
            (None, "text", "text_time"),
            "Kandinsky's embeddings have no ports",
        ),
        ("encoder_hid_dim_type", (None, "text_proj"), "unload the IP-Adapter first"),
        ("class_embed_type", (None,), "export a U-Net without it"),
    ):
        if (got := getattr(config, name, None)) not in known:
            raise ValueError(f"unet must have {name} one of {known}; got {got!r}: {remedy}")
    if config.class_embeddings_concat:
        raise ValueError("unet must not have class_embeddings_concat; export a U-Net without it")


def _residuals(module: Any, word: Kind) -> list[Port]:
    """What a ControlNet adds: to conv_in, to every block's layers and to its downsampler."""
    widths, ports, share = module.config.block_out_channels, [], 1
    places = [(widths[0], 1)]
    for width, block in zip(widths, module.down_blocks, strict=True):
        places += [(width, share)] * len(block.resnets)
        if block.downsamplers is not None:
            share *= 2
            places.append((width, share))
    for i, (width, share) in enumerate(places):
        ports.append((f"down_block_additional_residual_{i}", width, share))
    ports.append(("mid_block_additional_residual", widths[-1], share))
    return [
        Port(
            name=name,
            dtype=word,
            shape=["batch", width, *(_share(a, s) for a in ("height", "width"))],
        )
        for name, width, s in ports
    ]


def _share(axis: str, share: int) -> str:
    return axis if share == 1 else f"{axis}/{share}"


class Decoder(nn.Module):
    """A VAE's latent to its picture; the latent is already divided by scaling_factor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, H, W) in -1..1."""
        picture: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return picture


class Encoder(nn.Module):
    """A picture to mean and log-variance of its latent, one after the other along channels."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 2 C, h, w)."""
        parameters: Tensor = self.vae.encode(sample, return_dict=False)[0].parameters
        return parameters


class TextEncoder(nn.Module):
    """Token ids to the states that a pipeline of its kind hands to the U-Net.

    With two text encoders (SDXL) those are the last but one, and the pooled, projected one.
    """

    def __init__(self, encoder: Any, penultimate: bool) -> None:
        super().__init__()
        self.encoder, self.penultimate = encoder, penultimate

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 to (B, T, D) and the pooled (B, P)."""
        out = self.encoder(input_ids, output_hidden_states=self.penultimate)
        return (out.hidden_states[-2] if self.penultimate else out.last_hidden_state), (
            out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        )


def vae_scale(vae: Any) -> int:
    """Pixels of a picture for one of its latent, along a side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_decoder(vae: Any, dtype: torch.dtype) -> Network:
    """latent_sample to sample."""
    channels, word = vae.config.latent_channels, PORT[dtype]
    latent = Port(name="latent_sample", dtype=word, shape=["batch", channels, "height", "width"])
    sides = [f"{vae_scale(vae)}*{axis}" for axis in ("height", "width")]
    colours = vae.config.out_channels
    picture = Port(name="sample", dtype=word, shape=["batch", colours, *sides])
    return Network("vae_decoder", Decoder(vae).eval(), (latent,), (picture,))


def vae_encoder(vae: Any, dtype: torch.dtype) -> Network:
    """sample to latent_parameters; here height and width are those of the picture."""
    word, colours = PORT[dtype], vae.config.in_channels
    picture = Port(name="sample", dtype=word, shape=["batch", colours, "height", "width"])
    scale = vae_scale(vae)
    shape: list[int | str] = ["batch", 2 * vae.config.latent_channels]
    latent = Port(
        name="latent_parameters",
        dtype=word,
        shape=[*shape, *(_share(axis, scale) for axis in ("height", "width"))],
    )
    return Network("vae_encoder", Encoder(vae).eval(), (picture,), (latent,), multiple=scale)


def text_encoder(encoder: Any, dtype: torch.dtype, name: str, *, penultimate: bool) -> Network:
    """input_ids to last_hidden_state and pooled, with the encoder's own length."""
    config, word = encoder.config, PORT[dtype]
    length, width = config.max_position_embeddings, config.hidden_size
    pooled = config.projection_dim if hasattr(encoder, "text_projection") else width
    return Network(
        name,
        TextEncoder(encoder, penultimate).eval(),
        (Port(name="input_ids", dtype="int64", shape=["batch", length]),),
        (
            Port(name="last_hidden_state", dtype=word, shape=["batch", length, width]),
            Port(name="pooled", dtype=word, shape=["batch", pooled]),
        ),
        highest=config.vocab_size,
    )


def twin(module: nn.Module) -> nn.Module:
    """The same module, weights and all, whose direct children can be exchanged without harm."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


__all__ = [
    "Network",
    "TimeProjection",
    "text_encoder",
    "twin",
    "unet",
    "vae_decoder",
    "vae_encoder",
]
