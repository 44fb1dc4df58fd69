"""What of a pipeline, or of a network alone, goes into a bundle: networks, ranges, tables."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdiff.engine import configs, networks, profiles, transformer_ports
from fastdiff.engine.manifest import Model, Profile, Range
from fastdiff.engine.networks import Network
from fastdiff.plan import Plan, plan
from fastdiff.registry import find
from fastdiff.schedules.config import default_spacing, noise_schedule

Sizes = int | str | Sequence[int] | None
ENCODERS = ("text_encoder", "text_encoder_2")
GUIDANCE = 7.5  # of the tables, where nothing else is said: Stable Diffusion's default
TEXT = 77  # tokens of CLIP, where there is no text encoder to ask
LONG_TEXT = {"SD3Transformer2DModel": 333, "FluxTransformer2DModel": 512}  # as pipelines default to
NEEDED = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
KINDS = ("UNet2DConditionModel", *transformer_ports.KINDS)
PACKED = 2  # rows and columns of a latent in one patch of Flux


@dataclass(frozen=True)
class Parts:
    """What is exported, by its diffusers names; None where it is not there."""

    network: Any
    vae: Any = None
    encoders: tuple[tuple[str, Any], ...] = ()
    scheduler: Any = None

    @property
    def kind(self) -> str:
        """The class of the network in diffusers."""
        return type(self.network).__name__

    @property
    def scale(self) -> int:
        """Pixels of a picture per pixel of its latent."""
        return networks.vae_scale(self.vae) if self.vae is not None else 8

    @property
    def text(self) -> int:
        """Tokens that the text encoder reads."""
        if self.kind in LONG_TEXT:
            return LONG_TEXT[self.kind]
        if not self.encoders:
            return TEXT
        return int(self.encoders[0][1].config.max_position_embeddings)


def of(pipe_or_unet: Any) -> Parts:
    """The parts of a diffusers pipeline, or a network of KINDS alone."""
    if isinstance(pipe_or_unet, nn.Module):
        return Parts(_plain(pipe_or_unet))
    found = (getattr(pipe_or_unet, name, None) for name in ("unet", "transformer"))
    network = next((one for one in found if one is not None), None)
    if not isinstance(network, nn.Module):
        raise TypeError(
            "pipe_or_unet must be a diffusers pipeline with a U-Net or transformer in PyTorch, or "
            f"that network; got {type(pipe_or_unet).__name__}"
            + (f" with {type(network).__name__} for it" if network is not None else "")
        )
    encoders = [(name, getattr(pipe_or_unet, name, None)) for name in ENCODERS]
    return Parts(
        _plain(network),
        getattr(pipe_or_unet, "vae", None),
        tuple((name, encoder) for name, encoder in encoders if encoder is not None),
        getattr(pipe_or_unet, "scheduler", None),
    )


def _plain(network: nn.Module) -> nn.Module:
    """The network in diffusers' own classes: what torch.compile and accelerate did is left out."""
    network = _stock(network)
    if type(network).__name__ not in KINDS:
        raise TypeError(
            f"pipe_or_unet must have a network of {', '.join(KINDS)}; got "
            f"{type(network).__name__}, which has no ports yet"
        )
    return network


def _stock(module: nn.Module) -> nn.Module:
    """A module as diffusers has it: a restored copy of what is accelerated."""
    from fastdiff.accelerate.swap import is_swapped

    module = getattr(module, "_orig_mod", module)
    if any(is_swapped(part) for part in module.modules()):
        from fastdiff.accelerate import restore

        module = restore(copy.deepcopy(module))
    return module


def ranges(parts: Parts, batch: Sizes, height: Sizes, width: Sizes, tokens: Sizes) -> list[Profile]:
    """Profiles of the U-Net from sizes in samples, pixels and tokens; None: from the model.

    Sizes are a number, (min, opt, max), or text as on the command line (profiles.parse).
    """
    config = parts.network.config
    side = config.get("sample_size") or (64 if parts.kind == KINDS[0] else 128)
    sides = (side, side) if isinstance(side, int) else tuple(side)
    flux = parts.kind == "FluxTransformer2DModel"
    multiple = PACKED if flux else config.get("patch_size") or 2**parts.network.num_upsamplers
    axes = {"batch": _range("batch", batch, [Range(min=1, opt=2, max=8)], 1, 1)}
    for name, given, own in (("height", height, sides[0]), ("width", width, sides[1])):
        axes[name] = _range(name, given, [_around(own, multiple)], parts.scale, multiple)
    usual = [Range(min=1, opt=parts.text, max=3 * parts.text)]
    axes["tokens"] = _range("tokens", tokens, usual, 1, 1)
    found = profiles.expand(axes)
    return [_in_patches(profile) for profile in found] if flux else found


