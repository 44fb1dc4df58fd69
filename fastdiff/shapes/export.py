"""From checkpoints to a diffusers folder: StableDiffusionPipeline, fp16 safetensors.

    python -m fastdiff.shapes.export --folder runs/base --out fastdiff/shapes/weights/base

`diffusers.StableDiffusionPipeline.from_pretrained(out)` loads the result without fastdiff.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from fastdiff.shapes import checkpoint
from fastdiff.shapes.networks import NOISE_SCHEDULE, build_text_encoder, build_unet, build_vae
from fastdiff.shapes.text import build_tokenizer, save_tokenizer

# The sampler of the model card: the best spacing measured at 20 steps.
SPACING: dict[str, Any] = {"timestep_spacing": "trailing", "steps_offset": 1}


def assemble(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of a training folder, with the averaged weights, in float32."""
    states = {}
    for stage in ("vae", "text", "unet"):
        state = checkpoint.load(folder / f"{stage}.pt")
        if state is None:
            raise FileNotFoundError(
                f"folder must hold {stage}.pt; {folder} does not. "
                f"Run python -m fastdiff.shapes.train {stage} --folder {folder}"
            )
        states[stage] = state
    tokenizer = build_tokenizer()
    vae, unet = build_vae(), build_unet()
    text_encoder = build_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    vae.load_state_dict(states["vae"])
    text_encoder.load_state_dict(states["text"])
    unet.load_state_dict(states["unet"]["ema"])
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE, **SPACING),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(folder: Path, out: Path) -> None:
    """Write the diffusers folder."""
    pipe = assemble(folder)
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out, safe_serialization=True)
    save_tokenizer(pipe.tokenizer, out / "tokenizer")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.shapes.export", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/base"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    export(options.folder, options.out)


if __name__ == "__main__":
    main()
