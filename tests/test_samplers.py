"""`fastdiff samplers`: the registry whole, and JSON that a program can read."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

import fastdiff
from fastdiff.cli.samplers import HEAD, collect, diffusers_calls, print_samplers, rows
from fastdiff.registry import SOLVERS

PAGE = (Path(__file__).parents[1] / "docs/samplers.md").read_text()


def test_json_holds_the_registry(capsys):
    print_samplers(json=True)
    read = json.loads(
        capsys.readouterr().out, parse_constant=lambda c: pytest.fail(f"{c} is not JSON")
    )
    assert read == json.loads(json.dumps(collect()))
    assert read["schema"] == 1
    assert [row["name"] for row in read["samplers"]] == list(SOLVERS)
    for row in read["samplers"]:
        solver = SOLVERS[row["name"]]
        assert (row["order"], row["evaluations"]) == (solver.order, solver.evaluations)
        assert (row["noise"], row["draws"]) == (solver.noise, solver.draws)
        assert row["options"].keys() == solver.options.keys()
        assert {*row["comfyui"], *row["a1111"], *row["others"], row["name"]} == {
            solver.name,
            *solver.aliases,
        }
        made = fastdiff.sampler(row["name"], **row["diffusers"]["config"])
        assert type(made).__name__ == row["diffusers"]["class"]
        assert [(c["class"], c["config"]) for c in row["also"]] == [
            (name, dict(config)) for name, config in solver.also
        ]
    euler = next(row for row in read["samplers"] if row["name"] == "euler")
    assert euler["also"] == [{"class": "EDMEulerScheduler", "config": {}}]
    assert euler["options"]["s_tmax"] == "inf"


def test_the_text_has_a_line_for_each_solver(capsys):
    print_samplers()
    lines = capsys.readouterr().out.splitlines()
    assert all(word in lines[0] for word in HEAD)
    assert [line.split()[0] for line in lines[1 : len(SOLVERS) + 1]] == list(SOLVERS)
    line = next(line for line in lines if line.startswith("dpmpp_2m_sde "))
    assert line.split()[1:4] == ["2", "1", "always"]
    for word in ("dpmpp_2m_sde", "DPM++ 2M SDE", "k_dpmpp_2m_sde", "solver_order=2"):
        assert word in line
    assert "eta > 0" in next(line for line in lines if line.startswith("ddim "))
    assert "s_churn > 0" in next(line for line in lines if line.startswith("euler "))
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda row: row.name)
def test_the_call_of_diffusers_runs(solver):
    classes = (solver.scheduler, *solver.also)
    for (name, config), call in zip(classes, diffusers_calls(solver), strict=True):
        made = eval(call, {name: getattr(diffusers, name)})
        assert all(made.config[key] == value for key, value in config.items())


def test_the_page_has_the_table():
    """docs/samplers.md; `python docs/samplers.py` writes it."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 8]
    assert len(lines) == len(SOLVERS)
    for line, row in zip(lines, rows(), strict=True):
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        assert cells == list(row)


def test_the_command():
    run = subprocess.run(
        [sys.executable, "-c", "from fastdiff.cli import main; main()", "samplers", "--json"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["schema"] == 1
