"""The one list of solvers."""

import inspect
import json
import math
import re

import diffusers
import pytest

import fastdiff
from fastdiff.registry import SOLVERS, find, near
from fastdiff.schedulers import CLASSES
from fastdiff.schedulers.option_checks import CHECKS, checked
from fastdiff.solvers.solver import A1111, COMFYUI

from .schedulers.options import TABLE


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
    assert (solver.points is None) == (solver.rows(3) == 3)
    calls = [solver.call(row) for row in range(solver.rows(4))]
    assert calls == sorted(set(calls))
    assert {step for step, _ in calls} == set(range(4))
    assert [solver.steps(solver.rows(n)) for n in range(1, 9)] == list(range(1, 9))
    assert solver.order in (1, 2, 3)


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
        ("UniPC", "unipc_2"),
        ("uni_pc_bh2", "unipc_2"),
        ("PLMS", "plms"),
        ("PNDM", "plms"),
    ],
)
def test_users_names(alias, name):
    assert find(alias).name == name


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("dpmpp_2mm", "'dpmpp_2m', "),
        ("eular", "'euler' or 'euler_a'?"),
        ("DPM++ 2M SDF", "'dpmpp_2m_sde', "),
        ("3m", "'dpmpp_3m"),
        ("uni_pc", "'unipc_"),
    ],
)
def test_a_wrong_name_lists_the_right_ones_and_guesses(wrong, hint):
    with pytest.raises(ValueError, match=r"solver must be one of ddim, ddpm, .*") as error:
        find(wrong)
    assert f"got {wrong!r}" in str(error.value)
    assert f" Did you mean {hint}" in str(error.value)
    assert all(guess in SOLVERS for guess in near(wrong))
    assert 1 <= len(near(wrong)) <= 3


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_every_name_is_told_once_and_leads_back(solver):
    told = (*solver.comfyui, *solver.a1111, *solver.others)
    assert len(told) == len(set(told))
    assert {solver.name, *told} == {solver.name, *solver.aliases}
    assert all(find(name) is solver for name in told)
    assert set(solver.comfyui) <= COMFYUI
    assert all(name in A1111 or name.startswith("k_") for name in solver.a1111)


def test_the_menus_of_others():
    names = {row.name: (row.comfyui, row.a1111) for row in SOLVERS.values()}
    assert names["dpmpp_2m"] == (("dpmpp_2m",), ("DPM++ 2M", "k_dpmpp_2m"))
    assert names["euler_a"] == (("euler_ancestral",), ("Euler a", "k_euler_a"))
    assert names["dpmpp_1"] == ((), ())
    assert SOLVERS["dpmpp_3m"].others == ("DPM++ 3M",)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_when_a_solver_draws(solver):
    option, _, over = solver.draws.partition(" > ")
    assert (solver.draws == "always") == solver.noise
    if over:
        assert fastdiff.plan(solver.name, steps=5, **{option: 0.7}).draw.any()
        assert not fastdiff.plan(solver.name, steps=5, **{option: 0.0}).draw.any()
    elif not solver.noise:
        assert solver.draws == "never"
        assert not {"eta", "s_churn", "s_noise"} & set(solver.options)


@pytest.mark.parametrize("wrong", [None, 3, "", "qqqq"])
def test_no_guess_where_nothing_is_near(wrong):
    with pytest.raises(ValueError, match=r"solver must be one of .*; got .*\.$"):
        find(wrong)


def test_every_class_is_that_of_a_row():
    """So that `fastdiff samplers`, fastdiff.plan and fastdiff.sampler know it."""
    named = {name for row in SOLVERS.values() for name, _ in (row.scheduler, *row.also)}
    public = {name for name in fastdiff.__all__ if name.endswith("Scheduler")}
    assert public - named == {"TableScheduler"}  # which runs a plan, whatever made it
    assert named <= public
    assert {cls.__name__ for cls in CLASSES} == named


# fastdiff.sampler: a scheduler by its name in that list


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_a_sampler_is_the_class_and_config_of_its_row(solver):
    name, config = solver.scheduler
    flow = name.startswith("FlowMatch")
    given = {"shift": 3.0} if flow else {"beta_end": 0.013}
    if name in ("IPNDMScheduler", "SCMScheduler"):  # levels of their own
        given, flow = {}, True
    made = fastdiff.sampler(solver.name, **given)
    assert type(made) is getattr(fastdiff, name)
    betas = {} if flow else {"beta_schedule": "scaled_linear", "beta_start": 0.00085}
    want = betas | given | config
    assert {key: made.config[key] for key in want} == want


