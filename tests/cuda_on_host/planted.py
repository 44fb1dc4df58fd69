"""Plant bugs in copies of the CUDA kernels, one at a time, and see that the tests catch each.

    python -m tests.cuda_on_host.planted [NAME..]

Minutes, so it is no part of the tests: run it after a change of the kernels or of their tests.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests import cuda_on_host

TEST = Path(__file__).parents[1] / "test_cuda_on_host.py"
STEP = "step or rings or absent or weight or read_stays"
NORM = "norm or tiles or sample or tokens"

BUGS = {  # name: (tests, file, what stands there, what is planted)
    "a row past the tile is read": (
        NORM, "group_norm.cu", "row < tile.r1 ? count : 0};\n      load_input",
        "row <= tile.r1 ? count : 0};\n      load_input",
    ),
    "the last rows are not written": (
        NORM, "group_norm.cu", "while (r < tile.r1) {", "while (r + 1 < tile.r1) {",
    ),
    "the count of rows is wrong in the last tile": (
        NORM, "group_norm.cu", "rows = static_cast<int>(tile.r1 - tile.r0)",
        "rows = static_cast<int>(t.rows)",
    ),
    "no barrier before the slots of a tile are combined": (
        NORM, "group_norm.cu", "  __syncthreads();\n  const int per_group", "  const int per_group",
    ),
    "rstd without eps": (NORM, "group_norm.cuh", "variance + a.norm.eps", "variance"),
    "a group is taken for its neighbour where sources meet": (
        NORM, "group_norm.cuh", "second ? at.c - a.channels : at.c", "at.c",
    ),
    "half the scale of a channel": (
        NORM, "group_norm.cuh", "f.scale = statistics.z *", "f.scale = 0.5f * statistics.z *",
    ),
    "sums of a tile are not shifted": (
        NORM, "group_norm.cu", "if (k == 0 && s.n == 0) s.shift[i] = v[i];", "",
    ),
    "tokens: the next square is begun before this one is read": (
        NORM, "group_norm.cu", "    __syncthreads();\n  }\n}", "  }\n}",
    ),
    "a vector is stored to an address that is not aligned": (
        NORM, "group_norm.cu", "(turned || is_aligned(norm.out))", "true",
    ),
    "the elements after the last vector are left out": (
        STEP, "affine_step.cu", "ceil_div(arguments.vectors + left_over, kStepThreads)",
        "ceil_div(arguments.vectors + (arguments.vectors ? 0 : left_over), kStepThreads)",
    ),
    "an element past the end is read": (
        STEP, "affine_step.cuh", "item - launch.vectors < a.numel - launch.vectors * V",
        "item - launch.vectors <= a.numel - launch.vectors * V",
    ),
    "the wrong slot of a ring": (
        STEP, "affine_step.cuh", ": static_cast<int>(slot);", ": (static_cast<int>(slot) ^ 1);",
    ),
    "kept[p] is not written where there is a slot": (
        STEP, "affine_step.cuh", "for (int place = 0; place <= kept;",
        "for (int place = kept; place <= kept;",
    ),
    "an operand of weight 0 is read": (
        STEP, "affine_step.cuh", "r < a.depth && row.used[4 + r] != 0", "r < a.depth",
    ),
    "the row of another sample": (
        STEP, "affine_step.cuh", "index * a.samples + sample : 0", "index * a.samples : 0",
    ),
    "x_next is written before the history is read": (
        STEP, "affine_step.cuh", "  for (int first = 0; first < a.depth; first += kStepAhead) {",
        "  store_operand(a, kNext, at, sum[0]);\n"
        "  for (int first = 0; first < a.depth; first += kStepAhead) {\n"
        "    load_operand(raw_x, a, kX, at, true), unpack_operand(x, raw_x, a, kX);\n"
        "    if (first == 0) add_column(sum, row, results, 0, x);",
    ),
    "a product is fused into the sum": (
        STEP, "affine_step.cuh", "__fadd_rn(sum, __fmul_rn(weight, value))",
        "__fmaf_rn(weight, value, sum)",
    ),
    "no barrier after the row is read": (
        STEP, "affine_step.cuh", "  __syncthreads();\n  for (int column", "  for (int column",
    ),
}  # fmt: skip


class Failures:
    """Tests that ran and failed; a program that does not compile is not among them."""

    def __init__(self):
        self.first = None

    def pytest_runtest_logreport(self, report):
        if report.failed and report.when == "call":
            self.first = self.first or report.nodeid.rpartition("::")[2]


def caught_by(name):
    """The first test that fails, or None."""
    tests, file, there, planted = BUGS[name]
    home, failures = (cuda_on_host.CSRC, cuda_on_host.KERNELS), Failures()
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(home[0], csrc)
        text = (csrc / file).read_text()
        assert text.count(there) == 1, f"{name}: {file} has this {text.count(there)} times"
        (csrc / file).write_text(text.replace(there, planted))
        cuda_on_host.CSRC, cuda_on_host.KERNELS = csrc, (Path(file).stem,)
        try:
            options = ["-qq", "-x", "--tb=line", "-p", "no:cacheprovider", "-k", tests]
            pytest.main([*options, str(TEST)], plugins=[failures])
        finally:
            cuda_on_host.CSRC, cuda_on_host.KERNELS = home
    return failures.first


def main():
    found = {name: caught_by(name) for name in sys.argv[1:] or BUGS}
    for name, test in found.items():
        print(f"{name}: {test or 'NOT CAUGHT'}")
    return not all(found.values())


if __name__ == "__main__":
    sys.exit(main())
