"""`fastdiff bench accuracy`: error against calls of the network, as JSON, SVG and a page."""

from __future__ import annotations

from pathlib import Path

from fastdiff.accuracy.contestants import EXCLUDED, VARIANTS, contestants
from fastdiff.accuracy.page import page
from fastdiff.accuracy.picture import svg
from fastdiff.accuracy.problem import FAMILIES, SAMPLES
from fastdiff.accuracy.record import run
from fastdiff.accuracy.runs import BUDGETS
from fastdiff.cli import UserError
from fastdiff.cli.options import no_file, numbers_in, within, written_to
from fastdiff.registry import SOLVERS, find

STEM = "accuracy"
ENDS = (".json", ".svg", ".md")


def accuracy(
    out: Path,
    budgets: str | None = None,
    family: str | None = None,
    solver: list[str] | None = None,
    samples: int = SAMPLES,
    fresh: bool = False,
) -> None:
    """Run what out/accuracy.json lacks, then write picture and page beside it."""
    if family is not None and family not in FAMILIES:
        raise UserError(f"--family must be one of {', '.join(FAMILIES)}; got {family!r}")
    within("--samples", samples, 2, 10**6)
    no_file("--out", out)
    chosen = frozenset(map(_solver, solver)) if solver else None
    numbers = BUDGETS if budgets is None else numbers_in("--budgets", budgets, "calls", 2)
    families = tuple(FAMILIES) if family is None else (family,)
    _takes_part(families, chosen)
    with written_to("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / f"{STEM}{end}" for end in ENDS):
            if path.is_dir():
                raise UserError(f"--out must be a folder to write {path.name} in; {path} is one")
        record = run(
            out / f"{STEM}.json",
            budgets=numbers,
            families=families,
            solvers=chosen,
            samples=samples,
            fresh=fresh,
            tell=lambda text: print(text, flush=True),
        )
        (out / f"{STEM}.svg").write_text(svg(record), encoding="utf-8")
        (out / f"{STEM}.md").write_text(page(record), encoding="utf-8")
    print(f"{out / STEM}.json, .svg, .md")


def _takes_part(families: tuple[str, ...], chosen: frozenset[str] | None) -> None:
    """UserError with the reasons where none of the chosen solvers runs in these families."""
    if chosen is None or any(who.solver in chosen for f in families for who in contestants(f)):
        return
    reasons = [
        f"{name}, {family}: {EXCLUDED[name.partition('(')[0], family]}"
        for name in sorted(chosen)
        for family in families
    ]
    raise UserError(
        f"--solver must be one that takes part in {', '.join(families)}; got "
        f"{', '.join(sorted(chosen))}, left out ({'; '.join(reasons)})"
    )


def _solver(name: str) -> str:
    if name in (one.name for one in VARIANTS):
        return name
    try:
        return find(name).name
    except ValueError as error:
        known = ", ".join((*SOLVERS, *(one.name for one in VARIANTS)))
        raise UserError(f"--solver must be one of {known}; got {name!r}") from error
