"""A bundle appears whole or not at all: errors, a full disk, kill -9, two writers, replacing."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from fastdiff.engine import bundle, whole
from fastdiff.engine.errors import Corrupt, Incompatible, Untrusted
from tests import tiny_bundle


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(out, fill, fields=None):
    with bundle.writing(out) as folder:
        fill(folder)
        bundle.finish(folder, **(fields or tiny_bundle.fields()))


@pytest.mark.parametrize("data", [None, "unet.onnx.data"])
def test_what_is_written_can_be_opened(tmp_path, data):
    out = tiny_bundle.write(tmp_path / "new" / "out", data)
    found = bundle.open(out)
    assert found.graph("unet") == out / "unet.onnx"
    assert set(found.manifest.files) == {"unet.onnx", data} - {None}
    assert names(out.parent) == ["out"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "out", lambda folder: tiny_bundle.save(folder) or 1 / 0)
    with (
        pytest.raises(RuntimeError, match=r"bundle\.finish"),
        bundle.writing(tmp_path / "out") as folder,
    ):
        tiny_bundle.save(folder)
    assert names(tmp_path) == []


def test_what_could_not_be_opened_is_not_finished(tmp_path):
    """The graphs are looked at, links and unnamed files refused, JSON's limits kept."""
    made = tiny_bundle.model()
    made.graph.node[0].domain = "com.microsoft"
    for fill, error in (
        (lambda folder: tiny_bundle.save(folder, made), Untrusted),
        (lambda folder: (folder / "unet.onnx").symlink_to("/etc/passwd"), Untrusted),
        (lambda folder: (folder / "unet.onnx").mkdir(), Untrusted),
        (lambda folder: os.mkfifo(folder / "unet.onnx"), Untrusted),
        (lambda folder: (folder / "unet.onnx").write_bytes(b""), Corrupt),
        (lambda folder: None, ValueError),
        (lambda folder: [tiny_bundle.save(folder, file=n) for n in "ab"], ValueError),
    ):
        with pytest.raises(error):
            write(tmp_path / "out", fill)
        assert names(tmp_path) == []
    fields = tiny_bundle.fields()
    fields["model"]["config"]["pair"] = (1, 2)
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "out", tiny_bundle.save, fields)


def test_an_existing_place_is_not_overwritten(tmp_path):
    out = tiny_bundle.write(tmp_path / "out")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(Incompatible, match=r"exists.*replace=True"):
        tiny_bundle.write(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(Incompatible, match="does not name"):
        tiny_bundle.write(out, replace=True)
    assert (out / "manifest.json").read_bytes() == before
    for name, make in (
        ("file", lambda path: path.write_text("mine")),
        ("empty", lambda path: path.mkdir()),
        ("link", lambda path: path.symlink_to(out)),
        ("broken", lambda path: path.symlink_to("nowhere")),
    ):
        make(tmp_path / name)
        with pytest.raises(Incompatible, match="not a bundle"):
            tiny_bundle.write(tmp_path / name, replace=True)
    assert names(tmp_path) == ["broken", "empty", "file", "link", "out"]


def test_a_file_on_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for way in ("file/bundle", "file/more/bundle", "link/bundle"):
        with pytest.raises(NotADirectoryError) as error:
            write(tmp_path / way, lambda folder: None)
        name = str(tmp_path / way.partition("/")[0])
        assert str(error.value) == f"out must lie in a folder, and {name!r} on its way is none"


def test_replaced(tmp_path):
    out = tiny_bundle.write(tmp_path / "out", "unet.onnx.data")
    tiny_bundle.write(out, None, replace=True)
    assert names(out) == ["manifest.json", "unet.onnx"]
    assert names(tmp_path) == ["out"]


def test_a_bundle_of_another_schema_may_be_replaced(tmp_path):
    out = tiny_bundle.write(tmp_path / "out")
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 7'))
    with pytest.raises(Incompatible, match="schema"):
        bundle.open(out)
    tiny_bundle.write(out, replace=True)
    bundle.open(out)


def test_the_old_bundle_comes_back_where_the_new_one_cannot_have_its_name(tmp_path, monkeypatch):
    out = tiny_bundle.write(tmp_path / "out", "unet.onnx.data")
    before = names(out)
    rename = os.rename

    def refuse(old, new):
        if str(old).endswith(whole.PART):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        tiny_bundle.write(out, None, replace=True)
    assert names(out) == before
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        tiny_bundle.write(tmp_path / "out")
    assert names(tmp_path) == []


def test_what_was_made_meanwhile_stays(tmp_path):
    out = tmp_path / "out"

    def fill(folder):
        tiny_bundle.save(folder)
        tiny_bundle.write(out, "unet.onnx.data")

    with pytest.raises(Incompatible, match="exists"):
        write(out, fill)
    assert "unet.onnx.data" in names(out)
    assert names(tmp_path) == ["out"]


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        out = tiny_bundle.write(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}


# Dies at the n-th call of one of these; the trace says where that was.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests import tiny_bundle
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
out = Path(sys.argv[1])
for at in map(int, sys.argv[2:]):
    if os.fork() == 0:
        os.fsync, os.rename = dying(os.fsync), dying(os.rename)
        tiny_bundle.write(out, None, replace=True)
        os._exit(0)
    _, status = os.wait()
    left = sorted(path.name for path in out.parent.iterdir())
    print(os.waitstatus_to_exitcode(status), *sorted(Path(n).suffix or n for n in left), flush=True)
    if at == 99:
        break
    tiny_bundle.bundle.whole.sweep(out)
    tiny_bundle.bundle.open(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
"""


def test_a_kill_leaves_the_old_bundle_or_the_new_one(tmp_path):
    """At each sync and rename of replacing: 2 files and a folder synced, two renames, a sync."""
    out = tiny_bundle.write(tmp_path / "out")
    points = [str(at) for at in (1, 2, 3, 4, 5, 6, 99)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), *points], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    killed = str(-signal.SIGKILL)
    assert run.stdout.splitlines() == [
        *[f"{killed} .part out"] * 4,  # while it is written, and before the old one is moved
        f"{killed} .old .part",  # the one moment without either: the next writer puts it back
        f"{killed} out",
        "0 out",
    ]


def test_a_living_writer_is_left_alone(tmp_path):
    with bundle.writing(tmp_path / "out") as folder:
        tiny_bundle.save(folder)
        bundle.finish(folder, **tiny_bundle.fields())
        whole.sweep(tmp_path / "out")
        assert folder.is_dir()
    bundle.open(tmp_path / "out")


def test_only_its_own_leftovers_are_removed(tmp_path):
    """a.b is not a; a link and a file are none of ours."""
    for name in (".a.b.01234567.part", ".a.b.01234567.old", ".a.0123456.part", ".a.01234567.x"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.00000000.part").write_text("a file")
    (tmp_path / ".a.00000001.part").symlink_to(tmp_path)
    before = names(tmp_path)
    whole.sweep(tmp_path / "a")
    assert names(tmp_path) == before
