"""LMS: the slopes that a run keeps, and the argument `order` of its step."""

import pytest
import torch

from fastdiff.solvers.adams import adams
from fastdiff.solvers.row import Grid

from .classes import LMS, SD, both, ours
from .loops import compare, first_step, follow, loop, same


def kept(s):
    return s.derivatives


def test_slopes_are_where_diffusers_keeps_them():
    runs = []
    for s in both(LMS, **SD):
        seen = []
        loop(s, lambda i, s, x, seen=seen: seen.append([m.clone() for m in kept(s)]))
        runs.append(seen)
    for ours_, theirs in zip(*runs, strict=True):
        assert len(ours_) == len(theirs)
        for a, b in zip(ours_, theirs, strict=True):
            same(a, b)


@pytest.mark.parametrize("change", ["replaced", "written", "shortened", "cleared", "cut"])
def test_slopes_edited_in_the_middle(change):
    def edit(i, s, x):
        if i != 5:
            return None
        if change == "replaced":
            s.derivatives = [m * 0.8 + 0.1 for m in s.derivatives]
        elif change == "written":
            s.derivatives[-1].mul_(0.7)
        elif change == "shortened":
            s.derivatives = s.derivatives[-2:]
        elif change == "cleared":
            s.derivatives.clear()
        else:
            s.derivatives = [m[:, :, :3].clone() for m in s.derivatives]
            return x[:, :, :3].clone()
        return None

    follow(LMS, edit)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_the_order_of_a_step(order):
    follow(LMS, call={"order": order}, steps=9)


def test_an_order_that_changes_on_the_way():
    runs = []
    for s in both(LMS, **SD):
        s.set_timesteps(8)
        s.set_begin_index(0)
        x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * s.sigmas[0]
        for t, order in zip(s.timesteps, (4, 4, 4, 4, 2, 3, 1, 4), strict=True):
            x = s.step(torch.tanh(s.scale_model_input(x, t)), t, x, order=order).prev_sample
        runs.append((x, len(s.derivatives)))
    same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("order", [0, -1, 2.5, "4", True, None])
def test_an_order_that_is_none_is_named(order):
    s, t, e, x = first_step(LMS)
    with pytest.raises(ValueError, match="order must be a whole number of at least 1; got"):
        s.step(e, t, x, order=order)
    assert s.derivatives == []


def test_a_refused_step_changes_nothing():
    s, clean = ours(LMS)(**SD), ours(LMS)(**SD)

    def clumsy(i, s, x):
        if i in (1, 5):
            before = list(s.derivatives)
            with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x)
            with pytest.raises(ValueError, match="history must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x[:, :3])
            assert all(a is b for a, b in zip(before, s.derivatives, strict=True))
            assert s.step_index == i

    for a, b in zip(loop(s, clumsy), loop(clean), strict=True):
        assert torch.equal(a, b)


def test_a_run_from_the_middle_takes_the_weights_of_the_place():
    """faithful: of order 4 at once, of which it has one prediction; exact: of order 1, 2, 3."""
    s = ours(LMS)(**SD)
    s.set_timesteps(20)
    grid = Grid(torch.ones(21).double().numpy(), s.sigmas.double().numpy())
    x = torch.ones(1, 4, 2, 2)
    s.set_begin_index(8)
    got = s.step(x, s.timesteps[8], x).prev_sample - x
    want = adams(grid, 8, 8, order=4).next.n
    torch.testing.assert_close(got, torch.full_like(got, want))
    s.set_timesteps(20)
    s.numerics = "exact"
    s.set_begin_index(8)
    got = s.step(x, s.timesteps[8], x).prev_sample - x
    torch.testing.assert_close(got, torch.full_like(got, float(s.sigmas[9] - s.sigmas[8])))


def test_two_runs_one_after_the_other():
    compare(*both(LMS, **SD), told=False)
    mine, theirs = both(LMS, **SD)
    for steps in (6, 9):
        compare(mine, theirs, steps=steps)
