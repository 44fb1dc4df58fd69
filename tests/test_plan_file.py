"""A plan as JSON: bit for bit, and what a file must not say."""

import copy
import json
import pickle
import re

import numpy as np
import pytest

import fastdiff
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule
from fastdiff.table import HEAD, HI, KZ, LO

ARRAYS = ("rows", "timesteps", "alpha", "sigma", "draw")
NUMBERS = ("depths", "noise_scale", "c_in", "guided", "about")


def same(a, b):
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes(), name  # also the sign of zero
        assert x.shape == y.shape
    for name in NUMBERS:
        assert getattr(a, name) == getattr(b, name), name


VARIANTS = [
    *((name, {}) for name in SOLVERS),
    ("dpmpp_2m", {"solver_type": "heun", "guidance": [[3.0, 7.5, 1.0]]}),
    ("dpmpp_3m", {"numerics": "faithful", "begin": 3, "final_sigma": "sigma_min"}),
    ("euler", {"s_churn": 5.0, "noise": "flow", "prediction": "flow_prediction"}),
    (
        "dpmpp_2m_sde",
        {"noise": NoiseSchedule.vp(rescale_betas_zero_snr=True), "spacing": "trailing"},
    ),
]


@pytest.mark.parametrize(("solver", "options"), VARIANTS)
def test_json_brings_back_every_bit(solver, options, tmp_path):
    if isinstance(options.get("noise"), NoiseSchedule):
        options = {**options, "prediction": "v_prediction"}
    plan = fastdiff.plan(solver, steps=8, **options)
    same(plan, fastdiff.Plan.from_json(plan.to_json()))
    plan.save(tmp_path / "plan.json")
    same(plan, fastdiff.Plan.load(tmp_path / "plan.json"))
    assert fastdiff.Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_json_is_plain_and_says_how_the_plan_was_made():
    plan = fastdiff.plan("DPM++ 2M SDE", steps=4, spacing="beta", eta=0.5, guidance=3.0)
    body = json.loads(plan.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert body["schema"] == 1
    assert body["solver"] == "dpmpp_2m_sde"
    assert body["options"]["eta"] == 0.5
    assert (body["spacing"], body["prediction"], body["numerics"]) == ("beta", "epsilon", "exact")
    assert body["noise"]["schedule"] == "scaled_linear"
    assert body["guided"] is True
    assert body["draw"] == [True] * 4


def broken(change):
    body = json.loads(fastdiff.plan("dpmpp_3m", steps=4).to_json())
    change(body)
    return json.dumps(body)


def put(value, *path):
    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a plan must be JSON"),
        ("[]", "schema of a plan must be 1; got 'list'"),
        ("{}", "schema of a plan must be 1; got None"),
        (broken(put(2, "schema")), "schema of a plan must be 1; got 2. A newer fastdiff"),
        *(
            (broken(lambda b, n=n: b.pop(n)), f"a plan must have the field '{n}'")
            for n in (*ARRAYS, *NUMBERS[:-1])
        ),
        (broken(put("x", "rows", 1, 0, 2)), "field 'rows' of a plan must hold numbers"),
        (
            broken(put([1.0], "rows", 1, 0)),
            "field 'rows' of a plan must hold numbers in lists of one length; got one of 21 beside",
        ),
        (broken(put("nan", "rows", 1, 0, 2)), "field 'rows' of a plan must hold finite numbers"),
        (broken(put("inf", "rows", 1, 0, 2)), "field 'rows' of a plan must hold finite numbers"),
        (broken(put("nan", "rows", 1, 0, 4)), "field 'rows' of a plan must not hold NaN"),
        (broken(put([1.0, 2.0], "rows")), "field 'rows' of a plan must have 3 dimensions; got 1"),
        (broken(put([1], "depths")), "field 'rows' of a plan must have 19 columns for depths (1,)"),
        (broken(put(True, "schema")), "schema of a plan must be 1; got True"),
        (broken(put(1.0, "schema")), "schema of a plan must be 1; got 1.0"),
        ("[" * 100_000, "a plan must be JSON"),
        (broken(put(7, "guided")), "field 'guided' of a plan must hold true or false; got 7"),
        (broken(put("no", "guided")), "field 'guided' of a plan must hold true or false; got 'no'"),
        (broken(put(None, "guided")), "field 'guided' of a plan must hold true or false; got None"),
        (
            broken(put([5, 0, 0, 0], "draw")),
            "field 'draw' of a plan must hold true or false; got 5",
        ),
        (broken(put(1, "draw", 2)), "field 'draw' of a plan must hold true or false; got 1"),
        (broken(put(True, "c_in")), "field 'c_in' of a plan must hold numbers; got True"),
        (
            broken(put("3.5", "timesteps", 1)),
            "field 'timesteps' of a plan must hold numbers; got '",
        ),
        (broken(put({}, "alpha", 1)), "field 'alpha' of a plan must hold numbers; got {}"),
        (broken(put(None, "alpha", 1)), "field 'alpha' of a plan must hold numbers; got None"),
        (broken(put(10**400, "alpha", 1)), "field 'alpha' of a plan must hold numbers; int too"),
        (
            broken(put("inf", "rows", 1, 0, LO)),
            "row 1 of the table clamps to lo = inf, hi = inf; it must be lo <= hi",
        ),
        (
            broken(put("-inf", "rows", 1, 0, HI)),
            "row 1 of the table clamps to lo = -inf, hi = -inf",
        ),
        (
            broken(lambda b: (put(2.0, "rows", 3, 0, LO)(b), put(1.5, "rows", 3, 0, HI)(b))),
            "row 3 of the table clamps to lo = 2, hi = 1.5; it must be lo <= hi",
        ),
        (
            broken(put(0.5, "rows", 1, 0, HEAD + 3)),
            "row 1 of the table weighs the noise z, but draw[1] is false; it must be true",
        ),
        (  # in a kept vector
            broken(put(0.5, "rows", 1, 0, HEAD + 6 + 3)),
            "row 1 of the table weighs the noise z, but draw[1] is false; it must be true",
        ),
        (
            broken(put(0.5, "rows", 2, 0, KZ)),
            "row 2 of the table weighs the noise z, but draw[2] is false; it must be true",
        ),
        (broken(put(-1.0, "noise_scale")), "noise_scale must be a finite number >= 0; got -1.0"),
        (broken(put(-1.0, "c_in")), "c_in must be a finite number >= 0; got -1.0"),
        (broken(put(-0.5, "sigma", 2)), "sigma must not be negative; got -0.5"),
        (broken(put(-0.5, "alpha", 0)), "alpha must not be negative; got -0.5"),
        (
            broken(put(1e39, "rows", 1, 0, 2)),
            "row 1 of the table holds 1e+39 in column 2; it must hold numbers that are finite in",
        ),
        (
            broken(lambda b: (put([24], "depths")(b), put([[[0.0] * 65]] * 4, "rows")(b))),
            "depths must leave a row at most 64 columns and 25 vectors; got (24,), 65",
        ),
        (broken(put([1.5], "depths")), "field 'depths' of a plan must hold whole numbers >= 0"),
        (broken(put([-1], "depths")), "field 'depths' of a plan must hold whole numbers >= 0"),
        (
            broken(put([[1.0]], "noise_scale")),
            "'noise_scale' of a plan must have 0 or 1 dimensions",
        ),
        (broken(put([1.0, 1.0], "noise_scale")), "noise_scale must be a number; got (2,)"),
        (broken(put(float("nan"), "c_in")), "field 'c_in' of a plan must hold finite numbers"),
        (broken(put([1.0, 2.0], "timesteps")), "timesteps must have shape (4,), one for each of t"),
        (broken(put(1e300, "c_in")), "c_in must be a number in 0 .. 3.403e+38, what float32 holds"),
        (
            broken(put([1e300] * 4, "timesteps")),
            "timesteps must be numbers in -2^53 .. 2^53; got 1e+",
        ),
        (
            broken(put(-1e17, "timesteps", 1)),
            "timesteps must be numbers in -2^53 .. 2^53; got -1e+17",
        ),
        (
            broken(put(1e39, "sigma", 2)),
            "sigma must be numbers in 0 .. 3.403e+38, what float32 holds",
        ),
        (
            broken(put(1e39, "alpha", 2)),
            "alpha must be numbers in 0 .. 3.403e+38, what float32 holds",
        ),
        (
            broken(put(1e39, "noise_scale")),
            "noise_scale must be a number in 1.175e-38 .. 3.403e+38",
        ),
        (
            broken(put(0, "noise_scale")),
            "noise_scale must be a number in 1.175e-38 .. 3.403e+38, wh",
        ),
        (
            broken(lambda b: (put(0.0, "alpha", 1)(b), put(0, "sigma", 1)(b))),
            "alpha and sigma must not both be 0 at a level, which would be empty; got 0 and 0",
        ),
        (broken(put([1.0] * 4, "alpha")), "alpha must have shape (5,) for 4 timesteps; got (4,)"),
        (broken(put([1.0] * 6, "sigma")), "sigma must have shape (5,) for 4 timesteps; got (6,)"),
        (broken(put([True], "draw")), "draw must have shape (4,) for 4 timesteps; got (1,)"),
        (
            broken(put(2.0, "rows", 1, 0, -1)),
            "row 1 of the table writes to slot 2; slots are -1 .. 1",
        ),
        (broken(put(0.5, "rows", 1, 0, -1)), "row 1 of the table writes to slot 0.5"),
        (broken(put(1.0, "rows", 0, 0, HEAD + 4)), "row 0 of the table reads slot 0, which no row"),
    ],
)
def test_a_malformed_file_names_the_field(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdiff.Plan.from_json(text)


@pytest.mark.parametrize("text", [None, 3, {"schema": 1}])
def test_a_plan_is_read_from_text(text):
    kind = type(text).__name__
    with pytest.raises(TypeError, match=f"^text must be a string, the JSON of a plan; got {kind}"):
        fastdiff.Plan.from_json(text)


def test_a_table_made_elsewhere_is_a_plan():
    """solver null: learned weights, any history."""
    body = json.loads(fastdiff.plan("dpmpp_2m", steps=3).to_json())
    body |= {"solver": None, "trained_on": "something"}
    plan = fastdiff.Plan.from_json(json.dumps(body))
    assert plan.about["solver"] is None
    assert plan.about["trained_on"] == "something"


def test_a_clamp_to_one_number_and_noise_of_weight_0_are_fine():
    body = json.loads(fastdiff.plan("euler_a", steps=3).to_json())
    for column in (LO, HI):
        body["rows"][1][0][column] = 0.5
    plan = fastdiff.Plan.from_json(json.dumps(body))
    assert plan.draw.all()  # also on the last row, where the weight is 0
    assert plan.rows[2, 0, HEAD + 3] == 0


def test_noise_of_one_sample_alone_must_be_drawn():
    plan = fastdiff.plan("dpmpp_2m", steps=3, guidance=[[1.0, 2.0]])
    body = json.loads(plan.to_json())
    body["rows"][1][1][HEAD + 3] = 0.5
    with pytest.raises(ValueError, match=r"^row 1 of the table weighs the noise z, but draw\[1\]"):
        fastdiff.Plan.from_json(json.dumps(body))
    body["draw"][1] = True
    assert fastdiff.Plan.from_json(json.dumps(body)).draw.tolist() == [False, True, False]


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(b"{\x93NUMPY")
    with pytest.raises(ValueError, match=r"^path must be a plan as JSON, .*not UTF-8") as error:
        fastdiff.Plan.load(path)
    assert str(path) in str(error.value)
    assert "at byte 1" in str(error.value)


def test_a_malformed_file_is_named(tmp_path):
    path = tmp_path / "plan.json"
    for text in ("{", "[]", broken(put(-1.0, "c_in"))):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"(in the file {str(path)!r})") + "$"):
            fastdiff.Plan.load(path)


@pytest.mark.parametrize("path", [None, 3, "", "."])
def test_a_path_names_a_file(path):
    kind = ValueError if isinstance(path, str) else TypeError
    plan = fastdiff.plan("euler", steps=2)
    for use in (fastdiff.Plan.load, plan.save):
        with pytest.raises(kind, match=f"^path must be the name of a file.*; got {path!r}"):
            use(path)


COPIES = [
    copy.copy,
    copy.deepcopy,
    *(lambda p, n=n: pickle.loads(pickle.dumps(p, n)) for n in range(2, 6)),
]


@pytest.mark.parametrize("copied", COPIES)
def test_copies_are_equal_and_do_not_change_either(copied):
    plan = fastdiff.plan("dpmpp_2m", steps=5)
    twin = copied(plan)
    same(plan, twin)
    for name in ARRAYS:
        assert not np.shares_memory(getattr(twin, name), getattr(plan, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(twin, name)[0] = 0
