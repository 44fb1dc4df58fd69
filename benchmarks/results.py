"""Read and write results; what was hoped for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side import OURS

RESULTS = Path(__file__).parent / "results"
COMPILED = "torch.compile of the formula"
# Peers of an engine; its own name is that of fastdiff.
EAGER_NETWORK, TORCH_COMPILE, WITHOUT = "diffusers", "torch.compile", "generate without engine"
OPENVINO, OPENVINO_FIXED = "OpenVINO", "OpenVINO, fixed shape"


ON_CPU = ("cpu", "engine")  # what names of results begin with; the others bear that of a GPU


class Target(NamedTuple):
    """The peer's time shall be at least `ratio` times ours."""

    case: str
    peer: str
    statistic: str
    ratio: float
    because: str


SMALL, LARGE = "1x4x64x64 float32", "8x4x128x128 float32"
TARGETS = (
    Target(
        *(f"scheduler_step dpmpp_2m {SMALL}", "diffusers", "median", 12),
        "140 µs there; 4 µs of kernel and 8 µs of Python here",
    ),
    Target(
        *(f"scheduler_step dpmpp_2m_sde {SMALL}", "diffusers", "median", 3),
        "`torch.randn` alone is 57 of the 222 µs there, and stays",
    ),
    Target(
        *(f"scheduler_step dpmpp_2m {LARGE}", "diffusers", "fastest_quartile", 5),
        "5 latents of memory traffic instead of 24",
    ),
    Target(
        *(f"scheduler_step dpmpp_2m {LARGE}", COMPILED, "fastest_quartile", 1),
        "both are bound by memory",
    ),
    Target(
        *(f"scheduler_step unipc_2 {SMALL}", "diffusers", "median", 30),
        "450 µs there, in 24 passes over latents and 114 operations on numbers",
    ),
    Target(
        *(f"scheduler_step deis_2 {SMALL}", "diffusers", "median", 10),
        "149 operators there, 12 of them on latents",
    ),
    Target(
        *(f"scheduler_step ddim {SMALL}", "diffusers", "median", 5),
        "76 µs there",
    ),
    Target(
        *(f"scheduler_step lcm {SMALL}", "diffusers", "median", 1.9),
        "`torch.randn` alone is 57 of the 146 µs there, and stays",
    ),
    Target(
        *(f"scheduler_step flow_euler {SMALL}", "diffusers", "median", 1),
        "13 µs there: two operations on the latent, nothing to save but Python",
    ),
)


def case_name(case: dict[str, Any]) -> str:
    """scheduler_step dpmpp_2m 1x4x64x64 float32"""
    return " ".join([case["benchmark"], *case["case"].values()])


def ratio(case: dict[str, Any], peer: str, statistic: str = "median") -> float:
    """How many times as long as fastdiff the peer takes."""
    times = case["times"]
    return float(times[peer][statistic] / times[OURS][statistic])


def save(report: dict[str, Any], path: Path) -> None:
    """Write JSON, one line a case, so that two results can be compared by eye."""
    head = json.dumps(report["provenance"], indent=1)
    cases = ",\n".join("  " + json.dumps(case) for case in report["cases"])
    text = f'{{\n"schema": {report["schema"]},\n"provenance": {head},\n"cases": [\n{cases}\n]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(path: Path) -> dict[str, Any]:
    """A report written by `save`."""
    report = json.loads(path.read_text())
    if report.get("schema") != 1:
        raise ValueError(f"schema of {path} must be 1; got {report.get('schema')!r}")
    return dict(report)


def newest(kind: str) -> Path:
    """The newest committed result of "cpu"."""
    found = sorted(RESULTS.glob(f"{kind}-*.json"))
    if not found:
        raise FileNotFoundError(f"{RESULTS} has no {kind}-*.json; run python -m benchmarks")
    return found[-1]


def newest_engine() -> Path | None:
    """The newest committed result of `python -m benchmarks --engine`, or None if there is none."""
    return max(RESULTS.glob("engine-*.json"), default=None)


def newest_campaign() -> Path | None:
    """The newest committed result of a GPU, or None if there is none."""
    found = [(date, path) for path in RESULTS.glob("*.json") if (date := dated(path))]
    return max((each for each in found if each[0].name not in ON_CPU), default=(None, None))[1]


class Dated(NamedTuple):
    """What the name of a file says: GPU-DATE.json, or GPU-DATE-NUMBER.json from the second on."""

    date: str
    number: int
    name: str


def dated(path: Path) -> Dated | None:
    found = re.fullmatch(r"(.+)-(\d{4}-\d\d-\d\d)(?:-(\d+))?", path.stem)
    return Dated(found[2], int(found[3] or 1), found[1]) if found else None
