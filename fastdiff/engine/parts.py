"""What of a pipeline, or of a network alone, goes into a bundle: networks, ranges, tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdiff.engine import configs, networks, profiles
from fastdiff.engine.manifest import Model, Profile, Range
from fastdiff.engine.networks import Network
from fastdiff.plan import Plan, plan
from fastdiff.registry import find
from fastdiff.schedules.config import default_spacing, noise_schedule

Sizes = int | str | Sequence[int] | None
ENCODERS = ("text_encoder", "text_encoder_2")
GUIDANCE = 7.5  # of the tables, where nothing else is said: Stable Diffusion's default
TEXT = 77  # tokens of CLIP, where there is no text encoder to ask


@dataclass(frozen=True)
class Parts:
    """What is exported, by its diffusers names; None where it is not there."""

    unet: Any
    vae: Any = None
    encoders: tuple[tuple[str, Any], ...] = ()
    scheduler: Any = None

    @property
    def scale(self) -> int:
        """Pixels of a picture per pixel of its latent."""
        return networks.vae_scale(self.vae) if self.vae is not None else 8

    @property
    def text(self) -> int:
        """Tokens that the text encoder reads."""
        if not self.encoders:
            return TEXT
        return int(self.encoders[0][1].config.max_position_embeddings)


def of(pipe_or_unet: Any) -> Parts:
    """The parts of a diffusers pipeline, or a UNet2DConditionModel alone."""
    if isinstance(pipe_or_unet, nn.Module):
        return Parts(_plain(pipe_or_unet))
    unet = getattr(pipe_or_unet, "unet", None)
    if not isinstance(unet, nn.Module):
        raise TypeError(
            "pipe_or_unet must be a diffusers pipeline with a U-Net in PyTorch, or that U-Net; got "
            f"{type(pipe_or_unet).__name__}"
            + (f" with a unet of {type(unet).__name__}" if unet is not None else "")
        )
    found = [(name, getattr(pipe_or_unet, name, None)) for name in ENCODERS]
    return Parts(
        _plain(unet),
        getattr(pipe_or_unet, "vae", None),
        tuple((name, encoder) for name, encoder in found if encoder is not None),
        getattr(pipe_or_unet, "scheduler", None),
    )


def _plain(unet: nn.Module) -> nn.Module:
    """The U-Net in diffusers' own classes: what torch.compile and accelerate did is left out."""
    unet = getattr(unet, "_orig_mod", unet)
    if type(unet).__name__ != "UNet2DConditionModel" and not _ours(unet):
        raise TypeError(
            f"unet must be a UNet2DConditionModel; got {type(unet).__name__}. Other networks have "
            "no ports yet"
        )
    if any(_ours(module) for module in unet.modules()):
        from fastdiff.accelerate import restore

        unet = copy.deepcopy(unet)
        restore(unet)
    return unet


