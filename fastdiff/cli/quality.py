"""`fastdiff bench quality`: pictures of the built-in model against steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastdiff.cli import UserError, model
from fastdiff.cli.options import no_file, numbers_in, within, written_to
from fastdiff.quality.page import page
from fastdiff.quality.picture import svg
from fastdiff.quality.record import Task, as_csv, run
from fastdiff.quality.samplers import LEFT_OUT, STEPS
from fastdiff.registry import find

ENDS = (".json", ".csv", ".svg", ".md")


def quality(
    out: Path,
    *,
    steps: str | None = None,
    sampler: list[str] | None = None,
    pictures: int = 64,
    batch: int = 16,
    compared: int = 8,
    student: Path | None = None,
    threads: int = 1,
    fresh: bool = False,
    weights: Path | None = None,
    reference_calls: int | None = None,
) -> None:
    """Run what out/quality.json lacks, then write the files beside it.

    weights, reference_calls  of tests: another model than the built-in one, a shorter reference
    """
    for name, value, most in (
        ("--pictures", pictures, 100_000),
        ("--batch", batch, 1024),
        ("--threads", threads, 1024),
    ):
        within(name, value, 1, most)
    within("--compared", compared, 0, batch, "the --batch")
    numbers = STEPS if steps is None else numbers_in("--steps", steps, "steps", 1)
    if student is not None and not (student / "config.json").is_file():
        raise UserError(
            f"--student must be the folder of a U-Net, with its config.json; got {str(student)!r}"
        )
    no_file("--out", out)
    task = Task(pictures, batch, compared, numbers, tuple(map(_sampler, sampler or ())))
    if reference_calls is not None:
        task = replace(task, calls=reference_calls)
    home = weights or model.built_in()

    import torch

    from fastdiff.shapes.card import processor
    from fastdiff.shapes.fingerprint import part_hash, weights_hash

    torch.set_num_threads(threads)
    config = model.scheduler_config(home)
    subject = model.subject(home, model.default_guidance(model.built_in()))
    pupil = None
    if student is not None:
        from diffusers import UNet2DConditionModel

        try:
            unet = UNet2DConditionModel.from_pretrained(student, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--student must be the folder of a U-Net; got {str(student)!r}, which diffusers "
                f"cannot load: {' '.join(str(error).split()):.200}"
            ) from error
        unet = unet.float().eval()
        unet.to(memory_format=torch.channels_last)
        pupil = replace(subject, guidance=1.0, unet=unet)
    origin = {
        "model": "the built-in model",
        "weights": weights_hash(home),
        "threads": threads,
        "device": processor(),
    }
    with written_to("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        record = run(
            *(out, subject, config, task, origin),
            student=pupil,
            student_weights=None if student is None else part_hash(student),
            fresh=fresh,
            tell=lambda text: print(text, flush=True),
        )
        for end, text in zip(ENDS[1:], (as_csv(record), svg(record), page(record)), strict=True):
            (out / f"quality{end}").write_text(text, encoding="utf-8")
    print(f"{out / 'quality'}{', '.join(ENDS)}")


def _sampler(name: str) -> str:
    try:
        found = find(name).name
    except ValueError as error:
        raise UserError(f"--sampler must be of the registry: {error}") from error
    if found in LEFT_OUT:
        raise UserError(f"--sampler must be one that takes part; {found} {LEFT_OUT[found]}")
    return found
