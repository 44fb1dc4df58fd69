"""A Stable Diffusion folder as the command line uses it: networks, noise schedule, defaults."""

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.config import noise_schedule

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from fastdiff.tune.subject import Subject

MOST_FEW_STEPS = 8  # of the student: more steps are what the teacher is for
ELSEWHERE_GUIDANCE = 7.5  # what Stable Diffusion's own pipelines default to
PARTS = ("unet", "vae", "text_encoder", "tokenizer")
SCHEDULER = Path("scheduler", "scheduler_config.json")
NEEDED: dict[str, tuple[type, ...]] = {  # of a scheduler's config, and what JSON must hold there
    "num_train_timesteps": (int,),
    "beta_start": (int, float),
    "beta_end": (int, float),
    "beta_schedule": (str,),
    "trained_betas": (list, type(None)),
    "prediction_type": (str,),
}


def built_in() -> Path:
    """The folder of the model that is part of this package."""
    import fastdiff.shapes

    return Path(fastdiff.shapes.__file__).parent / "weights" / "base"


def student() -> Path:
    """The folder of its few-step student: unet/ and scheduler/."""
    return built_in().with_name("few_step")


def student_times(steps: int) -> list[int]:
    """The model times that the student is called at, descending."""
    from fastdiff.shapes.student import times

    return times(steps)


def take_student(pipe: "StableDiffusionPipeline", device: str) -> None:
    """Put the student's network into the built-in model's pipeline."""
    from fastdiff.shapes.student import unet_of

    pipe.unet = unet_of(student()).to(device)


def load(folder: Path, device: str) -> "StableDiffusionPipeline":
    """The pipeline of a local folder, in float32, without a safety checker."""
    kind = _json(folder, "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"--model must hold a StableDiffusionPipeline; {str(folder)!r} is a {kind}")

    from transformers.utils import logging as transformers_logging

    # importing pipelines warns of image processors without torchvision: nobody asked for those
    transformers_logging.set_verbosity_error()
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import is_accelerate_available
    from diffusers.utils import logging as diffusers_logging

    for library in (diffusers_logging, transformers_logging):  # one progress bar is enough
        library.disable_progress_bar()
        library.set_verbosity_warning()  # of weights that a file lacks, which are then random

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device!r} cannot be used: {reason}") from error
    try:
        pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            safety_checker=None,
            local_files_only=True,
            low_cpu_mem_usage=is_accelerate_available(),  # the default, without its warning
        )
    except Exception as error:  # each library has its own for a file that is missing or broken
        raise UserError(f"--model {str(folder)!r} cannot be loaded: {_reason(error)}") from error
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()  # what they say of prompts we say ourselves
    if missing := [name for name in PARTS if getattr(pipe, name, None) is None]:
        raise UserError(f"--model {str(folder)!r} must have a {missing[0]}; it has none")
    # with accelerate installed diffusers leaves what a file lacks without memory
    networks = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    lacks = [f"{n}.{k}" for n, m in networks.items() for k, w in m.named_parameters() if w.is_meta]
    if lacks:
        raise UserError(f"--model {str(folder)!r} must hold all weights; it lacks {lacks[0]}")
    reads = pipe.text_encoder.config.max_position_embeddings
    if pipe.tokenizer.model_max_length > reads:  # so is that of a tokenizer without files
        raise UserError(
            f"--model {str(folder)!r} must have a tokenizer whose model_max_length is at most the "
            f"text encoder's {reads}; got {pipe.tokenizer.model_max_length}"
        )
    side = pipe.unet.config.sample_size
    if not isinstance(side, int):
        raise UserError(
            f"--model {str(folder)!r} must have a U-Net whose sample_size is a number; got {side!r}"
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def subject(folder: Path, guidance: float) -> "Subject":
    """The pipeline of a folder as `fastdiff tune MODEL` and `fastdiff bench quality` run it."""
    import torch

    from fastdiff.tune.subject import Subject

    config = scheduler_config(folder)
    pipe = load(folder, "cpu")
    pipe.unet.to(memory_format=torch.channels_last)
    return Subject(pipe, family(folder, config), config["prediction_type"], guidance)


def _json(folder: Path, name: str | Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"--model must be a diffusers folder with a {name}; got {str(folder)!r}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model must hold JSON in {str(path)!r}; {error}") from error
    if not isinstance(value, dict):
        raise UserError(
            f"--model must hold a JSON object in {str(path)!r}; got a {type(value).__name__}"
        )
    return value


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's config; what it leaves out is the default of its class, as in diffusers.

    The class is the one that model_index.json names, for that is the one diffusers loads.
    """
    config = _json(folder, SCHEDULER)
    if not config.keys() >= {*NEEDED, "timestep_spacing"}:
        config = _defaults(folder) | config
    for name, kinds in NEEDED.items():
        value = config.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(
                f"--model must have a {name} of kind {_names(kinds)} in {str(folder / SCHEDULER)!r}"
                f"; got {value!r}"
            )
    return config


def family(folder: Path, config: dict[str, Any]) -> NoiseSchedule:
    """The noise schedule of a folder; one that cannot be is the folder's fault, not the plan's."""
    try:
        return noise_schedule(config)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"--model must describe a noise schedule in {str(folder / SCHEDULER)!r}; {error}"
        ) from error


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)


def _defaults(folder: Path) -> dict[str, Any]:
    """The default arguments of the scheduler class of a folder."""
    import diffusers

    match _json(folder, "model_index.json").get("scheduler"):
        case [str(), str(name)] if inspect.isclass(getattr(diffusers, name, None)):
            arguments = inspect.signature(getattr(diffusers, name)).parameters.values()
            return {a.name: a.default for a in arguments if a.default is not a.empty}
        case got:
            raise UserError(
                "--model must name a scheduler of diffusers in "
                f"{str(folder / 'model_index.json')!r}; got {got!r}"
            )


def default_guidance(folder: Path) -> float:
    """The model card's guidance for the built-in model, Stable Diffusion's default elsewhere."""
    if folder == built_in():
        from fastdiff.shapes import GUIDANCE

        return GUIDANCE
    return ELSEWHERE_GUIDANCE


def unknown_words(prompt: str) -> list[str]:
    """Words and runs of other signs in a prompt that the built-in model was never taught."""
    from fastdiff.shapes.text import WORDS

    words = re.findall(r"[^\W_]+|(?:[^\w\s]|_)+", prompt.lower())
    return [word for word in dict.fromkeys(words) if word not in WORDS]


def unread(pipe: "StableDiffusionPipeline", prompt: str) -> str:
    """The end of a prompt that is cut off, because the text encoder reads a fixed length."""
    tokens = pipe.tokenizer(prompt).input_ids
    kept = pipe.tokenizer.model_max_length
    # the last token, end of text, is kept in any case and stands where the cut is made
    return str(pipe.tokenizer.decode(tokens[kept - 1 : -1])).strip() if len(tokens) > kept else ""
