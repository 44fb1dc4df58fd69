"""PNDM: which call is next, what is kept between two, and what is done to it there."""

import copy

import numpy as np
import pytest
import torch

from .classes import PNDM, SD, base, both, counted, ours, stock
from .loops import SHAPE, answer, compare, latents, loop, same

STARTS = [{"skip_prk_steps": True}, {"skip_prk_steps": False}]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("config", STARTS, ids=str)
def test_what_is_kept_is_where_diffusers_keeps_it(config, prediction):
    runs = []
    for s in both(PNDM, **SD, **config, prediction_type=prediction):
        seen = []

        def edit(i, s, x, seen=seen):
            # copies, for diffusers adds to the sum in place
            seen.append(copy.deepcopy([s.counter, s.cur_sample, s.cur_model_output, *s.ets[-4:]]))

        loop(s, edit)
        runs.append(seen)
        assert s.prk_timesteps.tolist() + s.plms_timesteps.tolist() == s.timesteps.tolist()
    for ours_, reference in zip(*runs, strict=True):
        for a, b in zip(ours_, reference, strict=True):
            if isinstance(b, torch.Tensor):
                same(a, b)
            else:
                assert a == b


@pytest.mark.parametrize("config", STARTS, ids=str)
@pytest.mark.parametrize("at", [1, 4, 6, 13])
@pytest.mark.parametrize("change", ["ets", "in place", "start", "sum", "counter"])
def test_edited_between_two_calls(config, at, change):
    edited = []

    def edit(i, s, x):
        if i != at:
            return
        if change == "ets" and s.ets:
            s.ets = [m * 0.8 + 0.1 for m in s.ets]
        elif change == "in place" and s.ets:
            s.ets[-1].mul_(0.7)
        elif change == "start" and s.cur_sample is not None:
            s.cur_sample = s.cur_sample * 0.9
        elif change == "sum" and isinstance(s.cur_model_output, torch.Tensor):
            s.cur_model_output = s.cur_model_output + 0.1
        elif change == "counter" and i == 6:
            s.counter -= 2
        else:
            return
        edited.append(i)

    compare(*both(PNDM, **SD, **config), edit)
    if not edited:
        pytest.skip("a call of this run finds nothing of that kind")
    assert edited == [at, at]


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_raw_outputs_given_before_the_first_call(known):
    """diffusers' own tests do this, and then the second call does not read its own output."""

    def ready(s):
        s.ets = [torch.full(SHAPE, 0.3 * j) for j in range(known)]

    def edit(i, s, x):
        if i == 0:
            s.cur_sample = x * 0.5

    compare(*both(PNDM, **base(PNDM)), edit, ready=ready)


@pytest.mark.parametrize("config", STARTS, ids=str)
def test_both_kinds_of_call_by_their_names(config):
    results = []
    for s in both(PNDM, **SD, **config):
        s.set_timesteps(10)
        x = latents(s)
        for i, t in enumerate(s.prk_timesteps):
            x = s.step_prk(answer(x, i), t, x, return_dict=False)[0]
        for i, t in enumerate(s.plms_timesteps):
            x = s.step_plms(answer(x, i), t, x).prev_sample
        results.append(x)
    same(*results)


@pytest.mark.parametrize(
    ("config", "at"),
    [(c, at) for c in STARTS for at in (0, 1, 3, 5, 13) if at < 9 or not c["skip_prk_steps"]],
    ids=str,
)
def test_a_refused_call_changes_nothing(config, at):
    refused = []

    def clumsy(i, s, x):
        if i == at:
            refused.append(i)
            before = s.counter, list(s.ets), s.cur_sample, s.cur_model_output
            with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x)
            after = s.counter, list(s.ets), s.cur_sample, s.cur_model_output
            assert before[0] == after[0]
            assert all(a is b for a, b in zip(before[1], after[1], strict=True))
            assert before[2] is after[2]
            assert before[3] is after[3]

    s = ours(PNDM)(**SD, **config)
    for a, b in zip(loop(s, clumsy), loop(ours(PNDM)(**SD, **config)), strict=True):
        assert torch.equal(a, b)
    assert refused == [at]


