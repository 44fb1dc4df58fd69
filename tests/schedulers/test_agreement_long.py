"""Long runs of every class against diffusers; a file of its own, so that two processes share."""

import pytest

from .agreement import disagreements
from .classes import NAMES


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_options_agrees_with_diffusers(name, steps):
    wrong = disagreements(name, steps)
    assert not wrong, wrong
