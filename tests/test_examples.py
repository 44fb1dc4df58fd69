"""The scripts in examples/ run, at tiny sizes, and do what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny_model

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model(tiny):
    return str(tiny)


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    here = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in here
        assert path.read_text().startswith('"""')


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "ddim", "euler_a"])
def test_own_loop_lands_on_the_data(solver, capsys):
    # the last row jumps to the predicted x_0, which is a data point to float32's precision
    error = load("own_loop").main(["--solver", solver, "--points", "64", "--steps", "12"])
    assert error < 1e-5
    assert solver in capsys.readouterr().out


def test_drop_in_draws_the_same_picture(model, tmp_path):
    out = tmp_path / "a" / "picture.png"
    args = ["a red circle", "--model", model, "--steps", "4", "--out", str(out)]
    assert load("drop_in").main(args) <= 1 / 255
    assert out.stat().st_size > 100


def test_accelerate_and_report(model, capsys):
    report = load("accelerate_and_report").main(["--model", model, "--steps", "3"])
    (scheduler,) = (row for row in report if row.name == "scheduler")
    assert scheduler.calls["fused"] == 3
    assert "restored" in capsys.readouterr().out


def test_image_to_image_keeps_more_of_the_picture_the_later_it_begins(model, tmp_path):
    example, white = load("image_to_image"), tmp_path / "white.png"
    Image.new("RGB", (tiny_model.SIDE, tiny_model.SIDE), "white").save(white)
    kept = []  # how far two different starts lead to different pictures
    for begin in ("0", "3"):
        args = [
            "--model",
            model,
            "--steps",
            "4",
            "--begin",
            begin,
            "--out",
            str(tmp_path / "out.png"),
        ]
        a, b = (example.main([*args, *more]) for more in ([], ["--image", str(white)]))
        kept.append(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())
    assert kept[0] < kept[1] / 4
    assert (tmp_path / "out.png").exists()


def test_guidance_per_step_makes_two_pictures(model, tmp_path):
    out = tmp_path / "both.png"
    args = ["--model", model, "--steps", "6", "--guidance", "7", "--out", str(out)]
    both = np.asarray(load("guidance_per_step").main(args))
    left, right = np.split(both, 2, axis=1)
    assert (left != right).any()
    assert out.exists()


def test_train_on_a_folder_learns_the_pictures(tmp_path, capsys):
    """Flat pictures of two colours: within a few steps the loss is well below where it began."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (20 + i, 20), colour).save(tmp_path / name / f"{i}.png")
    out = tmp_path / "drawn" / "eight.png"
    args = [
        str(tmp_path),
        "--labels",
        "--side",
        "16",
        "--width",
        "16",
        "--batch",
        "32",
        "--rate",
        "4e-3",
    ]
    losses = load("train_on_a_folder").main([*args, "--steps", "24", "--out", str(out)])
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert Image.open(out).size == (8 * 16, 16)
    assert "classes, in that order: blue, red" in capsys.readouterr().out


def test_train_on_a_folder_reads_pictures_of_any_mode_and_names_what_it_cannot(tmp_path, capsys):
    half = Image.new("RGBA", (40, 30), (255, 0, 0, 128))
    half.save(tmp_path / "half.png")
    palette = Image.new("P", (30, 30), 1)
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    grey = np.full((20, 50), 257 * 100, np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    turned = Image.new("L", (16, 8))
    turned.paste(200, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by a quarter, clockwise
    turned.save(tmp_path / "turned.PNG", exif=exif)
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("1", (1, 1)).save(tmp_path / "dot.bmp")
    (tmp_path / "no.png").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:200])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("")
    x, labels, names = load("train_on_a_folder").read(tmp_path, 16)
    bytes_ = ((x + 1) * 127.5).round().permute(0, 2, 3, 1).int()
    first = [row[0][0].tolist() for row in bytes_]  # by name: capital letters first
    assert names == ["."]
    assert len(labels) == 6
    cmyk, dot, grey16, halved, clear, upright = first
    assert max(abs(a - b) for a, b in zip(cmyk, (255, 0, 0), strict=True)) < 8  # JPEG
    assert (dot, grey16, clear, upright) == ([0] * 3, [100] * 3, [255] * 3, [0] * 3)
    assert halved == [255, 127, 127]
    assert bytes_[-1][-1, 0].tolist() == [200] * 3
    said = capsys.readouterr().out
    assert "left out" in said
    assert "no.png" in said
    assert "cut.jpg" in said


@pytest.mark.parametrize(
    ("option", "words"), [("--side=20", "--side must be a multiple of 8"),
                          ("--width=20", "--width must be a multiple of 8"),
                          ("--batch=0", "--batch must be a multiple of 1, above 0; got 0")],
)  # fmt: skip
def test_train_on_a_folder_says_which_sizes_would_do(tmp_path, capsys, option, words):
    with pytest.raises(SystemExit):
        load("train_on_a_folder").main([str(tmp_path), option])
    assert words in capsys.readouterr().err


def test_train_on_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(SystemExit, match=r"no picture .*png"):
        load("train_on_a_folder").main([str(tmp_path)])
