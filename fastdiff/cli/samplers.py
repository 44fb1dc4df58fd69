"""`fastdiff samplers`: every solver of the registry, what it costs, and what others call it."""

import json as json_format
from typing import Any

from fastdiff.registry import SOLVERS, Solver

SCHEMA = 1
HEAD = ("name", "order", "calls", "draws noise", "ComfyUI", "A1111", "diffusers")
FOOT = """order: of convergence from a cold start; calls: of the network, a step.
Every name is taken by fastdiff.sampler(name), fastdiff.plan(name, steps=..) and --sampler of
`fastdiff generate`, in any case, with blanks, dashes or underscores."""


def collect() -> dict[str, Any]:
    """Everything that is printed, in values that JSON can hold."""
    return {"schema": SCHEMA, "samplers": [_facts(solver) for solver in SOLVERS.values()]}


def print_samplers(json: bool = False) -> None:
    """Print the registry, as JSON or for people."""
    print(json_format.dumps(collect(), indent=2) if json else _text())


def rows() -> list[tuple[str, ...]]:
    """The table, a line a solver, columns of HEAD."""
    return [
        (
            solver.name,
            str(solver.order),
            str(solver.evaluations),
            solver.draws,
            ", ".join(solver.comfyui),
            ", ".join(solver.a1111),
            ", ".join(diffusers_calls(solver)),
        )
        for solver in SOLVERS.values()
    ]


def diffusers_calls(solver: Solver) -> list[str]:
    """The classes of diffusers that it replaces, with their options, as one writes them."""
    return [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in config.items())})"
        for name, config in (solver.scheduler, *solver.also)
    ]


def _facts(solver: Solver) -> dict[str, Any]:
    name, config = solver.scheduler
    options = {k: str(v) if v == float("inf") else v for k, v in solver.options.items()}
    return {
        "name": solver.name,
        "order": solver.order,
        "evaluations": solver.evaluations,
        "noise": solver.noise,
        "draws": solver.draws,
        "options": options,
        "comfyui": list(solver.comfyui),
        "a1111": list(solver.a1111),
        "others": list(solver.others),
        "diffusers": {"class": name, "config": dict(config)},
        "also": [{"class": other, "config": dict(config)} for other, config in solver.also],
    }


def _text() -> str:
    table = [HEAD, *rows()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join([*lines, "", FOOT])
