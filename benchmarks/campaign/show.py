"""A report as text: one line a row and contestant, the checks as counts, the targets last.

A row's fraction is that of the ceiling which binds it: moving its bytes at the copy bandwidth of a
copy of that size, or computing its flops at the bf16 matrix rate, whichever takes longer.  `copy`
is bandwidth, `matrix` the rate.
"""

from __future__ import annotations

from benchmarks.campaign import checks
from benchmarks.campaign.ceilings import bandwidth, matrix_rate
from benchmarks.campaign.record import Report, Row, stage_of
from benchmarks.campaign.targets import losses, verdicts
from benchmarks.side_by_side import OURS


def fraction(report: Report, row: Row, microseconds: float) -> tuple[float, str] | None:
    """(part of the ceiling that binds, its name), or None without ceilings or without amounts."""
    repeats, seconds = row.get("repeats", 1), microseconds * 1e-6
    floors = []
    if row.get("bytes"):
        copy = bandwidth(report, row["bytes"] / repeats)
        floors += [(row["bytes"] / copy, "copy")] if copy else []
    if row.get("flops"):
        rate = matrix_rate(report)
        floors += [(row["flops"] / rate, "matrix")] if rate else []
    if not floors or not seconds:
        return None
    floor, name = max(floors)
    return floor / seconds, name


def title(row: Row) -> str:
    """benchmark, and what the case says"""
    return " ".join([str(row.get("benchmark", "")), *map(str, row.get("case", {}).values())])


def lines_of(report: Report, row: Row) -> list[str]:
    """A row: microseconds of one call (not of one graph), ratio to fastdiff, fraction."""
    if row["status"] != "measured":
        words = {"passed": "ok"}.get(row["status"], row["status"].upper())
        why = f": {row['why'][:160]}" if row.get("why") else ""
        return [f"  {(row.get('case') and title(row)) or row['id']}: {words}{why}"]
    found = [f"  {title(row)}"]
    repeats, mine = row.get("repeats", 1), row["times"].get(OURS, {}).get("median")
    for name, time in sorted(row["times"].items(), key=lambda item: item[1]["median"]):
        part = fraction(report, row, time["median"])
        share = f"{100 * part[0]:5.1f} % of {part[1]}" if part else ""
        ratio = f"{time['median'] / mine:6.2f}x" if mine else f"{'':7}"
        found.append(f"    {name:36} {time['median'] / repeats:12.3f} µs {ratio}  {share}")
    for name, why in row.get("not run", {}).items():
        found.append(f"    {name:36} not run: {why[:160]}")
    extra = [f"{k} {row[k]}" for k in ("backend", "kernels", "cold_start_s", "report") if k in row]
    if "peak_bytes" in row:
        extra.append(f"peak {row['peak_bytes'] / 1e9:.2f} GB")
    if "floor_ms" in row:
        best = min(t["median"] for t in row["times"].values())
        extra.append(f"floor {row['floor_ms']:.2f} ms, {100 * row['floor_ms'] * 1e3 / best:.0f} %")
    return [*found, *([f"    {', '.join(extra)}"] if extra else [])]


def stage_lines(report: Report, name: str) -> list[str]:
    report = checks.believed(report)
    stage = stage_of(report, name)
    why = f": {stage['why']}" if stage.get("why") else ""
    head = f"{name}: {stage['status']}{why} ({stage.get('seconds', 0):g} s)"
    rows = stage["rows"]
    if not any(row.get("benchmark") == "check" for row in rows):
        return [head, *(line for row in rows for line in lines_of(report, row))]
    lines = [head]
    for key, found in sorted(checks.counts(rows).items()):
        lines.append(f"  {' '.join(key):40} {', '.join(f'{n} {s}' for s, n in found.items())}")
    failed = [row for row in rows if row["status"] == "failed"]
    return lines + [f"  FAILED {row['id']}: {row['why'][:200]}" for row in failed]


def target_lines(report: Report) -> list[str]:
    """The short table."""
    lines = ["targets (on an H200)"]
    for v in verdicts(report):
        lines.append(f"  {v.what:56} {v.wanted:24} {v.measured:28} {v.verdict}")
    if found := losses(report):
        lines += ["", "slower than a peer, and so not to be chosen", *(f"  {one}" for one in found)]
    return lines


def summary(report: Report) -> list[str]:
    """One line a stage, then the targets."""
    lines = []
    for name, stage in checks.believed(report)["stages"].items():
        count = dict.fromkeys(("measured", "passed", "failed", "skipped"), 0)
        for row in stage["rows"]:
            count[row["status"]] += 1
        words = ", ".join(f"{n} {status}" for status, n in count.items() if n)
        why = f" ({stage['why'][:90]})" if stage.get("why") else ""
        lines.append(f"  {name:20} {stage['status']:10} {stage['seconds']:7.1f} s  {words}{why}")
    return ["stages", *lines, "", *target_lines(report)]


def head(report: Report) -> list[str]:
    facts = report["provenance"]
    words = ["DRY RUN: tiny sizes, no numbers"] if report["dry_run"] else []
    words.append(", ".join(facts["gpus"]) or facts["cpu"])
    names = ("driver", "torch", "cuda", "cudnn", "triton", "diffusers", "fastdiff", "commit")
    words.append(", ".join(f"{n} {facts[n]}" for n in names if facts.get(n)) + f"; {facts['date']}")
    copy, rate = bandwidth(report), matrix_rate(report)
    if copy and rate:
        words.append(f"copy {copy / 1e12:.3g} TB/s, bf16 matrix {rate / 1e12:.3g} TFLOP/s")
    return words


def text(report: Report) -> str:
    """Everything."""
    parts = [head(report), *(stage_lines(report, name) for name in report["stages"])]
    return "\n\n".join("\n".join(part) for part in [*parts, summary(report)]) + "\n"
