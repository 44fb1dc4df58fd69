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


def test_train_on_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(SystemExit, match=r"no picture .*png"):
        load("train_on_a_folder").main([str(tmp_path)])
