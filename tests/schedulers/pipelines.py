"""Small Stable Diffusion pipelines with random weights, made on the fly: seconds, no download.

No text encoder: prompt embeddings are passed.  The networks are scaled to answer with numbers of
order one, so that a wrong scheduler changes the pictures.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image

SIDE = 32  # pixels; latents are half as large
KINDS = {
    "txt2img": StableDiffusionPipeline,
    "img2img": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(3.0)
        vae.decoder.conv_out.weight.mul_(2.0)
    return {"unet": unet.eval(), "vae": vae.eval()}


def pipeline(scheduler: Any, kind: str = "txt2img", parts: dict[str, Any] | None = None) -> Any:
    pipe = KINDS[kind](
        **(parts or networks()),
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int, side: int = SIDE) -> Image.Image:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 4, 4, generator=g)
    fine = coarse.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    return Image.fromarray((fine * 255).byte().permute(1, 2, 0).numpy())


def mask(side: int = SIDE) -> Image.Image:
    """White where an inpainting pipeline is to draw: a quarter of the picture."""
    values = torch.zeros(side, side, dtype=torch.uint8)
    values[side // 4 : 3 * side // 4, side // 8 : 5 * side // 8] = 255
    return Image.fromarray(values.numpy())


def inputs(kind: str, steps: int = 8, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments of a call: two pictures a prompt, guided, each with its generator."""
    g = torch.Generator().manual_seed(99)
    embeds = torch.randn(2, 1, 4, 8, generator=g)
    given: dict[str, Any] = {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "guidance_scale": 4.0,
        "num_inference_steps": steps,
        "num_images_per_prompt": 2,
        "generator": [torch.Generator().manual_seed(seed + j) for j in range(2)],
        "output_type": "np",
    }
    if kind == "txt2img":
        given |= {"height": SIDE, "width": SIDE}
    else:
        given |= {"image": picture(1), "strength": 0.7}
    if kind == "inpaint":
        given |= {"mask_image": mask(), "height": SIDE, "width": SIDE}
    return given | more
