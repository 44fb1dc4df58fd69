"""Grids that CUDA takes: at most 2^31 - 1 blocks in the first direction, 65,535 in the others.

The kernels are replaced by what writes down how it was launched.  Those that have samples in the
second direction launch more than once for more samples than that; that each launch works on its
own is tested in the interpreter, beside the numbers, with a limit of 2.
"""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fastdiff.ops import abs_quantile as ops_abs_quantile

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(),
    reason="runs where there is neither a GPU nor the interpreter",
)

SAMPLES = 70_000


class Recorder:
    """In place of a kernel: (grid, arguments) of every launch."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((grid, arguments))


def check(recorder, first, samples=SAMPLES):
    """first: the place of this argument.  Grids stay within limits, samples come once each."""
    ends = [0]
    for grid, arguments in recorder.launches:
        assert 1 <= grid[0] < 2**31
        assert all(1 <= blocks <= 65_535 for blocks in grid[1:])
        assert arguments[first] == ends[-1]
        ends.append(arguments[first] + grid[1])
    assert ends[-1] == samples
    assert all(a < b for a, b in pairwise(ends))


@pytest.mark.parametrize(("samples", "times"), [(65_535, 1), (65_536, 2), (SAMPLES, 2)])
def test_affine_step(monkeypatch, samples, times):
    from fastdiff.kernels import affine_step
    from fastdiff.ops.affine_step import row_size

    recorder = Recorder()
    first = affine_step.affine_step_kernel.arg_names.index("first")
    monkeypatch.setattr(affine_step, "affine_step_kernel", recorder)
    x, seeds = torch.zeros(samples, 3), torch.zeros(samples, dtype=torch.int64)
    shared, each = torch.zeros(1, 1, row_size(0, 0)), torch.zeros(1, samples, row_size(0, 0))
    for rows, drawn in ((each, None), (shared, seeds)):
        recorder.launches.clear()
        affine_step.launch(x, None, x, [], None, rows, None, 0, x, None, [], None, False, drawn, 0)
        check(recorder, first, samples)
        assert len(recorder.launches) == times
    recorder.launches.clear()
    affine_step.launch(x, None, x, [], None, shared, None, 0, x, None, [], None, False)
    assert [grid[1] for grid, _ in recorder.launches] == [1], "one row: the batch is one sample"


def test_philox_normal(monkeypatch):
    from fastdiff.kernels import philox_normal

    recorder = Recorder()
    first = philox_normal.philox_normal_kernel.arg_names.index("first")
    monkeypatch.setattr(philox_normal, "philox_normal_kernel", recorder)
    seeds = torch.zeros(SAMPLES, dtype=torch.int64)
    philox_normal.launch(seeds, None, 0, 0, torch.zeros(SAMPLES, 2))
    check(recorder, first)


@pytest.mark.parametrize(("dtype", "passes"), [(torch.float32, 3), (torch.float16, 2)], ids=str)
def test_abs_quantile(monkeypatch, dtype, passes):
    """Two passes look at x; in float32 a third one at the copy of some of it."""
    from fastdiff.kernels import abs_quantile

    count, pick = Recorder(), Recorder()
    first = abs_quantile.count_kernel.arg_names.index("first")
    monkeypatch.setattr(abs_quantile, "count_kernel", count)
    monkeypatch.setattr(abs_quantile, "pick_kernel", pick)
    monkeypatch.setattr(ops_abs_quantile, "WORKSPACE", 1)  # else more than a gigabyte
    x = torch.zeros(SAMPLES, 2, dtype=dtype)
    abs_quantile.launch(x, 0, 0.0, 1.0, torch.zeros(SAMPLES), None)
    assert len(count.launches) == passes * 2
    for number in range(passes):
        one = Recorder()
        one.launches = count.launches[2 * number : 2 * number + 2]
        check(one, first)
        assert all((arguments[0] is x) == (number < 2) for _, arguments in one.launches)
    assert [grid for grid, _ in pick.launches] == [(SAMPLES,)] * passes


def test_all_other_kernels_have_grids_of_one_direction():
    """Those have no limit that memory would not reach before."""
    folder = Path(__file__).parents[1] / "kernels"
    two = {path.stem for path in folder.glob("*.py") if "program_id(1)" in path.read_text()}
    assert two == {"abs_quantile", "affine_step", "philox_normal"}
    assert not [p for p in folder.glob("*.py") if "program_id(2)" in p.read_text()]
