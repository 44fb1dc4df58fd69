"""few_step: what a distilled checkpoint needs, set in its pipeline; the recipes are data."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from fastdiff import recipes
from fastdiff.recipes import Recipe
from fastdiff.schedulers import CLASSES, SchedulerMixin
from fastdiff.schedulers.flow_levels import is_flow

FAMILIES = {
    "vp": "a model with betas, whose network predicts noise",
    "flow": "a flow, whose network predicts a velocity",
    "trigflow": "trigflow, whose network predicts a velocity on a circle",
    "other": "neither a model with betas nor a flow nor trigflow",
}
MOST = max(steps for recipe in recipes.RECIPES.values() for steps in recipe.steps)
STEPS_IN_NAME = re.compile(r"(\d+)[-_ ]?steps?(?![a-z])", re.IGNORECASE)


def few_step(
    pipe: Any,
    recipe: str,
    steps: int,
    *,
    guidance: float | None = None,
    eta: float | None = None,
    checkpoint_steps: int | None = None,
) -> dict[str, Any]:
    """Make a pipeline ready for a distilled checkpoint; returns the arguments of its call.

        image = pipe(prompt, **fastdiff.few_step(pipe, "sdxl-lightning", 4)).images[0]

    The checkpoint (a U-Net, a transformer, a LoRA) must be in the pipeline.  `pipe.scheduler`
    becomes a drop-in scheduler of the recipe's class, with the pipeline's config and what the
    recipe sets in it (spacing, clipping, the final level, ..).  What comes back holds
    num_inference_steps, guidance_scale, and timesteps, eta and others where the recipe has them.
    In image to image the pipeline runs steps * strength of them.

    recipe            a name of fastdiff.recipes.RECIPES; docs/few_step.md lists them with their
                      sources (model cards and papers)
    steps             calls of the network
    guidance          the scale, if not the recipe's
    eta               gamma of TCD, 0 .. 1, if not the recipe's
    checkpoint_steps  the steps that the loaded checkpoint was distilled for, where each number has
                      one of its own; if None it is read from the names that the pipeline holds (of
                      the network, of the adapters), where they say it

    ValueError, and nothing is changed: an unknown recipe; a pipeline without a scheduler; another
    kind of network, noise or prediction than the recipe's; steps that no checkpoint is for, or not
    the one that is loaded; guidance that the model does not take; an argument that the pipeline's
    call lacks.
    """
    found = recipes.find(recipe)
    scheduler = getattr(pipe, "scheduler", None)
    if not isinstance(scheduler, SchedulerMixin) or not callable(pipe):
        raise ValueError(
            f"pipe must be a pipeline with a scheduler of diffusers; got a {type(pipe).__name__} "
            f"whose scheduler is a {type(scheduler).__name__}"
        )
    _noise(found, scheduler, pipe)
    network = _network(found, pipe)
    _steps(found, steps, checkpoint_steps, pipe)
    steps = int(steps)
    call = found.arguments(steps)
    embedded = network.get("time_cond_proj_dim") is not None
    call["guidance_scale"] = _guidance(found, steps, guidance, embedded)
    call |= _eta(found, eta)
    call = _accepted(found, pipe, call)
    made = _scheduler(found, steps, scheduler)
    pipe.scheduler = made
    return call


def _noise(recipe: Recipe, scheduler: Any, pipe: Any) -> None:
    """Raise unless the scheduler is of a model with the recipe's noise and prediction."""
    config = scheduler.config
    prediction = config.get("prediction_type")
    if is_flow(config) or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        family = "flow"
    elif prediction == "trigflow":
        family = "trigflow"
    else:
        family = "vp" if hasattr(scheduler, "alphas_cumprod") else "other"
    if family != recipe.family:
        fits = _fitting(pipe, family)
        would = (
            f"recipe must be one of {', '.join(fits)}"
            if fits
            else f"no recipe is for it. Load a pipeline of {recipe.network.name}, with its own "
            "scheduler"
        )
        raise ValueError(
            f"recipe {recipe.name!r} is for {FAMILIES[recipe.family]}; by its "
            f"{type(scheduler).__name__} pipe has {FAMILIES[family]}: {would}"
        )
    if family == "vp" and (prediction or "epsilon") not in recipe.predictions:
        raise ValueError(
            f"prediction_type of pipe.scheduler must be {' or '.join(recipe.predictions)} for the "
            f"recipe {recipe.name!r}, as its checkpoints were trained; got {prediction!r}. Load "
            f"the model that the checkpoint was distilled from, of {recipe.network.name}"
        )


