"""What was hoped for on an H200, and what a report says about it: reached, missed, not measured.

A target is judged by all the rows it is about; the worst of them counts.  A row whose check is red,
or a check of whose op is, is not measured.  "Of copy" is of the largest copy bandwidth measured
above the L2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.campaign.ceilings import bandwidth
from benchmarks.campaign.checks import believed
from benchmarks.campaign.record import Report, Row, rows_of
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS

NOT_MEASURED = "not measured"


class Verdict(NamedTuple):
    """verdict: reached, missed, not measured; measured: in words."""

    what: str
    wanted: str
    measured: str
    verdict: str


class Target(NamedTuple):
    """value(report, row) shall be at least `least`, or at most `most`, in each row that `about`
    picks; None: nothing is known of that row."""

    what: str
    wanted: str
    about: Callable[[Row], bool]
    value: Callable[[Report, Row], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = "x"


def median(row: Row, who: str) -> float | None:
    """Microseconds of a timed call."""
    return row["times"][who]["median"] if who in row.get("times", {}) else None


def against(*peers: str) -> Callable[[Report, Row], float | None]:
    """How many times as long as fastdiff the best of these peers takes; of those that are there."""

    def value(report: Report, row: Row) -> float | None:
        found = [t for who in row.get("times", {}) if who in peers and (t := median(row, who))]
        mine = median(row, OURS)
        return min(found) / mine if found and mine else None

    return value


def kernels_against(*peers: str) -> Callable[[Report, Row], float | None]:
    """Of attention: the best of these of PyTorch's (default: all) over the best of ours, chosen by
    the table or not: where ours loses, the table takes PyTorch's."""

    def value(report: Report, row: Row) -> float | None:
        times = {who: found["median"] for who, found in row.get("times", {}).items()}
        theirs = [
            t for who, t in times.items() if who in peers or (not peers and who[:4] == "sdpa")
        ]
        ours = [t for who, t in times.items() if who.startswith(OURS)]
        return min(theirs) / min(ours) if theirs and ours else None

    return value


def losses(report: Report) -> list[str]:
    """Cases in which what fastdiff offers is slower than a peer, by more than 2 %."""
    found, report = [], believed(report)
    for row in rows_of(report):
        peers = [who for who in row.get("times", {}) if not who.startswith(OURS)]
        ratio = against(*peers)(report, row)
        if ratio is not None and ratio < 0.98 and row.get("benchmark") != "model":
            case = " ".join(map(str, row.get("case", {}).values()))
            found.append(f"{row['benchmark']} {case}: {ratio:.2f}x")
    return [] if report["dry_run"] else found


def of_copy(report: Report, row: Row) -> float | None:
    """Percent of the copy bandwidth."""
    mine, copy = median(row, OURS), bandwidth(report)
    if not mine or not copy or "bytes" not in row:
        return None
    return 100 * float(row["bytes"]) / (mine * 1e-6) / copy


def milliseconds(report: Report, row: Row) -> float | None:
    mine = median(row, OURS)
    return mine / 1e3 if mine else None


def microseconds(report: Report, row: Row) -> float | None:
    return median(row, OURS)


def kernels(report: Report, row: Row) -> float | None:
    found = row.get("kernels")
    return float(found) if isinstance(found, int) and "times" in row else None


def diffusers_step(report: Report, row: Row) -> float | None:
    """diffusers' step over affine_step in a graph, of that shape and dtype, the slower of two."""
    found = [r for r in rows_of(report) if r.get("benchmark") == "affine_step_graph"]
    alone = [r for r in found if all(r["case"][k] == row["case"][k] for k in ("shape", "dtype"))]
    mine, theirs = [median(r, OURS) for r in alone], median(row, "diffusers")
    if not theirs or not mine or None in mine:
        return None
    return theirs / max(m for m in mine if m)


