"""Time things on a device, in turn, in one process.

On a CUDA device a call is captured in a graph of `inner` calls, so that neither Python nor the
launch of a graph counts, and replays are timed by events; a call that cannot be captured is timed
by events around `inner` calls.  On the CPU calls are timed one by one.

All times are microseconds of one call: summary() of benchmarks/side_by_side.py.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from benchmarks.campaign.task import Task
from benchmarks.side_by_side import Call, summary

Times = dict[str, dict[str, float]]
Timer = Callable[[], float]  # seconds of one call


def captured(call: Call, inner: int = 1, warm: int = 3) -> torch.cuda.CUDAGraph:
    """A graph of `inner` calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            call()
    return graph


def on_the_device(run: Call, calls: int) -> Timer:
    """Seconds by events; `run` makes so many calls."""

    def seconds() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    return seconds


def on_the_host(call: Call, synchronize: bool = False) -> Timer:
    """Seconds until the host goes on, or until the device is done."""

    def seconds() -> float:
        start = time.perf_counter()
        call()
        if synchronize:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds


def timer(device: str, call: Call, inner: int = 20, graph: bool = True) -> Timer:
    """What to time a call with."""
    if device != "cuda":
        return on_the_host(call)
    if graph:
        return on_the_device(captured(call, inner).replay, inner)

    def run() -> None:
        for _ in range(inner):
            call()

    return on_the_device(run, inner)


def compare(task: Task, timers: dict[str, Timer], seconds: float = 1.0, least: int = 5) -> Times:
    """Rounds in which each takes a turn, for so many seconds but at least `least` rounds; who goes
    first changes.  The first round is thrown away."""
    order, found = list(timers), {name: list[float]() for name in timers}
    least, seconds = (2, 0.0) if task.dry else (least, seconds)
    if not task.dry:  # a third of a second
        gc.collect()
    gc.disable()
    try:
        for name in order:
            timers[name]()
        end, rounds = time.monotonic() + seconds, 0
        while rounds < least or (time.monotonic() < end and rounds < 2000):
            order.append(order.pop(0))
            for name in order:
                found[name].append(timers[name]())
            rounds += 1
    finally:
        gc.enable()
    return {name: summary(values) for name, values in found.items()}
