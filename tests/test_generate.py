"""`fastdiff generate` on the built-in model: files, records, seeds, errors, and right pictures."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastdiff.cli import UserError
from fastdiff.cli.commands import app
from fastdiff.cli.model import built_in
from fastdiff.cli.pictures import SHEET_GAP
from fastdiff.plan import Plan
from fastdiff.registry import SOLVERS
from fastdiff.shapes import GUIDANCE
from fastdiff.shapes.evaluate import prompts_for
from fastdiff.shapes.oracle import judge
from tests import docs_script

PROMPT = "a red circle above a blue square"


def generate(*arguments):
    """Run the command in this process; what it raises is the test's."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    generate(PROMPT, "--seed", 3, "--count", 3, "--steps", 8, "--out", out, "--scale", 4)
    return out


def test_names_and_folders(run):
    assert {p.name for p in run.iterdir()} == {
        *("0-3.png", "1-4.png", "2-5.png"),
        *("generate.json", "x4", "sheet"),
    }
    assert Image.open(run / "0-3.png").size == (64, 64)
    assert Image.open(run / "x4" / "1-4.png").size == (256, 256)
    assert (pixels(run / "x4" / "1-4.png")[::4, ::4] == pixels(run / "1-4.png")).all()
    assert len(list((run / "sheet").iterdir())) == 1


def test_a_picture_does_not_depend_on_count(run, tmp_path):
    generate(PROMPT, "--seed", 5, "--steps", 8, "--out", tmp_path)
    alone = pixels(tmp_path / "0-5.png")
    assert abs(alone - pixels(run / "2-5.png")).max() <= 1
    assert not (tmp_path / "sheet").exists()


def test_nor_where_the_solver_draws_noise(tmp_path):
    together, alone = tmp_path / "a", tmp_path / "b"
    options = ["--sampler", "dpmpp_2m_sde", "--steps", 4]
    generate(PROMPT, *options, "--count", 2, "--out", together)
    generate(PROMPT, *options, "--seed", 1, "--out", alone)
    assert abs(pixels(together / "1-1.png") - pixels(alone / "0-1.png")).max() <= 1


def test_record_says_what_was_done(run):
    record = json.loads((run / "generate.json").read_text())
    assert [p["seed"] for p in record["pictures"]] == [3, 4, 5]
    assert {p["prompt"] for p in record["pictures"]} == {PROMPT}
    plan = Plan.from_json(json.dumps(record["plan"]))
    assert plan.steps == 8
    assert plan.about["solver"] == "dpmpp_2m"
    assert len(record["model"]["sha256"]) == 64
    assert {"fastdiff", "torch", "diffusers", "transformers", "python"} <= record["versions"].keys()


def test_record_repeats_the_run(run, tmp_path):
    generate("--repeat", run / "generate.json", "--out", tmp_path)
    for name in ("0-3.png", "1-4.png", "2-5.png"):
        assert abs(pixels(tmp_path / name) - pixels(run / name)).max() <= 1


def test_several_prompts_in_one_call(tmp_path):
    generate("a red circle", "a green cross", "--count", 2, "--steps", 2, "--out", tmp_path)
    names = sorted(p.name for p in tmp_path.glob("*.png"))
    assert names == ["0-0.png", "1-1.png", "2-0.png", "3-1.png"]


def test_negative_prompt_and_guidance_count(run, tmp_path):
    options = [PROMPT, "--seed", 3, "--steps", 8, "--out"]
    generate(*options, tmp_path / "a", "--negative-prompt", "a green cross")
    generate(*options, tmp_path / "b", "--guidance", 1)
    for folder in ("a", "b"):
        assert abs(pixels(tmp_path / folder / "0-3.png") - pixels(run / "0-3.png")).max() > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PROMPT, "--sampler", "dpmpp_2n"], ["dpmpp_2n", *SOLVERS]),
        (["  "], ["prompt must not be empty"]),
        ([], ["prompt must not be empty"]),
        ([PROMPT, "--steps", "0"], ["--steps must be at least 1", "0"]),
        ([PROMPT, "--count", "0"], ["--count must be at least 1"]),
        ([PROMPT, "--spacing", "wide"], ["wide", "karras"]),
        ([PROMPT, "--out", "/proc/nowhere"], ["--out", "/proc/nowhere"]),
        ([PROMPT, "--model", "/nowhere"], ["--model", "/nowhere"]),
        ([PROMPT, "--device", "abacus"], ["--device", "abacus"]),
        (["--repeat", "/nowhere.json"], ["--repeat", "nowhere.json"]),
    ],
)
def test_errors_name_what_was_got(arguments, words, tmp_path):
    out = [] if "--out" in arguments else ["--out", tmp_path]
    with pytest.raises(UserError) as caught:
        generate(*arguments, *out)
    assert all(word in str(caught.value) for word in words)


