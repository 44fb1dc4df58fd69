"""`fastdiff doctor PIPE`: known traps in the configs of a pipeline's folder, and what would do.

Exit status: 0 nothing found, 1 something found, 2 a folder that cannot be read.
"""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdiff import doctor, recipes
from fastdiff.cli import UserError

SCHEMA = 1


def collect(path: Path, recipe: str | None = None) -> dict[str, Any]:
    """Everything that is printed, in values that JSON can hold."""
    try:
        folder = doctor.read(path, None if recipe is None else recipes.find(recipe))
    except ValueError as error:
        raise UserError(str(error)) from error
    return {
        "schema": SCHEMA,
        "folder": str(path),
        "recipe": folder.recipe and folder.recipe.name,
        "findings": [asdict(finding) for finding in doctor.examine(folder)],
    }


def print_doctor(path: Path, recipe: str | None = None, json: bool = False) -> bool:
    """Print what was found, as JSON or for people; returns whether there was something."""
    found = collect(path, recipe)
    print(json_format.dumps(found, indent=2) if json else _text(found))
    return bool(found["findings"])


def _text(found: dict[str, Any]) -> str:
    kind = f", recipe {found['recipe']}" if found["recipe"] else ""
    findings, number = found["findings"], len(found["findings"])
    lines = [f"{found['folder']}{kind}: {number or 'no'} known trap{'s' * (number != 1)}"]
    for finding in findings:
        has = json_format.dumps(finding["has"])
        lines += [
            "",
            f"{finding['severity']}: {finding['name']}",
            f"  {finding['file']}: {finding['field']} is {has}",
            f"  {finding['what']}",
            f"  would do: {finding['would_do']}",
            f"  source: {finding['source']}",
        ]
    return "\n".join(lines)
