"""Train the built-in model from scratch: python -m fastdiff.shapes.train all --folder runs/base

Stages, in this order: `vae` (autoencoder and bank of latents), `text` (text encoder), `unet`
(denoising network).  Every stage writes its checkpoint and log.jsonl into the folder; `unet`
continues where its last checkpoint stopped, so that it can run in pieces.  On two CPU cores: 9 + 3
minutes, 2 minutes, hours.
"""

import argparse
from pathlib import Path

STAGES = ("vae", "text", "unet", "all")


def arguments() -> argparse.ArgumentParser:
    """The options, with defaults as the shipped weights were made."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.shapes.train", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/base"), help="checkpoints and log"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--vae-minutes", type=float, default=8.5)
    parser.add_argument("--bank", type=int, default=60_000, help="pictures encoded for stage unet")
    parser.add_argument("--text-steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=100.0, help="of stage unet, this time")
    parser.add_argument(
        "--decay", type=float, default=0.0, help="the last so many of these minutes the rate falls"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate of stage unet")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the stages asked for."""
    options = arguments().parse_args(argv)

    import torch

    from fastdiff.shapes import text, train_unet, train_vae

    torch.set_num_threads(options.workers)
    folder, seed = options.folder, options.seed
    if options.stage in ("vae", "all"):
        vae = train_vae.train(folder, minutes=options.vae_minutes, seed=seed)
        train_vae.make_bank(folder, vae.eval(), count=options.bank, seed=seed + 1)
    if options.stage in ("text", "all"):
        text.train(folder, steps=options.text_steps, seed=seed)
    if options.stage in ("unet", "all"):
        train_unet.train(
            folder,
            minutes=options.minutes,
            decay=options.decay,
            workers=options.workers,
            seed=seed,
            batch=options.batch,
            peak=options.peak,
            compiled=not options.no_compile,
        )


if __name__ == "__main__":
    main()
