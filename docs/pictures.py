"""python docs/pictures.py [--check]: the README's first pictures, and the command that draws them.

They are drawn anew.  A picture that is there and nowhere more than one level of 255 away from the
new one stays: so far apart are the roundings of two processors.
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from generated import DOCS, README, Files, filled, main
from PIL import Image

from fastdiff.cli.commands import app

PICTURE = DOCS / "images" / "built_in.png"
ROWS = ("a red circle above a blue square", "a yellow cross left of a purple circle")
STEPS, COUNT = 20, 8
OPTIONS = ["--sampler", "dpmpp_2m", "--steps", str(STEPS), "--seed", "0", "--count"]
SHEET = Path("sheet") / "sheet.png"


def draw(out: Path, count: int = COUNT) -> None:
    """Run the command, for as many pictures of each prompt."""
    app(["generate", *ROWS, *OPTIONS, str(count), "--out", str(out)], standalone_mode=False)


def part() -> str:
    """What the README shows."""
    first, second = (f'"{prompt}"' for prompt in ROWS)
    said = textwrap.fill(
        f"Drawn on a CPU by the model that is part of the package, first row {first}, second row "
        f"{second}, {STEPS} steps, seeds 0 to {COUNT - 1}, none left out:",
        100,
    )
    options = shlex.join([*OPTIONS, str(COUNT), "--out", "out"])
    return f"""![Sixteen pictures in two rows]({PICTURE.relative_to(README.parent)})

{said}

```sh
fastdiff generate {first} {second} \\
    {options}    # out/{SHEET} is this
```"""


def readme() -> str:
    """The README with that part."""
    return filled(README.read_text(encoding="utf-8"), "pictures", __file__, part())


def generated() -> Files:
    """The README and the picture in it."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        drawn = (Path(folder) / SHEET).read_bytes()
    if PICTURE.is_file() and near(PICTURE.read_bytes(), drawn):
        drawn = PICTURE.read_bytes()
    return {README: readme(), PICTURE: drawn}


def near(a: bytes, b: bytes) -> bool:
    """Whether two PNG files show the same, but for one level."""
    one, two = (np.asarray(Image.open(io.BytesIO(x)).convert("RGB")).astype(int) for x in (a, b))
    return one.shape == two.shape and bool(abs(one - two).max() <= 1)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "the built-in model draws", generated))
