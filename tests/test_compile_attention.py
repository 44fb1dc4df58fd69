"""Every plan of both attention kernels compiles, as test_compile_everywhere.py asks; apart from it,
since a file is what one of several test processes takes."""

import pytest

from tests import compile_gates
from tests.test_compile_everywhere import ELSEWHERE, every_plan

pytestmark = compile_gates.compiles


@pytest.mark.parametrize("stem", sorted(ELSEWHERE))
def test_every_plan(stem):
    every_plan(stem)
