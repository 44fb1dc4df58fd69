"""How often a picture shows what its prompt says, by the oracle.

    python -m fastdiff.shapes.evaluate --model fastdiff/shapes/weights/base --count 500

--model is a diffusers folder, a training folder (then the averaged weights count), or either kind
of the few-step student's, which is run with LCM, as a rule with --guidance 1. Prompts are
two-object scenes that training never saw; --one asks for one object instead, --seen for two-object
scenes of the training set, on which settings are chosen.  The intervals are Wilson's, 95 %.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from fastdiff.shapes import checkpoint, student
from fastdiff.shapes.fingerprint import weights_hash
from fastdiff.shapes.oracle import Verdict, judge
from fastdiff.shapes.scenes import held_out, one_object_scenes, two_object_scenes
from fastdiff.shapes.text import tokenize

SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def prompts_for(count: int, *, one: bool, seed: int, seen: bool = False) -> list[str]:
    """`count` prompts: every unseen (or seen) two-object scene, or every one-object scene, about
    equally often."""
    pairs = [s for s in two_object_scenes() if held_out(s) != seen]
    scenes = one_object_scenes() if one else pairs
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(len(scenes)).tolist()
    return [scenes[i].prompt for i in order[:count]]


def load(model: Path) -> StableDiffusionPipeline:
    """A pipeline in float32 from a diffusers folder, a training folder or a student's."""
    if student.is_student(model):
        return student.pipeline(model)
    if (model / "model_index.json").exists():
        pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
            model, dtype=torch.float32, local_files_only=True
        )
        return pipe
    from fastdiff.shapes.export import assemble

    return assemble(model)


@torch.no_grad()
def sample(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    spacing: str | None = None,
    batch: int = 64,
) -> Tensor:
    """Pictures (N, 3, 64, 64) in 0..1 by DPM-Solver++ 2M, or by LCM if that is the pipeline's.

    Picture i starts from noise of its own generator, seeded seed + i, which LCM draws on from.
    Raises ValueError for a spacing with LCM: its times are those that the network was taught.
    """
    config = {} if spacing is None else SPACINGS[spacing]
    lcm = isinstance(pipe.scheduler, LCMScheduler)
    if lcm and config:
        raise ValueError(f"spacing must be left out with LCM; got {spacing!r}")
    kind = LCMScheduler if lcm else DPMSolverMultistepScheduler
    scheduler = kind.from_config(pipe.scheduler.config, **config)
    unet = pipe.unet.to(memory_format=torch.channels_last)
    empty = pipe.text_encoder(tokenize(pipe.tokenizer, [""])).last_hidden_state
    pictures = []
    for start in tqdm(range(0, len(prompts), batch), desc=f"{steps} steps, guidance {guidance}"):
        words = prompts[start : start + batch]
        text = pipe.text_encoder(tokenize(pipe.tokenizer, words)).last_hidden_state
        both = torch.cat([empty.expand_as(text), text])
        seeds = range(seed + start, seed + start + len(words))
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        x = torch.stack([torch.randn(4, 16, 16, generator=g) for g in generators])
        drawn = {"generator": generators} if lcm else {}
        scheduler.set_timesteps(steps)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            if guidance == 1:
                v = unet(scheduler.scale_model_input(x, t), t, text).sample
            else:
                pair = scheduler.scale_model_input(torch.cat([x, x]), t)
                low, high = unet(pair, t, both).sample.chunk(2)
                v = low + guidance * (high - low)
            x = scheduler.step(v, t, x, **drawn).prev_sample
        out = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
        pictures.append((out.clamp(-1, 1) + 1) / 2)
    return torch.cat(pictures)


def accuracy(verdicts: list[Verdict]) -> dict[str, Any]:
    """Shares of what is right, and the interval of 'everything'."""
    right, count = sum(v.right for v in verdicts), len(verdicts)
    shares = {
        name: round(float(np.mean([getattr(v, name) for v in verdicts])), 4)
        for name in ("colour", "shape", "relation", "layout", "right")
    }
    return {"count": count, **shares, "interval": [round(v, 4) for v in wilson(right, count)]}


def main(argv: list[str] | None = None) -> None:
    """Command line: one JSON line a setting, also appended to --log."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.shapes.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--one", action="store_true", help="one-object prompts")
    parser.add_argument("--seen", action="store_true", help="two-object prompts of the training")
    parser.add_argument("--steps", type=int, nargs="+", default=[20])
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("--spacing", choices=SPACINGS, nargs="+", default=[None])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, help="folder whose log.jsonl gets the lines as well")
    parser.add_argument(
        "--pictures", type=Path, help="write a contact sheet of the last setting here"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    pipe = load(options.model)
    prompts = prompts_for(options.count, one=options.one, seed=options.seed, seen=options.seen)
    state = checkpoint.load(options.model / "unet.pt")
    state = state or checkpoint.load(options.model / student.CHECKPOINT)
    for steps in options.steps:
        for guidance in options.guidance:
            for spacing in options.spacing:
                started = time.time()
                pictures = sample(
                    pipe,
                    prompts,
                    steps=steps,
                    guidance=guidance,
                    seed=1000 * options.seed,
                    spacing=spacing,
                )
                verdicts = [judge(x, p) for x, p in zip(pictures, prompts, strict=True)]
                line = {
                    "objects": 1 if options.one else 2,
                    "seen": options.seen,
                    "sampler": "lcm" if isinstance(pipe.scheduler, LCMScheduler) else "dpmpp_2m",
                    "steps": steps,
                    "guidance": guidance,
                    "spacing": spacing,
                    "seed": options.seed,
                    "weights": weights_hash(options.model) if state is None else None,
                    "train_step": state["step"] if state else None,
                    "train_minutes": round(state["minutes"], 1) if state else None,
                    "seconds": round(time.time() - started, 1),
                    **accuracy(verdicts),
                }
                print(json.dumps(line), flush=True)
                if options.log:
                    checkpoint.log(options.log, "evaluate", **line)
    if options.pictures:
        from PIL import Image

        rows = pictures[: len(pictures) // 8 * 8][:64].reshape(-1, 8, 3, 64, 64)
        sheet = rows.permute(0, 3, 1, 4, 2).reshape(-1, 512, 3)
        Image.fromarray((sheet * 255).round().byte().numpy()).save(options.pictures)


if __name__ == "__main__":
    main()
