"""Against the k-diffusion package, number by number (golden.py wrote what it computes)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff import k_diffusion
from fastdiff.registry import find

from .golden import CASES, FILE, run

GOLDEN = json.loads(FILE.read_text())
NOISE = np.array(GOLDEN["noise"])
# A row is ten operations, of which logarithms and exponentials of numbers up to 4 are the worst:
# 20 ulps of the largest x. Ten rows of that.
TOLERANCE = 200 * np.finfo(np.float64).eps


def close(got, want, scale):
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=0, atol=TOLERANCE * scale)


def largest(case):
    return max(np.abs(row[0]).max() for row in GOLDEN["cases"][case]["callback"])


def as_the_package(name):
    """The function; that of dpmpp_3m_sde with the package's weight of the second difference."""
    if name != "dpmpp_3m_sde":
        return getattr(k_diffusion, f"sample_{name}")
    solver = find(name)
    return k_diffusion.function(replace(solver, preset={**solver.preset, "d2_scale": 1.0}))


@pytest.mark.parametrize("case", CASES)
def test_results_callbacks_and_noise_are_those_of_k_diffusion(case):
    want = GOLDEN["cases"][case]
    out, told, calls = run(as_the_package(CASES[case][0]), case, NOISE)
    scale = largest(case)
    close(out, want["result"], scale)
    assert len(told) == len(want["callback"])
    for got, row in zip(told, want["callback"], strict=True):
        close(got[0], row[0], scale)
        assert got[1] == row[1]
        assert got[2] == pytest.approx(row[2], rel=4 * np.finfo(np.float64).eps)
        close(got[3], row[3], scale)
    drawn = [tuple(call) for call in want["noise"]]
    if CASES[case][0] in ("euler", "heun", "dpm_2") and "s_churn" not in CASES[case][2]:
        assert calls == []  # the package draws what it then does not use
    else:
        assert calls == drawn


def test_every_case_is_in_the_file():
    assert set(GOLDEN["cases"]) == set(CASES)


def test_the_second_difference_of_3m_is_better_here():
    """x' = e^-h x + int_0^h e^-(h - u) d(u) du, solved on paper for d = lambda^2 (eta = 0).

    Rows with two predictions before them integrate the parabola without error; the package, which
    multiplies the second difference by half its weight, does not.
    """
    sigmas = torch.tensor([9.0, 5.0, 3.1, 1.7, 1.1, 0.6], dtype=torch.float64)

    def parabola(x, sigma):
        return (sigma.log() ** 2).reshape(-1, 1).expand_as(x)

    errors = {}
    for name, function in (
        ("ours", k_diffusion.sample_dpmpp_3m_sde),
        ("theirs", as_the_package("dpmpp_3m_sde")),
    ):
        path = []
        x = torch.ones(1, 2, dtype=torch.float64)
        last = function(
            parabola, x, sigmas, callback=lambda t, path=path: path.append(t["x"]), disable=True,
            eta=0.0,
        )  # fmt: skip
        path.append(last)
        wrong = []
        for i in range(2, 5):
            h = float((sigmas[i] / sigmas[i + 1]).log())
            a, b = -float(sigmas[i].log()), -float(sigmas[i + 1].log())

            # the antiderivative of e^v v^2 is e^v (v^2 - 2 v + 2)
            def part(v):
                return v * v - 2 * v + 2

            exact = np.exp(-h) * path[i][0, 0].item() + part(b) - np.exp(-h) * part(a)
            wrong.append(abs(path[i + 1][0, 0].item() - exact))
        errors[name] = max(wrong)
    assert errors["ours"] < TOLERANCE
    assert errors["theirs"] > 1e-2
