"""Plant bugs in copies of the CUDA kernels, one at a time, and see that the tests catch each.

    python -m tests.cuda_on_host.planted [NAME.. | FILE..]

Minutes, so it is no part of the tests: run it after a change of the kernels or of their tests.
Each kernel has at least a wrong mask, a missing tail, an element that is not written and a wrong
scale.  The Triton and the CPU kernels have tests/planted.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests import cuda_on_host

TESTS = Path(__file__).parents[1]
OF_THEIR_OWN = {"abs_quantile": "test_abs_quantile.py", "philox_normal": "test_philox_normal.py"}
STEP = "step or rings or absent or weight or read_stays"
NORM = "norm or tiles or sample or tokens"
OWN = "the_cuda_kernel"

BUGS = {  # name: (tests, file, what stands there, what is planted)
    # group_norm
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
    "eps is the default": (NORM, "group_norm.cuh", "variance + a.norm.eps", "variance + 1e-5f"),
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
    # stats_last
    "stats_last: total is written for the first of the rows in flight alone": (
        NORM, "group_norm.cu", "if (residual) store_some<kDtype, kVector>(a.norm.total, at, count",
        "if (residual && k == 0) store_some<kDtype, kVector>(a.norm.total, at, count",
    ),
    "stats_last: a mean over one number too many": (
        NORM, "group_norm.cu", "s.sum[i] / static_cast<float>(s.n);",
        "s.sum[i] / static_cast<float>(s.n + 1);",
    ),
    "stats_last: the last rows do not count": (
        NORM, "group_norm.cu", "(rows - y + t.down - 1) / t.down", "(rows - y) / t.down",
    ),
    # stats_first
    "stats_first: what lies behind the last element counts": (
        NORM, "group_norm.cu", "kVector || i < at.count ? v[i] - s.shift[0] : 0.0f",
        "v[i] - s.shift[0]",
    ),
    "stats_first: the elements after the last vector are left out": (
        NORM, "group_norm.cu",
        "p < tile.p1; p += a.tiles.across * V) {\n      const Place at",
        "p + V <= tile.p1; p += a.tiles.across * V) {\n      const Place at",
    ),
    "stats_first: total is not written at the start of a tile": (
        NORM, "group_norm.cu", "if (residual) store_some<kDtype, kVector>(a.norm.total, index",
        "if (residual && p > tile.p0) store_some<kDtype, kVector>(a.norm.total, index",
    ),
    "stats_first: a mean over one number too many": (
        NORM, "group_norm.cu", "const float n = static_cast<float>(s.n), offset",
        "const float n = static_cast<float>(s.n + 1), offset",
    ),
    # combine_slots
    "combine_slots: slots past the end are read": (
        NORM, "group_norm.cu", "mine = lesser(each, count - first)", "mine = each",
    ),
    "combine_slots: the last slots are left out": (
        NORM, "group_norm.cu", "static_cast<int>(ceil_div(count, kWarps))",
        "count / kWarps",
    ),
    "combine_slots: a group is not written": (
        NORM, "group_norm.cu", "if (threadIdx.x == 0) reduced[blockIdx.x] = all;",
        "if (threadIdx.x == 0 && blockIdx.x > 0) reduced[blockIdx.x] = all;",
    ),
    "combine: slots count alike, however many values they stand for": (
        NORM, "group_norm.cuh", "__fmaf_rn(slot.w, apart * apart, slot.z)",
        "__fmaf_rn(1.0f, apart * apart, slot.z)",
    ),
    "the variance of a sample, not of a population": (
        NORM, "group_norm.cuh", "slot.z / slot.w;  // NaN", "slot.z / (slot.w - 1);  // NaN",
    ),
    # apply_last
    "apply_last: a row past the tile is read": (
        NORM, "group_norm.cu", "row < tile.r1 ? count : 0};\n      load_again",
        "row <= tile.r1 ? count : 0};\n      load_again",
    ),
    "apply_last: the group of the first channel for all of a vector": (
        NORM, "group_norm.cu", "const int of = i < count ? c + i : c;", "const int of = c;",
    ),
    # apply_first
    "apply_first: what lies behind the last element is written": (
        NORM, "group_norm.cu", "index_of<false>(a.norm, at), at.count, raw)",
        "index_of<false>(a.norm, at), V, raw)",
    ),
    "apply_first: the elements after the last vector are left out": (
        NORM, "group_norm.cu",
        "p < tile.p1; p += a.tiles.across * V) {\n    const Place at",
        "p + V <= tile.p1; p += a.tiles.across * V) {\n    const Place at",
    ),
    "apply_first: the last channel is not written": (
        NORM, "group_norm.cu", "c < tile.c1; c += a.tiles.down) {\n    const auto f",
        "c + 1 < tile.c1; c += a.tiles.down) {\n    const auto f",
    ),
    "apply_first: twice the result": (
        NORM, "group_norm.cu", "x[i] = f.apply(x[i], a.norm.silu);\n    pack",
        "x[i] = 2.0f * f.apply(x[i], a.norm.silu);\n    pack",
    ),
    # apply_tokens
    "apply_tokens: what lies behind a channel is read": (
        NORM, "group_norm.cu", "left = c0 + row < c1 ? length - p : 0;",
        "left = c0 + row < c1 ? V : 0;",
    ),
    "apply_tokens: channels past the last one are written": (
        NORM, "group_norm.cu", "token < length ? lesser(c1 - (c0 + column), V) : 0",
        "token < length ? V : 0",
    ),
    "apply_tokens: a square that is not whole is left out": (
        NORM, "group_norm.cu", "if (start >= length) return;",
        "if (start + kPositions > length) return;",
    ),
    "apply_tokens: half the result": (
        NORM, "group_norm.cu", "square[row * kPitch + at_in + i] = f.apply(",
        "square[row * kPitch + at_in + i] = 0.5f * f.apply(",
    ),
    # affine_step
    "model_input without its scale": (
        STEP, "affine_step.cuh", "__fmul_rn(tail[0], sum[0][i])", "sum[0][i]",
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
    # abs_quantile
    "elements past the end count": (
        OWN, "abs_quantile.cuh", "if (at >= source.numel) continue;",
        "if (at > source.numel) continue;",
    ),
    "the last element does not count": (
        OWN, "abs_quantile.cuh", "if (at >= source.numel) continue;",
        "if (at + 1 >= source.numel) continue;",
    ),
    "the last vector does not count": (
        OWN, "abs_quantile.cuh", "if (at >= source.numel) return;",
        "if (at + kVector >= source.numel) return;",
    ),
    "what lies behind the copy counts": (
        OWN, "abs_quantile.cuh", "if (k < left) bits[k]", "bits[k]",
    ),
    "the blocks of a sample copy to the beginning": (
        OWN, "abs_quantile.cuh", "copy[place + k] = collected[k]", "copy[k] = collected[k]",
    ),
    "what is collected runs on into other memory": (
        OWN, "abs_quantile.cuh", "state[kCopied] > kCollected - kRound", "false",
    ),
    "what is collected is copied twice": (
        OWN, "abs_quantile.cuh", "if (threadIdx.x == 0) state[kCopied] = 0;", "",
    ),
    "the last ones collected are not copied": (
        OWN, "abs_quantile.cuh", "if (copy != nullptr) copy_collected", "if (false) copy_collected",
    ),
    "blocks without a part of the copy are waited for": (
        OWN, "abs_quantile.cuh", "* static_cast<unsigned>(pass) + blocks;",
        "* static_cast<unsigned>(pass + 1);",
    ),
    "a value of 16 bits is a digit short": (
        OWN, "abs_quantile.cuh", "__uint_as_float(found << shift)", "__uint_as_float(found)",
    ),
    "a vector is loaded from an address that is not aligned": (
        OWN, "abs_quantile.cu", "is_aligned(quantile.x) && whole", "whole",
    ),
    "the last quantile is not written": (
        OWN, "abs_quantile.cuh", "  a.out[sample] = q;",
        "  if (sample + 1 < a.samples) a.out[sample] = q;",
    ),
    "the gain of a row is not written": (
        OWN, "abs_quantile.cuh", ", row[2] = 1.0f / bound;", ";",
    ),
    "the rank before": (
        OWN, "abs_quantile.cuh", "uint32_t left = rank - (sum - own);",
        "uint32_t left = rank - (sum - own) - (rank > sum - own);",
    ),
    "no number is the last of its value": (
        OWN, "abs_quantile.cuh", "state[kRank] + 1 == state[kCount]", "false",
    ),
    "the weight of the other": (
        OWN, "abs_quantile.cuh", "a.weight < 0.5f ?", "a.weight < 2 ?",
    ),
    "the counts of other blocks are not waited for": (
        OWN, "abs_quantile.cuh", "if (state[kTickets] == 0) return;", "",
    ),
    "no barrier before the bins are counted": (
        OWN, "abs_quantile.cuh", "bins[k] = 0;\n    __syncthreads();", "bins[k] = 0;",
    ),
    # philox_normal
    "the counter past the end is written": (
        OWN, "philox_normal.cuh", "if (4 * counter + k >= a.numel) continue;", "",
    ),
    "the elements after the last vector are not written": (
        OWN, "philox_normal.cuh", "if (4 * counter >= a.numel) return;",
        "if (4 * counter + 4 > a.numel) return;",
    ),
    "the elements after the last whole block are not written": (
        OWN, "philox_normal.cu",
        "ceil_div(ceil_div(noise.numel, int64_t{4}), int64_t{kNoiseThreads})",
        "noise.numel < 4 * kNoiseThreads ? 1 : noise.numel / (4 * kNoiseThreads)",
    ),
    "noise is stored to an address that is not aligned": (
        OWN, "philox_normal.cu", " && is_aligned(noise.out)", "",
    ),
    "the noise of the first sample for all": (
        OWN, "philox_normal.cuh", "a.seeds[sample]", "a.seeds[0]",
    ),
    "half the variance": (
        OWN, "philox_normal.inl", "root(minus_log + minus_log)", "root(minus_log)",
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
        test = TESTS / OF_THEIR_OWN.get(Path(file).stem, "test_cuda_on_host.py")
        try:
            options = ["-qq", "-x", "--tb=line", "-p", "no:cacheprovider", "-k", tests]
            pytest.main([*options, str(test)], plugins=[failures])
        finally:
            cuda_on_host.CSRC, cuda_on_host.KERNELS = home
    return failures.first


def main():
    words = sys.argv[1:]
    names = [n for n, bug in BUGS.items() if not words or any(w in (n, bug[1]) for w in words)]
    if not names:
        files = ", ".join(sorted({file for _, file, *_ in BUGS.values()}))
        sys.exit(f"words must be names of bugs, or some of {files}; got {words}")
    found = {name: caught_by(name) for name in names}
    for name, test in found.items():
        print(f"{name}: {test or 'NOT CAUGHT'}")
    return not all(found.values())


if __name__ == "__main__":
    sys.exit(main())
