"""The scripts of docs/ as modules, each loaded as if it were run: what lies beside it is found."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SHARED = "generated"  # what the others import
NAMES = sorted(path.stem for path in DOCS.glob("*.py") if path.stem != SHARED)


def load(name: str) -> ModuleType:
    """docs/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        spec.loader.exec_module(module)
        sys.modules.pop(SHARED, None)  # it is a top-level name in the scripts alone
    return module
