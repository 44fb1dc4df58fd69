"""Which step a timestep means: by its address if it is a view of `timesteps`, else by its value."""

import numpy as np
import pytest
import torch

from .classes import (
    DDIM,
    DDPM,
    DPM,
    EDM_EULER,
    EULER,
    EULER_A,
    FLOWS,
    LCM,
    NAMES,
    PNDM,
    SD,
    TCD,
    UNKNOWN_IS_LAST,
    WITH_BETAS,
    WITH_INDEX,
    WITH_SIGMAS,
    base,
    both,
    counted,
    ours,
)
from .loops import answer, compare, latents, loop, same, scaled, seeded

STEPS = 8
KINDS = {  # how a timestep reaches step -> is it a view
    "element": (lambda s, i: s.timesteps[i], True),
    "of a slice": (lambda s, i: s.timesteps[2:][i - 2] if i >= 2 else s.timesteps[i], True),
    "of a stride": (lambda s, i: s.timesteps[i % 2 :: 2][i // 2], True),
    "one-element view": (lambda s, i: s.timesteps[i : i + 1][0], True),
    "iterated": (lambda s, i: list(s.timesteps)[i], True),
    "clone": (lambda s, i: s.timesteps[i].clone(), False),
    "float64": (lambda s, i: s.timesteps[i].to(torch.float64), None),
    "number": (lambda s, i: s.timesteps[i].item(), False),
    "new tensor": (lambda s, i: torch.tensor(s.timesteps[i].item()), False),
}


def told_by(s, pick):
    """A run in which each timestep is handed over as `pick` makes it."""
    s.set_timesteps(STEPS)
    x, seen = latents(s), []
    for i in range(STEPS):
        t = pick(s, i)
        x = s.step(answer(scaled(s, x, t), i), t, x, **seeded(s, i)).prev_sample
        seen.append(x)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_timestep_gives_the_same_run(name, kind):
    pick, view = KINDS[kind]
    s = ours(name)(**base(name))
    if kind == "float64" and name in (DDIM, DDPM, PNDM):
        pytest.skip("diffusers indexes with the timestep: it must be whole")
    for a, b in zip(told_by(s, pick), loop_with(ours(name)(**base(name))), strict=True):
        assert torch.equal(a, b)
    if view is None or isinstance(pick(s, 0), (int, float)):
        return
    # a step index needs one look-up a run, without it there is one a step
    expected = 0 if view else 1 if name in WITH_INDEX else STEPS
    if name in (LCM, TCD) and not view:
        expected = 1 + STEPS  # an index, and the value on every step
    assert counted(s).looked_up == expected


def loop_with(s):
    return told_by(s, KINDS["element"][0])


@pytest.mark.parametrize("kind", ["clone", "number", "element"])
@pytest.mark.parametrize("name", NAMES)
def test_and_the_same_as_in_diffusers(name, kind):
    mine, theirs = both(name, **base(name))
    for a, b in zip(told_by(mine, KINDS[kind][0]), told_by(theirs, KINDS[kind][0]), strict=True):
        same(a, b)


@pytest.mark.parametrize("name", [DDIM, DDPM])
@pytest.mark.parametrize(
    "cast",
    [int, np.int64, lambda t: torch.tensor(t, dtype=torch.int32), torch.tensor],
    ids=["int", "numpy", "int32", "int64"],
)
def test_stateless_classes_take_any_timestep_in_any_order(name, cast):
    mine, theirs = both(name, **base(name))
    for s in (mine, theirs):
        s.set_timesteps(10)
    x = latents(mine)
    times = [400, 900, 0, 900, 100] + ([777, 3, 998] if name == DDIM else [])
    for j, t in enumerate(times):
        more = {"eta": 0.5} if name == DDIM else {}
        draws = [torch.Generator().manual_seed(j) for _ in range(2)]
        a, b = (
            s.step(answer(x, j), cast(t), x, generator=g, return_dict=False, **more)
            for s, g in zip((mine, theirs), draws, strict=True)
        )
        same(a[0], b[0])
        same(a[1], b[1])


def test_ddpm_without_set_timesteps_walks_all_of_them():
    mine, theirs = both(DDPM, **SD)
    x = latents(mine)
    for t in (999, 500, 1, 0):
        a, b = (
            s.step(answer(x, t), t, x, generator=torch.Generator().manual_seed(t)).prev_sample
            for s in (mine, theirs)
        )
        same(a, b)


@pytest.mark.parametrize("name", [EULER, EULER_A, EDM_EULER, *FLOWS])
@pytest.mark.parametrize("t", [3, torch.tensor(999), torch.tensor(3, dtype=torch.int32)], ids=str)
def test_whole_numbers_are_refused_where_diffusers_refuses_them(name, t):
    s = ours(name)(**base(name))
    s.set_timesteps(STEPS)
    with pytest.raises(ValueError, match="timestep"):
        s.step(latents(s), t, latents(s))


@pytest.mark.parametrize("name", [n for n in UNKNOWN_IS_LAST if n in WITH_BETAS])
def test_whole_numbers_mean_timesteps_where_diffusers_takes_them(name):
    mine, theirs = both(name, **base(name))
    for s in (mine, theirs):
        s.set_timesteps(STEPS)
    x = latents(mine)
    for t in (int(mine.timesteps[3]), 1, 0):
        a, b = (s.step(answer(x, t), t, x, **seeded(s)).prev_sample for s in (mine, theirs))
        same(a, b)
    assert mine.step_index == theirs.step_index


@pytest.mark.parametrize("name", UNKNOWN_IS_LAST)
def test_a_timestep_that_is_nowhere_is_the_last_one_for_multistep_solvers(name):
    mine, theirs = both(name, **base(name))
    for s in (mine, theirs):
        s.set_timesteps(STEPS)
    x = latents(mine)
    a, b = (s.step(answer(x, 0), 0, x).prev_sample for s in (mine, theirs))
    same(a, b)


@pytest.mark.parametrize("name", [EULER, EULER_A, EDM_EULER, *FLOWS])
def test_a_timestep_that_is_nowhere_is_an_error_in_words(name):
    s = ours(name)(**base(name))
    s.set_timesteps(STEPS)
    with pytest.raises((ValueError, IndexError), match="timestep"):
        s.step(latents(s), torch.tensor(3.25), latents(s))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (DPM, {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
        (EULER, {"use_beta_sigmas": True, "sigma_max": 40.0}),
    ],
    ids=str,
)
def test_equal_timesteps_are_told_apart_by_their_place(name, config):
    """diffusers looks for the value, takes the second of two and runs over the end of sigmas."""
    s, told = ours(name)(**base(name) | config), ours(name)(**base(name) | config)
    s.set_timesteps(20)
    assert len(set(s.timesteps.tolist())) < 20
    for a, b in zip(loop(s, told=False, steps=20), loop(told, told=True, steps=20), strict=True):
        assert torch.equal(a, b)
    _, theirs = both(name, **base(name) | config)
    compare(ours(name)(**base(name) | config), theirs, steps=20, told=True)
    # handed over as a value, the first of equal ones cannot be known: the second, as in diffusers
    mine, theirs = both(name, **base(name) | config)
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(20)
        scheduler._init_step_index(scheduler.timesteps[0].clone())
    assert mine.step_index == theirs.step_index == 1


@pytest.mark.parametrize("cut", [slice(4, None), slice(4, None, 2)], ids=["offset", "stride"])
@pytest.mark.parametrize("name", WITH_SIGMAS)
def test_timesteps_that_are_views_themselves(name, cut):
    """`timesteps` cut by its owner, with an offset and a stride of its own."""
    s, theirs = both(name, **base(name))
    for scheduler in (s, theirs):
        scheduler.set_timesteps(14)
        scheduler.timesteps = scheduler.timesteps[cut]
        scheduler.sigmas = scheduler.sigmas[cut]
    x = latents(s)
    first = 4 if s.order == 2 else 3  # where a whole step begins
    for i, t in enumerate(s.timesteps[first : len(s.sigmas) - 1], first):
        more = {"generator": None} if name == DPM else {}
        pair = []
        for scheduler, step in ((s, t), (theirs, theirs.timesteps[i])):
            torch.manual_seed(i)
            e = answer(scaled(scheduler, x, step), i)
            pair.append(scheduler.step(e, step, x, **more).prev_sample)
        same(*pair)
        x = pair[1]
        assert s.step_index == theirs.step_index == i + 1


@pytest.mark.parametrize("name", WITH_INDEX)
def test_a_timestep_of_an_earlier_run_is_looked_up(name):
    """Its memory belongs to another tensor, so its place there says nothing about this run."""
    s = ours(name)(**base(name))
    s.set_timesteps(STEPS)
    old = s.timesteps
    s.set_timesteps(STEPS)
    place = 6 if s.order == 2 else 5  # where a whole step begins
    s._init_step_index(old[place])
    assert s.step_index == place
    assert counted(s).looked_up == 1


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_written_in_place(name, when, inference):
    """They are the truth for the stateless classes, and only names for the others."""

    def edit(i, s, x):
        if i == when:
            s.timesteps[5] -= 7

    with torch.inference_mode(inference):
        mine, theirs = both(name, **base(name))
        compare(mine, theirs, edit)
        compare(mine, theirs, edit)
