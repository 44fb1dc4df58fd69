"""Short runs of every class against diffusers (agreement.py says how); and tests of that test."""

import inspect
from statistics import median

import pytest
import torch

from .agreement import COUNT, REL, WEIGHT, disagreements
from .classes import NAMES, ONE_RESULT, PLAIN_INITS, base, ours, stock
from .options import TABLE, accepted, draw
from .runs import Case, finite, gaps, made, reference, theirs


@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_options_agrees_with_diffusers(name):
    wrong = disagreements(name, 8)
    assert not wrong, wrong


# The tests below test the test.


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_options_is_complete(name):
    parameters = set(inspect.signature(stock(name)).parameters)
    step = inspect.signature(stock(name).step).parameters
    numbers = {f"step.{k}" for k, p in step.items() if isinstance(p.default, (float, int))}
    numbers -= {"step.return_dict"}
    listed = set(TABLE[name]) - {"step.variance_noise"}
    assert listed == parameters | numbers, "an option of the installed diffusers is not drawn"


@pytest.mark.parametrize("cls", [ours, stock])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_of_the_schedule_that_a_constructor_sets(name, cls):
    """So that a run may do without it (runs.made, and conftest.py for KDPM2)."""
    quick = made(cls(name), base(name))
    with pytest.MonkeyPatch.context() as patch:
        if name in PLAIN_INITS:
            patch.setattr(stock(name), "__init__", PLAIN_INITS[name])
        plain = cls(name)(**base(name))
    for s in (plain, quick):
        s.set_timesteps(8)
        s.__dict__.pop("_fused", None)
    assert plain.__dict__.keys() == quick.__dict__.keys()
    for key, value in plain.__dict__.items():
        same = quick.__dict__[key]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(same, value, rtol=0, atol=0, equal_nan=True, msg=key)
        else:
            # a function of its own each has the same name at another address
            assert repr(same).split(" at 0x")[0] == repr(value).split(" at 0x")[0], key


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_every_option_is_drawn(name):
    cases = [draw(name, 8, seed) for seed in range(int(COUNT[8] * WEIGHT.get(name, 1)))]
    for key, values in TABLE[name].items():
        part, key = ("call", key[5:]) if key.startswith("step.") else ("config", key)
        seen = [repr(getattr(case, part)[key]) for case in cases]
        for value in values:
            assert seen.count(repr(value)) >= 3, (key, value)
    assert all(accepted(name, case.config, 8) for case in cases)
    assert {case.rng for case in cases} == {"one", "list", "global"}
    assert len({case.begin for case in cases}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_float64_recursion_is_that_of_diffusers(name):
    """Typically within a few units of float32: it has no deviation of its own."""
    distances, defined, kinds = [], 0, 1 if name in ONE_RESULT else 2
    for seed in range(30):
        case = draw(name, 20, seed)
        s, r = theirs(case)[0], reference(case)
        defined += finite(r)
        if finite(s) and finite(r):
            distances.append(max(gaps(s[::kinds], r[::kinds])))
    assert defined >= 22  # of 30: the rest divide by alpha = 0, or take the root of a logarithm
    assert median(distances) < 3e-6


@pytest.mark.parametrize(
    ("name", "config", "deviation"),
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, {"second": 2.0}),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            {"sde_sign": 1.0},
        ),
        (
            "DDIMScheduler",
            {"timestep_spacing": "trailing", "num_train_timesteps": 999},
            {"stride": False},
        ),
    ],
)
def test_a_wrong_weight_of_second_order_would_be_seen(name, config, deviation):
    """The smallest mistakes that formulas invite are hundreds of times the tolerance."""
    case = Case(name, config, steps=20)
    assert max(gaps(reference(case, **deviation), reference(case))) > 100 * REL
