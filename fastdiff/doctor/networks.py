"""Traps of VAEs, and of networks beside a scheduler that is not theirs."""

from __future__ import annotations

from collections.abc import Iterator

from fastdiff.doctor.folder import Folder
from fastdiff.doctor.trap import Found, Trap, at

XL_SCALE, SD_SCALE = 0.13025, 0.18215  # scaling_factor of the two VAEs' configs
FIXED = "fp16-fix"  # in the name of the VAE that was made for float16
FLOWS = (
    *("FluxTransformer2DModel", "SD3Transformer2DModel", "SanaTransformer2DModel"),
    *("AuraFlowTransformer2DModel", "QwenImageTransformer2DModel"),
)


def _half(folder: Folder) -> Iterator[Found]:
    vae = folder.vae
    name = str(vae.config.get("_name_or_path", ""))
    if not folder.xl or vae.cls != "AutoencoderKL" or FIXED in name:
        return
    if vae.get("scaling_factor") != XL_SCALE:
        return
    if vae.get("force_upcast"):
        cost = (
            "in float16 diffusers decodes in float32 (slower, twice the memory); "
            "madebyollin/sdxl-vae-fp16-fix with force_upcast false does not need that"
        )
        yield at(vae, "force_upcast", cost, "note")
    else:
        yield at(vae, "force_upcast")


def _scale(folder: Folder) -> Iterator[Found]:
    vae, unet = folder.vae, folder.denoiser
    if vae.cls != "AutoencoderKL" or unet.cls != "UNet2DConditionModel":
        return
    right, wrong = (XL_SCALE, SD_SCALE) if folder.xl else (SD_SCALE, XL_SCALE)
    known = folder.xl or unet.get("addition_embed_type") is None
    if known and vae.get("scaling_factor") == wrong:
        yield at(vae, "scaling_factor", f"{right}, and the weights of that VAE")


def _family(folder: Folder) -> Iterator[Found]:
    scheduler, denoiser = folder.scheduler, folder.denoiser
    flow = scheduler.knows("shift") or bool(scheduler.get("use_flow_sigmas"))
    beta = scheduler.knows("beta_start") and not flow
    if denoiser.cls in FLOWS and beta:
        would = "FlowMatchEulerDiscreteScheduler, or use_flow_sigmas true where the class has it"
        yield Found("model_index.json", "scheduler", scheduler.cls, would)
    if denoiser.cls == "UNet2DConditionModel" and flow:
        would = "a scheduler with the betas that the U-Net was trained with, unless it is of a flow"
        yield Found("model_index.json", "scheduler", scheduler.cls, would, "warning")


NETWORKS = (
    Trap(
        "vae-float16",
        "warning",
        "the VAE of Stable Diffusion XL overflows in float16 (black pictures), unless its weights "
        "are the ones mended for it",
        "true, or madebyollin/sdxl-vae-fp16-fix",
        "https://github.com/huggingface/diffusers/issues/4325",
        _half,
    ),
    Trap(
        "vae-scaling-factor",
        "error",
        "latents are scaled as for the other VAE: pale or burnt pictures",
        "the factor of this model's VAE",
        "configs of stabilityai/stable-diffusion-xl-base-1.0 and stable-diffusion-v1-5",
        _scale,
    ),
    Trap(
        "noise-family",
        "error",
        "the network was trained with another kind of noise than the scheduler's",
        "a scheduler of the model's own kind",
        "arXiv:2210.02747, section 4.1: the target of a flow is a velocity, not noise",
        _family,
    ),
)

__all__ = ["NETWORKS"]
