"""What stages there are, in the order in which they run: what judges the rest, the kernels, models.

Each benchmarks/bench_<stem>.py is a stage of the name <stem>.  A stage imports what it needs when
it runs: a missing package costs that stage and no other.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import NamedTuple

from benchmarks.campaign.runner import Work
from benchmarks.campaign.task import Task
from benchmarks.provenance import ROOT


class Stage(NamedTuple):
    """What it is for, and what does it."""

    about: str
    work: Work
    shards: int = 1  # processes at a time; more than one only where nothing is timed
    depends: tuple[str, ...] = ()  # on which of "full" and "compiles" its rows do


def later(module: str, function: str, *args: object) -> Work:
    """benchmarks.campaign.<module>.<function>(*args, task), imported when called."""

    def work(task: Task) -> None:
        getattr(import_module(f"benchmarks.campaign.{module}"), function)(*args, task)

    return work


SHARDS = 6
PEER = ("compiles",)
MODEL = ("full", "compiles")

FIRST = {
    "device": Stage("device, driver, versions, clocks", later("device", "run")),
    "ceilings": Stage(
        "copy bandwidth, bf16 matrix rate, convolutions, launches", later("ceilings", "run")
    ),
    "correctness": Stage(
        "every op, backend and dtype against its reference", later("checks", "run"), SHARDS
    ),
    "sanitizer": Stage(
        "memcheck and racecheck of each kernel once", later("sanitizer", "run"), SHARDS
    ),
}
LAST = {
    "group_norm_sets": Stage(
        "all GroupNorms of a model in one graph", later("norms", "run"), depends=PEER
    ),
    "step_in_a_graph": Stage(
        "affine_step in a graph, against diffusers' step", later("step", "run"), depends=PEER
    ),
    "tests": Stage(
        "the tests of the kernels, where they find the device", later("checks", "tests"), SHARDS
    ),
    "model_sd15": Stage("one U-Net step at 512x512", later("models", "run", "sd15"), depends=MODEL),
    "model_sd15_engines": Stage(
        "the same in TensorRT and ONNX Runtime, where installed", later("engines", "run")
    ),
    "model_vae": Stage("decoding 1024x1024", later("models", "run", "vae"), depends=MODEL),
    "model_sdxl": Stage(
        "one U-Net step at 1024x1024", later("models", "run", "sdxl"), depends=MODEL
    ),
}


@functools.cache
def stages() -> dict[str, Stage]:
    """{name: stage}, in order."""
    files = sorted((ROOT / "benchmarks").glob("bench_*.py"))
    names = [path.stem.removeprefix("bench_") for path in files]
    # GroupNorm is what a model spends most on, and most is hoped for there
    names.sort(key=lambda name: (name != "group_norm", name))
    about = "each shape of SD1.5, SDXL and the VAE against its peers"
    made = {n: Stage(about, later("bench", "run", n), depends=PEER) for n in names}
    return {**FIRST, **made, **LAST}
