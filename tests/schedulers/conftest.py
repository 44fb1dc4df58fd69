"""Quiet what diffusers says about its own deprecations; our warnings still show."""

from pathlib import Path

import diffusers
import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for kind in ("FutureWarning", "DeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}:diffusers"))


@pytest.fixture(autouse=True, scope="session")
def _diffusers_says_errors_only():
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
