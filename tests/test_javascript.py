"""examples/javascript: the same noise, steps and pictures as in Python, without Python.

`npm ci` fetches onnxruntime-node, once for a package-lock.json.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from fastdiff.cli.model import built_in
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.shapes.text import tokenize
from tests import javascript_bundle as tiny
from tests.exported import OPTIONS
from tests.test_generate import generate as command

EXAMPLE = Path(__file__).parents[1] / "examples" / "javascript"
LOCK, INSTALLED = EXAMPLE / "package-lock.json", EXAMPLE / "node_modules" / ".package-lock.json"
IDS, NEGATIVE = [1, 2, 5, 8], [1, 8, 8, 8]
NOISES = [  # seed, count, step, stream
    (0, 9, 0, 0),
    (7, 1024, 3, 1),
    (2**32, 4, 0, 0),
    (2**53 - 1, 6, 2**31 - 1, 1),
]


@pytest.fixture(scope="module")
def node():
    """Node, with what the example needs beside it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=EXAMPLE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return shutil.which("node")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("bundle") / "tiny")


def generate(node, bundle, *options):
    given = [node, "generate.mjs", bundle, *options]
    return subprocess.run([*map(str, given)], cwd=EXAMPLE, capture_output=True, text=True)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def words(ids):
    return ",".join(map(str, ids))


def evaluate(node, program):
    """What a program with the example's modules at hand prints, as JSON."""
    given = [node, "--input-type=module", "--eval", program]
    done = subprocess.run(given, cwd=EXAMPLE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_noise_has_the_known_answers(node):
    """Of Philox those of its authors; the normals within the bound of philox_normal.py."""
    found = evaluate(
        node,
        "import { normal, words } from './philox.mjs';"
        "const all = 0xffffffff;"
        "const known = [words([0, 0], [0, 0, 0, 0]), words([all, all], [all, all, all, all])];"
        f"const noises = {json.dumps(NOISES)}.map((given) => [...normal(...given.slice(0, 2), "
        "...given.slice(2))]);"
        "console.log(JSON.stringify({ known, noises }));",
    )
    assert found["known"] == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ]
    for got, (seed, count, step, stream) in zip(found["noises"], NOISES, strict=True):
        own = philox_normal(torch.tensor([seed]), (count,), noise_step=step, stream=stream)
        # 2.5e-6 of float32 beside the formula; half a rounding of a Float32Array, of 6.8 at most
        assert np.abs(np.array(got) - own[0].numpy()).max() <= 2.5e-6 + 2.0**-22


def test_a_png_holds_what_it_was_given(node, tmp_path):
    """Levels -1 .. 1 to 0 .. 255, what is beyond at the ends, rows of any length."""
    planes = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 5, 7)).astype(np.float32)
    path = tmp_path / "x.png"
    evaluate(
        node,
        "import { writeFileSync } from 'node:fs'; import { png } from './png.mjs';"
        f"const planes = Float32Array.from({planes.flatten().tolist()});"
        f"writeFileSync({json.dumps(str(path))}, png(planes, 5, 7)); console.log(1);",
    )
    levels = planes.astype(np.float64).transpose(1, 2, 0) / 2 + 0.5
    assert (pixels(path) == np.round(255 * np.clip(levels, 0, 1))).all()


@pytest.mark.parametrize("sampler", tiny.PLANS)
def test_pictures_are_those_of_python(node, small, tmp_path, sampler):
    """With noise in the steps, with kept vectors, and with none; guided and not."""
    out = tmp_path / "x.png"
    options = ["--ids", words(IDS), "--negative-ids", words(NEGATIVE), "--seed", 2**33 + 5]
    done = generate(node, small, *options, "--sampler", sampler, "--out", out)
    assert done.returncode == 0, done.stderr
    want = tiny.picture(sampler, IDS, NEGATIVE, 2**33 + 5)
    assert np.abs(pixels(out) - want).max() <= 1
    assert want.std() > 20  # a picture of something


@pytest.mark.parametrize("sampler", ["dpmpp_2m-8", "euler_a-6"])
def test_the_built_in_model_draws_what_the_command_draws(node, exported, tmp_path, sampler):
    """From token ids to a PNG: each of three channels at most 1 of 255 apart."""
    prompt, seed = "a red circle above a blue square", 11
    tokenizer = CLIPTokenizer.from_pretrained(built_in() / "tokenizer")
    ids, negative = tokenize(tokenizer, [prompt, ""]).tolist()
    options = ["--ids", words(ids), "--negative-ids", words(negative), "--sampler", sampler]
    out = tmp_path / "x.png"
    done = generate(node, exported / "bundle", *options, "--seed", seed, "--out", out)
    assert done.returncode == 0, done.stderr
    solver, _, steps = sampler.partition("-")
    arguments = ["--sampler", solver, "--steps", steps, "--guidance", OPTIONS["guidance"]]
    command(prompt, *arguments, "--noise", "philox", "--seed", seed, "--out", tmp_path / "python")
    assert np.abs(pixels(out) - pixels(tmp_path / "python" / f"0-{seed}.png")).max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler", "heun-3"], "--sampler must be one of the bundle's, .*; got heun-3"),
        (["--height", "9"], "--height must be a multiple of 2; got 9"),
        (["--seed", "-1"], "--seed must be a whole number; got -1"),
        (["--negative-ids", "1,2"], "--negative-ids must be as many as --ids, 4; got 2"),
    ],
)
def test_errors_name_the_option(node, small, tmp_path, options, said):
    out = tmp_path / "x.png"
    given = {"--ids": words(IDS), "--negative-ids": words(NEGATIVE), "--sampler": "ddim-3"}
    given |= {options[0]: options[1]}
    done = generate(node, small, *(f"{k}={v}" for k, v in given.items()), "--out", out)
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
    assert not out.exists()


def test_a_file_that_was_changed_is_not_opened(node, small, tmp_path):
    """One bit of the weights, the length and all else as it was."""
    changed = shutil.copytree(small, tmp_path / "bundle")
    path = changed / "text_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    options = ["--ids", words(IDS), "--negative-ids", words(NEGATIVE), "--sampler", "ddim-3"]
    done = generate(node, changed, *options, "--out", tmp_path / "x.png")
    assert done.returncode != 0
    assert "text_encoder.onnx must have the SHA-256" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_the_lock_names_no_host_and_pins_by_hash():
    packages = json.loads(LOCK.read_text())["packages"]
    own, *others = packages.values()
    assert own["dependencies"] == json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    assert others
    assert all("resolved" not in one and one["integrity"].startswith("sha512-") for one in others)
