"""`fastdiff tune MODEL`: a table of few calls, fitted to one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli import UserError, model
from fastdiff.cli.generate import SEEDS
from fastdiff.cli.options import MOST as MOST_CALLS
from fastdiff.cli.options import no_file, within, written_to

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
    no_file("--folder", folder)
    known, others = _prompts(prompts, fit, held_out)
    config = model.scheduler_config(home)
    model.family(home, config)  # a folder without one is refused before torch is imported
    if config.get("rescale_betas_zero_snr"):
        raise UserError(
            "the model's noisiest level must have a signal, for a grid is searched in log(sigma / "
            "alpha); got rescale_betas_zero_snr"
        )

    import torch

    from fastdiff.shapes.fingerprint import weights_hash
    from fastdiff.tune.run import Task, opened
    from fastdiff.tune.run import tune as search
    from fastdiff.tune.subject import Start

    torch.set_num_threads(threads)
    subject = model.subject(home, model.default_guidance(home) if guidance is None else guidance)
    task = Task(
        steps,
        Start(known, tuple(range(seed, seed + fit))),
        Start(others, tuple(range(held_out_seed, held_out_seed + held_out))),
        fine,
    )
    shown = "the built-in model" if name == BUILT_IN else home.name
    origin = {"model": shown, "weights": weights_hash(home)}
    with written_to("--folder", folder):
        run = opened(folder, subject, task, origin, lambda text: print(text, flush=True))
        try:
            search(run, _oracle(subject) if prompts is None else None)
        except ImportError as error:  # a solver that needs SciPy
            raise UserError(str(error)) from error
    result = run.record["result"]
    print(
        f"{folder / f'tuned-{steps}.json'}: {result['tuned']['distance']:.4f} from the reference; "
        f"best untuned ({result['untuned']['name']}): {result['untuned']['distance']:.4f}"
    )


def _check(
    steps: int, fit: int, held_out: int, fine: int, guidance: float | None, threads: int
) -> None:
    from fastdiff.tune.general import FEWEST, MOST

    within("--steps", steps, FEWEST, MOST)
    for name, value in (("--fit", fit), ("--held-out", held_out)):
        within(name, value, 1, 10_000)
    within("--fine", fine, 4 * steps, MOST_CALLS, "four times --steps")
    if guidance is not None:
        within("--guidance", guidance, 0, 100)
    within("--threads", threads, 1, 1024)


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
