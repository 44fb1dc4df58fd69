"""A campaign's file as tables of README.md and docs/performance.md, or "not yet measured"."""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.campaign.ceilings import bandwidth, matrix_rate
from benchmarks.campaign.checks import believed
from benchmarks.campaign.record import Report, Row, rows_of
from benchmarks.campaign.show import fraction
from benchmarks.campaign.targets import losses, verdicts
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS

NOTHING = "Not yet measured: no GPU was at hand."
ON_HOST = ("affine_step", "scheduler_step", "scheduler_step_after_work")
EAGER = ("eager formula", "eager", "eager, contiguous")


def table(header: list[str], rows: list[list[str]], words: int = 2) -> str:
    """In Markdown; the first columns (words) to the left, numbers to the right."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def conditions(report: Report, link: str) -> str:
    """On what, with what, when."""
    facts, copy, rate = report["provenance"], bandwidth(report), matrix_rate(report)
    names = ("driver", "torch", "cuda", "cudnn", "triton", "diffusers")
    with_what = ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name))
    commits = {stage["commit"] for stage in report["stages"].values()}
    ceilings = (
        f" Ceilings: copies at {copy / 1e12:.2f} TB/s, bf16 products at {rate / 1e12:.0f} TFLOP/s."
        if copy and rate
        else ""
    )
    return (
        f"{', '.join(facts['gpus'])}; {with_what}; {facts['date'][:10]}, commit "
        f"{', '.join(sorted(commits))}.{ceilings} Numbers: {link}."
    )


def targets(report: Report) -> str:
    header = ["what", "target", "measured", ""]
    return table(header, [list(verdict) for verdict in verdicts(report)], words=4)


def slower(report: Report) -> str:
    """What must not be chosen."""
    found = losses(report)
    words = "Slower than a peer, and so not to be chosen: "
    return words + ("none." if not found else "; ".join(found) + ".")


def ops(report: Report) -> str:
    """Each measured case of each op, bf16 where there is a choice."""
    lines, report = [], believed(report)
    for row in rows_of(report):
        case = row.get("case", {})
        other = row.get("benchmark") in ("copy", "matrix", "convolution", "launch", "model")
        if OURS not in row.get("times", {}) or other or row["benchmark"] in ON_HOST:
            continue
        if case.get("dtype", "bfloat16") != "bfloat16":
            continue
        lines.append([row["benchmark"], where(case), *numbers(report, row)])
    header = ["op", "case, bf16", "backend", "fastdiff, µs", "best peer, µs", "peer", "ratio"]
    return table([*header, "of ceiling"], lines, words=3) if lines else NOTHING


def where(case: dict[str, object]) -> str:
    values = [str(v) for k, v in case.items() if k not in ("dtype", "backend")]
    return re.sub(r"(?<=\d)x(?=\d)", "×", ", ".join(values))


def numbers(report: Report, row: Row) -> list[str]:
    """backend, ours, the best peer's time and name, its ratio to ours, the part of the ceiling."""
    times, repeats = row["times"], row.get("repeats", 1)
    repeats = 1 if row["benchmark"] == "group_norm_set" else repeats  # a set is one thing
    mine = times[OURS]["median"]
    peers = {n: t["median"] for n, t in times.items() if not n.startswith(OURS)}
    best = min(peers, key=lambda name: peers[name], default="")
    part = fraction(report, row, mine)
    backend = str(row.get("backend") or row.get("case", {}).get("backend", ""))
    share = f"{100 * part[0]:.0f} % {part[1]}" if part else "-"
    if not best:
        return [backend, digits(mine / repeats), "-", "-", "-", share]
    against = [digits(peers[best] / repeats), short(best), f"{digits(peers[best] / mine)}x"]
    return [backend, digits(mine / repeats), *against, share]


def short(name: str) -> str:
    return "compile" if name == COMPILED else name


def models(report: Report) -> str:
    lines = []
    for row in rows_of(believed(report)):
        if row.get("benchmark") != "model":
            continue
        case = row["case"]
        what = [case["model"], f"{case['batch']}", case["dtype"], case["contestant"]]
        if row["status"] != "measured":
            lines.append([*what, row["status"], "-", "-", "-"])
            continue
        ms = min(time["median"] for time in row["times"].values()) / 1e3
        memory = f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else "-"
        share = f"{100 * row['floor_ms'] / ms:.0f} %"
        lines.append([*what, digits(ms), share, memory, digits(row["cold_start_s"])])
    header = ["model", "samples", "dtype", "how", "ms a step", "of the floor", "peak GB"]
    return table([*header, "first call, s"], lines, words=4) if lines else NOTHING


TABLES: dict[str, Callable[[Report], str]] = {
    "gpu_targets": lambda report: f"{targets(report)}\n\n{slower(report)}",
    "gpu_ops": ops,
    "gpu_models": models,
}


def short_table(report: Report | None, link: str) -> str:
    """For the README."""
    if report is None:
        return "On a GPU: not yet measured."
    return f"On a GPU:\n\n{targets(report)}\n\n{conditions(report, link)}"