def _in_patches(profile: Profile) -> Profile:
    """Height and width as the number of Flux's patches; it does not care where they lie."""
    tall, wide = profile["height"], profile["width"]
    low, opt, high = (
        getattr(tall, name) * getattr(wide, name) // PACKED**2 for name in ("min", "opt", "max")
    )
    kept = {name: axis for name, axis in profile.items() if name not in ("height", "width")}
    return kept | {"patches": Range(min=low, opt=opt, max=high)}


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
        if not isinstance(given, Sequence) or len(given) != 3:
            raise ValueError(f"{name} must be a number, (min, opt, max) or text; got {given!r}")
        given = ":".join(map(str, given))
    return profiles.parse(given, name, unit=unit, multiple=multiple)


def model(parts: Parts) -> Model:
    """What the manifest says of the network."""
    network, vae, scheduler = parts.network, parts.vae, parts.scheduler
    config = None if scheduler is None else configs.plain(scheduler.config)
    return Model(
        kind=parts.kind,
        config=configs.plain(network.config),
        config_sha256=configs.config_hash(parts.kind, network.config),
        weights_sha256=configs.weights_hash(network),
        prediction_type=None if config is None else config.get("prediction_type"),
        scheduler=config,
        vae_scale=parts.scale,
        scaling_factor=1.0 if vae is None else float(vae.config.scaling_factor),
        shift_factor=0.0 if vae is None else float(vae.config.get("shift_factor") or 0.0),
    )


def has_tables(parts: Parts) -> bool:
    """Whether the scheduler's config says what a table is made from."""
    config = getattr(parts.scheduler, "config", {})
    return all(config.get(name) is not None for name in NEEDED)


def tables(parts: Parts, names: Sequence[str], guidance: float | None) -> dict[str, Plan]:
    """Plans "name-steps" for names like "dpmpp_2m:20", of the scheduler's own noise and spacing.

    guidance  of the rows; None: 7.5; 1: none
    """
    listed = isinstance(names, Collection) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) for name in names):
        raise TypeError(f"samplers must be a list like ['dpmpp_2m:20']; got {names!r:.80}")
    if not names:
        return {}
    if parts.scheduler is None:
        raise ValueError(
            f"samplers must be empty for a network alone, which has no scheduler; got {names!r}. "
            "Export the pipeline, or leave it out"
        )
    config, found = parts.scheduler.config, {}
    if lacks := [name for name in NEEDED if config.get(name) is None]:
        raise ValueError(
            f"samplers must be empty for {type(parts.scheduler).__name__}, whose config has no "
            f"{lacks[0]} to make tables from; got {list(names)!r:.80}"
        )
    scale = GUIDANCE if guidance is None else float(guidance)
    for text in names:
        name, _, steps = text.partition(":")
        if not (steps.isascii() and steps.isdigit()) or not 1 <= int(steps) <= 1000:
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
    own = _in(parts.network, dtype)
    if parts.kind in transformer_ports.KINDS:
        for name, asked in (("controlnet", controlnet), ("text_encoder", text_encoder)):
            if asked:
                raise ValueError(f"{name} must be False for a {parts.kind}, which has none yet")
        made = [transformer_ports.KINDS[parts.kind](own, dtype)]
    else:
        made = [networks.unet(own, dtype, controlnet=controlnet)]
    if vae:
        coder = _in(parts.vae, dtype)
        made += [networks.vae_decoder(coder, dtype), networks.vae_encoder(coder, dtype)]
    if text_encoder:
        # SDXL and its refiner, which has one encoder
        two = parts.network.config.addition_embed_type == "text_time"
        made += [
            networks.text_encoder(_in(encoder, dtype), dtype, name, penultimate=two)
            for name, encoder in parts.encoders
        ]
    return made


def _in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in a dtype, on the CPU, in evaluation; a copy where it is not so already."""
    module = _stock(module)
    weight = next(module.parameters())
    if weight.dtype == dtype and weight.device.type == "cpu" and not module.training:
        return module
    return copy.deepcopy(module).to("cpu", dtype).eval()


__all__ = ["Parts", "model", "of", "of_parts", "ranges", "tables"]
