"""The CPU kernel of abs_quantile takes its sample from memory twice: what it loads is counted.

CUDA's is counted in tests/test_abs_quantile.py, Triton's launches in tests/test_launch_grids.py.
"""

import subprocess

import pytest
import torch

from fastdiff.ops.abs_quantile import DTYPE_CODES
from tests import cuda_on_host

HERE = cuda_on_host.HERE.parent
pytestmark = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="g++ is not on the PATH")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    flags = f"-std=c++17 -O1 -DFASTDIFF_ISA=baseline -I{cuda_on_host.CSRC}".split()
    kernel, program = folder / "kernel.o", folder / "passes"
    watched = [cuda_on_host.compiler(), *flags, "-fsanitize=thread", "-c", "-o", kernel]
    subprocess.run([*watched, cuda_on_host.CSRC / "abs_quantile.cpp"], check=True)
    counter = [cuda_on_host.compiler(), *flags, HERE / "abs_quantile_passes.cpp", kernel]
    subprocess.run([*counter, "-o", program], check=True)
    return program


@pytest.mark.parametrize("kind", [0, 1], ids=["uniform", "equal"])
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
def test_passes(program, dtype, kind):
    """A block of 64 elements that is looked at twice in a row comes from the first-level cache."""
    arguments = [str(DTYPE_CODES[dtype]), str(kind)]
    passes, q = map(float, subprocess.check_output([program, *arguments], text=True).split())
    if dtype != torch.float16:  # to which the bits are other numbers
        assert q == pytest.approx(1.5, abs=0.01)
    assert passes == 2
