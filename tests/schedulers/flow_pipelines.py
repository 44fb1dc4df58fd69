"""Small Stable Diffusion 3 and Flux pipelines with random weights, as pipelines.py's: no download,
no text encoder, networks that answer with numbers of order one."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)

from .pipelines import SIDE, picture

TOKENS, WIDTH, POOLED = 5, 32, 16
KINDS = {
    "sd3": StableDiffusion3Pipeline,
    "sd3 img2img": StableDiffusion3Img2ImgPipeline,
    "flux": FluxPipeline,
    "flux img2img": FluxImg2ImgPipeline,
}


def networks(kind: str, guidance_embeds: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    flux = kind.startswith("flux")
    common = {"num_layers": 1, "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED}
    transformer: Any
    if flux:
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,  # 2 x 2 pixels of 4 channels
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
            **common,
        )
    else:
        transformer = SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            **common,
        )
    vae = AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(3.0)
        vae.decoder.conv_out.weight.mul_(2.0)
    return {"transformer": transformer.eval(), "vae": vae.eval()}


def pipeline(kind: str, scheduler: Any, parts: dict[str, Any]) -> Any:
    places = ("", "_2") if kind.startswith("flux") else ("", "_2", "_3")
    nothing = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in places}
    pipe = KINDS[kind](scheduler=scheduler, **parts, **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(kind: str, steps: int = 8) -> dict[str, Any]:
    """Arguments of a call: two prompts, each with its generator."""
    g = torch.Generator().manual_seed(99)
    text = torch.randn(2, 2, TOKENS, WIDTH, generator=g)
    pooled = torch.randn(2, 2, POOLED, generator=g)
    given: dict[str, Any] = {
        "prompt_embeds": text[0],
        "pooled_prompt_embeds": pooled[0],
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(j) for j in range(2)],
        "output_type": "np",
        "height": SIDE,
        "width": SIDE,
        "guidance_scale": 4.0,
    }
    if not kind.startswith("flux"):
        given |= {"negative_prompt_embeds": text[1], "negative_pooled_prompt_embeds": pooled[1]}
    if "img2img" in kind:
        given |= {"image": [picture(1), picture(2)], "strength": 0.75}
    return given
