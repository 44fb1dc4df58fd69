"""The one list of solvers."""

import inspect

import diffusers
import pytest

import fastdiff
from fastdiff.registry import SOLVERS, find


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_a_row_says_what_its_function_does(solver):
    """Depths, noise and options of the registry against a plan made with it."""
    plan = fastdiff.plan(solver.name, steps=12)
    assert plan.depths == solver.depths
    assert plan.draw.any() == solver.noise
    taken = inspect.signature(solver.row).parameters
    assert {*solver.preset, *solver.options, *solver.faithful} <= {*taken} - {"grid", "i", "k"}
    assert not {*solver.preset} & {*solver.options}
    assert solver.state in ("vp", "ve")
    assert solver.evaluations == 1
    assert solver.order in (1, 2)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_every_solver_names_a_class_of_diffusers_and_a_config_it_takes(solver):
    name, config = solver.scheduler
    made = getattr(diffusers, name)(**config)
    assert all(made.config[key] == value for key, value in config.items())


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_defaults_of_options_are_those_of_the_function(solver):
    taken = inspect.signature(solver.row).parameters
    for name, value in solver.options.items():
        if not (name == "eta" and solver.noise):  # a name with noise has eta = 1
            assert taken[name].default == value


def test_names_and_aliases_mean_one_solver_each():
    names = [n for row in SOLVERS.values() for n in (row.name, *row.aliases)]
    folded = [n.lower().replace("-", "_").replace(" ", "_") for n in names]
    owners = {}
    for row in SOLVERS.values():
        for n in (row.name, *row.aliases):
            key = n.lower().replace("-", "_").replace(" ", "_")
            assert owners.setdefault(key, row.name) == row.name
    assert len(folded) >= len(SOLVERS)
    assert list(SOLVERS) == [row.name for row in SOLVERS.values()]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++ 2m sde", "dpmpp_2m_sde"),
        ("k_dpmpp_2m", "dpmpp_2m"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        ("Euler a", "euler_a"),
        ("euler-ancestral", "euler_a"),
        ("DDIM", "ddim"),
        ("DPMPP_2M", "dpmpp_2m"),
    ],
)
def test_users_names(alias, name):
    assert find(alias).name == name


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("dpmpp_2n", "dpmpp_2m"), ("eular", "euler"), ("DPM++ 2M SDF", "dpmpp_2m_sde")],
)
def test_a_wrong_name_lists_the_right_ones_and_guesses(wrong, hint):
    with pytest.raises(ValueError, match=r"solver must be one of ddim, ddpm, .*") as error:
        find(wrong)
    assert f"got {wrong!r}" in str(error.value)
    assert f"Did you mean '{hint}'?" in str(error.value)


@pytest.mark.parametrize("wrong", [None, 3, "", "qqqq"])
def test_no_guess_where_nothing_is_near(wrong):
    with pytest.raises(ValueError, match=r"solver must be one of .*; got .*\.$"):
        find(wrong)
