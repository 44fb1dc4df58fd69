"""The recipes of flows and of trigflow, with their sources.

A flow with a shift s has its levels at s u / (1 + (s - 1) u); `sigmas` of a call are the u.
PCM of Stable Diffusion 3 (pcm_fm_deterministic_scheduler.py and pcm_fm_stochastic_scheduler.py of
its authors) steps from u = 1 - floor(50 k / n) / 50 for k = 0 .. n - 1, and ends at 0.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from fastdiff.recipes.recipe import Guidance, Network, Recipe, Variant, frozen

_SCHNELL = Network(
    "FLUX.1-schnell", "transformer", frozen(guidance_embeds=False), ("FluxTransformer2DModel",)
)
_DEV = Network(
    "FLUX.1-dev", "transformer", frozen(guidance_embeds=True), ("FluxTransformer2DModel",)
)
_SD3 = Network(  # qk_norm: 3.5 has one
    "Stable Diffusion 3", "transformer", frozen(qk_norm=None), ("SD3Transformer2DModel",)
)
_SANA = Network(
    "SANA-Sprint", "transformer", frozen(guidance_embeds=True), ("SanaTransformer2DModel",)
)

_PLAIN = {
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_EULER = {"use_dynamic_shifting": False, "stochastic_sampling": False, **_PLAIN}
_STOCHASTIC = {"use_dynamic_shifting": False, "stochastic_sampling": True, **_PLAIN}

_HUB = "https://huggingface.co"
_HYPER = ("arXiv:2404.13686", f"{_HUB}/ByteDance/Hyper-SD")
_PCM_CODE = "https://github.com/G-U-N/Phased-Consistency-Model/tree/master/code/text_to_image_sd3"
_PCM = ("arXiv:2405.18407", f"{_HUB}/wangfuyun/PCM_Weights", _PCM_CODE)
_PCM_GUIDANCE = Guidance(1.2, ((1.2, 1.2),))
_QUARTERS = frozen(sigmas=(1.0, 0.76, 0.5, 0.26))

FLOWS = (
    Recipe(
        "flux-schnell",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _SCHNELL,
        steps=(1, 2, 3, 4),
        guidance=Guidance(0.0),
        config=frozen(shift=1.0, **_EULER),
        call=frozen(max_sequence_length=256),
        sources=(f"{_HUB}/black-forest-labs/FLUX.1-schnell",),
        known="No shift of the levels, unlike FLUX.1-dev",
    ),
    Recipe(
        "hyper-flux",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _DEV,
        steps=(8, 16),
        each=True,
        guidance=Guidance(3.5, ((1.0, math.inf),)),
        config=frozen(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
            time_shift_type="exponential",
            stochastic_sampling=False,
            **_PLAIN,
        ),
        sources=(*_HYPER, f"{_HUB}/black-forest-labs/FLUX.1-dev"),
        known="Hyper-SD's LoRAs for FLUX.1-dev, on that model's own scheduler; the card loads them "
        "with a scale of 0.125. Guidance is an input of the network: 3.5 is the card's, a range is "
        "not published there",
    ),
    Recipe(
        "hyper-sd3",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _SD3,
        steps=(4, 8, 16),
        each=True,
        guidance=Guidance(5.0, ((3.0, 7.0),)),
        config=frozen(shift=3.0, **_EULER),
        by_steps=MappingProxyType(
            {
                4: Variant(guidance=Guidance(3.0, ((3.0, 7.0),))),
                16: Variant(guidance=Guidance(7.0, ((3.0, 7.0),))),
            }
        ),
        sources=(*_HYPER, f"{_HUB}/stabilityai/stable-diffusion-3-medium-diffusers"),
        known="Hyper-SD's LoRAs for Stable Diffusion 3, on that model's own scheduler; all keep "
        "guidance, of which the card recommends 3, 5 and 7 at 4, 8 and 16 steps and says no range: "
        "what lies between is taken. The card fuses them with a scale of 0.125, and allows a "
        "little fewer steps of the last two, like 6 and 12, which are refused here",
    ),
    Recipe(
        "pcm-sd3",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _SD3,
        steps=(2, 4),
        each=True,
        guidance=_PCM_GUIDANCE,
        config=frozen(shift=1.0, **_EULER),
        call=frozen(sigmas=(1.0, 0.5)),
        by_steps=MappingProxyType({4: Variant(call=_QUARTERS)}),
        sources=_PCM,
        known="pcm_deterministic_2step_shift1 and pcm_deterministic_4step_shift1; the authors' "
        "script has guidance 1.2, a range is not published",
    ),
    Recipe(
        "pcm-sd3-shift3",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _SD3,
        steps=(4,),
        guidance=_PCM_GUIDANCE,
        config=frozen(shift=3.0, **_EULER),
        call=_QUARTERS,
        sources=_PCM,
        known="pcm_deterministic_4step_shift3; guidance as for pcm-sd3",
    ),
    Recipe(
        "pcm-sd3-stochastic",
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        ("flow_prediction",),
        _SD3,
        steps=(4,),
        guidance=_PCM_GUIDANCE,
        config=frozen(shift=3.0, **_STOCHASTIC),
        call=_QUARTERS,
        sources=_PCM,
        known="pcm_stochastic_shift3, of one phase; its authors show 4 steps. Guidance as for "
        "pcm-sd3",
    ),
    Recipe(
        "sana-sprint",
        "SCMScheduler",
        "trigflow",
        ("trigflow",),
        _SANA,
        steps=(1, 2, 3, 4),
        guidance=Guidance(4.5, ((4.0, 5.0),)),
        config=frozen(prediction_type="trigflow", sigma_data=0.5),
        call=frozen(max_timesteps=1.57080, intermediate_timesteps=None),
        by_steps=MappingProxyType({2: Variant(call=frozen(intermediate_timesteps=1.3))}),
        sources=(
            "arXiv:2503.09641",
            f"{_HUB}/docs/diffusers/api/pipelines/sana_sprint",
            "https://github.com/NVlabs/Sana/tree/main/configs/sana_sprint_config",
        ),
        known="The scale of guidance is an input of the network, which saw 4, 4.5 and 5 in its "
        "training (scm_cfg_scale); 4.5 is the pipeline's. The angle 1.3 is of two steps alone",
    ),
)

__all__ = ["FLOWS"]
