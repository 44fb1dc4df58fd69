"""How each kind of distilled checkpoint is sampled: data, one row a recipe, with its sources.

`fastdiff.few_step` applies a row to a pipeline, the command `doctor` compares a folder with it, and
the table of docs/few_step.md is printed from it.  No torch, no diffusers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from fastdiff.recipes.recipe import Guidance, Network, Recipe, Variant
from fastdiff.recipes.rows import ROWS

RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in ROWS})


def find(name: object) -> Recipe:
    """The recipe of that name; ValueError with the list of them."""
    folded = name.lower().replace("_", "-").replace(" ", "-") if isinstance(name, str) else ""
    if folded in RECIPES:
        return RECIPES[folded]
    near = difflib.get_close_matches(folded, RECIPES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {name!r}.{hint}")


__all__ = ["RECIPES", "Guidance", "Network", "Recipe", "Variant", "find"]
