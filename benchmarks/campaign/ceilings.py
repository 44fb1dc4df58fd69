"""What no kernel can beat: bytes a second by size, bf16 multiplications a second, launches.

A copy of S bytes moves 2 S.  Up to 20 MB source and destination stay in the L2 of an H200 and are
copied again and again; from 64 MB on several pairs take turns, so that they do not.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from benchmarks.campaign.clock import captured, compare, on_the_device, timer
from benchmarks.campaign.record import Report, Row, rows_of
from benchmarks.campaign.task import Task

MB = 1_000_000
SIZES = [5 * MB, 10 * MB, 20 * MB, 64 * MB, 256 * MB, 1000 * MB]
RESIDENT = 20 * MB
GEMMS = {  # m, n, k; the large ones are the ceiling, the others what SDXL has most of
    "8192^3": (8192, 8192, 8192),
    "4096^3": (4096, 4096, 4096),
    "sdxl geglu": (2048, 10240, 1280),
    "sdxl geglu 4096 tokens": (8192, 5120, 640),
    "sdxl projection": (2048, 1280, 1280),
}
CONVOLUTIONS = {  # n, c in, c out, side
    "sd15 320 64x64": (2, 320, 320, 64),
    "sdxl 320 128x128": (2, 320, 320, 128),
    "sdxl 1280 32x32": (2, 1280, 1280, 32),
    "vae 128 1024x1024": (1, 128, 128, 1024),
}
LAUNCHES = 1000


def run(task: Task) -> None:
    for size in SIZES if not task.dry else [MB // 10]:
        name = f"copy {size / MB:g} MB"
        what = {"benchmark": "copy", "case": {"bytes": size}}
        task.measure(name, functools.partial(copy, task, size), **what)
    for name, shape in (GEMMS if not task.dry else {"tiny": (32, 32, 32)}).items():
        what = {"benchmark": "matrix", "case": {"where": name, "dtype": "bfloat16"}}
        task.measure(f"matrix {name}", functools.partial(matrix, task, shape), **what)
    for name, sizes in (CONVOLUTIONS if not task.dry else {"tiny": (1, 8, 8, 8)}).items():
        what = {"benchmark": "convolution", "case": {"where": name, "dtype": "bfloat16"}}
        task.measure(f"convolution {name}", functools.partial(convolution, task, sizes), **what)
    if task.device != "cuda":
        task.skip("launch", "there are no launches on a CPU", benchmark="launch")
    else:
        task.measure("launch", functools.partial(launch, task), benchmark="launch")


def copy(task: Task, size: int) -> Row:
    """By the copy engine's kernel and by an elementwise one, each as often as there are pairs."""
    pairs = 1 if size <= RESIDENT else max(2, 1000 * MB // size)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": task.device}
    tensors = [
        (torch.rand(size // 4, **kind), torch.empty(size // 4, **kind)) for _ in range(pairs)
    ]
    inner = 20 if size <= RESIDENT else 1

    def copies() -> None:
        for source, target in tensors:
            target.copy_(source)

    def negations() -> None:
        for source, target in tensors:
            torch.neg(source, out=target)

    calls = {"copy_": copies, "neg": negations}
    for name, call in calls.items():
        call()
        for source, target in tensors:
            assert torch.equal(target, -source if name == "neg" else source), f"{name}: no copy"
    timers = {name: timer(task.device, call, inner) for name, call in calls.items()}
    times = compare(task, timers, seconds=0.5)
    return {"bytes": pairs * 2 * size, "repeats": pairs, "times": times}


def matrix(task: Task, shape: tuple[int, int, int]) -> Row:
    """Of random numbers: the rate on zeros is higher, and nobody's."""
    m, n, k = shape
    kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": task.device}
    a, b = torch.randn(m, k, **kind), torch.randn(k, n, **kind)
    out = torch.empty(m, n, **kind)
    call = functools.partial(torch.mm, a, b, out=out)
    call()
    part = slice(0, 64)  # rows of the result; their float64 product takes no time
    wide = a[part].double() @ b.double()
    error = (out[part].double() - wide).norm() / wide.norm()
    assert error < 1e-2, f"the product is wrong by {error:.2g}"
    times = compare(task, {"torch.mm": timer(task.device, call, 5)}, seconds=0.5)
    moved = 2 * (m * k + k * n + m * n)
    return {"bytes": moved, "flops": 2 * m * n * k, "times": times}


def convolution(task: Task, shape: tuple[int, int, int, int]) -> Row:
    """3x3, bf16, in both layouts.  A corner of the result is compared with float64."""
    samples, channels, filters, side = shape
    kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": task.device}
    x, w = torch.randn(samples, channels, side, side, **kind), torch.randn(filters, channels, 3, 3)
    w, timers = w.to(task.device, torch.bfloat16), {}
    corner = x[..., :9, :9].double()  # what the first 8x8 pixels of the result depend on
    wide = torch.conv2d(corner, w.double(), padding=1)[..., :8, :8]
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    for name, layout in layouts.items():
        operands = (t.contiguous(memory_format=layout) for t in (x, w))
        call = functools.partial(torch.conv2d, *operands, padding=1)
        error = (call()[..., :8, :8].double() - wide).norm() / wide.norm()
        assert error < 1e-2, f"{name}: the convolution is wrong by {error:.2g}"
        timers[name] = timer(task.device, call, 5)
    flops = 2 * 9 * samples * channels * filters * side * side
    moved = 2 * samples * side * side * (channels + filters) + 2 * w.numel()
    return {"bytes": moved, "flops": flops, "times": compare(task, timers, seconds=0.3)}


def launch(task: Task) -> Row:
    """The smallest kernel, a thousand times in one graph; and a graph of one."""
    x = torch.zeros(1, device=task.device)
    many, one = (captured(lambda: x.add_(1), n) for n in (LAUNCHES, 1))
    x.zero_()
    many.replay()
    one.replay()
    assert x.item() == LAUNCHES + 1, f"the graphs have {x.item():g} kernels, not {LAUNCHES} and 1"
    timers = {
        "kernel in a graph": on_the_device(many.replay, LAUNCHES),
        "graph of one kernel": on_the_device(one.replay, 1),
        "kernel, eager": timer(task.device, lambda: x.add_(1), 200, graph=False),
    }
    return {"repeats": 1, "times": compare(task, timers, seconds=0.5)}


def bandwidth(report: Report, size: int | None = None) -> float | None:
    """Bytes a second of the best copy of all sizes above the L2; with `size`, of the copy that
    moves most nearly so many bytes.  None where nothing was measured."""
    rows = [r for r in rows_of(report, "ceilings") if r.get("benchmark") == "copy" and "times" in r]
    if size is None:
        rows = [r for r in rows if r["case"]["bytes"] > RESIDENT] or rows
        return max((rate(r, r["bytes"]) for r in rows), default=None)
    rows.sort(key=lambda r: abs(math.log(2 * r["case"]["bytes"] / size)))
    return rate(rows[0], rows[0]["bytes"]) if rows else None


def matrix_rate(report: Report) -> float | None:
    """bf16 operations a second of the best product."""
    rows = [
        r for r in rows_of(report, "ceilings") if r.get("benchmark") == "matrix" and "times" in r
    ]
    return max((rate(r, r["flops"]) for r in rows), default=None)


def rate(row: Row, amount: float) -> float:
    """So much a second, by the fastest of the row."""
    return float(amount / min(times["median"] for times in row["times"].values()) * 1e6)
