"""A few-step student of the built-in model, by latent consistency distillation.

    python -m fastdiff.shapes.distill --folder runs/student --bank runs/base --steps 400 --decay 80

Continues student.pt in the folder, or starts from the teacher's weights.  The student f jumps
from any time to the picture; guidance is folded in, so that it is called once a step and without
the empty prompt.  On a latent x_0 of the bank (or, without one, of pictures encoded here):

    x_t  = alpha_t x_0 + sigma_t n                    t one of LCMScheduler's 50 times
    v    = v_empty + g (v_text - v_empty)             the teacher, g its guidance
    x_s  = alpha_s x^ + sigma_s n^                    one DDIM step of it, `skip` times on
    loss = pseudo-Huber(f(x_t, t) - f'(x_s, s))       f' the student's average (EMA), no gradient

    f(x, t) = c_skip x + c_out x^(x, t),  f(x, s < 0) = x

Luo et al. 2023, arXiv:2310.04378, algorithm 1, with the guidance fixed.  Long skips first carry
what is known at the clean end to the noisy one in fewer steps of training, short ones later mend
what one long DDIM step gets wrong: --skip is of this call, and may differ in the next.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from fastdiff.shapes import GUIDANCE, checkpoint
from fastdiff.shapes.fingerprint import weights_hash
from fastdiff.shapes.networks import forward_process
from fastdiff.shapes.student import CHECKPOINT, TEACHER
from fastdiff.shapes.text import tokenize
from fastdiff.shapes.train_unet import load_bank
from fastdiff.shapes.train_vae import encode_bank, training_scenes
from fastdiff.training import Average, ForwardProcess, boundary, pseudo_huber

TIMES = 50  # LCMScheduler's original_inference_steps: 19, 39, .. 999
EMA, HUBER = 0.98, 0.01


@torch.no_grad()
def tokens_of(pipe: StableDiffusionPipeline) -> Tensor:
    """Tokens (scenes + 1, 16, width) of all training scenes, and last those of the empty prompt."""
    prompts = [scene.prompt for scene in training_scenes()] + [""]
    tokens: Tensor = pipe.text_encoder(tokenize(pipe.tokenizer, prompts)).last_hidden_state
    return tokens


def consistency(process: ForwardProcess, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """f(x, t) = c_skip x + c_out x^ from the network's output."""
    c_skip, c_out = (c.to(x.dtype)[:, None, None, None] for c in boundary(t))
    return c_skip * x + c_out * process.denoised(x, out, t)


