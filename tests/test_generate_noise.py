"""`fastdiff generate --noise philox`: noise of each picture's seed alone, recorded and repeated."""

import json

import numpy as np
import pytest
import torch

from fastdiff import sampling
from fastdiff.cli import UserError
from fastdiff.ops.philox_normal import philox_normal
from tests.test_generate import PROMPT, generate, pixels

PHILOX = ["--noise", "philox", "--sampler", "dpmpp_2m_sde", "--steps", 3]


@pytest.fixture
def given(monkeypatch):
    """What fastdiff.sample is given, run by run."""
    calls, sample = [], sampling.sample

    def spy(denoise, noise, plan, **options):
        calls.append((noise, options))
        return sample(denoise, noise, plan, **options)

    monkeypatch.setattr(sampling, "sample", spy)
    return calls


def test_every_picture_starts_from_its_seed_whatever_the_batch(tiny, tmp_path, given):
    options = [PROMPT, "--model", tiny, *PHILOX, "--seed", 2**40, "--count", 3, "--out"]
    for batch in (3, 2):
        generate(*options, tmp_path / str(batch), "--batch", batch)
    starts = [torch.cat([noise for noise, _ in given[i:j]]) for i, j in ((0, 1), (1, 3))]
    seeds = [torch.cat([own["seeds"] for _, own in given[i:j]]) for i, j in ((0, 1), (1, 3))]
    for start, own in zip(starts, seeds, strict=True):
        assert own.tolist() == [2**40, 2**40 + 1, 2**40 + 2]
        assert torch.equal(start, philox_normal(own, (4, 16, 16)))
    assert all("generator" not in own for _, own in given)
    for j in range(3):
        name = f"{j}-{2**40 + j}.png"
        one, other = pixels(tmp_path / "3" / name), pixels(tmp_path / "2" / name)
        assert np.abs(one - other).max() <= 1


def test_the_record_says_it_and_repeats_it(tiny, tmp_path, given):
    generate(PROMPT, "--model", tiny, *PHILOX, "--seed", 5, "--out", tmp_path / "a")
    record = tmp_path / "a" / "generate.json"
    assert json.loads(record.read_text())["request"]["noise"] == "philox"
    generate("--repeat", record, "--out", tmp_path / "b")
    assert torch.equal(given[0][0], given[1][0])
    assert torch.equal(given[0][1]["seeds"], given[1][1]["seeds"])
    assert (pixels(tmp_path / "a" / "0-5.png") == pixels(tmp_path / "b" / "0-5.png")).all()


def test_it_is_other_noise_than_that_of_diffusers(tiny, tmp_path, given):
    for name in ("diffusers", "philox"):
        options = ["--model", tiny, "--steps", 1, "--seed", 5, "--noise", name]
        generate(PROMPT, *options, "--out", tmp_path / name)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(given[0][0], torch.randn(1, 4, 16, 16, generator=generator))
    assert "seeds" not in given[0][1]
    assert not torch.equal(given[0][0], given[1][0])


def test_the_student_takes_it(tmp_path, given):
    generate(PROMPT, "--few-step", 2, "--noise", "philox", "--seed", 3, "--out", tmp_path)
    assert torch.equal(given[0][0], philox_normal(torch.tensor([3]), (4, 16, 16)))
    assert given[0][1]["seeds"].tolist() == [3]


@pytest.mark.parametrize("more", [[], ["--few-step", 2]])
def test_another_name_is_refused(tmp_path, more):
    with pytest.raises(UserError, match="--noise must be diffusers or philox; got 'torch'"):
        generate(PROMPT, "--noise", "torch", *more, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
