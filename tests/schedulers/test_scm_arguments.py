"""SCMScheduler: what set_timesteps and step take and say; 16 bits, transforms, threads."""

import threading

import numpy as np
import pytest
import torch

from .classes import ours, stock
from .loops import same
from .test_scm import ANGLES, OWN, SCM, TWO, X, recursion, run


@pytest.mark.parametrize("wrong", [None, np.zeros(3), [1.0]], ids=type)
def test_what_is_no_tensor_is_named(wrong):
    s = ours(SCM)()
    s.set_timesteps(2)
    with pytest.raises(TypeError, match="model_output must be a tensor"):
        s.step(wrong, s.timesteps[0], X)
    with pytest.raises(TypeError, match="sample must be a tensor"):
        s.step(X, s.timesteps[0], wrong)


def test_errors_of_a_run():
    s = ours(SCM)()
    with pytest.raises(ValueError, match="set_timesteps"):
        s.step(X, s.timesteps[0], X)
    run(s, TWO)
    state = torch.get_rng_state()
    with pytest.raises(IndexError, match=r"step_index must be below 2.*got 2\..*set_timesteps"):
        s.step(X, s.timesteps[-1], X)
    assert torch.equal(state, torch.get_rng_state())
    s.set_timesteps(2)
    with pytest.raises(ValueError, match=r"timestep must be one of scheduler.timesteps; got 0.25"):
        s.step(X, 0.25, X)
    s = ours(SCM)(prediction_type="epsilon")
    s.set_timesteps(2)
    with pytest.raises(ValueError, match="prediction_type must be 'trigflow'; got 'epsilon'"):
        s.step(X, s.timesteps[0], X)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "num_inference_steps, timesteps or sigmas; got none"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2000}, "^num_inference_steps must be at most num_train.*got 2000"),
        ({"num_inference_steps": 4}, "^intermediate_timesteps must be None .* got 1.3 and 4 steps"),
        ({"num_inference_steps": 2, "mu": 0.5}, "mu"),
        ({"num_inference_steps": 2, "max_timesteps": None}, "^max_timesteps must be an angle"),
        ({"num_inference_steps": 2, "max_timesteps": -1.0}, "max_timesteps must be a finite"),
        ({"num_inference_steps": 2, "intermediate_timesteps": "x"}, "intermediate_timesteps must"),
        (OWN | {"max_timesteps": 1.5}, "^max_timesteps must be None where .* got 1.5"),
        ({"timesteps": [1.5, 1.0, 0.0]}, "^max_timesteps must be None where .* got 1.5708"),
        (OWN | {"timesteps": [3.0, 1.5, 1.0, 0.5, 0.0]}, "^timesteps must be angles of at most"),
        (
            {"num_inference_steps": 1, "max_timesteps": 100.0, "intermediate_timesteps": None},
            "^max_timesteps must be an angle of at most 1.571, pi / 2; got 100.0",
        ),
        (
            {"num_inference_steps": 2, "max_timesteps": 1.0},
            "^intermediate_timesteps must be at most max_timesteps, 1.0; got 1.3",
        ),
        (OWN | {"num_inference_steps": 5}, "timesteps must be num_inference_steps . 1 long"),
        (OWN | {"timesteps": ANGLES[::-1]}, "timesteps must go down"),
        (OWN | {"timesteps": [1.5, float("nan"), 0.2, 0.1, 0.0]}, "timesteps must be one-dim"),
        (OWN | {"sigmas": [1.0, 0.5]}, "not both"),
        ({"sigmas": [0.0]}, r"^sigmas must begin above 0; got \[0.0\]"),
        ({"sigmas": [0.0, 0.0]}, r"^sigmas must begin above 0; got \[0.0, 0.0\]"),
        ({"num_inference_steps": 3, "sigmas": [2.0, 0.5]}, "sigmas must be one a step"),
    ],
    ids=str,
)
def test_set_timesteps_names_what_is_wrong(given, named):
    s = ours(SCM)()
    before = s.timesteps.clone()
    with pytest.raises(ValueError, match=named):
        s.set_timesteps(**given)
    assert torch.equal(s.timesteps, before)


def test_custom_timesteps_and_sigmas():
    s = ours(SCM)()
    for kind in (list, tuple, np.array, torch.tensor):
        s.set_timesteps(**OWN | {"timesteps": kind(ANGLES)})
        assert torch.equal(s.timesteps, torch.tensor(ANGLES))
        s.set_timesteps(sigmas=kind([40.0, 2.0, 0.5]))
        want = torch.tensor([40.0, 2.0, 0.5, 0.0]).double().atan().float()
        assert torch.equal(s.timesteps, want)
        assert s.num_inference_steps == 3
    x = X  # the exact network of data that is 0.3 everywhere: it arrives there
    for t in s.timesteps[:-1]:
        noise = (x - t.cos() * 0.3) / t.sin()
        x = s.step(t.cos() * noise - t.sin() * 0.3, t, x).prev_sample
    assert (x - 0.3).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_loses_no_more_than_in_diffusers(dtype):
    """As test_precision.py's: over steps and draws of noise, against the float64 recursion."""
    lost = []
    for cls in (ours(SCM), stock(SCM)):
        squares = []
        for kind in ("one", "list", "global"):
            exact = recursion(cls(), OWN, kind=kind)
            for a, b in zip(run(cls(), dtype=dtype, kind=kind)[0], exact, strict=True):
                squares.append((a.double() - b).square().mean() / b.square().mean())
        lost.append(float(torch.stack(squares).mean().sqrt()))
    assert lost[0] <= 1.5 * lost[1]
    assert lost[1] < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("numerics", ["faithful", "exact"])
def test_transforms_and_meta_tensors_leave_nothing_behind(numerics):
    def first(s):
        def step(x):
            s.set_timesteps(2)
            g = torch.Generator().manual_seed(0)
            return s.step(torch.tanh(x), s.timesteps[0], x, generator=g)[0]

        return step

    mine, theirs = ours(SCM)(sigma_data=0.51), stock(SCM)(sigma_data=0.51)
    mine.numerics = numerics
    steps = first(mine), first(theirs)
    same(*(torch.func.grad(lambda x, step=step: step(x).square().sum())(X) for step in steps))
    mine.set_timesteps(2)
    x = torch.empty(X.shape, device="meta")
    assert mine.step(x, mine.timesteps[0], x)[0].shape == X.shape
    same(first(mine)(X), first(theirs)(X))


def test_two_threads_share_the_rows_of_one_schedule():
    results, start = [None, None], threading.Barrier(2)

    def work(j):
        start.wait()
        results[j] = run(ours(SCM)(sigma_data=0.52))[0]

    threads = [threading.Thread(target=work, args=(j,)) for j in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = run(ours(SCM)(sigma_data=0.52))[0]
    for found in results:
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
