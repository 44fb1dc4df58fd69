"""What pyproject.toml asks for with these extras, a line each, without the project itself.

    python .ci/requirements.py test dev bench

So that all of it is installed while the extension, which needs none of it, is still compiled.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def expanded(lines: list[str]) -> list[str]:
    """The lines, with those of the project's own extras in place of its name."""
    found = []
    for line in lines:
        own = re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", line)
        extras = own[1].split(",") if own else []
        found += [one for extra in extras for one in expanded(EXTRAS[extra])] or [line]
    return found


if __name__ == "__main__":
    wanted = [*PROJECT["dependencies"], *(one for name in sys.argv[1:] for one in EXTRAS[name])]
    print("\n".join(dict.fromkeys(expanded(wanted))))
