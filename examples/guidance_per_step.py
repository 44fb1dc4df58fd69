"""Guidance that changes from step to step, and from picture to picture, in one batch.

    python examples/guidance_per_step.py ["a green triangle"] [--model PATH] [--out FILE]

The guidance scale is a column of the plan: a number, one for each step, or one for each step and
picture.  Here the left picture has the same guidance throughout, the right one only in the middle
of the run (as in Kynkäänniemi et al. 2024, arXiv:2404.07724); both are made in the same calls.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import fastdiff
from fastdiff.cli.model import built_in
from fastdiff.schedules.config import default_spacing, noise_schedule


def main(argv: list[str] | None = None) -> Image.Image:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="a green triangle")
    parser.add_argument("--model", type=Path, default=built_in(), help="a diffusers folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/guidance.png"))
    options = parser.parse_args(argv)

    scale = np.ones((options.steps, 2))  # 1: the prompt's own prediction, nothing added
    scale[:, 0] = options.guidance
    scale[options.steps // 5 : -options.steps // 5, 1] = options.guidance

    pipe = StableDiffusionPipeline.from_pretrained(
        options.model, dtype=torch.float32, safety_checker=None
    )
    config = json.loads((options.model / "scheduler" / "scheduler_config.json").read_text())
    plan = fastdiff.plan(
        "dpmpp_2m",
        steps=options.steps,
        noise=noise_schedule(config),
        spacing=default_spacing(config),
        prediction=config["prediction_type"],
        guidance=scale,
    )
    cond, uncond = pipe.encode_prompt([options.prompt] * 2, "cpu", 1, True)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (
            pipe.unet(x, t, uncond, return_dict=False)[0],
            pipe.unet(x, t, cond, return_dict=False)[0],
        )

    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(1, channels, side, side, generator=generator).repeat(2, 1, 1, 1)
    with torch.no_grad():
        x = fastdiff.sample(denoise, noise, plan)
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    left, right = pipe.image_processor.postprocess(decoded)
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    both.save(options.out)
    print(f"{options.out}: {options.prompt}; guidance throughout, and in the middle only")
    return both


if __name__ == "__main__":
    main()
