"""Stage 3: the denoising network, on the latents of the bank and the tokens of the frozen text
encoder.

    x_t = alpha_t x0 + sigma_t n         target v = alpha_t n - sigma_t x0         loss = |u(x_t,
    t, tokens) - v|^2

Written for x0, this loss has weight 1 at the noisy end and 1/sigma_t^2 at the clean end, so the
noisy end, where the layout is decided, counts; half of all times are drawn there besides (550 <=
t).  The tokens of one picture in ten are those of the empty prompt, for classifier-free guidance.
What ships is the exponential moving average (EMA) of the weights.

W workers on one machine share each batch and average their gradients (gloo); each worker uses one
thread.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from fastdiff.shapes import checkpoint
from fastdiff.shapes.networks import (
    bfloat16_is_fast,
    build_text_encoder,
    build_unet,
    forward_process,
)
from fastdiff.shapes.text import build_tokenizer, tokenize
from fastdiff.shapes.train_vae import training_scenes
from fastdiff.training import Average, ForwardProcess, drop

UNCONDITIONAL, NOISY_SHARE, NOISY_FROM = 0.1, 0.5, 550
EMA = 0.999


def load_bank(folder: Path) -> tuple[Tensor, Tensor]:
    """All banks of a folder: latents (N, 4, 16, 16) fp16 and indices into training_scenes()
    (N,)."""
    banks = [checkpoint.load(path) for path in sorted(folder.glob("bank-*.pt"))]
    if not banks:
        raise FileNotFoundError(f"no bank-*.pt in {folder}; run the stage 'vae' first")
    parts = [bank for bank in banks if bank is not None]
    return torch.cat([b["latents"] for b in parts]), torch.cat([b["scenes"] for b in parts])


@torch.no_grad()
def scene_tokens(folder: Path) -> Tensor:
    """Tokens (scenes + 1, 16, width) of all training scenes, and last those of the empty prompt."""
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer), tokenizer.eos_token_id).eval()
    encoder.load_state_dict(checkpoint.load(folder / "text.pt") or {})
    prompts = [scene.prompt for scene in training_scenes()] + [""]
    tokens: Tensor = encoder(tokenize(tokenizer, prompts)).last_hidden_state
    return tokens


def learning_rate(peak: float, step: int, left: float | None) -> float:
    """Warm-up over 200 steps, then constant; `left` = share of the decay phase that is left, or
    None."""
    rate = peak * min(1.0, (step + 1) / 200)
    return rate if left is None else rate * max(left, 0.01)


def train(
    folder: Path,
    *,
    minutes: float,
    decay: float = 0.0,
    workers: int = 2,
    seed: int = 0,
    batch: int = 64,
    peak: float = 1e-3,
    compiled: bool = True,
) -> None:
    """Continue unet.pt (or start it); in the last `decay` minutes the learning rate falls."""
    with TemporaryDirectory() as meeting:  # a file: a port may be another run's
        place = f"file://{meeting}/workers"
        arguments = (workers, place, folder, minutes, decay, seed, batch, peak, compiled)
        spawn(_worker, arguments, nprocs=workers)  # type: ignore[no-untyped-call]


def _worker(
    rank: int,
    workers: int,
    place: str,
    folder: Path,
    minutes: float,
    decay: float,
    seed: int,
    batch: int,
    peak: float,
    compiled: bool,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=workers)
    torch.manual_seed(seed)
    unet = build_unet().to(memory_format=torch.channels_last)
    parameters = list(unet.parameters())
    average = Average(parameters, EMA)
    optimizer = torch.optim.AdamW(
        parameters, peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = checkpoint.load(folder / "unet.pt")
    step, before = 0, 0.0
    if state is not None:
        step, before = state["step"], state["minutes"]
        unet.load_state_dict(state["model"])
        if "optimizer" in state:  # absent where only the weights were taken over
            optimizer.load_state_dict(state["optimizer"])
        ema = [state["ema"][name] for name, _ in unet.named_parameters()]
        average.load_state_dict({"step": step, "values": ema})
    generator = torch.Generator().manual_seed(seed + 1000 * step + rank)
    latents, scenes = load_bank(folder)
    tokens = scene_tokens(folder)
    process = forward_process()

    low = bfloat16_is_fast()

    def loss_of(x: Tensor, t: Tensor, text: Tensor, target: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            v = unet(x, t, text).sample
        error: Tensor = (v.float() - target).square().mean((1, 2, 3))
        return error

    measure = torch.compile(loss_of) if compiled else loss_of
    share, started, spent, last_save = batch // workers, time.time(), 0.0, 0.0
    losses: list[Tensor] = []
    bar = tqdm(desc="unet", unit=" steps", initial=step, disable=rank != 0, mininterval=10)
    while True:
        now = torch.tensor([(time.time() - started) / 60])
        dist.broadcast(now, 0)  # one clock, so that all stop together
        spent = now.item()
        if rank == 0 and (spent - last_save > 3 or spent >= minutes) and step:
            last_save = spent
            _save(folder, unet, average, optimizer, step, before + spent, batch, seed)
        if spent >= minutes:
            break
        x, t, text, target = _batch(latents, scenes, tokens, process, share, generator)
        loss = measure(x, t, text, target)
        loss.mean().backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(gradient)
        gradient *= min(1.0 / workers, 1.0 / float(gradient.norm()))  # mean, clipped to norm 1
        at = 0
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(gradient[at : at + p.numel()].view_as(p))
                at += p.numel()
        left = (minutes - spent) / decay if decay and minutes - spent < decay else None
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, left)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        average.update()
        step += 1
        bar.update()
        losses.append(torch.stack([loss.detach()[t >= 550].mean(), loss.detach()[t < 550].mean()]))
        if step % 50:
            continue
        noisy, clean = torch.stack(losses).nanmean(0).tolist()
        losses.clear()
        if rank == 0:
            checkpoint.log(
                folder,
                "unet",
                step=step,
                minutes=round(before + spent, 2),
                rate=optimizer.param_groups[0]["lr"],
                loss_noisy=round(noisy, 5),
                loss_clean=round(clean, 5),
            )
    bar.close()
    dist.destroy_process_group()


def _batch(
    latents: Tensor,
    scenes: Tensor,
    tokens: Tensor,
    process: ForwardProcess,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, times, tokens and the velocities to predict."""

    row = torch.randint(len(latents), (count,), generator=generator)
    x0 = latents[row].float().contiguous(memory_format=torch.channels_last)
    scene = drop(scenes[row], torch.tensor(len(tokens) - 1), UNCONDITIONAL, generator)
    noisy = torch.rand(count, generator=generator) < NOISY_SHARE
    t = process.times(count, generator, low=torch.where(noisy, NOISY_FROM, 0))
    noise = torch.randn(x0.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return process.noisy(x0, noise, t), t, tokens[scene], process.target(x0, noise, t)


def _save(
    folder: Path,
    unet: torch.nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    step: int,
    minutes: float,
    batch: int,
    seed: int,
) -> None:
    names = [name for name, _ in unet.named_parameters()]
    state: dict[str, Any] = {
        "model": unet.state_dict(),
        "ema": dict(zip(names, average.values, strict=True)),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "minutes": minutes,
        "batch": batch,
        "seed": seed,
    }
    checkpoint.save(folder / "unet.pt", state)