def ddim(process: ForwardProcess, x: Tensor, out: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One DDIM step from time t to s; s < 0 is the clean end, alpha 1 and sigma 0."""
    alpha, sigma = (v.to(x.dtype)[:, None, None, None] for v in process.levels(s.clamp(min=0)))
    clean = process.denoised(x, out, t)
    then = alpha * clean + sigma * process.noise_in(x, out, t)
    return torch.where((s < 0)[:, None, None, None], clean, then)


def targets(
    teacher: UNet2DConditionModel,
    average: UNet2DConditionModel,
    process: ForwardProcess,
    x: Tensor,
    t: Tensor,
    text: Tensor,
    empty: Tensor,
    *,
    skip: int,
    guidance: float = GUIDANCE,
) -> Tensor:
    """What the student should return for x at t: f' where the guided teacher's step ends."""
    with torch.no_grad():
        both = torch.cat([empty.expand_as(text), text])
        low, high = teacher(torch.cat([x, x]), torch.cat([t, t]), both).sample.chunk(2)
        s = t - skip
        x_s = ddim(process, x, low + guidance * (high - low), t, s)
        at = s.clamp(min=0)
        jumped = consistency(process, x_s, average(x_s, at, text).sample, at)
        return torch.where((s < 0)[:, None, None, None], x_s, jumped)


def train(
    teacher: Path,
    folder: Path,
    *,
    steps: int,
    decay: int = 0,
    skip: int = 20,
    batch: int = 32,
    peak: float = 4e-4,
    seed: int = 0,
    bank: Path | None = None,
    save_minutes: float = 2.0,
) -> None:
    """Train until `steps` in all are done; the rate falls in the last `decay` of them."""
    process = forward_process()
    pipe = StableDiffusionPipeline.from_pretrained(
        teacher, dtype=torch.float32, local_files_only=True
    )
    guide = pipe.unet.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    student, follower = _copy(guide).requires_grad_(True), _copy(guide)
    parameters = list(student.parameters())
    average = Average(parameters, EMA)
    optimizer = torch.optim.AdamW(parameters, peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    done, before, state = 0, 0.0, checkpoint.load(folder / CHECKPOINT)
    if state is not None:
        done, before = state["step"], state["minutes"]
        student.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        checkpoint.log(folder, "start", weights=weights_hash(teacher))
    latents, scenes = load_bank(bank) if bank else _encoded(pipe.vae, folder, seed)
    tokens = tokens_of(pipe)
    empty = tokens[-1:]
    generator = torch.Generator().manual_seed(seed + 1000 * done)
    clock, saved, losses = time.process_time(), time.time(), list[float]()

    def minutes() -> float:
        return before + (time.process_time() - clock) / 60

    for step in tqdm(range(done, steps), desc="student", initial=done, total=steps, mininterval=10):
        row = torch.randint(len(latents), (batch,), generator=generator)
        x0 = latents[row].float().contiguous(memory_format=torch.channels_last)
        text = tokens[scenes[row]]
        t = (1000 // TIMES) * torch.randint(1, TIMES + 1, (batch,), generator=generator) - 1
        noise = torch.randn(x0.shape, generator=generator)
        x = process.noisy(x0, noise, t).contiguous(memory_format=torch.channels_last)
        average.copy_to(follower.parameters())
        wanted = targets(guide, follower, process, x, t, text, empty, skip=skip)
        found = consistency(process, x, student(x, t, text).sample, t)
        loss = pseudo_huber(found - wanted, HUBER).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(peak, step, steps, decay)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        losses.append(loss.item())
        if len(losses) == 20:
            values = {"loss": round(sum(losses) / 20, 5), "minutes": round(minutes(), 2)}
            checkpoint.log(
                folder, "student", step=step + 1, batch=batch, skip=skip, peak=peak, **values
            )
            losses.clear()
        if time.time() - saved > 60 * save_minutes:
            saved = time.time()
            _save(folder, student, average, optimizer, step + 1, minutes())
    _save(folder, student, average, optimizer, max(done, steps), minutes())


def rate(peak: float, step: int, steps: int, decay: int) -> float:
    """Learning rate of a step: warm-up over 30, then constant, then down to 2 % over `decay`."""
    left = (steps - step) / decay if decay else 1.0
    return peak * min(1.0, (step + 1) / 30) * min(1.0, max(left, 0.02))


def _copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    made: UNet2DConditionModel = UNet2DConditionModel.from_config(unet.config)
    made.load_state_dict(unet.state_dict())
    return made.to(memory_format=torch.channels_last).requires_grad_(False)


def _encoded(vae: AutoencoderKL, folder: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and scenes of 20,000 training pictures; kept in the folder."""
    encode_bank(vae, folder, count=20_000, seed=seed + 1)
    return load_bank(folder)


def _save(
    folder: Path,
    student: UNet2DConditionModel,
    average: Average,
    optimizer: torch.optim.Optimizer,
    step: int,
    minutes: float,
) -> None:
    state: dict[str, Any] = {
        "model": student.state_dict(),
        "config": {k: v for k, v in student.config.items() if not k.startswith("_")},
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "minutes": minutes,
    }
    checkpoint.save(folder / CHECKPOINT, state)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.shapes.distill", description=__doc__)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="a diffusers folder")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--bank", type=Path, help="training folder whose bank-*.pt are used")
    parser.add_argument("--steps", type=int, default=400, help="in all, earlier calls included")
    parser.add_argument(
        "--decay", type=int, default=0, help="the last so many steps the rate falls"
    )
    parser.add_argument("--skip", type=int, default=20, help="times of 1000 that the teacher steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=4e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    train(
        options.teacher,
        options.folder,
        steps=options.steps,
        decay=options.decay,
        skip=options.skip,
        batch=options.batch,
        peak=options.peak,
        seed=options.seed,
        bank=options.bank,
    )


if __name__ == "__main__":
    main()
