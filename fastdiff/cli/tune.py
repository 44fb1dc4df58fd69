"""`fastdiff tune MODEL`: a table of few calls, fitted to one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError, model
from fastdiff.cli.generate import SEEDS

if TYPE_CHECKING:
    from torch import Tensor

BUILT_IN = "shapes"
FIT, HELD_OUT = 64, 96
APART = 100_000  # between the first seeds of both


def tune(
    name: str,
    *,
    steps: int,
    folder: Path,
    guidance: float | None = None,
    seed: int = APART,
    held_out_seed: int = 2 * APART,
    fit: int = FIT,
    held_out: int = HELD_OUT,
    fine: int = 100,
    prompts: Path | None = None,
    threads: int = 1,
) -> None:
    """Run what the folder lacks, then write plan and card there."""
    _check(steps, fit, held_out, fine, guidance, threads)
    for option, first, count in (("seed", seed, fit), ("held-out-seed", held_out_seed, held_out)):
        if not 0 <= first <= SEEDS - count:
            raise UserError(f"--{option} must be in 0 .. 2**63 - {count}; got {first}")
    home = model.built_in() if name == BUILT_IN else Path(name)
    if prompts is None and name != BUILT_IN:
        raise UserError(
            f"--prompts must be a file with a prompt a line for the model {name!r}; only the "
            f"built-in model, {BUILT_IN!r}, has its own"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--folder must be a folder; {folder} is a file")
    known, others = _prompts(prompts, fit, held_out)
    config = model.scheduler_config(home)
    family = model.family(home, config)
    if config.get("rescale_betas_zero_snr"):
        raise UserError(
            "the model's noisiest level must have a signal, for a grid is searched in log(sigma / "
            "alpha); got rescale_betas_zero_snr"
        )

    import torch

    from fastdiff.shapes.fingerprint import weights_hash
    from fastdiff.tune.run import Task, opened
    from fastdiff.tune.run import tune as search
    from fastdiff.tune.subject import Start, Subject

    torch.set_num_threads(threads)
    pipe = model.load(home, "cpu")
    pipe.unet.to(memory_format=torch.channels_last)
    if guidance is None:
        guidance = model.default_guidance(home)
    subject = Subject(pipe, family, config["prediction_type"], guidance)
    task = Task(
        steps,
        Start(known, tuple(range(seed, seed + fit))),
        Start(others, tuple(range(held_out_seed, held_out_seed + held_out))),
        fine,
    )
    shown = "the built-in model" if name == BUILT_IN else home.name
    origin = {"model": shown, "weights": weights_hash(home)}
    try:
        run = opened(folder, subject, task, origin, lambda text: print(text, flush=True))
        search(run, _oracle(subject) if prompts is None else None)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"--folder must be a folder that can be written; got {str(folder)!r}: {error}"
        ) from error
    result = run.record["result"]
    print(
        f"{folder / f'tuned-{steps}.json'}: {result['tuned']['distance']:.4f} from the reference; "
        f"best untuned ({result['untuned']['name']}): {result['untuned']['distance']:.4f}"
    )


def _check(
    steps: int, fit: int, held_out: int, fine: int, guidance: float | None, threads: int
) -> None:
    from fastdiff.tune.general import FEWEST, MOST

    if not FEWEST <= steps <= MOST:
        raise UserError(f"--steps must be in {FEWEST} .. {MOST}; got {steps}")
    for name, value in (("--fit", fit), ("--held-out", held_out)):
        if not 1 <= value <= 10_000:
            raise UserError(f"{name} must be in 1 .. 10000; got {value}")
    if not 4 * steps <= fine <= 1000:
        raise UserError(f"--fine must be in {4 * steps} .. 1000, four times --steps; got {fine}")
    if guidance is not None and not 0 <= guidance <= 100:
        raise UserError(f"--guidance must be in 0 .. 100; got {guidance:g}")
    if not 1 <= threads <= 1024:
        raise UserError(f"--threads must be in 1 .. 1024; got {threads}")


def _prompts(file: Path | None, fit: int, held_out: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the fit and those to score on, which have none in common."""
    if file is None:
        from fastdiff.shapes.evaluate import prompts_for

        return (
            tuple(prompts_for(fit, one=False, seed=0, seen=True)),
            tuple(prompts_for(held_out, one=False, seed=0)),
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts must be a text file; got {str(file)!r}: {error}") from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) < 2:
        raise UserError(
            f"--prompts must hold two different prompts or more, one a line: half of them are to "
            f"score on; {str(file)!r} has {len(lines)}"
        )
    known, others = lines[::2], lines[1::2]
    return (
        tuple(known[i % len(known)] for i in range(fit)),
        tuple(others[i % len(others)] for i in range(held_out)),
    )


def _oracle(subject: Any) -> Any:
    """(end points, prompts) -> how many pictures are right, and Wilson's interval."""
    from fastdiff.shapes.evaluate import wilson
    from fastdiff.shapes.oracle import judge

    def verdict(ends: Tensor, prompts: tuple[str, ...]) -> dict[str, Any]:
        pictures = subject.pictures(ends)
        right = sum(judge(x, p).right for x, p in zip(pictures, prompts, strict=True))
        return {"right": int(right), "count": len(prompts), "interval": wilson(right, len(prompts))}

    return verdict
