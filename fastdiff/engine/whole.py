"""A folder that is there whole or not at all.

It is made under a hidden name beside its place, `.NAME.<token>.part`, synced, then renamed.  Who
makes it holds a lock on it that the system lets go of when the process ends, however it ends: so
the next writer knows what a killed one left, and removes that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART, OLD = ".part", ".old"


@contextmanager
def folder(place: Path, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill: `place` after the `with`, and gone after an error.

    replace  a folder that has the name is taken away first, and put back where the new one cannot
             have it.  Otherwise OSError where the name is taken by a file or a folder with files.
    Files and folders get the modes that the umask gives; all is synced before it is renamed.
    """
    sweep(place)
    part, lock = _begin(place)
    try:
        yield part
        _sync(part)
        if replace and os.path.lexists(place):
            _swap(part, place)
        else:
            os.rename(part, place)
        _sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def sweep(place: Path) -> None:
    """Remove what killed writers of `place` left; put an old folder back whose new one is missing.

    Such a folder was taken away by a writer that was killed between two renames.
    """
    ours = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}({PART}|{OLD})")
    left = [path for path in place.parent.glob(".*") if ours.fullmatch(path.name)]
    for path in sorted(left):
        if (lock := _lock(path)) is None:
            continue  # of a writer that lives, or none of ours
        try:
            if path.suffix == OLD and not os.path.lexists(place):
                os.rename(path, place)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _begin(place: Path) -> tuple[Path, int]:
    while True:
        part = place.with_name(f".{place.name}.{secrets.token_hex(4)}{PART}")
        part.mkdir()
        lock = _lock(part)
        if lock is not None:
            with suppress(FileNotFoundError):  # another writer swept it before it was locked
                if os.path.samestat(os.stat(part), os.fstat(lock)):
                    return part, lock
            os.close(lock)


def _lock(path: Path) -> int | None:
    """An open folder that nobody else has locked, or None."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _swap(part: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}{OLD}")
    lock = _lock(place)  # it stays on the folder: or another writer puts it back too early
    if lock is None:
        raise OSError(errno.EBUSY, "another process replaces it", str(place))
    try:
        os.rename(place, old)
        try:
            os.rename(part, place)
        except BaseException:
            os.rename(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)


def _sync(path: Path) -> None:
    for entry in sorted(path.iterdir()):
        handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["folder", "sweep"]
