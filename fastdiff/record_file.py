"""The JSON record of a command that measures: written after every measurement, so that a run can be
cut and resumed.

    {"schema": 1, "made": versions, "conditions": .., .., "rows": [..]}

`made` and `conditions` are all that a number depends on besides its row: a file where one of them
differs is not resumed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff import __version__

Record = dict[str, Any]
ELSEWHERE = "Another folder as --out, or --fresh to write it anew, would do"


def made() -> Record:
    """Versions that numbers depend on."""
    from importlib.metadata import version

    return {
        "fastdiff": __version__,
        **{name: version(name) for name in ("diffusers", "torch", "numpy")},
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Kind:
    """The records of one command.

    command  that writes them, as one types it
    schema   a number: another one where a reader of today would misread the file
    parts    dict or list, of each entry that a record must have besides schema, made, conditions
             and rows
    keys     of an entry that is a list: what each element, a dict, must have
    """

    command: str
    schema: int
    parts: Mapping[str, type]
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def load(self, path: Path) -> Record:
        """A record; ValueError that says what is wrong with the file."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} must be a record of this command as JSON: {error}. {ELSEWHERE}"
            ) from error
        if not self._holds(found):
            raise ValueError(
                f"{path} must be a record of `{self.command}`, schema {self.schema}. {ELSEWHERE}"
            )
        return dict(found)

    def _holds(self, found: Any) -> bool:
        """Whether it has the parts of a record, each of its kind."""
        kinds = {"made": dict, "conditions": dict, "rows": list, **self.parts}
        return (
            isinstance(found, dict)
            and found.get("schema") == self.schema
            and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
            and all(
                isinstance(element, dict) and element.keys() >= keys
                for name, keys in self.keys.items()
                for element in found[name]
            )
        )

    def resumed(self, path: Path, wanted: Record) -> Record:
        """The record of a file; ValueError where it is of other versions or conditions."""
        found = self.load(path)
        for name in ("made", "conditions"):
            there, here = found[name], wanted[name]
            other = [k for k in (here | there) if there.get(k) != here.get(k)]
            if other:
                raise ValueError(
                    f"{path} was measured with {', '.join(f'{k} {there.get(k)}' for k in other)}; "
                    f"now it is {', '.join(f'{k} {here.get(k)}' for k in other)}. {ELSEWHERE}"
                )
        return found


def save(path: Path, record: Record) -> None:
    """Write it, a line a row, whole or not at all: a cut leaves the last state."""
    rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in record["rows"])
    head = json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=1)
    write(path, f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')


def write(path: Path, text: str) -> None:
    """Beside the file, then renamed: who reads it finds the old text or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
