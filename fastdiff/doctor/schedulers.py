"""Traps of a scheduler's config, by itself or inherited from another class's.

Numbers of bugs were measured on diffusers 0.42.1; docs/mathematics.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastdiff.doctor.folder import Folder
from fastdiff.doctor.trap import Found, Trap, at

_DIFFUSERS = "https://github.com/huggingface/diffusers"
MEASURED = "measured on diffusers 0.42.1; docs/mathematics.md"
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
DPM = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
UNIPC, DEIS, SA = "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"
OURS = "or fastdiff's class of that name"
ENDS_THERE = ("DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler")
NO_OFFSET = ("LCMScheduler", "TCDScheduler")  # they have the option and do not heed it


def _alpha(folder: Folder) -> Iterator[Found]:
    """Stable Diffusion 1 was sampled so by its authors, and two recipes are."""
    scheduler, recipe = folder.scheduler, folder.recipe
    asked = recipe is not None and recipe.config.get("set_alpha_to_one") is False
    if not folder.xl or asked or scheduler.get("set_alpha_to_one") is not False:
        return
    if scheduler.cls in ENDS_THERE:  # not LCM and TCD, which have the option
        yield at(scheduler, "set_alpha_to_one")
    elif not scheduler.knows("set_alpha_to_one"):
        would = (
            "leave it out: this class has no such option, but DDIMScheduler.from_config inherits it"
        )
        yield at(scheduler, "set_alpha_to_one", would, "note")


def _bounded(option: str) -> Callable[[Folder], Iterator[Found]]:
    def find(folder: Folder) -> Iterator[Found]:
        scheduler = folder.scheduler
        if not folder.latent or scheduler.get(option) is not True:
            return
        if not scheduler.knows(option):
            would = "false or leave it out: this class ignores it, but others inherit it"
            yield at(scheduler, option, would, "note")
        elif scheduler.cls != "TCDScheduler":  # which has the option and does not heed it
            yield at(scheduler, option)

    return find


def _offset(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    text = folder.latent and folder.denoiser.cls == "UNet2DConditionModel"
    leading = scheduler.get("timestep_spacing") == "leading" and scheduler.knows("steps_offset")
    if text and leading and scheduler.cls not in NO_OFFSET and scheduler.get("steps_offset") == 0:
        yield at(scheduler, "steps_offset")


def _zero_snr(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("prediction_type") == "epsilon":
        yield at(scheduler, "rescale_betas_zero_snr")


def _zero_snr_spacing(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("timestep_spacing") == "leading":
        yield at(scheduler, "timestep_spacing")


def _two_spacings(folder: Folder) -> Iterator[Found]:
    found = [flag for flag in SPACED if folder.scheduler.get(flag) is True]
    if len(found) > 1:
        yield Found(folder.scheduler.file, ", ".join(found), True)


def _when(
    field: str, *classes: str, mended: bool = False, **values: object
) -> Callable[[Folder], Iterator[Found]]:
    """A find: the class is one of these and every option has its value.

    mended  fastdiff's class of that name does not go wrong
    """

    def find(folder: Folder) -> Iterator[Found]:
        scheduler = folder.scheduler
        ours = mended and scheduler.library == "fastdiff"
        holds = all(scheduler.get(key) == value for key, value in values.items())
        if scheduler.cls in classes and holds and not ours:
            yield at(scheduler, field)

    return find


def _flow_spacing(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    stock = scheduler.cls in (*DPM, UNIPC, DEIS) and scheduler.library != "fastdiff"
    if stock and scheduler.get("use_flow_sigmas") is True:
        for flag in SPACED[:3]:
            # UniPC's Karras levels are NaN only where the pipeline passes sigmas
            if scheduler.get(flag) is True and (scheduler.cls, flag) != (UNIPC, SPACED[0]):
                yield at(scheduler, flag)


def _learned(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    learned = scheduler.get("variance_type") in ("learned", "learned_range")
    if folder.latent and scheduler.cls in DPM and learned:
        yield at(scheduler, "variance_type")


def _previous(folder: Folder) -> Iterator[Found]:
    spacing = folder.scheduler.get("timestep_spacing")
    bad = spacing == "linspace" or (spacing == "trailing" and folder.recipe is None)
    if folder.scheduler.cls == "DDIMScheduler" and bad:
        severity = "warning" if spacing == "linspace" else "note"
        yield at(folder.scheduler, "timestep_spacing", severity=severity)


def _missing(folder: Folder) -> Iterator[Found]:
    if folder.scheduler.cls is None and folder.index.get("scheduler") is not None:
        yield Found("model_index.json", "scheduler", folder.index["scheduler"])


def _module(folder: Folder) -> Iterator[Found]:
    library = folder.scheduler.library
    if library not in (None, "diffusers"):
        would = f"import {library.split('.')[0]} before from_pretrained" if library else ""
        severity = "note" if library == "fastdiff" else "warning"
        yield Found(
            "model_index.json", "scheduler", [library, folder.scheduler.cls], would, severity
        )


def _other_class(folder: Folder) -> Iterator[Found]:
    scheduler = folder.scheduler
    name = scheduler.config.get("_class_name")
    if scheduler.cls and name not in (None, scheduler.cls):
        would = f"{scheduler.cls} by model_index.json, which counts; see that its options are meant"
        yield Found(scheduler.file, "_class_name", name, would)


SCHEDULERS = (
    Trap(
        "set-alpha-to-one",
        "warning",
        "DDIM and PNDM end above level 0, which leaves noise in the pictures of Stable Diffusion "
        "XL, whose config hands it on to every class made from it",
        "true",
        f"{_DIFFUSERS}/issues/6068",
        _alpha,
    ),
    Trap(
        "clip-sample",
        "error",
        "latents are cut off at 1, which they are not bounded by",
        "false",
        "diffusers' StableDiffusionPipeline, which sets false with a warning; others do not",
        _bounded("clip_sample"),
    ),
    Trap(
        "thresholding",
        "error",
        "dynamic thresholding is for pixels: it shrinks latents at every step",
        "false",
        "arXiv:2205.11487; docstrings of diffusers' schedulers",
        _bounded("thresholding"),
    ),
    Trap(
        "steps-offset",
        "warning",
        "leading spacing with no offset visits timestep 0 instead of 1, where Stable Diffusion was "
        "sampled by its authors",
        "1",
        "diffusers' StableDiffusionPipeline, which sets 1 with a warning",
        _offset,
    ),
    Trap(
        "zero-snr-epsilon",
        "error",
        "at a signal of 0 a prediction of noise says nothing of the sample: the first step divides "
        "by almost 0",
        "false, or prediction_type 'v_prediction' if the model was trained so",
        "arXiv:2305.08891, section 3.2",
        _zero_snr,
    ),
    Trap(
        "zero-snr-spacing",
        "warning",
        "leading spacing never visits the last timestep, for which the betas were rescaled",
        "'trailing'",
        "arXiv:2305.08891, section 3.3",
        _zero_snr_spacing,
    ),
    Trap(
        "two-spacings",
        "error",
        "only one of these flags can act; diffusers refuses two",
        "one of them true",
        "constructors of diffusers' schedulers",
        _two_spacings,
    ),
    Trap(
        "unipc-bh1-nan",
        "error",
        "the last step is not a number",
        f"solver_type 'bh2', {OURS}",
        MEASURED,
        _when("solver_type", UNIPC, mended=True, solver_type="bh1", final_sigmas_type="zero"),
    ),
    Trap(
        "unipc-order-nan",
        "error",
        "the last step is not a number",
        f"lower_order_final true, {OURS}",
        MEASURED,
        _when(
            "lower_order_final",
            UNIPC,
            mended=True,
            lower_order_final=False,
            final_sigmas_type="zero",
        ),
    ),
    Trap(
        "unipc-noise-nan",
        "error",
        "the last step is not a number",
        f"predict_x0 true, {OURS}",
        MEASURED,
        _when("predict_x0", UNIPC, mended=True, predict_x0=False, final_sigmas_type="zero"),
    ),
    Trap(
        "third-order-nan",
        "error",
        "the last two levels are the same: not a number from 15 steps on",
        f"solver_order 2, final_sigmas_type 'zero', {OURS}",
        f"{_DIFFUSERS}/issues/9007",
        _when(
            "final_sigmas_type",
            DPM[0],
            mended=True,
            solver_order=3,
            use_karras_sigmas=True,
            final_sigmas_type="sigma_min",
        ),
    ),
    Trap(
        "sde-third-order-crash",
        "error",
        "diffusers' step stops with an UnboundLocalError",
        f"solver_order 2, {OURS}",
        f"{_DIFFUSERS}/pull/13778",
        _when("solver_order", DPM[0], mended=True, solver_order=3, algorithm_type="sde-dpmsolver"),
    ),
    Trap(
        "sde-third-order-sign",
        "warning",
        "a term has the wrong sign: 31 % from k-diffusion over 16 steps",
        "solver_order 2, or fastdiff's class with scheduler.numerics = 'exact'",
        MEASURED,
        _when("solver_order", *DPM, solver_order=3, algorithm_type="sde-dpmsolver++"),
    ),
    Trap(
        "cosine-karras",
        "error",
        "timesteps repeat: an IndexError (DPM-Solver, unless set_begin_index is called) or an "
        "AssertionError at the end of a run",
        f"use_karras_sigmas false, {OURS}",
        f"{_DIFFUSERS}/issues/12771",
        _when(
            "use_karras_sigmas",
            *(DPM[0], UNIPC, SA),
            mended=True,
            beta_schedule="squaredcos_cap_v2",
            use_karras_sigmas=True,
        ),
    ),
    Trap(
        "flow-spacing-nan",
        "error",
        "levels of betas are taken for those of a flow: not a number",
        f"false, {OURS}",
        MEASURED,
        _flow_spacing,
    ),
    Trap(
        "flow-last-level",
        "warning",
        "a number of steps alone ends above level 0, so noise is left: 8 steps at sigma 0.125, "
        "with flow_shift 3 at 0.3",
        "another class, or fastdiff's with scheduler.numerics = 'exact'",
        MEASURED,
        _when("use_flow_sigmas", DEIS, SA, use_flow_sigmas=True),
    ),
    Trap(
        "learned-variance",
        "error",
        "the class splits off the first 3 channels, and latents have more",
        "null",
        MEASURED,
        _learned,
    ),
    Trap(
        "ddim-previous-timestep",
        "warning",
        "DDIM jumps to t - T // n, which is not the next timestep: linspace, 10 steps: 9 of 9; "
        "trailing, 6 steps: 3 of 5, none where n divides T",
        "'leading', or fastdiff's class with scheduler.numerics = 'exact'",
        f"{_DIFFUSERS}/issues/12633",
        _previous,
    ),
    Trap(
        "scheduler-missing",
        "error",
        "it was saved with a scheduler that diffusers does not know, and cannot be loaded",
        "a class of diffusers or fastdiff, with its scheduler_config.json",
        MEASURED,
        _missing,
    ),
    Trap(
        "scheduler-module",
        "warning",
        "the class is not diffusers' own: from_pretrained of a folder needs its module imported, "
        "and of the Hub refuses it",
        "a class of diffusers",
        MEASURED,
        _module,
    ),
    Trap(
        "scheduler-class",
        "note",
        "the config was written by another class, whose options this one inherits",
        "the class of model_index.json",
        f"{_DIFFUSERS}/issues/6068",
        _other_class,
    ),
)

__all__ = ["SCHEDULERS"]
