"""A plan and its noise schedule do not change, and hold only what a kernel may run."""

import copy
import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.schedules import NoiseSchedule, Origin
from fastdiff.table import HEAD, LO
from tests.test_sampling import wave


def test_what_to_gives_is_the_callers_own():
    plan, noise = fastdiff.plan("dpmpp_2m", steps=4), torch.ones(2, 3)
    before = fastdiff.sample(wave, noise, plan)
    for dtype in (None, torch.float32, torch.float64):
        plan.to("cpu", dtype).zero_()
        plan.to(torch.device("cpu"), dtype).zero_()
    assert torch.equal(fastdiff.sample(wave, noise, plan), before)
    assert torch.equal(plan.to("cpu"), torch.from_numpy(plan.rows.astype(np.float32)))


CHANGES = [
    lambda d: d.update(solver="x"),
    lambda d: d.__setitem__("solver", "x"),
    lambda d: d.__delitem__("solver"),
    lambda d: d.__ior__({"solver": "x"}),
    lambda d: d.pop("solver"),
    lambda d: d.popitem(),
    lambda d: d.setdefault("other", 1),
    lambda d: d.clear(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_about_and_origin_are_read_only(change):
    plan, family = fastdiff.plan("ddim", steps=3), NoiseSchedule.vp()
    for record in (plan.about, plan.about["options"], plan.about["noise"], family.origin):
        before = dict(record)
        with pytest.raises(TypeError, match="read-only"):
            change(record)
        assert record == before


def test_about_does_not_follow_its_callers_dict():
    mine = {"solver": None, "tags": ["a", {"b": np.float32(1)}], "n": np.arange(2)}
    plan = dataclasses.replace(fastdiff.plan("ddim", steps=3), about=mine)
    mine["tags"][1]["b"] = 2
    assert plan.about == {"solver": None, "tags": ("a", {"b": 1.0}), "n": (0, 1)}
    assert fastdiff.Plan.from_json(plan.to_json()).about == plan.about


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_stay_closed(copied):
    plan, family = copied(fastdiff.plan("ddim", steps=3)), copied(NoiseSchedule.vp())
    assert isinstance(plan.about, Origin)
    assert plan.about == fastdiff.plan("ddim", steps=3).about
    assert json.dumps(plan.about)
    assert family.origin == NoiseSchedule.vp().origin
    with pytest.raises(TypeError, match="read-only"):
        plan.about["solver"] = "x"
    with pytest.raises(ValueError, match="read-only"):
        family.alphas_cumprod[0] = 0.5
    assert dataclasses.asdict(family)["train_steps"] == 1000


def test_a_schedule_does_not_follow_its_callers_array():
    bar = NoiseSchedule.vp().alphas_cumprod
    with pytest.raises(ValueError, match="read-only"):
        bar[0] = 0.5
    mine = bar.copy()
    family = NoiseSchedule("vp", 1000, mine)
    mine[:] = 0.5
    np.testing.assert_array_equal(family.alphas_cumprod, bar)


def spoilt(value, *place):
    rows = fastdiff.plan("dpmpp_2m", steps=3).rows.copy()
    rows[place] = value
    return {"rows": rows}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoilt(np.nan, 1, 0, 2), "row 1 of the table holds nan in column 2; it must hold numbers"),
        (spoilt(np.inf, 2, 0, HEAD), "row 2 of the table holds inf in column 7; it must hold num"),
        (
            spoilt(np.nan, 2, 0, LO),
            "row 2 of the table holds nan in column 4; it must hold numbers",
        ),
        (
            spoilt(np.inf, 2, 0, LO),
            "row 2 of the table clamps to lo = inf, hi = inf; it must be lo",
        ),
        (
            spoilt(0.5, 1, 0, HEAD + 3),
            "row 1 of the table weighs the noise z, but draw[1] is false",
        ),
        (spoilt(7, 1, 0, -1), "row 1 of the table writes to slot 7; slots are -1 .. 0"),
        (
            spoilt(1.0, 0, 0, HEAD + 4),
            "row 0 of the table reads slot 0, which no row before it has",
        ),
        ({"rows": "x"}, "rows must be an array of numbers; got 'x'"),
        ({"alpha": [1.0, -1.0, 1.0, 1.0]}, "alpha must not be negative; got -1.0"),
        ({"sigma": [1.0, np.nan, 1.0, 1.0]}, "sigma must be finite numbers; got"),
        ({"timesteps": [9.0, np.inf, 1.0]}, "timesteps must be finite numbers; got"),
        ({"draw": [0, 1, 0]}, "draw must be an array of bool; got array([0, 1, 0])"),
        ({"depths": (1.5,)}, "depths must be a tuple of whole numbers >= 0; got (1.5,)"),
        ({"depths": (-1,)}, "depths must be a tuple of whole numbers >= 0; got (-1,)"),
        ({"guided": 1}, "guided must be True or False; got 1"),
        ({"noise_scale": -1.0}, "noise_scale must be a finite number >= 0; got -1.0"),
        ({"noise_scale": np.inf}, "noise_scale must be a finite number >= 0; got inf"),
        ({"c_in": "1"}, "c_in must be a finite number >= 0; got '1'"),
    ],
)
def test_a_plan_that_no_kernel_may_run_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(fastdiff.plan("dpmpp_2m", steps=3), **change)


def test_the_rows_of_every_sample_are_checked():
    plan = fastdiff.plan("dpmpp_2m", steps=3, guidance=[[1.0, 2.0]])
    rows = plan.rows.copy()
    rows[0, 1, HEAD + 4] = 1.0
    with pytest.raises(ValueError, match="row 0 of the table reads slot 0"):
        dataclasses.replace(plan, rows=rows)


def test_plain_lists_make_a_plan():
    plan = fastdiff.plan("dpmpp_2m", steps=3)
    lists = {n: getattr(plan, n).tolist() for n in ("rows", "timesteps", "alpha", "sigma", "draw")}
    mine = fastdiff.Plan(**lists, depths=[np.int64(1)], noise_scale=np.float32(2))
    np.testing.assert_array_equal(mine.rows, plan.rows)
    assert (mine.depths, mine.noise_scale) == ((1,), 2.0)
    assert json.loads(mine.to_json())["noise_scale"] == 2.0
