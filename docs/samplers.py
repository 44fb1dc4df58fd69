"""python docs/samplers.py [--check]: write the table of docs/samplers.md from the registry."""

from __future__ import annotations

import sys

from generated import DOCS, Files, filled, main, table

from fastdiff.cli.samplers import HEAD, rows

PAGE = DOCS / "samplers.md"
CODE = (0, 4, 6)  # columns that hold what one types


def generated() -> Files:
    """The page, with a line a solver."""
    lines = [[f"`{c}`" if i in CODE and c else c for i, c in enumerate(row)] for row in rows()]
    text = PAGE.read_text(encoding="utf-8")
    return {PAGE: filled(text, "samplers", __file__, table(HEAD, lines))}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "the registry says", generated))
