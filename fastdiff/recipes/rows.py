"""The recipes: how each kind of distilled checkpoint is sampled, with its sources."""

from __future__ import annotations

from types import MappingProxyType

from fastdiff.recipes.flows import FLOWS
from fastdiff.recipes.recipe import Guidance, Network, Recipe, Variant, frozen

_NONE = Guidance(0.0)
_PLAIN = {"time_cond_proj_dim": None}
_UNET = Network("Stable Diffusion 1, 2 and XL", "unet", frozen(**_PLAIN))
_SD = Network("Stable Diffusion 1 and 2", "unet", frozen(addition_embed_type=None, **_PLAIN))
_SDXL = Network("Stable Diffusion XL", "unet", frozen(addition_embed_type="text_time", **_PLAIN))

_EPSILON = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
_UNBOUNDED = {"clip_sample": False, "thresholding": False}
_ANCESTRAL = frozen(timestep_spacing="trailing", **_EPSILON)
_EULER = frozen(
    timestep_spacing="trailing",
    timestep_type="discrete",
    interpolation_type="linear",
    final_sigmas_type="zero",
    sigma_min=None,
    sigma_max=None,
    use_karras_sigmas=False,
    use_exponential_sigmas=False,
    use_beta_sigmas=False,
    **_EPSILON,
)
_DDIM = frozen(timestep_spacing="trailing", set_alpha_to_one=False, **_UNBOUNDED, **_EPSILON)
_LCM = frozen(**_UNBOUNDED, **_EPSILON)

_HUB = "https://huggingface.co"
_LCM_DOCS = f"{_HUB}/docs/diffusers/using-diffusers/inference_with_lcm"

