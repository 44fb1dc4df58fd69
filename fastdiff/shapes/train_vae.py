"""Stage 1: the autoencoder, and a bank of latents for stage 3.

    loss = |D(z') - x| + 2 (D(z') - x)^2 + (z_rgb - pooled(x))^2 + 1e-3 z_4^2
    z = E(x),  z' = z + 0.1 noise

The first three channels are asked to be the colours of the picture, averaged over 4x4 pixels and
brought to mean 0 and deviation 1; the fourth is free to say where in a block the edges lie.
Left alone, the autoencoder puts six colours almost on a line (distances down to 0.7 of a standard
deviation), and the network of stage 3 cannot tell red from purple before the noise is nearly gone.
The noise makes the decoder forgiving: that network never hits a latent exactly.

Training sees 32x32 crops first (the net is fully convolutional), in bfloat16 where the CPU has it,
and whole pictures in float32 in the last third.  Afterwards the mean and the standard deviation of
each latent channel are folded into the two 1x1 convolutions, so that the pipeline's scaling_factor
is 1.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fastdiff.shapes import checkpoint
from fastdiff.shapes.networks import bfloat16_is_fast, build_vae
from fastdiff.shapes.scenes import (
    Scene,
    held_out,
    one_object_scenes,
    place,
    render,
    two_object_scenes,
)

RADII, MARGIN = (9.0, 13.2), 1.5  # training scenes keep clear of the limits of the definition
ONE_OBJECT_SHARE = 0.15
POOLED_MEAN, POOLED_STD = 0.8, 0.5  # of training pictures: mostly white
JITTER = 4.0  # of the bank: the less layouts vary, the sooner text and picture are joined


def training_scenes() -> list[Scene]:
    """One-object scenes, then the two-object scenes that are not held back."""
    return one_object_scenes() + [s for s in two_object_scenes() if not held_out(s)]


def draw_scenes(
    count: int,
    rng: np.random.Generator,
    *,
    jitter: float | None = None,
    single_share: float = ONE_OBJECT_SHARE,
) -> tuple[np.ndarray, Tensor]:
    """Indices into training_scenes() and pictures (count, 3, 64, 64) in -1..1."""
    scenes, ones = training_scenes(), len(one_object_scenes())
    single = rng.random(count) < single_share
    index = np.where(single, rng.integers(0, ones, count), rng.integers(ones, len(scenes), count))
    layout = place([scenes[i] for i in index], rng, radii=RADII, margin=MARGIN, jitter=jitter)
    return index, render(layout) * 2 - 1


def train(folder: Path, *, minutes: float, seed: int = 0, batch: int = 8) -> None:
    """Train for so many minutes, on from vae.pt if there is one; it is saved every two minutes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    state = checkpoint.load(folder / "vae.pt")
    if state is not None:
        vae.load_state_dict(state)
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    started, step, spent, next_save = time.time(), 0, 0.0, 2.0
    losses: list[float] = []
    pool = draw_scenes(4096, rng)[1]
    bar = tqdm(total=round(minutes * 60), unit="s", desc="vae")
    while spent < minutes:
        if step % 500 == 499:
            pool = draw_scenes(4096, rng)[1]
        share = spent / minutes
        rate = 2e-3 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-5
        crops = share < 0.66
        low = crops and bfloat16_is_fast()
        if crops:
            picked = pool[torch.randint(len(pool), (4 * batch,))]
            oy, ox = (int(v) for v in torch.randint(0, 33, (2,)))
            x = picked[:, :, oy : oy + 32, ox : ox + 32]
        else:
            x = pool[torch.randint(len(pool), (batch,))]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            posterior = vae.encode(x).latent_dist
        z = posterior.mean.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = vae.decode(z + 0.1 * torch.randn_like(z)).sample
        error = out.float() - x
        colour = (z[:, :3] - pooled(x)).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + colour
        loss = loss + 1e-3 * z[:, 3].square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(error.abs().mean().item())
        step += 1
        now = (time.time() - started) / 60
        bar.update(int(now * 60) - int(spent * 60))
        spent = now
        if step % 100 == 0:
            checkpoint.log(
                folder, "vae", step=step, minutes=round(spent, 2), l1=float(np.mean(losses[-100:]))
            )
        if spent > next_save:
            next_save += 2.0
            checkpoint.save(folder / "vae.pt", vae.state_dict())
    bar.close()
    whiten(vae, draw_scenes(512, np.random.default_rng(seed + 1))[1])
    checkpoint.save(folder / "vae.pt", vae.state_dict())
    x = draw_scenes(256, np.random.default_rng(seed + 2))[1]
    with torch.no_grad():
        out = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    mae = F.l1_loss(out, x).item() / 2
    checkpoint.log(folder, "vae", step=step, minutes=round(spent, 2), seed=seed, mean_error=mae)


def pooled(pictures: Tensor) -> Tensor:
    """Mean colours of 4x4 blocks of pictures in -1..1, about mean 0 and standard deviation 1."""
    return (F.avg_pool2d(pictures, 4) - POOLED_MEAN) / POOLED_STD


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold mean and standard deviation of the channels into quant_conv and post_quant_conv."""
    z = vae.encode(pictures).latent_dist.mode()
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    n = len(mean)
    quant, back = vae.quant_conv, vae.post_quant_conv
    quant.weight[:n] /= std[:, None, None, None]
    quant.bias[:n] = (quant.bias[:n] - mean) / std
    quant.bias[n:] -= 2 * std.log()  # log variances
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]


def make_bank(
    folder: Path, *, count: int, seed: int, single_share: float = ONE_OBJECT_SHARE
) -> None:
    """encode_bank with the autoencoder of a training folder, vae.pt."""
    if (folder / f"bank-{seed}.pt").exists():
        return
    state = checkpoint.load(folder / "vae.pt")
    if state is None:
        raise FileNotFoundError(f"no vae.pt in {folder}; run the stage 'vae' first")
    vae = build_vae()
    vae.load_state_dict(state)
    encode_bank(vae, folder, count=count, seed=seed, single_share=single_share)


@torch.no_grad()
def encode_bank(
    vae: AutoencoderKL,
    folder: Path,
    *,
    count: int,
    seed: int,
    single_share: float = ONE_OBJECT_SHARE,
) -> None:
    """Encode `count` training pictures into bank-<seed>.pt of a folder: latents (count, 4, 16, 16)
    fp16 and their indices into training_scenes() (count,).  A bank that is there is kept."""
    if (folder / f"bank-{seed}.pt").exists():
        return
    vae = vae.eval().to(memory_format=torch.channels_last)
    rng = np.random.default_rng(seed)
    latents, scenes = [], []
    for start in tqdm(range(0, count, 64), desc="bank"):
        index, x = draw_scenes(
            min(64, count - start), rng, jitter=JITTER, single_share=single_share
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast()):
            z = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
        latents.append(z.contiguous().half())
        scenes.append(torch.from_numpy(index))
    bank = {"latents": torch.cat(latents), "scenes": torch.cat(scenes)}
    checkpoint.save(folder / f"bank-{seed}.pt", bank)