@pytest.mark.parametrize(
    ("spacing", "flags"),
    [
        ("karras", {"use_karras_sigmas": True, "use_beta_sigmas": False}),
        ("beta", {"use_karras_sigmas": False, "use_beta_sigmas": True}),
        ("trailing", {"use_karras_sigmas": False, "timestep_spacing": "trailing"}),
    ],
)
def test_the_spacing_of_a_sampler(spacing, flags):
    for name in ("dpmpp_2m", "euler"):
        made = fastdiff.sampler(
            name, spacing=spacing, **flags
        )  # saying it twice is no contradiction
        assert {key: made.config[key] for key in flags} == flags


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "dpmpp_2m",
            {"solver_order": 3},
            "solver_order must be 2 for 'dpmpp_2m'; got 3. Samplers with 3: dpmpp_3m, dpmpp_3m_sde",
        ),
        (
            "dpmpp_2m",
            {"algorithm_type": "sde-dpmsolver++"},
            "algorithm_type must be 'dpmsolver++' for 'dpmpp_2m'; got 'sde-dpmsolver++'. "
            "Samplers with 'sde-dpmsolver++': dpmpp_sde_1, dpmpp_2m_sde, dpmpp_3m_sde",
        ),
        (
            "DPM++ 2M SDE",
            {"algorithm_type": "dpmsolver++"},
            "algorithm_type must be 'sde-dpmsolver++' for 'dpmpp_2m_sde'; got 'dpmsolver++'",
        ),
        (
            "dpmsolver_2m",
            {"final_sigmas_type": "zero"},
            "final_sigmas_type must be 'sigma_min' for 'dpmsolver_2m'; got 'zero'. Leave it out",
        ),
        (  # which diffusers' class turns into another one
            "dpmpp_2m",
            {"solver_type": "bh2"},
            "solver_type must be 'midpoint' for 'dpmpp_2m'; got 'bh2'. Leave it out",
        ),
        (
            "dpmpp_2m",
            {"spacing": "karras", "use_karras_sigmas": False},
            "use_karras_sigmas must be True beside spacing='karras'; got False. Give one of them",
        ),
        (
            "euler",
            {"spacing": "karras", "timestep_spacing": "trailing"},
            "timestep_spacing must be 'linspace' beside spacing='karras'; got 'trailing'",
        ),
        (
            "ddim",
            {"solver_order": 2},
            "solver_order: no option of DDIMScheduler; it takes beta_end",
        ),
        ("ddim", {"eta": 1.0}, "eta: no option of DDIMScheduler; it takes beta_end, beta_schedule"),
        ("ddim", {"_order": 2}, "_order: no option of DDIMScheduler; it takes beta_end"),
        ("euler", {"spacing": "lu"}, "spacing of 'euler' must be one of karras, exponential, beta"),
        ("euler", {"spacing": ["beta"]}, "spacing of 'euler' must be one of karras, exponential"),
    ],
)
def test_an_option_of_a_sampler_acts_or_is_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdiff.sampler(name, **options)


def test_self_is_no_option_of_a_sampler():
    for option in ({"order": 3}, {"self": 3}):
        with pytest.raises(ValueError, match=r"no option of EulerDiscreteScheduler") as error:
            fastdiff.sampler("euler", **option)
        assert "self" not in str(error.value).partition("it takes")[2]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmsolver_2m", "ddim"])
@pytest.mark.parametrize(
    "source",
    ["DPMSolverMultistepScheduler", "PNDMScheduler", "UniPCMultistepScheduler", "DDPMScheduler"],
)
def test_the_name_replaces_what_it_stands_for_in_a_whole_config(source, name, saved):
    given = {"beta_end": 0.013, "prediction_type": "v_prediction"}
    if source == "DPMSolverMultistepScheduler":
        given |= {"solver_order": 1, "algorithm_type": "sde-dpmsolver++", "use_beta_sigmas": True}
    config = getattr(diffusers, source)(**given).config
    if saved:
        config = json.loads(json.dumps({"_class_name": source, **{k: config[k] for k in given}}))
    made = fastdiff.sampler(name, **config)
    want = {"beta_end": 0.013, "prediction_type": "v_prediction", **find(name).scheduler[1]}
    assert {key: made.config[key] for key in want} == want
    if name != "ddim":
        assert ("sde" in made.config.algorithm_type) == ("sde" in name)
        made = fastdiff.sampler(name, spacing="karras", **config)
        assert made.config.use_karras_sigmas
        assert not made.config.use_beta_sigmas