def test_what_is_missing_is_named():
    s = ours(PNDM)(**SD)
    for steps in (1, 3):
        with pytest.raises(
            ValueError, match=rf"num_inference_steps must be 4 \.\. 1000.*got {steps}"
        ):
            s.set_timesteps(steps)
    s.set_timesteps(8)
    x = latents(s)
    with pytest.raises(ValueError, match=r"three raw outputs in ets; got 0.*step_prk"):
        s.step_plms(x, s.timesteps[0], x)
    s = ours(PNDM)(**base(PNDM))
    s.set_timesteps(8)
    x = s.step(x, s.timesteps[0], x).prev_sample
    s.cur_sample = None
    with pytest.raises(ValueError, match=r"ets and cur_sample must hold .* NoneType"):
        s.step(x, s.timesteps[1], x)
    s = ours(PNDM)(**base(PNDM), prediction_type="sample")
    s.set_timesteps(8)
    with pytest.raises(ValueError, match="prediction_type must be epsilon or v_prediction"):
        s.step(x, s.timesteps[0], x)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 100])
def test_few_steps_and_all_of_them(steps):
    config = STARTS[0] if steps < 4 else STARTS[1]
    mine, theirs = both(PNDM, **SD, **config)
    compare(mine, theirs, steps=steps)
    assert counted(mine).fused == len(theirs.timesteps)


@pytest.mark.parametrize("config", STARTS, ids=str)
def test_custom_timesteps_step_to_the_next_one(config):
    """The exact network of data in one point: each sample has the noise of its level."""
    times = [950, 800, 500, 430, 200, 40]
    s = ours(PNDM)(**SD, **config)
    s.set_timesteps(timesteps=times)
    assert (np.flip(s._timesteps) == times).all()
    assert s.timesteps[-1] == 40
    levels = [*(s.alphas_cumprod[t].double() for t in s.timesteps), s.final_alpha_cumprod.double()]
    x = levels[0].sqrt() * 0.5 + (1 - levels[0]).sqrt() * torch.ones(SHAPE).double()
    for t, level, after in zip(s.timesteps, levels, levels[1:], strict=False):
        x = s.step((x - level.sqrt() * 0.5) / (1 - level).sqrt(), t, x).prev_sample
        torch.testing.assert_close(x, x * 0 + after.sqrt() * 0.5 + (1 - after).sqrt())
    assert type(s) is not stock(PNDM)


@pytest.mark.parametrize(
    ("config", "begin"),
    [*((STARTS[0], b) for b in (0, 1, 4)), *((STARTS[1], b) for b in (0, 1, 2, 3, 4, 7, 12, 14))],
    ids=str,
)
def test_exact_runs_along_the_noise_that_the_network_knows(config, begin):
    """With n itself as the answer every step stays on alpha x_0 + sigma n, wherever it begins."""
    s = ours(PNDM)(**SD, **config)
    s.numerics = "exact"
    s.set_timesteps(8)
    g = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, *SHAPE, generator=g).unbind()
    bar = s.alphas_cumprod[int(s.timesteps[begin])]
    x = bar.sqrt() * x0 + (1 - bar).sqrt() * n
    with pytest.raises(ValueError, match="shape of sample"):  # it leaves the run where it begins
        s.step(n[:, :3], s.timesteps[begin], x)
    for t in s.timesteps[begin:]:
        x = s.step(n, t, x).prev_sample
    assert s.counter == len(s.timesteps) - (begin if config["skip_prk_steps"] else 0)
    bar = s.final_alpha_cumprod
    same(x, bar.sqrt() * x0 + (1 - bar).sqrt() * n, 1e-5)
