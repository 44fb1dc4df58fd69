"""Train the built-in model from scratch: python -m fastdiff.shapes.train all --folder runs/base

Stages, in this order: `vae` (autoencoder), `bank` (latents of training pictures), `text` (text
encoder), `unet` (denoising network).  Every stage writes its checkpoint and log.jsonl into the
folder; `unet` continues where its last checkpoint stopped, so that it can run in pieces.  On two
CPU cores: 9, 3 and 2 minutes, then hours.

`more` trains the denoising network of a finished model on, with its autoencoder and text encoder
as they are, on a bank of new pictures:

    python -m fastdiff.shapes.train more --start-from my-model --folder runs/more
"""

import argparse
from pathlib import Path

STAGES = ("vae", "bank", "text", "unet", "all", "more")


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
    parser.add_argument(
        "--one-object-share", type=float, default=0.15, help="of the pictures of the bank"
    )
    parser.add_argument("--text-steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=100.0, help="of stage unet, this time")
    parser.add_argument(
        "--decay", type=float, default=0.0, help="the last so many of these minutes the rate falls"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate of stage unet")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    parser.add_argument(
        "--start-from", type=Path, help="of stage more: the diffusers folder to train on from"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the stages asked for."""
    parser = arguments()
    options = parser.parse_args(argv)
    if (options.stage == "more") != (options.start_from is not None):
        parser.error("--start-from FOLDER goes with the stage 'more', and only with it")

    import torch

    from fastdiff.shapes import text, train_unet, train_vae, warm_start

    torch.set_num_threads(options.workers)
    folder, seed = options.folder, options.seed
    if options.stage == "more":
        warm_start.take_over(options.start_from, folder)
    if options.stage in ("vae", "all"):
        train_vae.train(folder, minutes=options.vae_minutes, seed=seed)
    if options.stage in ("bank", "all", "more"):
        share = options.one_object_share
        train_vae.make_bank(folder, count=options.bank, seed=seed + 1, single_share=share)
    if options.stage in ("text", "all"):
        text.train(folder, steps=options.text_steps, seed=seed)
    if options.stage in ("unet", "all", "more"):
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