def _network(recipe: Recipe, pipe: Any) -> Mapping[str, Any]:
    """The config of the denoiser; raises unless it is of the recipe's kind."""
    wanted = recipe.network
    network = getattr(pipe, wanted.part, None)
    config: Any = getattr(network, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"pipe must have a {wanted.part}, of {wanted.name}, for the recipe {recipe.name!r}; "
            f"got a {type(pipe).__name__} without"
        )
    fits = _fitting(pipe, recipe.family)
    would = f". Recipes for this one: {', '.join(fits)}" if fits else ". No recipe is for it"
    if not _is_of(network, wanted.classes):
        raise ValueError(
            f"pipe.{wanted.part} must be a {' or '.join(wanted.classes)}, of {wanted.name}, for "
            f"the recipe {recipe.name!r}; got a {type(network).__name__}{would}"
        )
    for key, value in wanted.config.items():
        if config.get(key) != value:
            raise ValueError(
                f"pipe.{wanted.part} must be of {wanted.name} for the recipe {recipe.name!r}: "
                f"{key} {value!r} in its config; got {config.get(key)!r}{would}"
            )
    return config


def _fitting(pipe: Any, family: str) -> list[str]:
    """The recipes for a pipeline's network, with noise of that family."""
    fits = []
    for name, row in recipes.RECIPES.items():
        network = getattr(pipe, row.network.part, None)
        config = getattr(network, "config", None)
        if (
            row.family == family
            and isinstance(config, Mapping)
            and _is_of(network, row.network.classes)
            and all(config.get(key) == value for key, value in row.network.config.items())
        ):
            fits.append(name)
    return fits


def _is_of(network: Any, classes: tuple[str, ...]) -> bool:
    """Whether a network is of one of the classes, told by their names; of any if there are none."""
    return not classes or any(cls.__name__ in classes for cls in type(network).__mro__)


