"""`fastdiff bench accuracy` as a command: its options, its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from fastdiff.accuracy import record as records
from fastdiff.accuracy.contestants import OURS, THEIRS
from fastdiff.accuracy.page import page
from fastdiff.accuracy.runs import measure
from fastdiff.cli import UserError
from fastdiff.cli.bench import accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": "5,x"}, r"--budgets must be .*got '5,x'"),
        ({"budgets": "1"}, r"--budgets must be numbers of calls in 2"),
        ({"family": "ve"}, r"--family must be one of vp, flow; got 've'"),
        ({"solver": ["nope"]}, r"--solver must be one of .*sa_solver.*got 'nope'"),
        ({"samples": 1}, r"--samples must be in 2 .*got 1"),
        (
            {"solver": ["ddim", "ddim(eta=1.0)"], "family": "flow"},
            r"--solver must be one that .* flow; got ddim, .*\(ddim, flow: is flow_euler there",
        ),
        ({"solver": ["flow_euler"], "family": "vp"}, "flow_euler, vp: a flow's sampler"),
        ({"solver": ["scm"]}, r"in vp, flow; got scm, .*scm, flow: its network returns the end"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        accuracy(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="--out must be a folder"):
        accuracy(tmp_path / "out")
    with pytest.raises(UserError, match=r"--out must be a folder that can be written; got '.*/in'"):
        accuracy(tmp_path / "out" / "in")


@pytest.mark.parametrize("end", ["json", "svg", "md"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(end, tmp_path):
    (tmp_path / f"accuracy.{end}").mkdir()
    with pytest.raises(UserError, match=rf"--out must be .*accuracy\.{end}.* is one"):
        accuracy(tmp_path, solver=["flow_euler"], family="flow", budgets="3", samples=4)
    assert [p.name for p in tmp_path.iterdir()] == [f"accuracy.{end}"]


@pytest.mark.parametrize("part", ["made", "conditions", "floors", "excluded", "refused", "rows"])
def test_a_file_that_is_no_record_is_refused_by_name(part, tmp_path):
    lists = {"excluded": [], "refused": [], "rows": []}
    whole = {"schema": 1, "made": {}, "conditions": {}, "floors": {}, **lists}
    for wrong in (1, [1], {"a": 1}) if part in lists else (1, []):
        (tmp_path / "accuracy.json").write_text(json.dumps({**whole, part: wrong}))
        with pytest.raises(UserError, match=r"\.json must be a record .* --out, or --fresh"):
            accuracy(tmp_path, solver=["flow_euler"])


def test_a_failure_of_ours_is_no_refusal(tmp_path, monkeypatch):
    """diffusers' is written down and the run goes on; ours ends it."""

    def failing(problem, who, budget):
        if who.side == side:
            raise ValueError("no")
        return measure(problem, who, budget)

    monkeypatch.setattr(records, "measure", failing)
    options = {"budgets": (3,), "points": 8, "samples": 16, "families": ("flow",)}
    options["solvers"] = frozenset({"flow_euler"})
    side = THEIRS
    assert {r["side"] for r in records.run(tmp_path / "a.json", **options)["refused"]} == {THEIRS}
    side = OURS
    with pytest.raises(ValueError, match=r"^no$"):
        records.run(tmp_path / "b.json", **options)


def test_the_page_explains_only_what_the_record_holds():
    row = {"family": "vp", "solver": "unipc_3", "spacing": "exponential", "metric": "rms"}
    row["results"] = [{"budget": 20, "calls": 20, "errors": {"broad": 0.1}}]
    path = Path(__file__).parents[1] / "docs/accuracy.json"
    record = records.load(path) | {"rows": [{**row, "side": OURS}], "refused": []}
    record["conditions"]["mixtures"] = {"broad": {}}
    assert "Where the two differ" not in page(record)
    record["rows"].append({**row, "side": THEIRS})
    said = page(record)
    assert "| `unipc_3` | exponential | 20 | 2.594e-03 |" in said
    assert "| `dpmsolver_3m` | karras | 10 |" not in said
    assert "--out docs" not in said


def test_the_command_writes_three_files(tmp_path, capsys):
    options = {"budgets": "4,3", "family": "flow", "solver": ["FlowMatchEuler"], "samples": 16}
    accuracy(tmp_path / "out", **options)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"accuracy.{end}" for end in ("json", "svg", "md")
    }
    assert "flow flow_euler diffusers linspace" in capsys.readouterr().out
    with pytest.raises(UserError, match="budgets"):
        accuracy(tmp_path / "out", **{**options, "budgets": "5"})
