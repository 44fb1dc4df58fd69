"""`fastdiff bench accuracy`: what mathematics guarantees of its numbers, who takes part, the
record and its resumption, the pages that are made of it.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.accuracy import record as records
from fastdiff.accuracy.contestants import (
    EXCLUDED,
    OURS,
    THEIRS,
    VARIANTS,
    Contestant,
    contestants,
    without_peer,
)
from fastdiff.accuracy.page import AHEAD, LAST_STEP, page, sentence
from fastdiff.accuracy.picture import curve, svg
from fastdiff.accuracy.problem import FAMILIES, MIXTURES, Problem
from fastdiff.accuracy.ranking import ranked, score
from fastdiff.accuracy.runs import OutOfReach, measure
from fastdiff.accuracy.runs import _longest as longest
from fastdiff.registry import SOLVERS

ROOT = Path(__file__).parents[1]
SMALL = {"budgets": (3, 4), "points": 8, "samples": 16, "families": ("flow",)}
EVERYONE = [who for family in FAMILIES for who in contestants(family)]
COMMITTED = json.loads((ROOT / "docs/accuracy.json").read_text())


def small(path, **more):
    options = {**SMALL, "solvers": frozenset({"flow_euler", "sa_solver", "flow_heun"}), **more}
    return records.run(path, **options)


def errors(family, solver, steps, ends):
    """Without the start and the end that all spacings share: between two levels, uniform in log."""
    problem = Problem(family, points=64)
    sigmas = np.exp(np.linspace(*np.log(ends), steps + 1))
    plan = fastdiff.plan(
        solver,
        steps=steps,
        noise=problem.schedule,
        spacing=sigmas,
        prediction=problem.prediction,
        lower_order_final=False,
    )
    z = problem.start(False)
    got = fastdiff.sample(problem.network(calls := []), z, plan).numpy()
    start, end = ((plan.alpha[i], plan.sigma[i]) for i in (0, -1))
    want = problem.data.flow(z.numpy() * plan.noise_scale, start, end)
    assert len(calls) == steps
    return np.sqrt(((got - want) ** 2).mean(-1))


@pytest.mark.parametrize(("solver", "order"), [("dpmpp_1", 1), ("dpmpp_2m", 2), ("unipc_2", 3)])
def test_error_falls_as_the_order_says(solver, order):
    """2^order from n to 2 n, within 0.2 of the order: n = 192, three mixtures' levels apart."""
    few, many = (errors("vp", solver, n, (10.0, 0.05)) for n in (192, 384))
    assert np.log2(few / many) == pytest.approx([order] * len(MIXTURES), abs=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_that_of_the_level_whoever_asks(family):
    """A perfect answer for (x, t): x = alpha x_0 + sigma n of its own estimates, at any time."""
    problem, x = Problem(family), torch.linspace(-2, 2, 9, dtype=torch.float64).repeat(2, 1)
    for t in (10.0, 500.5, 990.0):
        out = problem.network(seen := [])(x, torch.tensor(t)).numpy()
        alpha, sigma = problem.level(seen[0])
        data, noise = problem.data.posterior(x.numpy(), alpha, sigma)
        np.testing.assert_allclose(alpha * data + sigma * noise, x, atol=1e-12)
        np.testing.assert_allclose(out, noise if family == "vp" else noise - data, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_keeps_the_order_of_points(family):
    """What lies below a point of the start lies below its image; a flow starts from noise alone."""
    problem = Problem(family, points=64)
    z = problem.start(False)
    below = problem.data.cdf(z.numpy(), *problem.top)
    np.testing.assert_allclose(problem.data.cdf(problem.answer, 1.0, 0.0), below, atol=1e-12)
    if family == "flow":
        np.testing.assert_allclose(below, torch.special.ndtr(z), atol=1e-12)


def test_the_last_step_costs_what_the_page_says():
    problem = Problem("vp")
    alpha, sigma = problem.level(0)
    before = problem.data.flow(problem.answer, (1.0, 0.0), (alpha, sigma))
    data, _ = problem.data.posterior(before, alpha, sigma)
    for end in (data, before):
        cost = score(problem.errors(torch.from_numpy(end), False))
        assert f"{cost:.1e}" == f"{LAST_STEP:.1e}"


def test_exact_samples_have_the_floor_and_a_shift_is_seen():
    problem = Problem("flow", samples=512)
    floor = problem.floors()
    exact = torch.from_numpy(problem.quantiles)
    assert list(problem.errors(exact, True).values()) == [0.0] * len(MIXTURES)
    moved = problem.errors(exact + 0.3, True)
    assert list(moved.values()) == pytest.approx([0.3] * len(MIXTURES), abs=1e-12)
    # E W1 is at most the integral of sqrt(F (1 - F) / n): half the data's width of 5, and the
    # quantiles stand for 1 / n of it
    assert all(0 < value < 3 / np.sqrt(512) for value in floor.values())


@pytest.mark.parametrize("case", AHEAD)
def test_why_diffusers_has_another_number(case):
    """As the page says it: each step from our number to theirs, and none is left."""
    solver, spacing, calls = case
    ours, steps, theirs = AHEAD[case]
    problem = Problem("vp")
    (who,) = [w for w in EVERYONE if w.key == ("vp", solver, THEIRS, spacing)]
    given, plans = {}, [fastdiff.plan(solver, steps=calls, spacing=spacing)]
    for what in steps:
        if "model times" in what:
            plans.append(replace(plans[-1], timesteps=longest(who, calls).timesteps.numpy()))
        else:
            given |= dict([what.removeprefix("and ").strip("`").replace('"', "").split("=")])
            plans.append(fastdiff.plan(solver, steps=calls, spacing=spacing, **given))
    found = []
    for plan in plans:
        x = fastdiff.sample(problem.network([]), problem.start(False), plan)
        found.append(score(problem.errors(x, False)))
    found.append(score(measure(problem, who, calls)["errors"]))
    assert found == pytest.approx([ours, *steps.values(), theirs], rel=1e-3)
    assert steps[list(steps)[-1]] == pytest.approx(theirs, rel=1e-3)


def test_a_variant_is_a_solver_with_an_option_on_both_sides():
    for one in VARIANTS:
        assert set(one.options) <= set(SOLVERS[one.solver].options)
        assert {**SOLVERS[one.solver].options, **one.options} != SOLVERS[one.solver].options
        sides = {w.side for w in EVERYONE if w.solver == one.name}
        assert sides == {OURS, THEIRS}
    variants = [w for w in EVERYONE if w.row]
    assert len(variants) < len(EVERYONE) / 8  # of the time that all take


@pytest.mark.parametrize(
    "solver",
    [
        "ddim",
        "euler",
        "dpmpp_2m",
        "ddim(eta=1.0)",
        "euler(s_churn=2.0)",
        "dpmpp_2m(solver_type=heun)",
    ],
)
def test_both_sides_do_the_same_work(solver):
    """Ten trailing steps are at whole times, which nobody rounds: the same errors, but for
    diffusers' levels in float32, 6e-8, whose effect ten steps may multiply a thousandfold.
    """
    sides = {w.side: w for w in EVERYONE if w.key[:2] == ("vp", solver) and w.spacing == "trailing"}
    problem = Problem("vp", points=32, samples=64)
    here, there = (measure(problem, sides[side], 10) for side in (OURS, THEIRS))
    assert here["calls"] == there["calls"] == 10
    assert here["errors"] == pytest.approx(there["errors"], rel=1e-4)


def test_calls_are_counted_not_steps():
    heun = next(w for w in EVERYONE if w.scheduler == "HeunDiscreteScheduler")
    flow = next(w for w in EVERYONE if w.scheduler == "FlowMatchHeunDiscreteScheduler")
    for who, budget, calls in ((heun, 6, 5), (heun, 5, 5), (flow, 8, 7)):
        assert measure(Problem(who.family, points=4), who, budget)["calls"] == calls


def test_a_budget_below_one_step_is_out_of_reach():
    prk = Contestant("vp", "pndm", THEIRS, "leading", False, "PNDMScheduler", {})
    with pytest.raises(OutOfReach, match="PNDMScheduler"):
        measure(Problem("vp", points=4), prk, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_part_or_says_why(solver, family):
    here = {who.side for who in EVERYONE if (who.solver, who.family) == (solver, family)}
    if (solver, family) in EXCLUDED:
        assert not here
        assert len(EXCLUDED[solver, family]) > 10
    else:
        assert OURS in here
        assert (THEIRS in here) != (solver in without_peer(family))


def test_exclusions_are_of_solvers_that_exist_and_each_solver_runs_somewhere():
    assert {solver for solver, _ in EXCLUDED} <= set(SOLVERS)
    nowhere = {s for s in SOLVERS if all((s, family) in EXCLUDED for family in FAMILIES)}
    # the reason is that of a consistency model, or it is lms
    assert nowhere == {"lcm", "flow_lcm", "tcd", "scm", "ipndm_v"}


def test_nobody_runs_twice():
    keys = [who.key for who in EVERYONE]
    assert len(keys) == len(set(keys))


def test_the_record_resumes_where_it_was_cut(tmp_path, monkeypatch):
    whole = small(tmp_path / "whole.json")
    measured = []

    def until_cut(problem, who, budget):
        measured.append(who.key)
        if len(set(measured)) > 3:
            raise KeyboardInterrupt
        return measure(problem, who, budget)

    monkeypatch.setattr(records, "measure", until_cut)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "cut.json")
    assert len(records.load(tmp_path / "cut.json")["rows"]) == 3
    first = set(measured[:-1])
    monkeypatch.setattr(
        records, "measure", lambda p, w, b: measured.append(w.key) or measure(p, w, b)
    )
    measured.clear()
    assert small(tmp_path / "cut.json") == whole
    assert not first & set(measured), "measured again"
    assert records.load(tmp_path / "cut.json") == whole
    measured.clear()
    small(tmp_path / "cut.json")
    assert measured == []


def test_a_file_of_other_conditions_is_refused_unless_fresh(tmp_path):
    path = tmp_path / "a.json"
    small(path, solvers=frozenset({"flow_euler"}))
    with pytest.raises(ValueError, match=r"budgets \[3, 4\]; now it is budgets \[5\]"):
        small(path, solvers=frozenset({"flow_euler"}), budgets=(5,))
    other = json.loads(path.read_text())
    path.write_text(json.dumps({**other, "made": {**other["made"], "torch": "0"}}))
    with pytest.raises(ValueError, match=r"measured with torch 0; now it is torch .*folder.*--fre"):
        small(path, solvers=frozenset({"flow_euler"}))
    small(path, solvers=frozenset({"flow_euler"}), budgets=(5,), fresh=True)
    assert records.load(path)["conditions"]["budgets"] == [5]
    path.write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=r"schema 1.*--fresh"):
        small(path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="as JSON"):
        small(path)


@pytest.mark.parametrize("source", ["new", "committed"])
def test_the_schema(source, tmp_path):
    record = COMMITTED if source == "committed" else small(tmp_path / "a.json")
    assert record["schema"] == 1
    assert record["made"].keys() == {"fastdiff", "diffusers", "torch", "numpy", "python"}
    what = record["conditions"]
    assert what["mixtures"].keys() == record["floors"].keys() == MIXTURES.keys()
    for row in record["rows"]:
        assert row.keys() == {
            *("family", "solver", "side", "spacing", "class", "config", "metric", "results")
        }
        assert (row["family"] in FAMILIES, row["side"] in (OURS, THEIRS)) == (True, True)
        assert row["metric"] in ("rms", "w1")
        assert bool(row["class"]) == (row["side"] == THEIRS)
        assert [result["budget"] for result in row["results"]] == what["budgets"]
        for result in row["results"]:
            assert 1 <= result["calls"] <= result["budget"]
            assert row["side"] == THEIRS or result["calls"] == result["budget"]
            if result["errors"] is None:  # not finite: of diffusers, where rounded times repeat
                assert row["side"] == THEIRS
                continue
            assert all(0 < e < np.inf for e in result["errors"].values())
            assert result["errors"].keys() == MIXTURES.keys()


def test_the_committed_record_is_whole():
    """Every contestant of today ran; a new solver needs `fastdiff bench accuracy --out docs`."""
    there = {
        tuple(row[k] for k in ("family", "solver", "side", "spacing"))
        for name in ("rows", "refused")
        for row in COMMITTED[name]
    }
    assert there >= {who.key for who in EVERYONE}
    assert COMMITTED["conditions"]["budgets"] == [5, 6, 8, 10, 15, 20, 30, 50]
    assert all(row["side"] == THEIRS and row["reason"] for row in COMMITTED["refused"])


def test_a_number_of_the_committed_record_is_measured_again():
    row = next(r for r in COMMITTED["rows"] if r["solver"] == "unipc_2" and r["side"] == OURS)
    who = Contestant(row["family"], row["solver"], OURS, row["spacing"], False)
    again = measure(Problem(row["family"]), who, 10)
    (old,) = (r for r in row["results"] if r["budget"] == 10)
    # times go through float32 and libraries' exp: 1e-6 is many ulps of both
    assert again["errors"] == pytest.approx(old["errors"], rel=1e-6)


def test_the_best_is_the_best():
    entries = ranked(COMMITTED, "vp", "rms", 20)
    rows = [r for r in COMMITTED["rows"] if (r["family"], r["metric"]) == ("vp", "rms")]
    assert len(entries) == sum(r["errors"] is not None for row in rows for r in row["results"][5:6])
    smallest = min(
        float(np.prod(list(r["errors"].values())) ** (1 / len(MIXTURES)))
        for row in rows
        for r in row["results"]
        if r["budget"] == 20 and r["errors"]
    )
    assert entries[0].score == pytest.approx(smallest) == score(entries[0].errors)


def test_the_sentence_says_what_is_best_and_under_which_conditions():
    said = sentence(COMMITTED)
    for budget in (5, 10, 20):
        best = ranked(COMMITTED, "vp", "rms", budget, OURS)[0]
        assert f"`{best.solver}` with {best.spacing} spacing, {best.score:.1e} at {budget}" in said
    for condition in ("perfect network", "scaled_linear", "RMS", "mixtures", "float64"):
        assert condition in said
    text = page(COMMITTED)
    for row in COMMITTED["excluded"]:
        assert row["reason"] in text


def test_the_picture_is_small_xml_with_a_curve_of_every_solver():
    """Of each solver and side with a finite result; the page lists whose samples never are.

    diffusers' UniPC with bh1 is such: B(h) = h is infinite in the step to sigma = 0.
    """
    text, said = svg(COMMITTED), page(COMMITTED)
    tree = ElementTree.fromstring(text)
    lines = [e for e in tree.iter() if e.tag.endswith("polyline")]
    groups = {}
    for row in COMMITTED["rows"]:
        key = (row["family"], row["metric"], row["solver"], row["side"])
        groups.setdefault(key, []).append(row)
    drawn = {
        key
        for key, rows in groups.items()
        if any(r["errors"] is not None for row in rows for r in row["results"])
    }
    assert {key for key in groups if curve(COMMITTED, *key)} == drawn
    assert len(lines) == len(drawn)
    budgets = ", ".join(map(str, COMMITTED["conditions"]["budgets"]))
    for key in groups.keys() - drawn:
        assert key[3] == THEIRS
        for row in groups[key]:
            who = f"`{row['solver']}`, {row['family']}, {THEIRS}, {row['spacing']}"
            assert f"* {who}, {budgets} calls: the samples are not finite." in said
    assert len(text) < 100_000
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"nan|inf", " ".join(line.get("points") for line in lines))