def _steps(recipe: Recipe, steps: Any, checkpoint: Any, pipe: Any) -> None:
    """Raise unless there is a checkpoint for the steps, and it is the one that is loaded."""
    for name, value in (("steps", steps), ("checkpoint_steps", checkpoint)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not (whole and value in recipe.steps) and not (name != "steps" and value is None):
            what = "there are checkpoints for" if recipe.each else "its checkpoints are made for"
            raise ValueError(
                f"{name} of {recipe.name!r} must be of those that {what}, "
                f"{recipe.steps_in_words()}; got {value!r}"
            )
    if not recipe.each:
        if checkpoint is not None:
            raise ValueError(
                f"checkpoint_steps must be None for the recipe {recipe.name!r}, which has no "
                f"checkpoint for each number of steps; got {checkpoint}"
            )
        return
    said = {int(checkpoint)} if checkpoint is not None else _named(pipe, recipe.network.part)
    if said and steps not in said:
        which = " or ".join(map(str, sorted(said)))
        source = "checkpoint_steps" if checkpoint is not None else "its name"
        raise ValueError(
            f"steps must be {which}, for which the checkpoint in pipe was distilled, by {source}; "
            f"got {steps}. Load the {steps}-step checkpoint, or pass checkpoint_steps={steps} if "
            "it is that"
        )


def _named(pipe: Any, part: str) -> set[int]:
    """The numbers of steps that the names of a network, of its adapters and of a pipeline say;
    above MOST they are steps of a training."""
    network = getattr(pipe, part)
    names = [*getattr(network, "peft_config", ())]
    for owner in (network, pipe):
        names.append((getattr(owner, "config", None) or {}).get("_name_or_path"))
    said = " ".join(name for name in names if isinstance(name, str))
    return {steps for steps in map(int, STEPS_IN_NAME.findall(said)) if steps <= MOST}


def _guidance(recipe: Recipe, steps: int, scale: Any, embedded: bool) -> float:
    """The scale of guidance; raises for one that the model does not take."""
    takes = recipe.guided(steps, embedded)
    if scale is None:
        return takes.default
    real = isinstance(scale, Real) and not isinstance(scale, bool) and math.isfinite(scale)
    if not real or not takes.takes(float(scale)):
        why = " (the model is guidance-free: its guidance is in the weights)" if takes.free else ""
        raise ValueError(
            f"guidance of {recipe.name!r} at {steps} steps must be {takes}{why}; got {scale!r}. "
            f"Leave it out for {takes.default:g}"
        )
    return float(scale)


def _eta(recipe: Recipe, eta: Any) -> dict[str, float]:
    """eta as an argument, where the recipe has one."""
    if recipe.eta is None:
        if eta is None:
            return {}
        has = [name for name, row in recipes.RECIPES.items() if row.eta is not None]
        raise ValueError(
            f"eta must be None for the recipe {recipe.name!r}; got {eta!r}. It is an option of "
            f"{', '.join(has)}"
        )
    if eta is None:
        return {"eta": recipe.eta}
    if not isinstance(eta, Real) or isinstance(eta, bool) or not 0 <= float(eta) <= 1:
        raise ValueError(f"eta must be a number in 0 .. 1; got {eta!r}")
    return {"eta": float(eta)}


def _accepted(recipe: Recipe, pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments; raises where the pipeline's call does not take one of them."""
    takes = inspect.signature(type(pipe).__call__).parameters
    if "eta" in call and "eta" not in takes:
        step = next(c for c in CLASSES if c.__name__ == recipe.scheduler).step
        if inspect.signature(step).parameters["eta"].default == call["eta"]:
            del call["eta"]  # nobody passes one, and the step's own is this
    if lacks := [name for name in call if name not in takes]:
        raise ValueError(
            f"pipe must be one whose call takes {', '.join(lacks)}, which the recipe "
            f"{recipe.name!r} needs; {type(pipe).__name__} takes {', '.join([*takes][1:])}"
        )
    return call


def _scheduler(recipe: Recipe, steps: int, old: Any) -> SchedulerMixin:
    """The drop-in scheduler with the recipe's options, tried out on these steps."""
    cls = next(c for c in CLASSES if c.__name__ == recipe.scheduler)
    options = recipe.options(steps)  # as arguments: in the config a default would win over them
    made = cls.from_config(old.config, **options)
    trained = made.config.num_train_timesteps
    if recipe.timesteps is not None and trained <= max(recipe.timesteps):
        raise ValueError(
            f"num_train_timesteps of pipe.scheduler must be above {max(recipe.timesteps)}, where "
            f"the recipe {recipe.name!r} begins; got {trained}"
        )
    if recipe.timesteps is None:
        own = inspect.signature(cls.set_timesteps).parameters
        call = {k: v for k, v in recipe.arguments(steps).items() if k in own}
        if options.get("use_dynamic_shifting"):
            call["mu"] = options["max_shift"]  # a pipeline's is of its pictures' size
        try:
            cls.from_config(old.config, **options).set_timesteps(**call)
        except ValueError as error:
            raise ValueError(f"steps {steps} cannot be run with pipe.scheduler: {error}") from error
    return made


__all__ = ["few_step"]
