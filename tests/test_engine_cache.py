"""The cache of plans: for this user alone, whole entries, locks, a limit, and its two commands."""

import json
import os
import subprocess
import sys
import threading

import pytest
from filelock import Timeout
from typer.testing import CliRunner

from fastdiff.cli import UserError
from fastdiff.cli import engine as command
from fastdiff.cli.commands import app
from fastdiff.engine import cache, whole
from fastdiff.engine.errors import Incompatible, Untrusted


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch):
    """The folder, of this test alone; nothing is in use after it."""
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTDIFF_CACHE_BYTES", raising=False)
    monkeypatch.setattr(cache, "_held", {})
    yield tmp_path / "engines"
    for handle in cache._held.values():
        os.close(handle)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def forget(*keys):
    """As if this process ended."""
    for key in keys:
        cache.release(key)


def test_what_is_put_is_got(engines, tmp_path):
    assert cache.get("k") is None
    path = cache.put("k", b"a plan", "unet")
    assert cache.get("k") == path == engines / "k" / "plan"
    assert path.read_bytes() == b"a plan"
    (tmp_path / "file").write_bytes(b"another")
    assert cache.put("k", tmp_path / "file").read_bytes() == b"another"
    assert cache.put("empty", b"").read_bytes() == b""
    assert names(engines) == ["empty", "k"]


def test_its_folders_and_files_are_of_this_user_alone(engines):
    before = os.umask(0)
    try:
        path = cache.put("k", b"a plan")
    finally:
        os.umask(before)
    assert [oct(p.stat().st_mode)[-3:] for p in (engines, path.parent)] == ["700", "700"]


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "fastdiff" / "engines"


def test_a_folder_that_others_can_write_to(engines):
    cache.folder()
    for mode in (0o720, 0o702, 0o777):
        engines.chmod(mode)
        for call in (
            cache.folder,
            lambda: cache.get("k"),
            lambda: cache.put("k", b""),
            cache.clear,
        ):
            with pytest.raises(Untrusted, match=f"chmod 700 {engines}"):
                call()
    engines.chmod(0o755)
    cache.folder()


def test_a_folder_of_another_user_or_a_link_or_a_file(engines, tmp_path, monkeypatch):
    cache.folder()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Untrusted, match=r"of this process, 12345; .*FASTDIFF_CACHE"):
        cache.folder()
    monkeypatch.undo()
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    engines.rename(tmp_path / "real")
    engines.symlink_to(tmp_path / "real")
    with pytest.raises(Untrusted, match="not a link"):
        cache.folder()
    engines.unlink()
    engines.write_text("")
    with pytest.raises(Untrusted, match="must be a folder"):
        cache.folder()


@pytest.mark.parametrize("inside", ["", "file", "file/more"])
def test_a_folder_that_cannot_be_made(engines, tmp_path, monkeypatch, inside):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "file" / inside))
    words = "cannot be made: (File exists|Not a directory). Set FASTDIFF_CACHE to a folder that you"
    with pytest.raises(Incompatible, match=words):
        cache.folder()
    run = CliRunner().invoke(app, ["engine", "list"])
    assert str(run.exception).startswith(f"the cache of engines {tmp_path / 'file'}")


@pytest.mark.parametrize("key", ["", "..", "a/b", "A", "k.lock", ".k", "-k", "k" * 129, "k\n", "é"])
def test_a_key_is_a_plain_name(key):
    for call in (cache.get, lambda key: cache.put(key, b""), cache.release):
        with pytest.raises(ValueError, match="key must be a-z, 0-9"):
            call(key)


def longer(path):
    path.write_bytes(b"a plan and more")


def same_length(path):
    path.write_bytes(b"a plaN")


def gone(path):
    path.unlink()


def link(path):
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def entry(text):
    return lambda path: (path.parent / "entry.json").write_text(text)


@pytest.mark.parametrize(
    "spoil",
    [
        *(longer, same_length, gone, link, pipe),
        *map(entry, ["", "{}", "[" * 60_000, "\0", '{"bytes": true}', "1" * 70_000]),
        entry('{"bytes": 6, "sha256": "", "made": 1.0, "about": ""}'),
        entry('{"bytes": 6, "sha256": "", "made": NaN, "about": ""}'),
        lambda path: os.truncate(path, 3),
    ],
)
def test_an_entry_that_is_not_what_was_put_is_a_miss(engines, caplog, spoil):
    path = cache.put("k", b"a plan")
    forget("k")
    spoil(path)
    cache.entries()
    assert cache.get("k") is None
    assert "not what was put; removed" in caplog.text
    assert names(engines) == []
    assert cache.put("k", b"a plan").read_bytes() == b"a plan"


def test_a_link_in_place_of_an_entry(engines, tmp_path):
    path = cache.put("real", b"a plan")
    (engines / "k").symlink_to(path.parent)
    assert cache.get("k") is None
    assert names(engines) == ["real"]
    assert path.exists()


def used(key, seconds):
    """Set when it was last got."""
    os.utime(cache.folder() / key / "plan", (seconds, seconds))


def test_the_limit_removes_what_was_used_longest_ago(engines, monkeypatch):
    monkeypatch.setenv("FASTDIFF_CACHE_BYTES", "300")
    for number, key in enumerate(("first", "second", "third")):
        cache.put(key, bytes(100))
        forget(key)
        used(key, 1000 + number)
    cache.get("first")  # used now
    forget("first")
    cache.put("fourth", bytes(150))
    assert names(engines) == ["first", "fourth"]


