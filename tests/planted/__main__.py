"""python -m tests.planted triton|cpu [WORD..] (tests/planted/__init__.py)"""

import sys
import tempfile
from pathlib import Path

from tests import planted
from tests.planted import cpu, triton


def main(kind="", *words):
    if kind not in ("triton", "cpu"):
        sys.exit(__doc__)
    every = cpu.BUGS if kind == "cpu" else triton.BUGS
    bugs = {name: bug for name, bug in every.items() if all(word in name for word in words)}
    if not bugs:
        sys.exit(f"no bug has {' and '.join(words)} in its name")
    with tempfile.TemporaryDirectory() as folder:
        return planted.run(bugs, Path(folder).resolve(), kind == "cpu")


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
