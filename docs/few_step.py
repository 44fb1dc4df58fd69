"""python docs/few_step.py [--check]: write the tables of docs/few_step.md from the data.

The recipes are those of fastdiff.recipes, the traps those of fastdiff.doctor.
"""

from __future__ import annotations

import sys

from generated import DOCS, Files, filled, main, table

from fastdiff.doctor import TRAPS
from fastdiff.recipes import RECIPES, Recipe

PAGE = DOCS / "few_step.md"
RECIPE_HEAD = ("recipe", "for", "scheduler, and what is set in it", "steps", "guidance", "the call")
TRAP_HEAD = ("trap", "severity", "what goes wrong", "what would do", "source")


def options(values: object) -> str:
    """name=value, .., as one writes them."""
    return ", ".join(f"`{key}={value!r}`" for key, value in dict(values).items())


def guidance(recipe: Recipe) -> str:
    """The scales, and at which steps or in which networks they are others."""
    said = [f"{recipe.guidance} (default {recipe.guidance.default:g})"]
    for steps, variant in recipe.by_steps.items():
        if variant.guidance is not None:
            said.append(f"at {steps} steps {variant.guidance} ({variant.guidance.default:g})")
    if recipe.embedded is not None:
        said.append(f"with an embedding {recipe.embedded} ({recipe.embedded.default:g})")
    return "; ".join(said)


def call(recipe: Recipe) -> str:
    """What the call gets besides the number of steps and guidance."""
    given = recipe.arguments(recipe.steps[0])
    del given["num_inference_steps"]
    given |= {} if recipe.eta is None else {"eta": recipe.eta}
    given |= recipe.call
    said = [options(given)] if given else []
    for steps, variant in recipe.by_steps.items():
        if variant.call:
            said.append(f"at {steps} steps {options(variant.call)}")
    return "; ".join(said) or "-"


def scheduler(recipe: Recipe) -> str:
    said = f"`{recipe.scheduler}`: {options(recipe.config)}"
    for steps, variant in recipe.by_steps.items():
        if variant.config:
            said += f"; at {steps} step{'s' * (steps > 1)} {options(variant.config)}"
    return said


def link(source: str) -> str:
    if source.startswith("arXiv:"):
        return f"[{source}](https://arxiv.org/abs/{source.removeprefix('arXiv:')})"
    return f"<{source}>"


def recipes() -> str:
    """The table of recipes, and below it what is known of each and from where."""
    rows = []
    for name, recipe in RECIPES.items():
        each = "; each has its checkpoint" if recipe.each and len(recipe.steps) > 1 else ""
        cells = (
            f"`{name}`",
            recipe.network.name,
            scheduler(recipe),
            recipe.steps_in_words() + each,
        )
        rows.append((*cells, guidance(recipe), call(recipe)))
    lines = [table(RECIPE_HEAD, rows), ""]
    for name, recipe in RECIPES.items():
        lines.append(f"* `{name}`: {recipe.known}. {', '.join(map(link, recipe.sources))}")
    return "\n".join(lines)


def traps() -> str:
    """The table of traps."""
    rows = [
        (f"`{trap.name}`", trap.severity, trap.what, trap.would_do, trap.source) for trap in TRAPS
    ]
    return table(TRAP_HEAD, rows)


def generated() -> Files:
    """The page with the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, body in (("recipes", recipes()), ("traps", traps())):
        text = filled(text, name, __file__, body)
    return {PAGE: text}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "the data says", generated))
