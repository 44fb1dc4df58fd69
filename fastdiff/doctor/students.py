"""Traps of distilled checkpoints: what the folder says against the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from fastdiff.doctor.folder import Folder, fits
from fastdiff.doctor.trap import Found, Trap, at

# options of a recipe that traps of their own name
ELSEWHERE = {
    *("timestep_spacing", "prediction_type", "set_alpha_to_one"),
    *("clip_sample", "thresholding", "rescale_betas_zero_snr", "original_inference_steps"),
}


def _spacing(folder: Folder) -> Iterator[Found]:
    recipe, scheduler = folder.recipe, folder.scheduler
    wanted = recipe and recipe.config.get("timestep_spacing")
    if recipe and wanted and scheduler.get("timestep_spacing") not in (None, wanted):
        yield at(scheduler, "timestep_spacing", f"{wanted!r}, as {_call(folder)} sets")


def _class(folder: Folder) -> Iterator[Found]:
    recipe, scheduler = folder.recipe, folder.scheduler
    if recipe and scheduler.cls not in (None, recipe.scheduler):
        yield Found(
            "model_index.json", "scheduler", scheduler.cls, f"{recipe.scheduler}: {_call(folder)}"
        )


def _options(folder: Folder) -> Iterator[Found]:
    recipe, scheduler = folder.recipe, folder.scheduler
    if recipe and scheduler.cls == recipe.scheduler:
        for key, value in recipe.config.items():
            if key not in ELSEWHERE and scheduler.get(key) not in (value, None):
                yield at(scheduler, key, f"{value!r}, as {_call(folder)} sets")


def _prediction(folder: Folder) -> Iterator[Found]:
    recipe, scheduler = folder.recipe, folder.scheduler
    said = scheduler.get("prediction_type")
    if recipe and recipe.family != "flow" and said not in (None, *recipe.predictions):
        yield at(scheduler, "prediction_type", " or ".join(map(repr, recipe.predictions)))


def _network(folder: Folder) -> Iterator[Found]:
    recipe, denoiser = folder.recipe, folder.denoiser
    if recipe and denoiser.file and not fits(recipe, denoiser):
        wants = " and ".join(f"{k} {v!r}" for k, v in recipe.network.config.items())
        has = {key: denoiser.get(key) for key in recipe.network.config}
        yield Found(
            denoiser.file,
            ", ".join(has) or "_class_name",
            has or denoiser.cls,
            f"{recipe.network.name}" + (f": {wants}" if wants else ""),
        )


def _call(folder: Folder) -> str:
    return f"fastdiff.few_step(pipe, {folder.recipe.name!r}, steps)" if folder.recipe else ""


STUDENTS = (
    Trap(
        "few-step-spacing",
        "error",
        "the few steps lie elsewhere than the checkpoint was distilled: noise or pale pictures",
        "trailing",
        "https://github.com/huggingface/diffusers/issues/6112, and the card of the checkpoint",
        _spacing,
    ),
    Trap(
        "few-step-scheduler",
        "warning",
        "the checkpoint was distilled for another sampler",
        "the recipe's class",
        "the card of the checkpoint, in docs/few_step.md",
        _class,
    ),
    Trap(
        "few-step-option",
        "error",
        "an option of the scheduler is another than the checkpoint was distilled with",
        "the recipe's value",
        "the card of the checkpoint, in docs/few_step.md",
        _options,
    ),
    Trap(
        "few-step-prediction",
        "error",
        "the network's output is read as something that the checkpoint does not predict",
        "the recipe's prediction",
        "the card of the checkpoint, in docs/few_step.md",
        _prediction,
    ),
    Trap(
        "few-step-network",
        "error",
        "the checkpoint is for another network",
        "the recipe's network",
        "the card of the checkpoint, in docs/few_step.md",
        _network,
    ),
)

__all__ = ["STUDENTS"]
