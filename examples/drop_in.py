"""The drop-in scheduler in a diffusers pipeline: one import changes, the pictures do not.

    python examples/drop_in.py ["a red circle above a blue square"] [--model PATH] [--out FILE]

Without --model, the built-in model.  Draws the picture with diffusers' scheduler and with ours,
from the same seed, and prints the largest difference.
"""

import argparse
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import fastdiff.schedulers
from fastdiff.cli.model import built_in


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="a red circle above a blue square")
    parser.add_argument("--model", type=Path, default=built_in(), help="a diffusers folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/drop_in.png"))
    options = parser.parse_args(argv)

    pipe = StableDiffusionPipeline.from_pretrained(
        options.model, dtype=torch.float32, safety_checker=None
    )
    config, pictures = pipe.scheduler.config, []
    for module in (diffusers, fastdiff.schedulers):
        pipe.scheduler = module.DPMSolverMultistepScheduler.from_config(config)
        pictures.append(
            pipe(
                options.prompt,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                generator=torch.Generator().manual_seed(options.seed),
                output_type="np",
            ).images[0]
        )

    difference = float(np.abs(pictures[0] - pictures[1]).max())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pictures[1] * 255).round().astype("uint8")).save(options.out)
    print(f"{options.out}: {options.prompt}")
    print(f"largest difference from diffusers' scheduler: {difference * 255:.4f} of 255")
    return difference


if __name__ == "__main__":
    main()
