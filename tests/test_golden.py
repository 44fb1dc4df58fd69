"""Plans against the committed ones, number by number (tests/golden.py writes them)."""

import numpy as np
import pytest

import fastdiff
from tests.golden import FOLDER, PLANS, make


@pytest.mark.parametrize("name", PLANS)
def test_numbers_have_not_moved(name):
    want, got = fastdiff.Plan.load(FOLDER / f"{name}.json"), make(name)
    for field in ("rows", "timesteps", "alpha", "sigma"):
        # libm may differ by an ulp between machines; a weight is a few operations from it
        np.testing.assert_allclose(
            getattr(got, field), getattr(want, field), rtol=1e-12, atol=1e-14, err_msg=field
        )
    np.testing.assert_array_equal(got.draw, want.draw)
    assert (got.depths, got.guided, got.about) == (want.depths, want.guided, want.about)
    assert got.noise_scale == pytest.approx(want.noise_scale, rel=1e-12)
    assert got.c_in == pytest.approx(want.c_in, rel=1e-12)


def test_every_file_is_checked():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PLANS)
