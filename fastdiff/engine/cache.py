"""Plans that were built on this machine, kept for the next time.

    engines/KEY/plan         what was put
    engines/KEY/entry.json   its length and SHA-256, when it was made, and what it is, in words
    engines/KEY.lock         the file lock of the key

A plan is code, so the folder must be this user's alone: its mode is 0700, and it is refused where
others may write to it or where it is a link.  (Folders above it are not looked at.)  An entry
appears whole or not at all, and is hashed whenever it is got: one that is not what was put is
removed, said in the log, and counts as missing.  What this process has got or put is in use until
`release` or its end, and is removed by nobody meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastdiff.engine import whole
from fastdiff.engine.errors import Incompatible, Untrusted

log = logging.getLogger(__name__)
DATA, ENTRY = "plan", "entry.json"
DEFAULT_BYTES = 20_000_000_000
MOST_ENTRY = 1 << 16
CHUNK = 1 << 20
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_held: dict[Path, int] = {}  # open files of entries that are in use here


@dataclass(frozen=True)
class Entry:
    """One plan: bytes of it, seconds since 1970 when it was made and last got, what it is."""

    key: str
    bytes: int
    made: float
    used: float
    about: str


@dataclass(frozen=True)
class Cleared:
    """What was removed, and the number of entries that are in use and were left."""

    entries: int
    bytes: int
    in_use: int


def folder() -> Path:
    """Where plans are, made if missing; Untrusted where it is not this user's alone.

    Incompatible where it cannot be made.

    FASTDIFF_CACHE  is the folder of all caches of fastdiff instead of the user's
    """
    if above := os.environ.get("FASTDIFF_CACHE"):
        path = Path(above).absolute() / "engines"
    else:
        from platformdirs import user_cache_dir

        path = Path(user_cache_dir("fastdiff")) / "engines"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Incompatible(
            f"the cache of engines {path} cannot be made: {error.strerror}. Set FASTDIFF_CACHE to "
            "a folder that you can write to"
        ) from error
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise Untrusted(
            f"the cache of engines {path} must be a folder and not a link. Set FASTDIFF_CACHE to "
            "the folder that you mean"
        )
    if found.st_uid != os.geteuid():
        raise Untrusted(
            f"the cache of engines {path} must belong to the user of this process, "
            f"{os.geteuid()}; it is of user {found.st_uid}. Set FASTDIFF_CACHE to a folder of "
            "your own"
        )
    if found.st_mode & 0o022:
        raise Untrusted(
            f"the cache of engines {path} must not be writable by others, who could put code in "
            f"it; its mode is {stat.S_IMODE(found.st_mode):04o}. If you trust what is in it: "
            f"chmod 700 {path}"
        )
    return path


def limit() -> int:
    """Bytes that the cache may have: FASTDIFF_CACHE_BYTES, or 20 GB."""
    text = os.environ.get("FASTDIFF_CACHE_BYTES", "")
    if not text:
        return DEFAULT_BYTES
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(
            f"FASTDIFF_CACHE_BYTES must be a whole number of bytes, like 20000000000; got "
            f"{text!r:.60}"
        )
    return int(text)


@contextmanager
def locked(key: str, timeout: float = -1) -> Iterator[None]:
    """Nobody else gets, puts or removes the key meanwhile: hold it around `get`, build and `put`.

    timeout  seconds to wait; -1: for ever.  filelock.Timeout after that.
    """
    path = folder() / f"{_checked(key)}.lock"
    with FileLock(path, is_singleton=True, mode=0o600).acquire(timeout=timeout):
        yield


def get(key: str) -> Path | None:
    """The file that was put, in use from now on; None where there is none that is what was put."""
    with locked(key):
        entry = folder() / key
        if not os.path.lexists(entry):
            return None
        handle = -1
        try:
            handle = os.open(entry / DATA, _READ)
            about = _about(entry)
            _verify(handle, about)
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(handle)
        except (OSError, ValueError) as error:
            if handle >= 0:
                os.close(handle)
            log.warning("%s in the cache of engines is not what was put; removed: %s", key, error)
            _remove(entry)
            return None
        _hold(entry, handle)
        return entry / DATA


def put(key: str, data: bytes | Path, about: str = "") -> Path:
    """Keep bytes, or a copy of a file, under a key; the file, in use from now on.

    Entries got longest ago are removed where the cache is larger than its limit; this one and
    those in use are not.  OSError where it cannot be written; what was there before stays then.
    """
    with locked(key):
        entry = folder() / key
        with whole.folder(entry, replace=True) as part:
            part.chmod(0o700)
            if isinstance(data, Path):
                shutil.copyfile(data, part / DATA)
            else:
                (part / DATA).write_bytes(data)
            with open(part / DATA, "rb") as stream:
                sha = hashlib.file_digest(stream, "sha256").hexdigest()
            made = {
                "bytes": (part / DATA).stat().st_size,
                "sha256": sha,
                "made": time.time(),
                "about": about[:1000],
            }
            (part / ENTRY).write_text(json.dumps(made), encoding="utf-8")
        handle = os.open(entry / DATA, _READ)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _hold(entry, handle)
    _shrink(limit())
    return entry / DATA


def release(key: str) -> None:
    """What was got or put here is no longer in use here."""
    if (handle := _held.pop(folder() / _checked(key), None)) is not None:
        os.close(handle)


def entries() -> list[Entry]:
    """What there is, last used first; what cannot be read counts by its length."""
    found = []
    for path in folder().iterdir():
        if not _KEY.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            status = os.lstat(path / DATA)
        except OSError:
            found.append(Entry(path.name, 0, 0.0, 0.0, "not readable"))
            continue
        try:
            about = _about(path)
            made, words = about["made"], about["about"]
        except (OSError, ValueError):
            made, words = 0.0, "not readable"
        found.append(Entry(path.name, status.st_size, made, status.st_mtime, words))
    return sorted(found, key=lambda entry: (-entry.used, entry.key))


def clear(older_than: float = 0.0) -> Cleared:
    """Remove what was last used that many seconds ago or longer; what is in use stays."""
    before = time.time() - older_than
    removed, freed, in_use = 0, 0, 0
    for entry in entries():
        if older_than and entry.used > before:
            continue
        if _evict(entry.key):
            removed, freed = removed + 1, freed + entry.bytes
        else:
            in_use += 1
    _sweep()
    return Cleared(removed, freed, in_use)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"key must be a-z, 0-9, _ and -, at most 128 of them; got {key!r:.80}. "
            "The hexadecimal digits of a hash would do"
        )
    return key


def _about(entry: Path) -> dict[str, Any]:
    """What entry.json says; ValueError or OSError where it is none."""
    handle = os.open(entry / ENTRY, _READ)
    with os.fdopen(handle, "rb") as stream:
        text = stream.read(MOST_ENTRY + 1)
    try:
        found = json.loads(text) if len(text) <= MOST_ENTRY else None
    except RecursionError:
        found = None
    if entry.is_symlink():
        raise ValueError("a link is not an entry")
    kinds = {"bytes": int, "sha256": str, "made": float, "about": str}
    if not isinstance(found, dict) or any(type(found.get(k)) is not v for k, v in kinds.items()):
        raise ValueError(f"{ENTRY} is not that of an entry")
    if not isfinite(found["made"]):
        raise ValueError(f"{ENTRY} has no time")
    return found


def _verify(handle: int, about: dict[str, Any]) -> None:
    """The open file is what was put; ValueError if not."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size != about["bytes"]:
        raise ValueError(f"{DATA} has {status.st_size} bytes, not {about['bytes']}")
    sha = hashlib.sha256()
    with os.fdopen(os.dup(handle), "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    if sha.hexdigest() != about["sha256"]:
        raise ValueError(f"{DATA} has another SHA-256")


def _hold(entry: Path, handle: int) -> None:
    if (before := _held.pop(entry, None)) is not None:
        os.close(before)
    _held[entry] = handle


def _sweep() -> None:
    """Remove what killed writers left, of every key."""
    for path in folder().glob(".*"):
        name = path.name.removeprefix(".").rsplit(".", 2)[0]
        if _KEY.fullmatch(name) and path.suffix in (whole.PART, whole.OLD):
            whole.sweep(path.with_name(name))


def _shrink(most: int) -> None:
    """Remove entries used longest ago until `most` bytes are left, if that many are not in use."""
    _sweep()
    found = entries()
    total = sum(entry.bytes for entry in found)
    for entry in reversed(found):
        if total <= most:
            return
        if _evict(entry.key):
            log.info("removed %s from the cache of engines: %d bytes", entry.key, entry.bytes)
            total -= entry.bytes
    if total > most:
        log.warning("the cache of engines has %d bytes, more than %d: all in use", total, most)


def _evict(key: str) -> bool:
    """Remove an entry that nobody has in use or works on; whether it is gone."""
    entry = folder() / key
    try:
        with locked(key, timeout=0):
            if not os.path.lexists(entry):
                return True
            return _unused(entry) and _remove(entry)
    except Timeout:
        return False


def _unused(entry: Path) -> bool:
    try:
        handle = os.open(entry / DATA, _READ)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    finally:
        os.close(handle)
    return True


def _remove(entry: Path) -> bool:
    """Under the key's lock. First the name, at once: a half removed entry is none."""
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink(missing_ok=True)
        return True
    gone = entry.with_name(f".{entry.name}.{os.urandom(4).hex()}{whole.PART}")
    os.rename(entry, gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


__all__ = [
    "Cleared",
    "Entry",
    "clear",
    "entries",
    "folder",
    "get",
    "limit",
    "locked",
    "put",
    "release",
]
