"""A plan as JSON: bit for bit, and what a file must not say."""

import copy
import json
import pickle
import re

import pytest

import fastdiff
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule
from fastdiff.table import HEAD

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
        (broken(put([1.0], "rows", 1, 0)), "field 'rows' of a plan must hold numbers"),
        (broken(put("nan", "rows", 1, 0, 2)), "field 'rows' of a plan must hold finite numbers"),
        (broken(put("inf", "rows", 1, 0, 2)), "field 'rows' of a plan must hold finite numbers"),
        (broken(put("nan", "rows", 1, 0, 4)), "field 'rows' of a plan must not hold NaN"),
        (broken(put([1.0, 2.0], "rows")), "field 'rows' of a plan must have 3 dimensions; got 1"),
        (broken(put([1], "depths")), "field 'rows' of a plan must have 19 columns for depths (1,)"),
        (broken(put([1.5], "depths")), "field 'depths' of a plan must hold whole numbers >= 0"),
        (broken(put([-1], "depths")), "field 'depths' of a plan must hold whole numbers >= 0"),
        (broken(put([1.0], "noise_scale")), "field 'noise_scale' of a plan must have 0 dimensions"),
        (broken(put(float("nan"), "c_in")), "field 'c_in' of a plan must hold finite numbers"),
        (broken(put([1.0, 2.0], "timesteps")), "rows must have shape (2, 1 or batch, 21)"),
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


def test_a_table_made_elsewhere_is_a_plan():
    """solver null: learned weights, any history."""
    body = json.loads(fastdiff.plan("dpmpp_2m", steps=3).to_json())
    body |= {"solver": None, "trained_on": "something"}
    plan = fastdiff.Plan.from_json(json.dumps(body))
    assert plan.about["solver"] is None
    assert plan.about["trained_on"] == "something"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_equal(copied):
    plan = fastdiff.plan("dpmpp_2m", steps=5)
    same(plan, copied(plan))