def test_what_is_in_use_is_not_removed(engines, monkeypatch, caplog):
    monkeypatch.setenv("FASTDIFF_CACHE_BYTES", "0")
    for key in ("first", "second"):
        cache.put(key, bytes(100))
    assert names(engines) == ["first", "second"]
    assert "all in use" in caplog.text
    assert cache.clear() == cache.Cleared(entries=0, bytes=0, in_use=2)
    forget("first")
    assert cache.clear() == cache.Cleared(entries=1, bytes=100, in_use=1)
    assert names(engines) == ["second"]


def test_what_another_process_has_in_use_is_not_removed(engines):
    cache.put("k", b"a plan")
    forget("k")
    program = "import sys; from fastdiff.engine import cache; cache.get('k'); print(flush=True); "
    program += "sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert cache.clear().in_use == 1
        other.stdin.close()
        other.wait()
    assert cache.clear() == cache.Cleared(entries=1, bytes=6, in_use=0)


@pytest.mark.parametrize("text", ["-1", "1e9", "20GB", "٣", "9" * 30])
def test_a_limit_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("FASTDIFF_CACHE_BYTES", text)
    with pytest.raises(ValueError, match="FASTDIFF_CACHE_BYTES must be a whole number"):
        cache.limit()


def test_a_key_that_is_locked(engines):
    """Another thread waits; it neither gets nor removes the key."""
    cache.put("k", b"a plan")
    forget("k")
    said = []

    def other():
        said.append(cache.clear().in_use)
        try:
            with cache.locked("k", timeout=0):
                said.append("locked")
        except Timeout:
            said.append("waits")

    with cache.locked("k"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert cache.get("k") is not None  # its own thread may
    assert said == [1, "waits"]


PUTS = """
import sys
from fastdiff.engine import cache
for turn in range(15):
    cache.put("k", sys.argv[1].encode() * 50_000)
    assert cache.get("k").exists()
    cache.release("k")
print("done")
"""


def test_two_processes_put_the_same_key(engines):
    runs = [
        subprocess.Popen([sys.executable, "-c", PUTS, letter], stdout=subprocess.PIPE)
        for letter in "ab"
    ]
    assert [run.communicate()[0] for run in runs] == [b"done\n", b"done\n"]
    assert cache.get("k").read_bytes() in (b"a" * 50_000, b"b" * 50_000)
    assert names(engines) == ["k"]


KILLED = """
import os, signal
from fastdiff.engine import cache
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for at in range(1, 9):
    if os.fork() == 0:
        os.fsync, os.rename = dying(os.fsync), dying(os.rename)
        cache.put("k", b"new")
        os._exit(0)
    _, status = os.wait()
    cache.clear(older_than=1e9)  # sweeps
    path = cache.get("k")
    print(os.waitstatus_to_exitcode(status), path.read_bytes().decode())
    cache.put("k", b"old")
    cache.release("k")
"""


def test_a_kill_leaves_the_old_entry_or_the_new_one(engines):
    cache.put("k", b"old")
    forget("k")
    run = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    # two files and a folder synced, the old one moved, the new one moved, the folder above synced
    assert run.stdout.splitlines() == ["-9 old"] * 5 + ["-9 new"] + ["0 new"] * 2, run.stderr
    assert names(engines) == ["k"]


def test_a_full_disk_leaves_the_old_entry(engines, monkeypatch):
    cache.put("k", b"old")

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(whole.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            cache.put("k", b"new")
    assert names(engines) == ["k"]
    assert cache.get("k").read_bytes() == b"old"


def test_list(engines, capsys):
    command.print_list()
    assert capsys.readouterr().out == f"{engines}: 0 of 0 B, limit 20 GB\n"
    cache.put("0123456789abcdef0123", bytes(1500), "unet\x1b[31m of a model")
    cache.put("broken", b"x")
    (engines / "broken" / "entry.json").write_text("{")
    command.print_list()
    out = capsys.readouterr().out
    head, _, title, *rows = out.splitlines()
    assert head == f"{engines}: 2 of 1.5 kB, limit 20 GB"
    assert title.split() == ["key", "size", "made", "used", "what"]
    row = next(row for row in rows if row.startswith("0123456789abcdef "))
    assert row.split()[1:3] == ["1.5", "kB"]
    assert row.endswith("unet?[31m of a model")
    assert [row.split()[3] for row in rows if "not readable" in row] == ["unknown"]


def test_list_for_a_machine(engines, capsys):
    cache.put("k", bytes(1500), "unet")
    command.print_list(json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["folder"] == str(engines)
    assert (found["limit"], found["bytes"]) == (20_000_000_000, 1500)
    (entry,) = found["entries"]
    assert entry.keys() == {"key", "bytes", "made", "used", "about"}
    assert (entry["key"], entry["bytes"], entry["about"]) == ("k", 1500, "unet")


def test_clear(engines, capsys):
    for key in ("old", "new", "held"):
        cache.put(key, bytes(1000))
    forget("old", "new")
    used("old", 1000)
    used("held", 1000)
    command.clear(older_than=7)
    assert capsys.readouterr().out == "removed 1 of 1 kB\nleft 1 in use by another process\n"
    assert names(engines) == ["held", "new"]
    forget("held")
    command.clear()
    assert capsys.readouterr().out == "removed 2 of 2 kB\n"
    assert names(engines) == []


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan"), float("inf")])
def test_clear_of_no_number_of_days(days):
    with pytest.raises(UserError, match="--older-than must be a number of days > 0"):
        command.clear(days)


def test_the_commands_say_what_is_wrong_in_a_line(engines):
    cache.folder()
    engines.chmod(0o777)
    for arguments in (["engine", "list"], ["engine", "clear", "--older-than", "1"]):
        run = CliRunner().invoke(app, arguments)
        assert isinstance(run.exception, UserError)
        assert "chmod 700" in str(run.exception)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (15_400_000, "15.4 MB"), (5e9, "5 GB")],
)
def test_sizes(count, text):
    assert command.size(int(count)) == text
