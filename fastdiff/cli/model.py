"""A Stable Diffusion folder as the command line uses it: networks, noise schedule, defaults."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError
from fastdiff.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ELSEWHERE_GUIDANCE = 7.5  # what Stable Diffusion's own pipelines default to


def built_in() -> Path:
    """The folder of the model that is part of this package."""
    import fastdiff.shapes

    return Path(fastdiff.shapes.__file__).parent / "weights" / "base"


def load(folder: Path, device: str) -> "StableDiffusionPipeline":
    """The pipeline of a local folder, in float32, without a safety checker."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"--model must be a diffusers folder with a model_index.json; got {str(folder)!r}"
        )
    kind = json.loads(index.read_text()).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"--model must hold a StableDiffusionPipeline; {str(folder)!r} is a {kind}")

    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for chatter in (diffusers_logging, transformers_logging):  # one progress bar is enough
        chatter.disable_progress_bar()
        chatter.set_verbosity_error()

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device!r} cannot be used: {reason}") from error
    pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def noise_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """The model family that a scheduler's config describes."""
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if config.get("trained_betas") is not None:
        return NoiseSchedule.from_betas(config["trained_betas"], zero_snr)
    return NoiseSchedule.vp(
        config["beta_schedule"],
        config["num_train_timesteps"],
        config["beta_start"],
        config["beta_end"],
        zero_snr,
    )


def default_spacing(config: dict[str, Any]) -> str:
    """The spacing that a scheduler's config asks for."""
    for name, flag in (
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("beta", "use_beta_sigmas"),
        ("lu", "use_lu_lambdas"),
    ):
        if config.get(flag):
            return name
    return str(config.get("timestep_spacing", "leading"))


def default_guidance(folder: Path) -> float:
    """The model card's guidance for the built-in model, Stable Diffusion's default elsewhere."""
    if folder == built_in():
        from fastdiff.shapes import GUIDANCE

        return GUIDANCE
    return ELSEWHERE_GUIDANCE


def unknown_words(prompt: str) -> list[str]:
    """Words of a prompt that the built-in model was never taught."""
    from fastdiff.shapes.text import WORDS

    words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    return [word for word in dict.fromkeys(words) if word not in WORDS]
