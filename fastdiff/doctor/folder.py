"""A pipeline's folder as its configs describe it: no weights are read, no code of it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdiff.doctor.defaults import defaults
from fastdiff.recipes import RECIPES, Recipe

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
# in the name of a folder or of what it was made from; the first one whose network fits
NAMED = (
    ("lcm-lora", "lcm-lora"),
    ("lcm", "lcm"),
    ("lightning", "sdxl-lightning"),
    ("turbo", "sdxl-turbo"),
    ("turbo", "sd-turbo"),
    ("hyper-sd", "hyper-sd"),
    ("hyper-flux", "hyper-flux"),
    ("hyper-sd", "hyper-sd3"),
    ("dmd2", "dmd2"),
    ("tcd", "tcd"),
    ("pcm", "pcm"),
    ("stochastic-shift3", "pcm-sd3-stochastic"),
    ("step-shift3", "pcm-sd3-shift3"),
    ("step-shift1", "pcm-sd3"),
    ("schnell", "flux-schnell"),
    ("sprint", "sana-sprint"),
)


@dataclass(frozen=True)
class Part:
    """One component: its file, its class by model_index.json, its config; {} if there is none."""

    file: str = ""
    library: str | None = None
    cls: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value that holds: the config's, or else the class's default; None if it has none."""
        return self.config.get(key, defaults(self.cls or "").get(key))

    def knows(self, key: str) -> bool:
        """Whether the class, diffusers' or fastdiff's of the same name, has such an option."""
        return key in defaults(self.cls or "")


@dataclass(frozen=True)
class Folder:
    """The parts that traps lie in; recipe: of the distilled checkpoint that it holds, or None."""

    path: Path
    index: Mapping[str, Any]
    scheduler: Part
    denoiser: Part
    vae: Part
    recipe: Recipe | None = None

    @property
    def xl(self) -> bool:
        """Whether the U-Net is that of Stable Diffusion XL."""
        return self.denoiser.config.get("addition_embed_type") == "text_time"

    @property
    def latent(self) -> bool:
        return bool(self.vae.file)


def read(path: Path, recipe: Recipe | None = None) -> Folder:
    """The configs of a folder; ValueError naming the file that is absent or is no JSON object.

    recipe  of the checkpoint in it; if None it is guessed from names and from the network
    """
    if not (path / INDEX).is_file():
        raise ValueError(
            f"PIPE must be the folder of a diffusers pipeline, with a {INDEX}; got {str(path)!r}"
        )
    index = _json(path / INDEX)
    name = "unet" if _entry(path, index, "unet") else "transformer"
    folder = Folder(
        path=path,
        index=index,
        scheduler=_part(path, index, "scheduler", SCHEDULER),
        denoiser=_part(path, index, name, f"{name}/config.json"),
        vae=_part(path, index, "vae", "vae/config.json"),
    )
    return replace(folder, recipe=recipe or _guess(folder))


def fits(recipe: Recipe, denoiser: Part) -> bool:
    """Whether a network is one of those that a recipe is for."""
    wanted = recipe.network
    if not denoiser.file.startswith(wanted.part) or (
        wanted.classes and denoiser.cls not in wanted.classes
    ):
        return False
    return all(denoiser.get(key) == value for key, value in wanted.config.items())


def _guess(folder: Folder) -> Recipe | None:
    network = folder.denoiser
    if not network.file:
        return None
    if network.config.get("time_cond_proj_dim") is not None:
        return RECIPES["lcm"]
    for recipe in (RECIPES["flux-schnell"], RECIPES["sana-sprint"]):
        if fits(recipe, network):  # no other model has these networks
            return recipe
    said = [part.config.get("_name_or_path") for part in (network, folder.scheduler)]
    said += [folder.index.get("_name_or_path"), folder.path.resolve().name]
    text = " ".join(name for name in said if isinstance(name, str)).lower().replace("_", "-")
    for word, name in NAMED:
        if word in text and fits(RECIPES[name], network):
            single = RECIPES.get(f"{name}-1step")
            one = "1step" in text or "1-step" in text
            return single if one and single and fits(single, network) else RECIPES[name]
    return None


def _part(path: Path, index: Mapping[str, Any], name: str, file: str) -> Part:
    entry = _entry(path, index, name)
    if entry is None:
        return Part()
    if not (path / file).is_file():
        raise ValueError(f"{str(path / file)!r} is absent, though {INDEX} names a {name}")
    return Part(file, *entry, _json(path / file))


def _entry(path: Path, index: Mapping[str, Any], name: str) -> tuple[str, str] | None:
    """(library, class) of a component; None if there is none."""
    match index.get(name):
        case None | [None, None]:
            return None
        case [str(library), str(cls)]:
            return library, cls
        case got:
            raise ValueError(
                f"{name} in {str(path / INDEX)!r} must be [library, class] or [null, null]; "
                f"got {got!r}"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} must hold JSON; {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object; got a {type(value).__name__}")
    return value


__all__ = ["Folder", "Part", "fits", "read"]
