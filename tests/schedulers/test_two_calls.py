"""Schedulers whose step is two calls: what the first leaves for the second, edits in between."""

import pytest
import torch

from .classes import HEUN, KDPM2, KDPM2_A, PLAIN_TIMES, SD, both, ours
from .loops import SHAPE, answer, compare, first_step, follow, loop, same, seeded

LEFT = {  # attributes that a first half fills
    HEUN: ("dt", "prev_derivative", "sample"),
    KDPM2: ("sample",),
    KDPM2_A: ("sample",),
}
NAMES = list(LEFT)


def half_way(name, **config):
    """Our scheduler after the first half of its first step: (scheduler, timestep, output, x)."""
    s, t, e, x = first_step(name, **config)
    x = s.step(e, t, x).prev_sample
    return s, s.timesteps[1], answer(s.scale_model_input(x, s.timesteps[1]), 1), x


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_is_where_diffusers_leaves_it(name):
    runs = []
    for s in both(name, **SD):
        seen = []

        def edit(i, s, x, seen=seen):
            left = [getattr(s, key, None) for key in LEFT[name]]
            seen.append((i, s.state_in_first_order, s.step_index, left))

        loop(s, edit)
        runs.append(seen)
    for (*ours_, left), (*theirs, wanted) in zip(*runs, strict=True):
        assert ours_ == theirs
        for a, b in zip(left, wanted, strict=True):
            if a is None or b is None:
                assert a is b
            elif isinstance(a, float):
                assert a == pytest.approx(float(b), rel=1e-6)
            else:
                same(a, b)


@pytest.mark.parametrize("when", [5, 6])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_edited_between_two_calls(name, when):
    """Inpainting writes known pixels back: before a second half only the network sees it."""
    follow(name, lambda i, s, x: x * 0.9 + 0.1 if i == when else None)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_may_be_replaced(name):
    def edit(i, s, x):
        if i == 5:
            for key in LEFT[name]:
                setattr(s, key, getattr(s, key) * 0.8)
        if i == 7:
            s.sample.mul_(0.9)

    follow(name, edit)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_given_up_is_forgotten(name):
    """The state set back to the first half, and by set_timesteps."""

    def edit(i, s, x):
        if i == 5:
            for key in LEFT[name]:
                setattr(s, key, None)
            s._step_index -= 1
            s.set_begin_index(0)

    def ready(s):
        s.step(torch.zeros(SHAPE), s.timesteps[0], torch.zeros(SHAPE))
        s.set_timesteps(6)

    follow(name, edit, steps=5)
    compare(*both(name, **SD), ready=ready, steps=6)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_second_half_changes_nothing(name):
    s, t, e, x = half_way(name)
    before = [getattr(s, key) for key in LEFT[name]]
    with pytest.raises(ValueError, match="model_output must have the shape of sample"):
        s.step(e[:, :3], t, x)
    with pytest.raises(ValueError, match="history must have the shape of sample"):
        s.step(e[:, :3], t, x[:, :3])
    assert all(a is b for a, b in zip(before, (getattr(s, key) for key in LEFT[name]), strict=True))
    assert s.step_index == 1
    assert not s.state_in_first_order
    clean, t, e, x = half_way(name)
    assert torch.equal(*(one.step(e, t, x, **seeded(one)).prev_sample for one in (s, clean)))


@pytest.mark.parametrize("name", [HEUN])
def test_a_half_that_lacks_a_part_is_named(name):
    s, t, e, x = half_way(name)
    s.prev_derivative = None
    with pytest.raises(ValueError, match=r"prev_derivative must hold a tensor .*; got NoneType"):
        s.step(e, t, x)


@pytest.mark.parametrize("name", NAMES)
def test_the_halves_cut_to_another_shape(name):
    def edit(i, s, x):
        if i == 5:
            for key in LEFT[name]:
                if isinstance(left := getattr(s, key), torch.Tensor) and left.dim():
                    setattr(s, key, left[:, :, :3].clone())
            return x[:, :, :3].clone()

    follow(name, edit)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_step_begins_at_the_second_of_two_equal_timesteps(name):
    s = ours(name)(**SD)
    s.set_timesteps(6)
    for i in range(1, 11, 2):
        s._step_index = None
        s._init_step_index(s.timesteps[i])
        assert s.step_index == (i + 1 if s.timesteps[i] == s.timesteps[i + 1] else i)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", PLAIN_TIMES)
def test_the_times_of_middles_are_diffusers_own(name, schedule):
    s = ours(name)(beta_schedule=schedule)
    for steps in (2, 7, 40):
        s.set_timesteps(steps)
        for sigma in s.sigmas_interpol[:-3]:
            plain = PLAIN_TIMES[name](s, sigma, s.log_sigmas)
            made = s._sigma_to_t(sigma, s.log_sigmas)
            assert made.dtype == plain.dtype
            assert torch.equal(made.nan_to_num(-1), plain.nan_to_num(-1))


def test_sigma_down_of_a_long_step_is_a_number():
    """diffusers: 0, or the root of a number below 0."""
    s = ours(KDPM2_A)(beta_schedule="squaredcos_cap_v2")
    s.set_timesteps(2)
    high, low = s.sigmas[:2].tolist()
    assert float(s.sigmas_down[0]) == pytest.approx(low**2 / high, rel=1e-6)
    assert float(s.sigmas_interpol[0]) == pytest.approx(low, rel=1e-6)
    assert all(torch.isfinite(x).all() for x in loop(s, steps=2))
