"""The folder of a bundle: written whole or not at all, and verified before anything is parsed.

`open` checks in this order: what lies in the folder (plain files, no links, few of them), the
manifest (its length, then its schema), that the files are those of the manifest and have its
lengths, their SHA-256, and last the graphs (graphs.py).  Every file is opened below the folder
that was opened first, and no link is followed.

Nobody may write to the folder meanwhile.  `Bundle.file` notices a file that was replaced or written
to since it was hashed; it cannot notice it between its own look and that of the runtime which then
opens the file by name, and a graph that is cut short while it is looked at ends the process
(SIGBUS).  The hashes are those of the manifest: they say that the bundle is whole, not who made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.engine import graphs, here, manifest, whole
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible, Untrusted
from fastdiff.engine.manifest import MOST_BYTES, NAME, Engine, File, Manifest

MOST_FILES = 1001  # those of a manifest, and the manifest
CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
Mark = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified; its files are asked for by name."""

    path: Path
    manifest: Manifest
    _marks: dict[str, Mark] = field(repr=False)

    def file(self, name: str) -> Path:
        """The path of a file of the manifest; Corrupt where it is no longer what was verified."""
        if name not in self._marks:
            raise Corrupt(f"the bundle must have the file {name!r:.120}; {self.path} has it not")
        path = self.path / name
        try:
            now = _mark(os.lstat(path))
        except OSError as error:
            raise Corrupt(f"{path} must be there; {error.strerror}") from None
        if now != self._marks[name]:
            raise Corrupt(f"{path} was changed since it was verified. Open the bundle again")
        return path

    def graph(self, name: str) -> Path:
        """The ONNX file of a graph, weights beside it looked at, too."""
        if name not in self.manifest.graphs:
            raise Incompatible(
                f"the bundle must have the graph {name!r:.120}; {self.path} has "
                f"{', '.join(sorted(self.manifest.graphs))}. Export it with that part"
            )
        graph = self.manifest.graphs[name]
        if graph.data is not None:
            self.file(graph.data)
        return self.file(graph.file)

    def plan(self, engine: Engine, *, trust_engine: bool = False) -> Path:
        """The file of a TensorRT plan: Untrusted without trust_engine, for a plan is code."""
        if not trust_engine:
            raise Untrusted(
                f"the plan {engine.file} of {self.path} is machine code for the GPU, and TensorRT "
                "does not check it. If you made the bundle or trust who did, pass "
                "trust_engine=True; otherwise build it here from the ONNX graph in the bundle"
            )
        return self.file(engine.file)

    def check_here(self, there: here.Here | None = None) -> None:
        """Incompatible where the bundle's target cannot run here; there: None looks."""
        target = self.manifest.target
        opset = max(graph.opset for graph in self.manifest.graphs.values())
        here.check(target, here.look(target.name) if there is None else there, opset)


