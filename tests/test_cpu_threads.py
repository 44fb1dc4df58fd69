"""No CPU kernel starts a parallel region inside another.

OpenMP takes the threads of an outermost region from its pool, which PyTorch shares, and starts new
ones for a region inside another, also where the outer one has a single thread.  On two cores the
new thread then waits for one of the pool that spins: group_norm, channels last, took 2.5 ms after
any operator of PyTorch and 0.8 ms after none.
"""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from fastdiff import backends

PROGRAM = """
import torch
import fastdiff
from fastdiff.ops import abs_quantile, add_layer_norm, affine_step, bias_residual, geglu
from fastdiff.ops import group_norm, philox_normal

torch.set_num_threads(2)
x = torch.randn(3, 64, 128, 64)  # 3 samples: one after the other, each by both threads
last = x.contiguous(memory_format=torch.channels_last)
bias, seeds = torch.randn(64), torch.arange(3)
row = fastdiff.plan("ddim", steps=4).to("cpu")[:1]
with fastdiff.use_backend("cpu"):
    for one in (x, last, last[:2]):
        group_norm.group_norm(one, 8, bias, bias, silu=True)
        bias_residual.bias_residual(one, bias, one)
    add_layer_norm.add_layer_norm(x.view(3, -1, 64), x.view(3, -1, 64), bias, bias)
    geglu.geglu(x)
    abs_quantile.abs_quantile(x, 0.9)
    philox_normal.philox_normal(seeds, x.shape[1:])
    affine_step.affine_step(x, x, row, noise=x, keeps=0)
"""


@pytest.mark.skipif(backends.why_no_native() is not None, reason="there is no native extension")
def test_no_region_inside_another():
    levels = {"OMP_DISPLAY_AFFINITY": "TRUE", "OMP_AFFINITY_FORMAT": "level %L of %N"}
    kept = {name: v for name, v in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=kept | levels,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = set(re.findall(r"level (\d) of (\d)", done.stdout + done.stderr))
    if not found:
        pytest.skip("this OpenMP does not print its levels")
    assert ("1", "2") in found
    assert {level for level, _ in found} == {"1"}
