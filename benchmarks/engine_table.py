"""The tables of engines in docs/performance.md, from benchmarks/results/engine-DATE.json alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.campaign.pages import digits
from benchmarks.campaign.pages import table as markdown
from benchmarks.engine_process import TORCH
from benchmarks.results import (
    EAGER_NETWORK,
    OPENVINO,
    OPENVINO_FIXED,
    TORCH_COMPILE,
    WITHOUT,
    ratio,
)
from benchmarks.side_by_side import OURS

NOTHING = "Not yet measured."
NETWORKS = (EAGER_NETWORK, TORCH_COMPILE, OPENVINO, OPENVINO_FIXED)
PAINTERS = (EAGER_NETWORK, WITHOUT)
Report = dict[str, Any]


def of(report: Report, benchmark: str) -> list[dict[str, Any]]:
    return [case for case in report["cases"] if case["benchmark"] == benchmark]


def side_by_side(report: Report, benchmark: str, what: str, peers: tuple[str, ...]) -> str:
    """Milliseconds of a call of each, and those of the peers over ours; - of who took no part."""
    rows = []
    for case in of(report, benchmark):
        there = [peer if peer in case["times"] else None for peer in peers]
        ms = [digits(case["times"][n]["median"] / 1e3) if n else "-" for n in (*there, OURS)]
        ratios = [f"{ratio(case, peer):.2f}x" if peer else "-" for peer in there]
        rows.append([case["case"][what].replace("x", "×"), *ms, *ratios])
    header = [what, *(f"{name}, ms" for name in (*peers, OURS))]
    header += [f"{name} / {OURS}" for name in peers]
    return markdown(header, rows, words=1) if rows else NOTHING


def networks(report: Report) -> str:
    return side_by_side(report, "engine", "latent", NETWORKS)


def pictures(report: Report) -> str:
    return side_by_side(report, "engine_picture", "pictures", PAINTERS)


def processes(report: Report) -> str:
    """Seconds of each part, and the most memory after it."""
    rows = []
    for case in of(report, "engine_process"):
        for who, seconds in case["seconds"].items():
            most = case["peak_bytes"][who]
            parts = list(seconds.values()) if who != TORCH else [seconds["import"]]
            cells = [f"{s:.2f}" for s in (*parts, sum(parts))]
            mb = [f"{b / 1e6:.0f}" for b in most.values()]
            if who == TORCH:  # which is not asked for an answer
                cells, mb = [cells[0], "-", "-", cells[0]], [mb[0], "-", "-"]
            rows.append([who, *cells, *mb])
    header = ["process", "import, s", "load, s", "first answer, s", "together, s"]
    header += ["memory when loaded, MB", "after 1 sample, MB", "after 8 samples, MB"]
    return markdown(header, rows, words=1) if rows else NOTHING


def export(report: Report) -> str:
    """Each step of the export, and the files."""
    (case,) = of(report, "engine_export") or (None,)
    if case is None:
        return NOTHING
    whole = case["times"][OURS]["median"] / 1e6
    rows = [[name, f"{seconds:.1f}"] for name, seconds in case["seconds"].items()]
    steps = markdown(["part of the export", "s"], [*rows, ["all of it", f"{whole:.1f}"]], words=1)
    files, heaviest = case["files"], max(case["files"], key=case["files"].__getitem__)
    total = sum(files.values()) / 1e6
    return (
        f"{steps}\n\nThe bundle has {len(files)} files of {total:.1f} MB in all, "
        f"{files[heaviest] / 1e6:.1f} MB of them `{heaviest}`."
    )


def short(report: Report) -> str:
    """The networks, and in a sentence what is left of it in whole pictures."""
    ratios = [
        f"{ratio(case, EAGER_NETWORK):.1f} times as long for {case['case']['pictures']}"
        for case in of(report, "engine_picture")
    ]
    if not ratios:
        return NOTHING
    loading = [
        f" Loading is not in it: {sum(case['seconds'][EAGER_NETWORK].values()):.1f} seconds to the "
        f"U-Net's first answer, {sum(case['seconds'][OURS].values()):.1f} with the engine."
        for case in of(report, "engine_process")
        if EAGER_NETWORK in case["seconds"]
    ]
    return (
        f"{networks(report)}\n\nWhole pictures, with text encoder, sampler and decoder, which stay "
        f"in PyTorch: diffusers takes {' and '.join(ratios)} as `fastdiff generate` with "
        f"`--engine`, both loaded.{''.join(loading)}"
    )


Tables = dict[str, Callable[[Report], str]]
README: Tables = {"engines": short}
TABLES: Tables = {
    "engine_networks": networks,
    "engine_pictures": pictures,
    "engine_processes": processes,
    "engine_export": export,
}


def conditions(report: Report, link: str) -> str:
    """Where the numbers come from, and who was not there."""
    facts = report["provenance"]
    names = ("onnxruntime", "openvino", "torch", "diffusers")
    versions = ", ".join(f"{name} {facts[name] or 'not installed'}" for name in names)
    load_average = " / ".join(f"{load:g}" for load in facts["load_average"])
    threads = sorted({str(case["case"]["threads"]) for case in report["cases"]})
    words = {f"{k}: {v}" for case in report["cases"] for k, v in case.get("not run", {}).items()}
    absent = f" Not measured: {'; '.join(sorted(words))}." if words else ""
    return (
        f"Medians, {', '.join(threads)}, float32, {facts['cpu']}; {versions}, Python "
        f"{facts['python']}; {facts['date'][:10]}, commit {facts['commit']}, load average "
        f"{load_average} on {facts['cores']} cores. All take turns in one process, but for the "
        f"processes of their own.{absent} Numbers: {link}."
    )
