"""`fastdiff engine list` and `fastdiff engine clear`: the plans that were built on this machine."""

import json as json_format
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from math import isfinite

from fastdiff.cli import UserError
from fastdiff.engine import cache
from fastdiff.engine.errors import EngineError

SCHEMA = 1
DAY = 86_400.0


def print_list(json: bool = False) -> None:
    """Every plan: key, size, when it was made and last used; for a machine, in full."""
    with _said():
        folder, limit, found = cache.folder(), cache.limit(), cache.entries()
    total = sum(entry.bytes for entry in found)
    if json:
        body = {
            "schema": SCHEMA,
            "folder": str(folder),
            "limit": limit,
            "bytes": total,
            "entries": [asdict(entry) for entry in found],
        }
        print(json_format.dumps(body, indent=2))
        return
    print(f"{folder}: {len(found)} of {size(total)}, limit {size(limit)}")
    if not found:
        return
    width = max(3, *(len(entry.key[:16]) for entry in found))
    print(f"\n{'key':<{width}}  {'size':>9}  {'made':<16}  {'used':<16}  what")
    for entry in found:
        about = "".join(c if c.isprintable() else "?" for c in entry.about[:80])
        print(
            f"{entry.key[:16]:<{width}}  {size(entry.bytes):>9}  {_when(entry.made):<16}  "
            f"{_when(entry.used):<16}  {about}".rstrip()
        )


def clear(older_than: float | None = None) -> None:
    """Remove plans last used that many days ago or longer, or all; say how much is free then."""
    if older_than is not None and not (isfinite(older_than) and older_than > 0):
        raise UserError(f"--older-than must be a number of days > 0; got {older_than}")
    with _said():
        done = cache.clear(0.0 if older_than is None else older_than * DAY)
    print(f"removed {done.entries} of {size(done.bytes)}")
    if done.in_use:
        print(f"left {done.in_use} in use by another process")


def size(count: int) -> str:
    """Bytes in the unit in which they have three digits or fewer before the point."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:.4g} GB"


def _when(seconds: float) -> str:
    """Local time of this machine."""
    if seconds <= 0:
        return "unknown"
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return "unknown"


@contextmanager
def _said() -> Iterator[None]:
    """What the user can put right, as one line."""
    try:
        yield
    except (EngineError, ValueError, OSError) as error:
        raise UserError(str(error)) from error
