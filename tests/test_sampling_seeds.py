"""Noise from seeds: known answers, the same sample in any batch, bit for bit, what is refused."""

import math

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.table import COLUMNS, HEAD, Z
from tests.test_philox_normal import philox

SHAPE = (2, 3, 5)
KNOWN = [0.000292, -0.304847, 1.788757, 1.067872, 0.376404]  # seed 7, stream 0, step 0
SDE = ("ddpm", "euler_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver", "lcm")


def polynomial(x, t):
    """A network whose answer for an element is the same in any batch: + and * only."""
    return 0.3 * x - 0.01 * x * x + t / 4000


def normal(seed, i, step, stream):
    """The formula of philox_normal.py in Python's integers and doubles."""
    words = philox((seed % 2**32, (seed >> 32) % 2**32), (i // 4, step, stream, 0))
    radius, angle = words[2 * (i % 4 // 2) :][:2]
    radius = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
    turn = 2 * math.pi * angle / 2**32
    return radius * (math.sin(turn) if i % 2 else math.cos(turn))


def test_known_answers():
    """The numbers that another language must make; the kernel is within 2.5e-6 of them."""
    plan = fastdiff.plan("euler_a", steps=3)
    seen = []
    fastdiff.sample(lambda x, t: seen.append(x) or 0 * x, "philox", plan, seeds=[7, -3], shape=(5,))
    start = seen[0] / (plan.noise_scale * plan.c_in)
    for b, seed in enumerate((7, -3)):
        want = [normal(seed, i, 0, 0) for i in range(5)]
        assert start[b].numpy() == pytest.approx(want, abs=3e-6)
    assert start[0].numpy() == pytest.approx(KNOWN, abs=4e-6)  # KNOWN is rounded to 5e-7


def test_the_noise_of_a_step_is_of_stream_1_and_its_row():
    """A network that says x_0 = 0 leaves the weights of the noise alone."""
    plan = fastdiff.plan("euler_a", steps=3, prediction="sample")
    x = fastdiff.sample(lambda x, t: 0 * x, torch.zeros(2, 6), plan, seeds=[5, 2**40 + 1])
    c = plan.rows[:, 0, HEAD : HEAD + COLUMNS]
    for b, seed in enumerate((5, 2**40 + 1)):
        want = np.zeros(6)
        for j, (a, _, _, w) in enumerate(c):
            want = a * want + w * np.array([normal(seed, i, j, 1) for i in range(6)])
        assert x[b].numpy() == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert plan.rows[0, 0, HEAD + Z] != 0


@pytest.mark.parametrize("solver", SDE)
def test_a_sample_is_the_same_in_any_batch(solver):
    plan, seeds = fastdiff.plan(solver, steps=5), [11, 2**50, -4, 11]
    whole = fastdiff.sample(polynomial, "philox", plan, seeds=seeds, shape=SHAPE)
    for order in ([2], [1, 0], [3, 2, 1]):
        part = fastdiff.sample(
            polynomial, "philox", plan, seeds=[seeds[b] for b in order], shape=SHAPE
        )
        assert torch.equal(part, whole[order])
    assert torch.equal(whole[0], whole[3])
    assert not torch.equal(whole[0], whole[1])


def test_every_way_of_a_step_draws_the_same_numbers():
    """Contiguous and strided, with a gradient and without, from numbers and from a tensor."""
    plan = fastdiff.plan("dpmpp_2m_sde", steps=4)
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    want = fastdiff.sample(polynomial, noise, plan, seeds=[1, 2])
    last = noise.to(memory_format=torch.channels_last)
    assert torch.equal(fastdiff.sample(polynomial, last, plan, seeds=torch.tensor([1, 2])), want)
    leaf = noise.clone().requires_grad_()
    assert torch.equal(fastdiff.sample(polynomial, leaf, plan, seeds=(1, 2)), want)
    wide = fastdiff.sample(polynomial, noise.double(), plan, seeds=[1, 2])
    gap = (wide.float() - want).abs().max() / want.abs().max()
    assert gap < 4 * 12 * 2**-24  # four rows of a dozen float32 roundings; the noise is the same


def test_image_to_image_takes_the_shape_of_start():
    plan = fastdiff.plan("dpmpp_2m_sde", steps=6, begin=3)
    start = torch.ones(2, *SHAPE)
    both = fastdiff.sample(polynomial, "philox", plan, seeds=[1, 2], start=start)
    one = fastdiff.sample(polynomial, "philox", plan, seeds=[2], start=start[:1])
    assert torch.equal(both[1:], one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "gauss"}, "noise must be a tensor .* or 'philox'; got 'gauss'"),
        ({"seeds": None}, "seeds must be given with noise='philox'"),
        ({"shape": None}, "shape must be given with noise='philox'"),
        (
            {"seeds": 7},
            r"seeds must be whole numbers in -2\^63 \.\. 2\^63 - 1, one for each.*got 7",
        ),
        ({"seeds": [True]}, "seeds must be whole numbers"),
        ({"seeds": [2**63]}, "seeds must be whole numbers"),
        ({"seeds": torch.tensor([7.0])}, "seeds must be a contiguous int64 tensor"),
        ({"generator": torch.Generator()}, "generator and seeds were both given"),
        ({"noise": torch.zeros(2, 3), "shape": None}, "one for each sample of noise, 2; got 1"),
        ({"noise": torch.zeros(1, 3)}, "shape goes with noise='philox'; got"),
    ],
)
def test_wrong_arguments(change, message):
    plan = fastdiff.plan("euler_a", steps=2)
    given = {"noise": "philox", "plan": plan, "seeds": [7], "shape": SHAPE} | change
    with pytest.raises(ValueError, match=message):
        fastdiff.sample(polynomial, **given)
