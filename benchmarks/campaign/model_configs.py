"""The networks whose step is timed, with random weights: configurations as published with them.

flops: multiply-adds twice, counted from the configuration, for the batch that is given (a pair of
samples, with and without the prompt, in the U-Nets).  A step cannot be shorter than flops at the
dense fp16 rate of the data sheet, 989 TFLOP/s on H100 and H200: 1.62 ms, 13.67 ms and 10.6 ms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PEAK = 989e12  # fp16 or bf16 operations a second, dense, H100 and H200 SXM


class Model(NamedTuple):
    """kind: "unet" or "vae"; side and channels of the latents; tokens and width of the text."""

    title: str
    kind: str
    config: dict[str, Any]
    batch: int
    side: int
    flops: float
    tokens: int = 77
    width: int = 0
    pooled: int = 0


SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 1024,
}
MODELS = {
    "sd15": Model("SD1.5 U-Net, 512x512", "unet", SD15, 2, 64, 1.607e12, width=768),
    "sdxl": Model(
        "SDXL U-Net, 1024x1024", "unet", SDXL, 2, 128, 13.522e12, width=2048, pooled=1280
    ),
    "vae": Model("VAE decoder, 1024x1024", "vae", VAE, 1, 128, 10.470e12),
}
TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TINY_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TINY = {
    "sd15": Model("tiny U-Net", "unet", TINY_UNET, 2, 8, 1e6, tokens=7, width=16),
    "sdxl": Model("tiny U-Net", "unet", TINY_UNET, 2, 8, 1e6, tokens=7, width=16),
    "vae": Model("tiny decoder", "vae", TINY_VAE, 1, 8, 1e6),
}
