"""Rows of a drop-in scheduler: computed once for a schedule, shared by every scheduler that has it.

A diffusers scheduler may jump, be reset, have its sigmas edited and its history replaced between
two steps, so a row is asked for by its place, (i, k, numbers passed to step), and made when first
needed. Rows of equal schedules are the same object, whichever scheduler, thread or run asks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.table import G

Floats = NDArray[np.float64]
Place = Hashable
KEPT_GUIDANCE = 64  # scales for which a schedule's rows are kept; beyond, all go
KEPT_TABLES = 64  # least recently used ones go; a table of 50 rows is 10 kB


def traced() -> bool:
    """True inside a torch.func transform, under fake tensors, or while something traces."""
    modes = torch._C._TorchDispatchModeKey
    return torch._C._functorch.peek_interpreter_stack() is not None or any(
        torch._C._get_dispatch_mode(key) is not None
        for key in (modes.FAKE, modes.PROXY, modes.FUNCTIONAL)
    )


class Entry:
    """One row, ready for a kernel.

    numbers  (K,) float64; rounded once to float32, at the address `pointer` on the host
    draw     the step draws noise, even where its weight is 0: seeds must go on as in diffusers
    reads    vectors of history that it reads

    Kept as NumPy: a tensor made inside a transform or under fake tensors must not outlive it.
    """

    __slots__ = ("_copies", "_row", "draw", "numbers", "pointer", "reads")

    def __init__(self, numbers: Floats, *, draw: bool, reads: int) -> None:
        self.numbers = numbers
        self._row = numbers.astype(np.float32)
        self.pointer: int = self._row.ctypes.data
        self.draw = draw
        self.reads = reads
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The row (1, 1, K) on a device, or None if it was not brought there yet."""
        if device.type == "cpu" or traced():
            numbers = self._row if dtype == torch.float32 else self.numbers
            # from_numpy shares the memory: no copy, and nothing to keep
            return torch.from_numpy(numbers.reshape(1, 1, -1)).to(device)
        return self._copies.get((device, dtype))


class Rows:
    """The rows of one schedule, by place."""

    def __init__(self, build: Callable[[Place], Entry]) -> None:
        self._build = build
        self._entries: dict[Place, Entry] = {}
        self._guided: dict[float, Rows] = {}

    def __getitem__(self, place: Place) -> Entry:
        entry = self._entries.get(place)
        return self._made(place) if entry is None else entry

    # otherwise torch.compile traces it, and compiles again for every row
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _made(self, place: Place) -> Entry:
        # two threads may both build it: the numbers are the same, the first one stays
        return self._entries.setdefault(place, self._build(place))

    def guided(self, g: float) -> Rows:
        """These rows with guidance g in them, for a step that gets both outputs."""
        found = self._guided.get(g)
        if found is None:
            if len(self._guided) >= KEPT_GUIDANCE:
                self._guided.clear()
            found = self._guided.setdefault(g, Rows(lambda place: self._with_guidance(place, g)))
        return found

    def _with_guidance(self, place: Place, g: float) -> Entry:
        entry = self[place]
        numbers = entry.numbers.copy()
        numbers[G] = g
        return Entry(numbers, draw=entry.draw, reads=entry.reads)

    def bring(self, places: Iterable[Place], device: torch.device, dtype: torch.dtype) -> None:
        """Copy the rows of all these places to a device in one transfer that blocks nobody."""
        entries = [e for e in (self[p] for p in places) if e.on(device, dtype) is None]
        if not entries:
            return
        flat = torch.from_numpy(np.concatenate([e.numbers for e in entries])).to(dtype)
        if device.type == "cuda":
            flat = flat.pin_memory()
        there, first = flat.to(device, non_blocking=True), 0
        for entry in entries:
            size = len(entry.numbers)
            entry._copies[device, dtype] = there[first : first + size].reshape(1, 1, size)
            first += size


_tables: OrderedDict[Hashable, Rows] = OrderedDict()
_lock = threading.Lock()


def shared(key: Hashable, make: Callable[[], Callable[[Place], Entry]]) -> Rows:
    """The rows of the schedule that `key` describes whole; `make` is called for a new one."""
    with _lock:
        rows = _tables.get(key)
        if rows is None:
            rows = _tables[key] = Rows(make())
            if len(_tables) > KEPT_TABLES:
                _tables.popitem(last=False)
        else:
            _tables.move_to_end(key)
        return rows
