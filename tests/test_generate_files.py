"""`fastdiff generate --out FOLDER`: all files of a run or none, and nobody else's is touched."""

import json

import pytest

from fastdiff.cli import UserError, generate, pictures
from tests import tiny_model
from tests.test_generate import PROMPT, pixels
from tests.test_generate import generate as command


@pytest.fixture
def no_sampling(monkeypatch):
    def never(*_):
        raise AssertionError("the network was called")

    monkeypatch.setattr(generate, "_batch", never)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def draw(tiny, out, *options):
    return command(PROMPT, "--model", tiny, "--steps", 1, "--out", out, *options)


@pytest.mark.parametrize(
    ("taken", "is_folder"),
    [
        ("x2", False),
        ("sheet", False),
        ("0-0.png", True),
        ("x2/1-1.png", True),
        ("sheet/sheet.png", True),
        ("generate.json", True),
    ],
)
@pytest.mark.usefixtures("no_sampling")
def test_a_name_that_is_taken_is_found_before_sampling(tiny, tmp_path, taken, is_folder):
    place = tmp_path / taken
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if is_folder else place.touch()
    with pytest.raises(UserError, match="--out must be a folder that can be written") as caught:
        draw(tiny, tmp_path, "--count", 2, "--scale", 2)
    assert repr(str(place)) in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != place]


def test_files_of_others_stay(tiny, tmp_path):
    mine = [".writable", "x2", "sheet", "notes.txt"]  # x2 and sheet are not written to here
    for name in mine:
        (tmp_path / name).write_text(name)
    draw(tiny, tmp_path)
    assert tree(tmp_path) == sorted([*mine, "0-0.png", "generate.json"])
    assert [(tmp_path / name).read_text() for name in mine] == mine


@pytest.mark.parametrize("options", [(), ("--scale", 3), ("--no-sheet",)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_files_of_a_run(tiny, tmp_path, options, count):
    draw(tiny, tmp_path, "--count", count, *options)
    names = [f"{i}-{i}.png" for i in range(count)]
    want = [*names, "generate.json"]
    if "--scale" in options:
        want += ["x3", *(f"x3/{name}" for name in names)]
    if count > 1 and "--no-sheet" not in options:
        want += ["sheet", "sheet/sheet.png"]
        size = pictures.Image.open(tmp_path / "sheet" / "sheet.png").size
        gap = pictures.SHEET_GAP
        assert size == (count * (tiny_model.SIDE + gap) + gap, tiny_model.SIDE + 2 * gap)
    assert tree(tmp_path) == sorted(want)
    for name in names if "--scale" in options else ():
        assert (pixels(tmp_path / "x3" / name)[::3, ::3] == pixels(tmp_path / name)).all()


def test_a_second_run_replaces_the_first(tiny, tmp_path):
    draw(tiny, tmp_path)
    first = pixels(tmp_path / "0-0.png")
    draw(tiny, tmp_path, "--negative-prompt", "a green cross", "--guidance", 9)
    assert (pixels(tmp_path / "0-0.png") != first).any()
    record = json.loads((tmp_path / "generate.json").read_text())
    assert record["request"]["guidance"] == 9


@pytest.mark.parametrize("last", ["1-1.png", "generate.json"])
def test_a_disk_that_is_full_leaves_what_was_there(tiny, tmp_path, monkeypatch, last):
    """The error comes while a later file is written; the files before it do not appear."""
    draw(tiny, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}

    def full(method):
        def write(self, *arguments):
            path = self if hasattr(self, "name") else arguments[0]
            if path.name == last:
                raise OSError(28, "No space left on device")
            return method(self, *arguments)

        return write

    monkeypatch.setattr(pictures.Image.Image, "save", full(pictures.Image.Image.save))
    monkeypatch.setattr(pictures.Path, "write_text", full(pictures.Path.write_text))
    with pytest.raises(UserError, match=r"--out .*; No space left on device"):
        draw(tiny, tmp_path, "--count", 2, "--no-sheet", "--seed", 0, "--guidance", 9)
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before
