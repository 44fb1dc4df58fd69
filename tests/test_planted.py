"""The lists of planted bugs: what they replace stands in the kernels, and no kernel is left out.

Whether the tests catch them takes minutes: python -m tests.planted, -m tests.cuda_on_host.planted.
"""

import re
from pathlib import Path

import pytest

from tests import planted
from tests.cuda_on_host import planted as cuda
from tests.planted import cpu, triton

ROOT = Path(__file__).parents[1]
CSRC, KERNELS = ROOT / "csrc", ROOT / "kernels"
LISTS = {"cpu": cpu.BUGS, "triton": triton.BUGS, "cuda": cuda.BUGS}
FILES = {
    "cpu": [p for p in CSRC.glob("*.cpp") if "bindings" not in p.stem] + [*CSRC.glob("*.inl")],
    "triton": [*KERNELS.glob("[!_]*.py")],
    "cuda": [*CSRC.glob("*.cu")],
}
KERNELS_OF = [(kind, stem) for kind in FILES for stem in sorted({p.stem for p in FILES[kind]})]
DO_NOT_APPLY = {("triton", "upsample_conv", "scale")}  # it moves numbers


@pytest.mark.parametrize("kind", LISTS)
def test_what_is_replaced_stands_there_once(kind):
    planted.check(LISTS[kind], kind != "triton")


@pytest.mark.parametrize(("kind", "stem"), KERNELS_OF)
def test_each_kernel_has_a_bug_of_each_kind(kind, stem):
    names = [name for name, (_, file, *_) in LISTS[kind].items() if Path(file).stem == stem]
    assert names, f"no bug is planted in {stem}: see tests/planted"
    for fault, words in planted.KINDS.items():
        found = [name for name in names if re.search(words, name)]
        assert bool(found) != ((kind, stem, fault) in DO_NOT_APPLY), f"no {fault} in {names}"


def test_the_files_that_are_to_catch_them_are_there():
    files = {file for kind in ("cpu", "triton") for (names, _), *_ in LISTS[kind].values()
             for file in names.split()}  # fmt: skip
    files |= {*cuda.OF_THEIR_OWN.values(), "test_cuda_on_host.py"}
    assert not [file for file in files if not (ROOT / "tests" / file).exists()]
