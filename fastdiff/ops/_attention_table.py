"""Which attention was measured to be the fastest, by device and class of shape.

attention_table.json beside this file, made by `python -m benchmarks.attention_table RESULTS.json`:

    {"schema": 1, "devices": [{
        "device": "NVIDIA H200", "driver": .., "torch": .., "triton": .., "date": "2026-11-21",
        "rows": [{"dtype": "bfloat16", "width": 40, "queries": "4096", "keys": "77",
                  "masked": false, "fastest": "cross_attention",
                  "microseconds": {"torch": 9.1, "flash": 9.3, "cross_attention": 5.0}}]}]}

A row speaks for its device, dtype, width and mask, and for numbers of queries and keys of the same
class.  Classes, named by their upper ends: 64, 128, 256, 512 .. (powers of two), and for keys 77 of
their own: the tokens of a prompt.  `fastest` is what its `microseconds` say; and something other
than "torch" must be at least MARGIN faster, or the row is not believed: a tie is no win.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

PATH = Path(__file__).with_name("attention_table.json")
SCHEMA = 1
MARGIN = 1.02
OURS = ("triton", "cross_attention")
NAMES = ("torch", "cudnn", "flash", "fa3", "fa4", "efficient", "math", *OURS)
DTYPES = ("float32", "float16", "bfloat16")
FACTS = ("device", "driver", "torch", "triton", "date")
ROW = {"dtype", "width", "queries", "keys", "masked", "fastest", "microseconds"}


class Choice(NamedTuple):
    """Who computes, and why."""

    name: str
    why: str


Key = tuple[str, str, int, str, str, bool]
Table = dict[Key, Choice]


def length_class(length: int, keys: bool = False) -> str:
    """The class of a number of queries or keys: "4096", or "77" for keys 65 to 77."""
    if keys and 64 < length <= 77:
        return "77"
    return str(max(64, 1 << max(0, length - 1).bit_length()))


def device_name(index: int) -> str:
    return _device_name(index)


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def lookup(device: str, dtype: str, *, width: int, queries: int, keys: int, masked: bool) -> Choice:
    """What the shipped table says; PyTorch's own choice where it says nothing."""
    return find(shipped(), device, dtype, width, queries, keys, masked)


def find(
    table: Table, device: str, dtype: str, width: int, queries: int, keys: int, masked: bool
) -> Choice:
    classes = (length_class(queries), length_class(keys, keys=True))
    found = table.get((device, dtype, width, *classes, masked))
    if found is not None:
        return found
    if not any(key[0] == device for key in table):
        return Choice("torch", f"nothing was measured on {device}: PyTorch's own choice")
    what = f"{dtype}, width {width}, {queries} queries, {keys} keys{', masked' * masked}"
    return Choice("torch", f"not measured on {device}: {what}; PyTorch's own choice")


@functools.cache
def shipped() -> Table:
    """The table beside this file, read and checked once."""
    return read(json.loads(PATH.read_text()), str(PATH))


def read(data: Any, source: str) -> Table:
    """The table in `data`; raises ValueError, with what is wrong, on anything else than a table."""

    def must(holds: bool, words: str) -> None:
        if not holds:
            raise ValueError(f"{source}: {words}")

    must(isinstance(data, dict), f"must hold an object, got {type(data).__name__}")
    must(data.get("schema") == SCHEMA, f"schema must be {SCHEMA}, got {data.get('schema')!r}")
    must(isinstance(data.get("devices"), list), "devices must be a list")
    table: Table = {}
    for entry in data["devices"]:
        missing = {*FACTS, "rows"} - entry.keys()
        must(not missing, f"a device lacks {sorted(missing)}")
        for row in entry["rows"]:
            where = f"{entry['device']}: {row}"
            must(row.keys() == ROW, f"a row must have {sorted(ROW)}; {where}")
            must(row["dtype"] in DTYPES, f"dtype must be among {DTYPES}; {where}")
            must(type(row["width"]) is int and row["width"] > 0, f"width must be positive; {where}")
            must(type(row["masked"]) is bool, f"masked must be true or false; {where}")
            must(_is_class(row["queries"], False), f"queries must be a class of lengths; {where}")
            must(_is_class(row["keys"], True), f"keys must be a class of lengths; {where}")
            times = row["microseconds"]
            must(times.keys() <= set(NAMES), f"microseconds must be of {NAMES}; {where}")
            must("torch" in times, f"microseconds must have those of torch; {where}")
            must(all(t > 0 for t in times.values()), f"microseconds must be positive; {where}")
            must(row["fastest"] == fastest(times), f"fastest is {fastest(times)!r}; {where}")
            classes = (row["queries"], row["keys"])
            key = (entry["device"], row["dtype"], row["width"], *classes, row["masked"])
            must(key not in table, f"there twice; {where}")
            table[key] = Choice(row["fastest"], _why(entry, row))
    return table


def fastest(microseconds: dict[str, float]) -> str:
    """The fastest, if it beats PyTorch's own choice by MARGIN, and a kernel of ours all of
    PyTorch's; else "torch"."""
    peers = {n: t for n, t in microseconds.items() if n not in OURS}
    peer = min(peers, key=lambda n: peers[n])
    if microseconds["torch"] < peers[peer] * MARGIN:
        peer = "torch"
    ours = {n: t for n, t in microseconds.items() if n in OURS}
    if ours:
        mine = min(ours, key=lambda n: ours[n])
        if ours[mine] * MARGIN <= min(peers.values()):
            return mine
    return peer


def _why(entry: dict[str, Any], row: dict[str, Any]) -> str:
    times = row["microseconds"]
    if row["fastest"] == "torch":
        best = min((n for n in times if n != "torch"), key=lambda n: times[n], default="torch")
        found = f"PyTorch's own choice, {times['torch']:.1f} µs, is not beaten by {best}"
        found += f", {times[best]:.1f} µs"
    else:
        found = f"{times[row['fastest']]:.1f} µs where PyTorch's own choice takes "
        found += f"{times['torch']:.1f} µs"
    return f"{found} (measured on {entry['device']}, torch {entry['torch']}, {entry['date']})"


def _is_class(name: Any, keys: bool) -> bool:
    return isinstance(name, str) and name.isdigit() and length_class(int(name), keys) == name
