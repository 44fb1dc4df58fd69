"""What a build shows while it runs, and how Ctrl-C ends it.

TensorRT reports phases inside phases.  The bar goes from 0 to 1: a step of a phase is that part of
one step of the phase around it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
LOG = logging.getLogger("fastdiff.engine.tensorrt")
WAIT = (
    0.1  # seconds between two looks for Ctrl-C; on Windows a wait without a limit would not see it
)


class Progress:
    """The phases that run, the bar, and whether to go on; TensorRT's threads call it."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        self.bar = tqdm(
            total=1.0,
            desc=title,
            disable=not shown,
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )
        self.cancelled = False
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[phase] = (parent, max(steps, 1), 0)
            self.bar.set_postfix_str(phase, refresh=False)
            self._show()

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on."""
        with self._lock:
            if phase in self._phases:
                parent, steps, _ = self._phases[phase]
                self._phases[phase] = (parent, steps, min(step + 1, steps))
                self._show()
        return not self.cancelled

    def finish(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def close(self) -> None:
        self.bar.close()

    def fraction(self) -> float:
        """How much is done, 0 to 1: along the newest phase and those around it."""
        chain: list[tuple[int, int]] = []
        name = next(reversed(self._phases), None)
        while name is not None and name in self._phases and len(chain) < len(self._phases):
            parent, steps, done = self._phases[name]
            chain.append((steps, done))
            name = parent
        total, width = 0.0, 1.0
        for steps, done in reversed(chain):
            total += width * done / steps
            width /= steps
        return min(total, 1.0)

    def _show(self) -> None:
        forward = self.fraction() - self.bar.n  # a second phase in the same step starts at its 0
        self.bar.update(max(forward, 0.0))


def monitor(trt: Any, progress: Progress) -> Any:
    """The IProgressMonitor of a flavour's module that calls `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return progress.step(phase, step)

        def phase_finish(self, phase: str) -> None:
            progress.finish(phase)

    return Monitor()


def cancellable(work: Callable[[], T], progress: Progress) -> T:
    """work() in a thread of its own; Ctrl-C ends it after its step, then KeyboardInterrupt.

    In the main thread a build of minutes would return to Python, and see Ctrl-C, only at its end.
    A second Ctrl-C does not wait for the step.
    """
    results: list[T] = []
    problems: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as problem:
            problems.append(problem)
        finally:
            done.set()

    with _interrupts(progress):
        threading.Thread(target=run, name="fastdiff-build", daemon=True).start()
        while not done.wait(WAIT):
            pass
    if progress.cancelled:
        raise KeyboardInterrupt
    if problems:
        raise problems[0]
    return results[0]


@contextmanager
def _interrupts(progress: Progress) -> Iterator[None]:
    """Ctrl-C sets progress.cancelled, once, instead of raising anywhere: TensorRT's thread may
    not outlive the call, and an exception between two lines of `cancellable` would let it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if progress.cancelled:
            before(number, frame)
            return
        progress.cancelled = True
        LOG.warning("the build ends after the step that runs; Ctrl-C again does not wait for it")

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["Progress", "cancellable", "monitor"]
