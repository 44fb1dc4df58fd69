"""Train a small denoising network on a folder of your own 64x64 pictures, on a CPU, and draw.

    python examples/train_on_a_folder.py PICTURES [--minutes 10] [--labels] [--out FILE]

Every picture below PICTURES is read, made upright and brought to 64x64, with white where it is
transparent; files that cannot be read are named and left out.  With --labels the folders in it are
classes: a tenth of the labels are left out in training, and the drawing is guided (g = 2).
The network works on 12x32x32 blocks of pixels; expect shapes and colours after ten minutes on a
few hundred pictures, and more the longer you wait.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image, ImageOps
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import fastdiff
from fastdiff.training import Average, ForwardProcess, drop

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read(folder: Path, side: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Pictures (N, 3, side, side) in -1..1, the number of their class, and the classes' names."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    pictures, classes = [], []
    for file in sorted(found):
        try:
            pictures.append(picture(file, side))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            print(f"left out {file}: {error}")
        else:
            classes.append(str(file.parent.relative_to(folder)))
    if not pictures:
        raise SystemExit(f"no picture ({', '.join(sorted(ENDINGS))}) in {str(folder)!r}")
    names = sorted(set(classes))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, torch.tensor([names.index(name) for name in classes]), names


def picture(file: Path, side: int) -> np.ndarray:
    """One picture of any mode and size, (side, side, 3) bytes."""
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):  # 16 bits of grey, which PIL would cut off at 255
        upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
    seen = Image.new("RGBA", upright.size, "white")
    seen.alpha_composite(upright.convert("RGBA"))
    return np.asarray(seen.convert("RGB").resize((side, side)))


def network(side: int, classes: int, width: int) -> UNet2DModel:
    """Noisy blocks, a time and a class to the velocity; class number `classes` is none."""
    return UNet2DModel(
        sample_size=side // 2,
        in_channels=12,
        out_channels=12,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=width // 2,
        norm_num_groups=8,
        num_class_embeds=classes + 1,
    )


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--labels", action="store_true", help="folders are classes")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, help="stop after so many steps instead")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--width", type=int, default=48, help="channels of the first block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("drawn.png"))
    options = parser.parse_args(argv)
    for name, unit in (("side", 8), ("width", 8), ("batch", 1)):  # three levels; groups
        if (got := getattr(options, name)) < unit or got % unit:
            parser.error(f"--{name} must be a multiple of {unit}, above 0; got {got}")
    torch.manual_seed(options.seed)
    pictures, labels, names = read(options.pictures, options.side)
    none = len(names)
    if not options.labels:
        labels = torch.full_like(labels, none)
    net = network(options.side, len(names), options.width)
    optimizer = torch.optim.AdamW(net.parameters(), options.rate)

    # what is trained: from x_t the velocity, each noise level about as much as its signal is worth
    process = ForwardProcess("squaredcos_cap_v2", "v_prediction")
    average = Average(net.parameters(), decay=0.995)
    losses: list[float] = []
    started = time.time()

    def over() -> bool:
        if options.steps:
            return len(losses) >= options.steps
        return time.time() >= started + 60 * options.minutes

    while not over():
        row = torch.randint(len(pictures), (options.batch,))
        x0 = pixel_unshuffle(pictures[row], 2)
        noise = torch.randn_like(x0)
        t = process.times(len(x0))
        classes = drop(labels[row], torch.tensor(none), 0.1)
        out = net(process.noisy(x0, noise, t), t, classes).sample
        error = (out - process.target(x0, noise, t)).square().flatten(1).mean(1)
        loss = (process.weight("min_snr", t) * error).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(f"step {len(losses)}, loss {np.mean(losses[-50:]):.4f}", flush=True)

    # what is drawn: eight pictures of the averaged weights, by the same noise schedule
    average.copy_to(net.parameters())
    guided = options.labels
    plan = fastdiff.plan(
        "dpmpp_2m",
        steps=20,
        noise=process.schedule,
        spacing="trailing",
        prediction=process.prediction,
        guidance=2.0 if guided else None,
    )
    wanted = torch.arange(8) % len(names) if guided else torch.full((8,), none)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> object:
        if not guided:
            return net(x, t, wanted).sample
        return net(x, t, torch.full((8,), none)).sample, net(x, t, wanted).sample

    with torch.no_grad():
        x = fastdiff.sample(denoise, torch.randn(8, 12, options.side // 2, options.side // 2), plan)
    row = torch.cat(list(pixel_shuffle(x, 2)), 2).permute(1, 2, 0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((row.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(options.out)
    print(f"{len(losses)} steps on {len(pictures)} pictures; {options.out} shows eight drawn ones")
    if guided:
        print("classes, in that order:", ", ".join(names))
    return losses


if __name__ == "__main__":
    main()