@pytest.mark.parametrize("name", ["sa_solver", "sa_solver_3", "plms"])
def test_a_whole_config_of_another_algorithm(name):
    """DPM-Solver's algorithm_type means nothing to SA-Solver, which would refuse it."""
    config = diffusers.DPMSolverMultistepScheduler(beta_end=0.013, use_karras_sigmas=True).config
    made = fastdiff.sampler(name, **config)
    want = {"beta_end": 0.013, **find(name).scheduler[1]}
    assert {key: made.config[key] for key in want} == want


def test_a_misspelt_option_beside_a_whole_config_is_refused():
    config = diffusers.PNDMScheduler().config
    with pytest.raises(ValueError, match=r"^beta_edn: no option of DDIMScheduler; it takes beta_e"):
        fastdiff.sampler("ddim", **config, beta_edn=0.013)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_option_has_a_check_that_takes_what_its_class_runs_with(cls):
    """And that whole configs, saved ones too, pass."""
    assert {name for c in CLASSES for name in c._get_init_keys(c)} - {"self"} == CHECKS.keys()
    config = cls().config
    for option, values in TABLE.get(cls.__name__, {}).items():  # two have only defaults
        for value in values if not option.startswith("step.") else ():
            checked(option, value)
    for option in cls._get_init_keys(cls) - {"self"}:
        checked(option, config[option])
    names = ("dpmpp_2m", "unipc", "flow_euler" if "shift" in config else "euler")
    if cls.__name__.startswith("EDM"):
        names = ("dpmpp_2m", "euler")
    for name in ("scm",) if cls.__name__ == "SCMScheduler" else names:
        for whole in (config, json.loads(cls().to_json_string())):
            fastdiff.sampler(name, **whole)


@pytest.mark.parametrize(
    ("name", "option", "what", "values"),
    [
        ("dpmpp_2m", "flow_shift", "a finite number above 0", (-1.0, 0, "x", math.nan, True)),
        ("dpmpp_2m", "time_shift_type", "one of exponential, linear", ("foo", None, ["linear"])),
        ("dpmpp_2m", "lower_order_final", "True or False", ("x", 1, None)),
        ("dpmpp_2m", "use_flow_sigmas", "True or False", (3,)),
        ("dpmpp_2m", "use_karras_sigmas", "None or True or False", ("yes",)),
        ("dpmpp_2m", "steps_offset", "a whole number of at least 0", ("a", -1, 0.5)),
        ("dpmpp_2m", "rescale_betas_zero_snr", "True or False", ("no",)),
        ("dpmpp_2m", "variance_type", "None or one of fixed_small, ", ("foo",)),
        ("dpmpp_2m", "prediction_type", "one of epsilon, sample, ", ("foo", None)),
        ("dpmpp_2m", "lambda_min_clipped", "a number, or -inf for no limit", (math.nan, math.inf)),
        ("euler", "beta_start", "a number above 0 and below 1", (math.nan, "x", 0.0, 1.0)),
        ("euler", "num_train_timesteps", "a whole number of at least 1", (0, 10.5, True)),
        (
            "euler",
            "trained_betas",
            "None or a list or array of numbers above 0, at most 1",
            ([], [0.1, math.nan], ["0.1"], [[0.1]], [0.1, [0.2]], 0.1),
        ),
        ("euler", "sigma_max", "None or a finite number above 0", (0, math.inf)),
        ("unipc", "disable_corrector", "a list of steps, 0 the first", ([-1], 3, [0.5])),
        ("unipc", "solver_p", "None or a scheduler", ("x",)),
        ("sa_solver", "tau_func", "None or a function of the timestep", (1.0,)),
        ("ddim", "dynamic_thresholding_ratio", "a number in 0 .. 1", (1.1, None)),
        ("flow_euler", "shift", "a finite number above 0", (math.nan, -1.0, None)),
        ("flow_euler", "shift_terminal", "None or a number of at least 0 and below 1", (2.0, 1)),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused_by_its_name(name, option, what, values):
    for value in values:
        with pytest.raises(ValueError, match="^" + re.escape(f"{option} must be {what}")) as error:
            fastdiff.sampler(name, **{option: value})
        assert str(error.value).endswith(f"; got {value!r}")


def test_the_shift_of_a_whole_config_of_a_flow_is_checked_too():
    config = {**diffusers.FlowMatchEulerDiscreteScheduler().config, "shift": None}
    with pytest.raises(ValueError, match=r"^shift must be a finite number above 0; got None"):
        fastdiff.sampler("dpmpp_2m", **config)


def test_a_wrong_name_of_a_sampler_is_called_name():
    with pytest.raises(ValueError, match=r"^name must be one of ddim, ddpm, .*; got None\.$"):
        fastdiff.sampler(None)
