"""`fastdiff tune MODEL`: the general table, the fit, what it refuses, a run on a tiny model."""

import json

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.cli import UserError, model
from fastdiff.cli.tune import tune as command
from fastdiff.shapes.fingerprint import weights_hash
from fastdiff.tune import untuned
from fastdiff.tune.card import card
from fastdiff.tune.gauss_newton import Batch, State, fit
from fastdiff.tune.general import general, parameters, with_parameters
from fastdiff.tune.rollout import rollout
from fastdiff.tune.run import Task, opened
from fastdiff.tune.score import refuse_training, score
from fastdiff.tune.search import on_grid
from fastdiff.tune.subject import Start
from fastdiff.tune.untuned import candidates, name_of, of_one_call, plan_of

NOISE = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def network(x, t):
    """Not linear, and it depends on both arguments."""
    return torch.tanh(x * (1 + t / 500)) + 0.3 * x


def plan(solver, steps=5, **options):
    options = {"spacing": "trailing", **options}
    return fastdiff.plan(solver, steps=steps, prediction="v_prediction", **options)


SPACED = [who for who in candidates() if who.spacing == "exponential"]


@pytest.mark.parametrize("who", SPACED, ids=name_of)
def test_the_general_table_is_the_same_run(who):
    """In float64, to rounding: weights of either table are of the size of 1 to 100."""
    try:
        made = plan(who.row or who.solver, spacing=who.spacing, **who.options)
    except ValueError:
        pytest.skip("has no run of five calls")
    want = fastdiff.sample(network, NOISE.double(), made)
    got = fastdiff.sample(network, NOISE.double(), general(made))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: plan("euler_a"), "plan must be deterministic.*noise on 5 rows"),
        (lambda: plan("ddim", guidance=2.0), "without guidance.*guided True"),
        (lambda: plan("ddim", 21), r"plan must have 2 \.\. 20 calls; got 21"),
        (lambda: plan("ddim", 1), r"plan must have 2 \.\. 20 calls; got 1"),
    ],
)
def test_a_plan_that_is_no_general_table_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        general(made())


def test_parameters_make_the_table_again():
    base = general(plan("unipc_2", 4))
    values = parameters(base)
    assert len(values) == 4 * 7 // 2 + 4
    again = with_parameters(base, values, 999)
    assert np.array_equal(again.rows, base.rows)
    assert np.array_equal(again.timesteps, base.timesteps)
    assert with_parameters(base, np.append(values[:-1], 1.5), 999).timesteps[-1] == 999
    with pytest.raises(ValueError, match="must hold numbers that are finite in float32"):
        with_parameters(base, values * 1e39, 999)


@pytest.mark.parametrize("solver", ["unipc_3", "euler", "heun"])
def test_a_rollout_is_the_run_of_sample(solver):
    made = plan(solver)
    trace = rollout(network, NOISE, made)
    assert torch.equal(trace.end, fastdiff.sample(network, NOISE, made))
    assert trace.calls == 5


def test_a_changed_plan_is_run_from_the_change_on():
    base = general(plan("dpmpp_2m"))
    values = parameters(base)
    trace = rollout(network, NOISE, base)
    for p, calls in ((0, 4), (5, 2), (len(values) - 6, 0), (len(values) - 2, 2)):
        other = values.copy()
        other[p] *= 0.99
        made = with_parameters(base, other, 999)
        moved = rollout(network, NOISE, made, trace)
        assert torch.equal(moved.end, fastdiff.sample(network, NOISE, made))
        # (row 0), (row 2 of 2 + 3 coefficients before), (row 4), (time of row 3)
        assert moved.calls == calls
    assert rollout(network, NOISE, base, trace).calls == 0
    with pytest.raises(ValueError, match="plan must be one without guidance and without noise"):
        rollout(network, NOISE, plan("euler_a"))