def rows(benchmark: str, **case: str) -> Callable[[Row], bool]:
    """Those of a benchmark with these values in `case`; a value may be a part of what is there."""

    def about(row: Row) -> bool:
        there = row.get("case", {})
        same = all(value in str(there.get(key, "")) for key, value in case.items())
        return bool(row.get("benchmark") == benchmark and same)

    return about


def norm_set(name: str) -> Callable[[Row], bool]:
    return rows("group_norm_set", set=name, inputs="own")


def cross(row: Row) -> bool:
    """77 keys; other lengths are measured, too."""
    about = rows("cross_attention", dtype="bfloat16")(row)
    return about and row.get("shape", {}).get("M", 77) == 77


LARGE = "GroupNorm+SiLU NHWC, SDXL and VAE shapes above 16 MB"
STEP = "affine_step, 2x4x128x128, guidance, history and noise"
SDXL = {"shape": "2x4x128x128"}
SELF40 = "head dim 40 self-attention, 4096 tokens"
SELF = rows("attention", where="sd15 self 4096", dtype="bfloat16")
MIDDLE = rows("attention", where="vae 128x128", dtype="bfloat16")
TARGETS = (
    Target(LARGE, "85 % of copy", rows("group_norm_large"), of_copy, least=85, unit=" %"),
    Target(LARGE, "8x eager", rows("group_norm_large"), against("eager", "eager, contiguous"), 8),
    Target(LARGE, "1.3x torch.compile", rows("group_norm_large"), against(COMPILED), 1.3),
    Target("the 46 GroupNorms of SDXL", "0.6 ms", norm_set("sdxl"), milliseconds, None, 0.6, " ms"),
    Target("the 61 of SD1.5", "0.35 ms", norm_set("sd15"), milliseconds, None, 0.35, " ms"),
    Target("the 30 of a VAE decoder", "3.2 ms", norm_set("vae"), milliseconds, None, 3.2, " ms"),
    Target(STEP, "one kernel", rows("affine_step_graph", **SDXL), kernels, None, 1, " kernels"),
    Target(
        STEP, "3 µs in a graph", rows("affine_step_graph", **SDXL), microseconds, None, 3, " µs"
    ),
    Target(STEP, "10x diffusers' step", rows("affine_step_scheduler", **SDXL), diffusers_step, 10),
    Target("cross-attention, 77 keys", "1.3x the best SDPA", cross, kernels_against(), 1.3),
    Target(SELF40, "1.15x the best SDPA", SELF, kernels_against(), 1.15),
    Target("VAE mid-block attention", "2x what torch picks", MIDDLE, kernels_against("sdpa"), 2),
    *(
        Target(op, "80 % of copy", rows(op, dtype="bfloat16"), of_copy, least=80, unit=" %")
        for op in ("geglu", "add_layer_norm", "bias_residual")
    ),
)


def verdict(target: Target, report: Report) -> Verdict:
    report = believed(report)
    mine = [] if report["dry_run"] else [row for row in rows_of(report) if target.about(row)]
    found = [target.value(report, row) for row in mine]
    known = [value for value in found if value is not None]
    sign = "≥" if target.least is not None else "≤"
    wanted = target.wanted if target.wanted == "one kernel" else f"{sign} {target.wanted}"
    if not known:
        return Verdict(target.what, wanted, "-", NOT_MEASURED)
    worst, best = min(known), max(known)
    if target.least is not None:
        reached = worst >= target.least
    else:
        assert target.most is not None
        reached = best <= target.most
    words = f"{worst:.3g}" if len(known) == 1 else f"{worst:.3g} to {best:.3g}"
    words += target.unit
    if len(known) < len(mine):  # a row that is red or was cut off cannot be said to be reached
        words += f" in {len(known)} of {len(mine)} cases"
        reached_words = NOT_MEASURED if reached else "missed"
    else:
        reached_words = "reached" if reached else "missed"
    return Verdict(target.what, wanted, words, reached_words)


def verdicts(report: Report) -> list[Verdict]:
    return [verdict(target, report) for target in TARGETS]