def _ours(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "fastdiff"


def ranges(parts: Parts, batch: Sizes, height: Sizes, width: Sizes, tokens: Sizes) -> list[Profile]:
    """Profiles of the U-Net from sizes in samples, pixels and tokens; None: from the model.

    Sizes are a number, (min, opt, max), or text as on the command line (profiles.parse).
    """
    side = parts.unet.config.sample_size
    sides = (side, side) if isinstance(side, int) or side is None else tuple(side)
    multiple = 2**parts.unet.num_upsamplers
    axes = {"batch": _range("batch", batch, [Range(min=1, opt=2, max=8)], 1, 1)}
    for name, given, own in (("height", height, sides[0]), ("width", width, sides[1])):
        usual = [_around(own or 64, multiple)]
        axes[name] = _range(name, given, usual, parts.scale, multiple)
    usual = [Range(min=1, opt=parts.text, max=3 * parts.text)]
    axes["tokens"] = _range("tokens", tokens, usual, 1, 1)
    return profiles.expand(axes)


def _around(side: int, multiple: int) -> Range:
    """Half to twice the side that a model was trained at."""
    side = -(-side // multiple) * multiple
    least = max(side // 2 // multiple, 1) * multiple
    return Range(min=least, opt=side, max=2 * side, multiple=multiple)


def _range(name: str, given: Sizes, usual: list[Range], unit: int, multiple: int) -> list[Range]:
    if given is None:
        return usual
    if isinstance(given, int):
        given = str(given)
    if not isinstance(given, str):
        if len(given) != 3:
            raise ValueError(f"{name} must be a number, (min, opt, max) or text; got {given!r}")
        given = ":".join(map(str, given))
    return profiles.parse(given, name, unit=unit, multiple=multiple)


def model(parts: Parts) -> Model:
    """What the manifest says of the network."""
    unet, vae, scheduler = parts.unet, parts.vae, parts.scheduler
    config = None if scheduler is None else configs.plain(scheduler.config)
    return Model(
        kind="UNet2DConditionModel",
        config=configs.plain(unet.config),
        config_sha256=configs.config_hash("UNet2DConditionModel", unet.config),
        weights_sha256=configs.weights_hash(unet),
        prediction_type=None if config is None else config.get("prediction_type"),
        scheduler=config,
        vae_scale=parts.scale,
        scaling_factor=1.0 if vae is None else float(vae.config.scaling_factor),
        shift_factor=0.0 if vae is None else float(vae.config.get("shift_factor") or 0.0),
    )


def tables(parts: Parts, names: Sequence[str], guidance: float | None) -> dict[str, Plan]:
    """Plans "name-steps" for names like "dpmpp_2m:20", of the scheduler's own noise and spacing.

    guidance  of the rows; None: 7.5; 1: none
    """
    if not names:
        return {}
    if parts.scheduler is None:
        raise ValueError(
            f"samplers must be empty for a U-Net alone, which has no scheduler; got {names!r}. "
            "Export the pipeline, or give samplers=()"
        )
    config, found = parts.scheduler.config, {}
    scale = GUIDANCE if guidance is None else float(guidance)
    for text in names:
        name, _, steps = text.partition(":")
        if not steps.isdigit() or not 1 <= int(steps) <= 1000:
            raise ValueError(
                f"samplers must be like 'dpmpp_2m:20', a name and 1 to 1000 steps; got {text!r}"
            )
        solver = find(name, argument="samplers").name
        found[f"{solver}-{steps}"] = plan(
            solver,
            steps=int(steps),
            noise=noise_schedule(config),
            spacing=default_spacing(config),
            prediction=config["prediction_type"],
            guidance=None if scale == 1 else scale,
        )
    return found


def of_parts(
    parts: Parts, dtype: torch.dtype, *, controlnet: bool, vae: bool, text_encoder: bool
) -> list[Network]:
    """The networks to export, the U-Net first, each in the dtype of the bundle."""
    if vae and parts.vae is None:
        raise ValueError("vae must be False for a U-Net alone; export the pipeline it is of")
    if text_encoder and not parts.encoders:
        raise ValueError("text_encoder must be False without one; export the pipeline it is of")
    made = [networks.unet(_in(parts.unet, dtype), dtype, controlnet=controlnet)]
    if vae:
        own = _in(parts.vae, dtype)
        made += [networks.vae_decoder(own, dtype), networks.vae_encoder(own, dtype)]
    if text_encoder:
        two = len(parts.encoders) > 1
        made += [
            networks.text_encoder(_in(encoder, dtype), dtype, name, penultimate=two)
            for name, encoder in parts.encoders
        ]
    return made


def _in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in a dtype, on the CPU, in evaluation; a copy where it is not so already."""
    weight = next(module.parameters())
    if weight.dtype == dtype and weight.device.type == "cpu" and not module.training:
        return module
    return copy.deepcopy(module).to("cpu", dtype).eval()


__all__ = ["Parts", "model", "of", "of_parts", "ranges", "tables"]
