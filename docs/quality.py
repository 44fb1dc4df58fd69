"""python docs/quality.py [--check]: page, picture, table and the README's part from quality.json.

The numbers themselves come from `fastdiff bench quality --out docs`; without them the README says
that there are none.
"""

from __future__ import annotations

import sys
import textwrap

from generated import DOCS, README, Files, filled, main

from fastdiff.quality.page import page, sentence
from fastdiff.quality.picture import svg
from fastdiff.quality.record import as_csv, load

WITHOUT = """`fastdiff bench quality` measures how often it is right at each number of steps;
no run of it is committed."""


def generated() -> Files:
    """What each file must contain."""
    readme = README.read_text(encoding="utf-8")
    if not (DOCS / "quality.json").exists():
        return {README: filled(readme, "quality", __file__, WITHOUT)}
    record = load(DOCS / "quality.json")
    said = textwrap.fill(sentence(record), 100, break_long_words=False, break_on_hyphens=False)
    chart = "![Right pictures and distance against calls](docs/quality.svg)"
    return {
        DOCS / "quality.md": page(record),
        DOCS / "quality.svg": svg(record),
        DOCS / "quality.csv": as_csv(record),
        README: filled(readme, "quality", __file__, f"{chart}\n\n{said}"),
    }


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "quality.json says", generated))