def open(path: str | Path) -> Bundle:
    """A verified bundle: Untrusted, Incompatible or Corrupt where it is none."""
    path = Path(path)
    try:
        handle = os.open(path, _READ | os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        raise Corrupt(_no_folder(path, error)) from None
    try:
        if NAME not in os.listdir(handle):
            raise Corrupt(f"{path} must be a bundle; it has no {NAME}. fastdiff export makes one")
        lengths = _lengths(handle)
        found = manifest.parse(_read(handle, NAME, MOST_BYTES))
        _check_names(lengths, found)
        marks = {name: _hash(handle, name, file) for name, file in found.files.items()}
        _check_graphs(path, found)
    except OSError as error:
        raise Corrupt(f"{path} must be readable; {error.strerror}: {error.filename}") from None
    finally:
        os.close(handle)
    return Bundle(path, found, marks)


@contextmanager
def writing(out: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder beside `out` to put files in; `finish` it, and it is `out` after the `with`.

    After an error nothing is left; after a kill or a power cut `out` is what it was (where it was
    to be replaced, it may be missing until the next `writing` puts it back), and the next
    `writing` of it removes the rest.  Incompatible where `out` exists: it is replaced only if
    replace is true and it is a bundle without a file that its manifest does not name.
    """
    out = Path(out).absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        places = (place for place in out.parents if os.path.lexists(place) and not place.is_dir())
        raise NotADirectoryError(
            f"out must lie in a folder, and {str(next(places, out.parent))!r} on its way is none"
        ) from error
    whole.sweep(out)
    _check_place(out, replace)
    with whole.folder(out, replace) as folder:
        yield folder
        if not (folder / NAME).is_file():
            raise RuntimeError("a bundle must be finished: call bundle.finish before the with ends")
        _check_place(out, replace)


def finish(folder: Path, **fields: Any) -> Manifest:
    """Hash all files, look at the graphs, write manifest.json; fields: Manifest's without files."""
    handle = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        files = {}
        for name, length in sorted(_lengths(handle).items()):
            digest, _ = _digest(handle, name, length)
            files[name] = File(bytes=length, sha256=digest)
    finally:
        os.close(handle)
    made = Manifest(**fields, files=files)
    text = made.text().encode()
    if manifest.parse(text) != made:
        raise ValueError("fields of a manifest must be what JSON can hold; they read otherwise")
    _check_graphs(folder, made)
    (folder / NAME).write_bytes(text)
    mode = stat.S_IMODE((folder / NAME).stat().st_mode)  # what the umask gives
    for name in files:  # onnx makes the weights beside a graph with 0600
        (folder / name).chmod(mode)
    return made


def _no_folder(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and os.path.islink(path):
        return f"{path} must be the folder of a bundle itself, not a link to it; name the folder"
    why = error.strerror if isinstance(error, OSError) else error
    packed = ". Unpack it first" if path.suffix in (".zip", ".tar", ".gz") else ""
    return f"{str(path)!r:.200} must be the folder of a bundle; {why}{packed}"


def _lengths(handle: int) -> dict[str, int]:
    """Length of every file in the folder: Untrusted where something is not a plain file."""
    found: dict[str, int] = {}
    with os.scandir(handle) as entries:
        for entry in entries:
            if len(found) == MOST_FILES:
                raise Untrusted(f"a bundle must have at most {MOST_FILES} files; it has more")
            status = os.stat(entry.name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise Untrusted(
                    f"{entry.name!r:.120} in the bundle must be a plain file; got a link. "
                    "If you trust where it points, copy the folder with cp -rL"
                )
            if not stat.S_ISREG(status.st_mode):
                raise Untrusted(
                    f"{entry.name!r:.120} in the bundle must be a plain file; got "
                    f"{'a folder' if stat.S_ISDIR(status.st_mode) else 'a special file'}"
                )
            found[entry.name] = status.st_size
    return found


def _read(handle: int, name: str, most: int) -> bytes:
    file = os.open(name, _READ, dir_fd=handle)
    with os.fdopen(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Untrusted(f"{name} in the bundle must be a plain file")
        text = stream.read(most + 1)
    if len(text) > most:
        raise Corrupt(f"{name} must have at most {most} bytes; it has more")
    return text


def _check_names(lengths: dict[str, int], found: Manifest) -> None:
    """The files are those of the manifest, with its lengths, before one is read."""
    if extra := sorted(lengths.keys() - found.files.keys() - {NAME}):
        raise Untrusted(
            f"{extra[0]!r:.120} lies in the bundle, and its manifest does not name it. Remove it "
            "if it is yours"
        )
    if missing := sorted(found.files.keys() - lengths.keys()):
        raise Corrupt(f"the bundle must have {missing[0]}; it is not there. Fetch it again")
    for name, file in found.files.items():
        if lengths[name] != file.bytes:
            raise Corrupt(
                f"{name} must have {file.bytes} bytes; got {lengths[name]}. Fetch it again"
            )


def _hash(handle: int, name: str, file: File) -> Mark:
    digest, mark = _digest(handle, name, file.bytes)
    if digest != file.sha256:
        raise Corrupt(
            f"{name} must have the SHA-256 {file.sha256[:12]}..; got {digest[:12]}... "
            "Fetch or export the bundle again"
        )
    return mark


def _digest(handle: int, name: str, length: int) -> tuple[str, Mark]:
    """SHA-256 of a plain file of this length, and what tells whether it was changed since."""
    sha, left = hashlib.sha256(), length
    file = os.open(name, _READ, dir_fd=handle)
    with os.fdopen(file, "rb", buffering=0) as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size != length:
            raise Corrupt(f"{name} was changed while the bundle was read")
        while left > 0 and (chunk := stream.read(min(CHUNK, left))):
            sha.update(chunk)
            left -= len(chunk)
        if left or _mark(os.fstat(file)) != _mark(status):
            raise Corrupt(f"{name} was changed while the bundle was read")
    return sha.hexdigest(), _mark(status)


def _mark(status: os.stat_result) -> Mark:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _check_graphs(folder: Path, found: Manifest) -> None:
    for graph in found.graphs.values():
        seen = graphs.check(folder / graph.file, folder, graph.data)
        graphs.check_ports(seen, graph)


def _check_place(out: Path, replace: bool) -> None:
    if not os.path.lexists(out):
        return
    if not _is_bundle(out):
        raise Incompatible(
            f"{out} exists and is not a bundle, or has files that its manifest does not name; it "
            "is not replaced. Choose another name, or move it away"
        )
    if not replace:
        raise Incompatible(f"{out} exists. Choose another name, or replace it (replace=True)")


def _is_bundle(out: Path) -> bool:
    """Whether only files that its manifest names lie in it, of whatever schema that is."""
    try:
        handle = os.open(out, _READ | os.O_DIRECTORY)
        try:
            lengths = _lengths(handle)
            named = json.loads(_read(handle, NAME, MOST_BYTES))["files"]
        finally:
            os.close(handle)
        return isinstance(named, dict) and lengths.keys() <= named.keys() | {NAME}
    except (OSError, EngineError, ValueError, TypeError, KeyError, RecursionError):
        return False


__all__ = ["Bundle", "finish", "open", "writing"]