def test_the_fit_finds_a_table_that_is_known():
    """The target is the end of a perturbed table: Gauss-Newton comes back to it, digits after
    digits, until float32's rounding of the end points, 1e-6, and of the differences."""
    base = general(plan("dpmpp_2m", 3))
    values = parameters(base)
    wanted = values * (1 + 0.02 * np.cos(np.arange(len(values))))
    wanted[-3] = values[-3]  # 999: the last trained time

    def make(v):
        return with_parameters(base, v, 999)

    target = rollout(network, NOISE, make(wanted)).end
    saved = []
    batches = [Batch(network, NOISE[:2], target[:2]), Batch(network, NOISE[2:], target[2:])]
    deltas = np.where(np.arange(len(values)) < len(values) - 3, 1e-3, -5e-4)
    state = fit(
        make,
        batches,
        State(values, []),
        deltas,
        iterations=8,
        after=lambda s: saved.append(s.history[-1]),
    )
    assert state.history[0] > 1e-3  # far above the rounding
    assert state.history[-1] < 1e-2 * state.history[0]
    assert saved == state.history[1:]
    assert all(b <= a for a, b in zip(state.history, state.history[1:], strict=False))
    end = fastdiff.sample(network, NOISE, make(state.values))
    assert (end - target).square().mean().sqrt().item() == pytest.approx(state.history[-1], rel=0.1)


def test_a_grid_starts_as_its_spacing_and_refuses_what_does_not_descend(subject):
    who = next(w for w in candidates() if of_one_call(w) and w.spacing == "karras")
    made = plan_of(subject, who, 4)
    make = on_grid(subject, who, 4)
    levels = np.log(made.sigma[1:4] / made.alpha[1:4])
    np.testing.assert_allclose(make(levels).rows, made.rows, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="levels must descend"):
        make(levels[::-1])


def test_scoring_on_the_training_is_refused(subject, tmp_path):
    fitted, other = Start(("a red circle",), (5,)), Start(("a blue cross",), (6,))
    about = {"tuned": {"seeds": [5], "prompts": ["a red circle"]}}
    made = fastdiff.Plan(**{**vars(subject.plan("ddim", 2, "trailing")), "about": about})
    for start, message in (
        (Start(("a blue cross",), (5,)), r"seeds must be others .* got \[5\].* from 6 on would do"),
        (Start(("a blue cross",), (5 + 2**32,)), r"of which 32 bits count; got \[4294967301\]"),
        (Start(("a red circle",), (6,)), "prompts must be others .* got 'a red circle'"),
        (Start(("A red  circle",), (6,)), "prompts must be others .* got 'A red  circle'"),
    ):
        with pytest.raises(ValueError, match=message):
            score(subject, made, start, torch.zeros(1, 4, 16, 16))
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / "new", subject, Task(2, fitted, start, 8), {})
    assert not (tmp_path / "new").exists()
    refuse_training(made.about["tuned"], other)
    noise = subject.noise((5, 5 + 2**32))
    assert torch.equal(noise[0], noise[1])


def test_fine_runs_of_other_conditions_are_not_taken(subject, tmp_path):
    """An interruption before the first fit leaves them, and what they are of."""
    start, other = Start(("a red circle",), (5,)), Start(("a blue cross",), (6,))
    run = opened(tmp_path, subject, Task(2, start, other, 8), {})
    run.target("fit", start)
    with pytest.raises(ValueError, match=r"of a run with another fit\. Another --folder"):
        opened(tmp_path, subject, Task(2, Start(start.prompts, (7,)), other, 8), {})
    (tmp_path / "tune.json").unlink()
    with pytest.raises(ValueError, match=r"tune.json must say of which run fit.pt beside it"):
        opened(tmp_path, subject, Task(2, start, other, 8), {})


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """The command on the tiny model, among four of the untuned, and its options."""
    few = [w for w in candidates() if w.solver in ("ddim", "dpmpp_2m")]
    few = [w for w in few if w.spacing in ("trailing", "karras")]
    home = tmp_path_factory.mktemp("tune")
    prompts = home / "prompts.txt"
    prompts.write_text("a red circle\na blue cross\na black square\n")
    options = {"steps": 3, "folder": home / "run", "fit": 2, "held_out": 3, "fine": 12}
    options |= {"prompts": prompts, "guidance": 2.0, "seed": 10, "held_out_seed": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untuned, "contestants", lambda family: few)
        command(str(tiny), **options)
        yield options


