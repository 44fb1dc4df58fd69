"""python docs/accuracy.py [--check]: page, picture and the README's sentence from accuracy.json.

The numbers themselves come from `fastdiff bench accuracy --out docs`.
"""

from __future__ import annotations

import sys
import textwrap

from generated import DOCS, README, Files, filled, main

from fastdiff.accuracy.page import page, sentence
from fastdiff.accuracy.picture import svg
from fastdiff.accuracy.record import load


def generated() -> Files:
    """What each file must contain."""
    record = load(DOCS / "accuracy.json")
    said = textwrap.fill(sentence(record), 100, break_long_words=False, break_on_hyphens=False)
    return {
        DOCS / "accuracy.md": page(record),
        DOCS / "accuracy.svg": svg(record),
        README: filled(README.read_text(encoding="utf-8"), "accuracy", __file__, said),
    }


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "accuracy.json says", generated))