ROWS = (
    Recipe(
        "lcm",
        "LCMScheduler",
        "vp",
        ("epsilon", "v_prediction", "sample"),
        Network("a latent consistency model of Stable Diffusion 1, 2 or XL", "unet"),
        steps=tuple(range(1, 51)),
        guidance=Guidance(1.0),
        embedded=Guidance(8.0, ((1.0, 1.0), (3.0, 13.0))),
        config=frozen(**_UNBOUNDED, rescale_betas_zero_snr=False),
        sources=("arXiv:2310.04378", f"{_HUB}/SimianLuo/LCM_Dreamshaper_v7", _LCM_DOCS),
        known="1 to 8 steps are recommended. Where the U-Net has a guidance embedding "
        "(time_cond_proj_dim) the scale is its input, trained at 3 to 13; without one the guidance "
        "is in the weights. prediction_type and original_inference_steps stay the pipeline's",
    ),
    Recipe(
        "lcm-lora",
        "LCMScheduler",
        "vp",
        ("epsilon",),
        _UNET,
        steps=tuple(range(2, 9)),
        guidance=Guidance(1.0, ((0.0, 2.0),)),
        config=frozen(original_inference_steps=50, **_LCM),
        sources=("arXiv:2311.05556", f"{_HUB}/latent-consistency/lcm-lora-sdxl", _LCM_DOCS),
        known="One adapter for all of its numbers of steps; guidance off, or 1 to 2",
    ),
    Recipe(
        "tcd",
        "TCDScheduler",
        "vp",
        ("epsilon",),
        _UNET,
        steps=tuple(range(1, 51)),
        guidance=_NONE,
        eta=0.3,
        config=frozen(original_inference_steps=50, **_LCM),
        sources=("arXiv:2402.19159", f"{_HUB}/h1t/TCD-SDXL-LoRA"),
        known="Steps may be chosen freely; the card shows 4 and advises a higher eta (gamma of the "
        "paper) for more. Pipelines pass eta=0 unless told. Hyper-SD's one-step LoRA for 1 to 8 "
        "steps is this recipe with eta=1",
    ),
    Recipe(
        "sdxl-turbo",
        "EulerAncestralDiscreteScheduler",
        "vp",
        ("epsilon",),
        _SDXL,
        steps=(1, 2, 3, 4),
        guidance=_NONE,
        config=_ANCESTRAL,
        sources=("arXiv:2311.17042", f"{_HUB}/stabilityai/sdxl-turbo"),
        known="Trained at 512x512, which the call does not set",
    ),
    Recipe(
        "sd-turbo",
        "EulerDiscreteScheduler",
        "vp",
        ("epsilon",),
        _SD,
        steps=(1, 2, 3, 4),
        guidance=_NONE,
        config=_EULER,
        sources=("arXiv:2311.17042", f"{_HUB}/stabilityai/sd-turbo"),
        known="Trained at 512x512, which the call does not set; Euler is what its folder names",
    ),
    Recipe(
        "sdxl-lightning",
        "EulerDiscreteScheduler",
        "vp",
        ("epsilon", "sample"),
        _SDXL,
        steps=(1, 2, 4, 8),
        each=True,
        guidance=_NONE,
        config=_EULER,
        by_steps=MappingProxyType({1: Variant(config=frozen(prediction_type="sample"))}),
        sources=("arXiv:2402.13929", f"{_HUB}/ByteDance/SDXL-Lightning"),
        known="The one-step U-Net, an experiment of its authors, predicts the sample, the others "
        "noise",
    ),
    Recipe(
        "hyper-sd",
        "DDIMScheduler",
        "vp",
        ("epsilon",),
        _UNET,
        steps=(2, 4, 8, 12),
        each=True,
        guidance=_NONE,
        config=_DDIM,
        by_steps=MappingProxyType(
            {
                8: Variant(guidance=Guidance(0.0, ((0.0, 1.0), (5.0, 8.0)))),
                12: Variant(guidance=Guidance(5.0, ((5.0, 8.0),))),
            }
        ),
        sources=("arXiv:2404.13686", f"{_HUB}/ByteDance/Hyper-SD"),
        known="The LoRAs with CFG in their name (8 and 12 steps) take guidance 5 to 8. The card "
        "inherits set_alpha_to_one=False of Stable Diffusion's config. Those for SD3 and "
        "FLUX.1-dev are hyper-sd3 and hyper-flux",
    ),
    Recipe(
        "hyper-sd-1step",
        "LCMScheduler",
        "vp",
        ("epsilon",),
        _SDXL,
        steps=(1,),
        each=True,
        guidance=_NONE,
        timesteps=(800,),
        config=_LCM,
        sources=("arXiv:2404.13686", f"{_HUB}/ByteDance/Hyper-SD"),
        known="The one-step U-Net, trained to begin at 800; for the one-step LoRA see tcd",
    ),
    Recipe(
        "dmd2",
        "LCMScheduler",
        "vp",
        ("epsilon",),
        _SDXL,
        steps=(4,),
        each=True,
        guidance=_NONE,
        timesteps=(999, 749, 499, 249),
        config=frozen(original_inference_steps=4, **_LCM),
        sources=("arXiv:2405.14867", "https://github.com/tianweiy/DMD2", f"{_HUB}/tianweiy/DMD2"),
        known="U-Net or LoRA; LCM's own four timesteps (999, 759, 499, 259) are not those it was "
        "trained at",
    ),
    Recipe(
        "dmd2-1step",
        "LCMScheduler",
        "vp",
        ("epsilon",),
        _SDXL,
        steps=(1,),
        each=True,
        guidance=_NONE,
        timesteps=(399,),
        config=_LCM,
        sources=("arXiv:2405.14867", "https://github.com/tianweiy/DMD2"),
        known="Conditioned on timestep 399",
    ),
    Recipe(
        "pcm",
        "DDIMScheduler",
        "vp",
        ("epsilon",),
        _UNET,
        steps=(2, 4, 8, 16),
        each=True,
        guidance=Guidance(0.0, ((0.0, 9.0),)),
        config=_DDIM,
        sources=("arXiv:2405.18407", f"{_HUB}/wangfuyun/PCM_Weights"),
        known="smallcfg LoRAs take guidance up to 2, normalcfg ones 2 to 9, less at fewer steps "
        "(2.5 to 3.5 at 4, 3 to 6 at 8); the LCM-like one is lcm-lora. Those for SD3 are pcm-sd3, "
        "pcm-sd3-shift3 and pcm-sd3-stochastic",
    ),
    *FLOWS,
)

__all__ = ["ROWS"]