def test_a_run_writes_a_plan_that_loads_everywhere(tuned, subject):
    path = tuned["folder"] / "tuned-3.json"
    made = fastdiff.Plan.load(path)
    assert made.about["solver"] is None
    assert made.steps == 3
    assert made.about["tuned"]["seeds"] == (10, 11)
    assert set(made.about["tuned"]["prompts"]) == {"a red circle", "a black square"}
    record = json.loads((tuned["folder"] / "tune.json").read_text())
    start = Start(*map(tuple, record["conditions"]["held_out"].values()))
    assert set(start.prompts) == {"a blue cross"}
    assert start.seeds == (20, 21, 22)
    # what it says of itself is what a run of the loaded plan gives
    want = subject.run(subject.reference(12), start)
    result = made.about["result"]
    assert score(subject, made, start, want) == pytest.approx(result["tuned"]["distance"], rel=1e-5)
    assert result["untuned"]["distance"] == min(
        v for v in record["held_out"].values() if v is not None
    )
    assert result["gain"] == 1 - result["tuned"]["distance"] / result["untuned"]["distance"]
    # and a pipeline with its scheduler runs the same
    scheduler = fastdiff.TableScheduler(path)
    scheduler.set_timesteps(3)
    x, denoise = subject.noise(start.seeds), subject.network(start.prompts)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    torch.testing.assert_close(x, subject.run(made, start), rtol=1e-5, atol=1e-5)
    text = (tuned["folder"] / "tuned-3.md").read_text()
    assert text == card(record, "tuned-3.json")
    assert f"{result['tuned']['distance']:.4f}" in text
    assert "There is none for this model" in text


def test_the_fit_is_nearer_on_its_own_seeds(tuned):
    record = json.loads((tuned["folder"] / "tune.json").read_text())
    (grid,), (all_,) = record["grid"].values(), record["coefficients"].values()
    assert grid["history"][-1] <= grid["history"][0]
    # each fit has a c of its own, so its distances are not those of the other
    assert all_["history"][-1] < all_["history"][0]


def test_a_second_run_measures_nothing_and_another_one_is_refused(tuned, tiny, monkeypatch):
    before = (tuned["folder"] / "tune.json").read_text()
    plan_before = (tuned["folder"] / "tuned-3.json").read_text()
    command(str(tiny), **tuned)
    assert (tuned["folder"] / "tune.json").read_text() == before
    assert (tuned["folder"] / "tuned-3.json").read_text() == plan_before
    with pytest.raises(UserError, match=r"of a run with another steps.* --folder"):
        command(str(tiny), **{**tuned, "steps": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, r"--steps must be in 2 \.\. 20; got 1"),
        ({"fit": 0}, "--fit must be in 1 .. 10000; got 0"),
        ({"fine": 19}, "--fine must be in 20 .. 1000, four times --steps; got 19"),
        ({"guidance": -1.0}, "--guidance must be in 0 .. 100; got -1"),
        ({"threads": 0}, "--threads must be in 1"),
        ({"seed": -1}, r"--seed must be in 0 \.\. 2\*\*63 - 64; got -1"),
        ({"held_out_seed": 2**63}, r"--held-out-seed must be in 0 \.\. 2\*\*63 - 96; got 9"),
        ({"held_out_seed": 100_063}, r"seeds must be others.*got \[100063\].*100064 on would do"),
    ],
)
def test_bad_options_of_tune_are_refused_by_name(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command("shapes", **{"steps": 5, "folder": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "a\n\na\n"])
def test_prompts_to_score_on_are_needed(text, tmp_path):
    (tmp_path / "p").write_text(text)
    with pytest.raises(UserError, match="--prompts must hold two different prompts"):
        command("elsewhere", steps=5, folder=tmp_path / "out", prompts=tmp_path / "p")
    with pytest.raises(UserError, match="--prompts must be a file with a prompt a line"):
        command("elsewhere", steps=5, folder=tmp_path / "out")


def test_the_committed_table_is_of_the_model_that_ships():
    folder = model.built_in()
    plan, said = (
        fastdiff.Plan.load(folder / "tuned-5.json"),
        json.loads((folder / "tuned-5.json").read_text()),
    )
    assert said["tuned"]["weights"] == weights_hash(folder)
    assert plan.steps == 5
    assert fastdiff.TableScheduler(str(folder / "tuned-5.json")).plan.steps == 5
    untuned, tuned = (said["result"][key]["distance"] for key in ("untuned", "tuned"))
    assert said["result"]["gain"] == pytest.approx(1 - tuned / untuned)
    for number in (
        f"{untuned:.4f}",
        f"{tuned:.4f}",
        f"{100 * said['result']['gain']:.1f} % nearer",
    ):
        assert number in (folder / "tuned-5.md").read_text()
