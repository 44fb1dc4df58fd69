"""Small pipelines of other kinds with random weights, as pipelines.py's: SDXL in its three forms,
ControlNet, video (AnimateDiff and Wan, latents of five dimensions) and audio (of three)."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    DanceDiffusionPipeline,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet1DModel,
    WanPipeline,
    WanTransformer3DModel,
)

from tests.tiny_pipelines import (
    POOLED,
    SIDE,
    TOKENS,
    UNET,
    WIDTH,
    controlnet,
    drawn,
    sd15,
    sdxl,
    vae,
)

from .pipelines import mask, picture

PIXELS, FRAMES = 2 * SIDE, 3
SDXL = {
    "sdxl": StableDiffusionXLPipeline,
    "sdxl img2img": StableDiffusionXLImg2ImgPipeline,
    "sdxl inpaint": StableDiffusionXLInpaintPipeline,
}


def _sdxl() -> dict[str, Any]:
    return {"unet": sdxl(), "vae": vae()}


def _controlnet() -> dict[str, Any]:
    return {"unet": sd15(), "vae": vae(), "controlnet": controlnet()}


def _animatediff() -> dict[str, Any]:
    adapter = MotionAdapter(
        block_out_channels=UNET["block_out_channels"],
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=FRAMES,
    )
    return {"unet": sd15(), "vae": vae(), "motion_adapter": drawn(adapter, 1)}


def _wan() -> dict[str, Any]:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=16,
    )
    return {"transformer": drawn(transformer), "vae": None}


def _audio() -> dict[str, Any]:
    unet = UNet1DModel(
        sample_size=64,
        sample_rate=64,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,  # of the time
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
        norm_num_groups=4,
        use_timestep_embedding=False,
    )
    return {"unet": drawn(unet)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **dict.fromkeys(SDXL, _sdxl),
    "controlnet": _controlnet,
    "animatediff": _animatediff,
    "wan": _wan,
    "audio": _audio,
}


def pipeline(kind: str, scheduler: Any, parts: dict[str, Any]) -> Any:
    nothing: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    cls: Any = {
        **SDXL,
        "controlnet": StableDiffusionControlNetPipeline,
        "animatediff": AnimateDiffPipeline,
        "wan": WanPipeline,
        "audio": DanceDiffusionPipeline,
    }[kind]
    if kind == "audio":
        nothing = {}
    elif kind == "controlnet":
        nothing |= {"safety_checker": None, "feature_extractor": None}
        nothing["requires_safety_checker"] = False
    elif kind in SDXL:
        nothing |= {"text_encoder_2": None, "tokenizer_2": None}
    pipe = cls(scheduler=scheduler, **parts, **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(kind: str, scheduler: Any, parts: dict[str, Any], steps: int) -> torch.Tensor:
    """What the pipeline makes of a seed: latents, or audio."""
    pipe = pipeline(kind, scheduler, parts)
    torch.manual_seed(3)  # of pipelines that hand no generator to step
    g = torch.Generator().manual_seed(7)
    if kind == "audio":
        return torch.from_numpy(pipe(num_inference_steps=steps, generator=g, batch_size=2).audios)
    text = torch.randn(1, TOKENS, WIDTH, generator=g)
    given: dict[str, Any] = {
        "prompt_embeds": text,
        "negative_prompt_embeds": -text,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "generator": g,
        "output_type": "latent",
    }
    if kind in SDXL:
        pooled = torch.randn(1, POOLED, generator=g)
        given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    if kind in ("sdxl img2img", "sdxl inpaint"):
        given |= {"image": picture(1, PIXELS), "strength": 0.75}
    if kind == "controlnet":
        given |= {"image": picture(1, PIXELS)}
    if kind == "sdxl inpaint":
        given |= {"mask_image": mask(PIXELS)}
    if kind == "wan":
        given |= {"height": 64, "width": 64, "num_frames": 4 * FRAMES - 3}
    elif kind != "sdxl img2img":
        given |= {"height": PIXELS, "width": PIXELS}
    if kind == "animatediff":
        given |= {"num_frames": FRAMES}
    made: torch.Tensor = pipe(**given)[0]
    return made


__all__ = ["PARTS", "pipeline", "run"]