def test_latent_that_is_not_finite_names_the_step(tmp_path):
    with pytest.raises(UserError, match=r"not finite after step \d+ of 3"):
        generate(PROMPT, "--steps", 3, "--guidance", 1e38, "--out", tmp_path)


def test_unknown_word_is_a_warning_that_names_it(tmp_path):
    message = generate("a pink circle", "--steps", 1, "--out", tmp_path).stderr
    assert "'pink'" in message
    assert "'circle'" not in message
    assert (tmp_path / "0-0.png").exists()


def test_a_user_error_is_one_sentence_and_status_2(tmp_path):
    code = "from fastdiff.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", PROMPT, "--steps", "0", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --steps must be at least 1; got 0\n"
    assert "Traceback" not in done.stdout


def test_any_stable_diffusion_folder_runs(tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        built_in(), dtype=torch.float32, local_files_only=True
    )
    pipe.save_pretrained(tmp_path / "mine")
    generate(PROMPT, "--model", tmp_path / "mine", "--steps", 2, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert record["request"]["model"] == str(tmp_path / "mine")


def test_the_readme_shows_what_its_command_draws(tmp_path):
    """The first picture of each row anew; `python docs/pictures.py --check` draws all of them."""
    script = docs_script.load("pictures")
    assert script.README.read_text() == script.readme(), "python docs/pictures.py"
    script.draw(tmp_path, count=1)
    grid, cell = pixels(script.PICTURE), 64 + SHEET_GAP
    assert grid.shape == (len(script.ROWS) * cell + SHEET_GAP, 8 * cell + SHEET_GAP, 3)
    for row in range(len(script.ROWS)):
        top = SHEET_GAP + row * cell
        shown = grid[top : top + 64, SHEET_GAP:cell]
        assert abs(shown - pixels(tmp_path / f"{row}-0.png")).max() <= 1


@pytest.fixture(scope="module")
def sixty_four(tmp_path_factory):
    """A picture of each of 64 prompts: 48 two-object scenes never trained on, 16 of one object.

    Those of two in 4 steps, of which the card has a row, those of one in the default 20: the
    README's pictures above are of two objects in 20, compared by pixels.
    """
    shown = []
    for objects, count, steps in ((2, 48, 4), (1, 16, 20)):
        out = tmp_path_factory.mktemp("many")
        prompts = prompts_for(count, one=objects == 1, seed=7)
        generate(*prompts, "--seed", 100, "--out", out, "--batch", 16, "--steps", steps)
        for i, prompt in enumerate(prompts):
            picture = torch.from_numpy(pixels(out / f"{i}-100.png")).permute(2, 0, 1) / 255
            shown.append((picture, prompt, card_share(objects, steps)))
    return shown


def test_sixty_four_pictures_show_what_the_prompts_say(sixty_four):
    pictures, prompts, shares = zip(*sixty_four, strict=True)
    right = [judge(*pair).right for pair in zip(pictures, prompts, strict=True)]
    # the card's share less three standard deviations of a draw of 64
    share = np.mean(shares)
    assert np.mean(right) >= share - 3 * (share * (1 - share) / 64) ** 0.5
    # and a wrong prompt is not what they show: the oracle is not lenient
    shifted = prompts[1:] + prompts[:1]
    assert sum(judge(*pair).right for pair in zip(pictures, shifted, strict=True)) <= 2


def card_share(objects, steps=20):
    """What the model's card says of a number of steps with the model's own settings, as a share."""
    rows = [line.split("|") for line in (built_in() / "README.md").read_text().splitlines()]
    start = [str(objects), str(steps), "default", f"{GUIDANCE:g}"]
    (row,) = (r for r in rows if [cell.strip() for cell in r[1:5]] == start)
    return float(row[-3].strip(" *")) / 100


def test_the_card_keeps_what_the_model_is_for():
    assert card_share(2) >= 0.75
    assert card_share(1) >= 0.95
