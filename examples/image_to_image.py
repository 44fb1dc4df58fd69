"""Image to image: start from a picture, at the noise level of a row in the middle of the plan.

    python examples/image_to_image.py [--prompt "a blue square"] [--begin 8] [--model PATH]

`begin` is the first row that runs.  0 forgets the picture; the more rows are left out, the more of
it stays.  `fastdiff.sample(.., start=latent)` puts the right noise on it.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

import fastdiff
from fastdiff.cli.model import built_in
from fastdiff.schedules.config import default_spacing, noise_schedule


def red_circle(side: int) -> Image.Image:
    """Something to start from."""
    picture = Image.new("RGB", (side, side), "white")
    quarter = side // 4
    box = (quarter, quarter, 3 * quarter, 3 * quarter)
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 25, 25))
    return picture


def main(argv: list[str] | None = None) -> Image.Image:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="a blue square")
    parser.add_argument("--image", type=Path, help="a square picture; a red circle if not given")
    parser.add_argument("--model", type=Path, default=built_in(), help="a diffusers folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--begin", type=int, default=8, help="first row to run")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/image_to_image.png"))
    options = parser.parse_args(argv)

    pipe = StableDiffusionPipeline.from_pretrained(
        options.model, dtype=torch.float32, safety_checker=None
    )
    config = json.loads((options.model / "scheduler" / "scheduler_config.json").read_text())
    plan = fastdiff.plan(
        "dpmpp_2m",
        steps=options.steps,
        begin=options.begin,
        noise=noise_schedule(config),
        spacing=default_spacing(config),
        prediction=config["prediction_type"],
        guidance=options.guidance,
    )
    cond, uncond = pipe.encode_prompt(options.prompt, "cpu", 1, True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    image = Image.open(options.image).convert("RGB") if options.image else red_circle(side)
    pixels = pipe.image_processor.preprocess(image, side, side)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (
            pipe.unet(x, t, uncond, return_dict=False)[0],
            pipe.unet(x, t, cond, return_dict=False)[0],
        )

    with torch.no_grad():
        latent = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(options.seed))
        x = fastdiff.sample(denoise, noise, plan, start=latent)
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    picture = pipe.image_processor.postprocess(decoded)[0]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.out)
    print(f"{options.out}: {options.prompt}, rows {options.begin} .. {options.steps - 1}")
    return picture


if __name__ == "__main__":
    main()
