"""Small networks and pipelines with random weights, shaped like SD1.5, SDXL and ControlNet.

Shaped like: the same blocks in the same order with the same options, fewer and narrower.  SD1.5 has
1x1 convolutions around its transformers and one text width, SDXL linear ones, several transformer
blocks, and an added embedding of sizes and pooled text.  Weights that diffusers starts at zero are
drawn, too, so that no part of a network is silent.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

SIDE, WIDTH, TOKENS = 8, 24, 7  # of latents; of the text; keys of the cross-attention
UNET: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 4,
}
POOLED = 8  # width of SDXL's pooled text


def drawn(network: nn.Module, seed: int = 0) -> Any:
    """The network in eval mode, with weights of a size that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.1 * noise + (1.0 if "norm" in name and "weight" in name else 0.0))
    return network.eval()


def sd15(**options: Any) -> Any:
    return drawn(UNet2DConditionModel(**UNET | {"attention_head_dim": 2} | options))


def sdxl(**options: Any) -> Any:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
    }
    heads = {"attention_head_dim": (2, 4), "use_linear_projection": True}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
    }
    return drawn(UNet2DConditionModel(**UNET | added | heads | blocks | options))


def controlnet() -> Any:
    names = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim")
    options = {name: UNET[name] for name in (*names, "norm_num_groups")}
    return drawn(
        ControlNetModel(**options, attention_head_dim=2, conditioning_embedding_out_channels=(4, 8))
    )


def unconditional(**options: Any) -> Any:
    """A UNet2DModel: attention with a norm of its own, over pictures."""
    return drawn(
        UNet2DModel(
            sample_size=SIDE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
            **options,
        )
    )


def vae() -> Any:
    return drawn(
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=2 * SIDE,
        )
    )


def pipeline(kind: str) -> Any:
    """ "sd15", "sdxl" or "controlnet", without text encoders: prompts are passed as embeddings."""
    nothing: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    parts: dict[str, Any] = {"vae": vae(), "scheduler": DDIMScheduler()}
    plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if kind == "sdxl":
        nothing |= {"text_encoder_2": None, "tokenizer_2": None}
        pipe = StableDiffusionXLPipeline(unet=sdxl(), **parts, **nothing)
    elif kind == "sd15":
        pipe = StableDiffusionPipeline(unet=sd15(), **parts, **nothing, **plain)
    else:
        control = controlnet()
        pipe = StableDiffusionControlNetPipeline(
            unet=sd15(), controlnet=control, **parts, **nothing, **plain
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: Any, seed: int = 0) -> Any:
    """Two steps of a pipeline, with guidance: an array."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, TOKENS, WIDTH, generator=generator)
    call: dict[str, Any] = {"prompt_embeds": text, "negative_prompt_embeds": -text}
    if isinstance(pipe, StableDiffusionXLPipeline):
        pooled = torch.randn(1, POOLED, generator=generator)
        call |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    if isinstance(pipe, StableDiffusionControlNetPipeline):
        call |= {"image": torch.rand(1, 3, 2 * SIDE, 2 * SIDE, generator=generator)}
    side = {"height": 2 * SIDE, "width": 2 * SIDE}
    return pipe(**call, **side, num_inference_steps=2, generator=generator, output_type="np").images


def run(network: Any, samples: int = 2, seed: int = 0) -> torch.Tensor:
    """The network on random inputs of its own dtype, one sample per seed: its outputs, flat."""
    dtype = next(network.parameters()).dtype
    noise = [torch.Generator().manual_seed(seed + j) for j in range(samples)]

    def draw(*shape: int) -> torch.Tensor:
        rows = [torch.randn(shape, generator=g) for g in noise]
        return torch.stack(rows).to(torch.bfloat16).to(dtype)  # the same numbers in every dtype

    config = network.config
    side = config.sample_size if isinstance(config.get("sample_size"), int) else SIDE
    if isinstance(network, AutoencoderKL):
        made = network.decode(draw(4, SIDE, SIDE)).sample
        coded = network.encode(draw(3, 2 * SIDE, 2 * SIDE)).latent_dist.parameters
        return torch.cat([made.flatten(1), coded.flatten(1)], 1)
    x, t = draw(4, side, side), torch.full((samples,), 500)
    if isinstance(network, UNet2DModel):
        return network(x, t).sample.flatten(1)
    text = draw(TOKENS, config.cross_attention_dim)
    if isinstance(network, ControlNetModel):
        hint = draw(3, 2 * side, 2 * side)
        found = network(x, t, text, hint, return_dict=False)
        return torch.cat([y.flatten(1) for y in (*found[0], found[1])], 1)
    added = {"text_embeds": draw(POOLED), "time_ids": torch.full((samples, 6), 32.0)}
    return network(x, t, text, added_cond_kwargs=added).sample.flatten(1)


NETWORKS = {
    "sd15": sd15,
    "sdxl": sdxl,
    "controlnet": controlnet,
    "unconditional": unconditional,
    "vae": vae,
}
