"""docs/a_new_solver.md: its code runs as written, and the solver that it makes is what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastdiff
from tests.loop import run
from tests.mixture import Mixture

TEXT = (Path(__file__).parents[1] / "docs/a_new_solver.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
DATA = Mixture()
X = np.linspace(-2.0, 2.0, 21)


@pytest.fixture(scope="module")
def names():
    """What the document defines, run from top to bottom."""
    defined = {}
    for block in BLOCKS:
        exec(compile(block, "docs/a_new_solver.md", "exec"), defined)
    return defined


def test_the_document_runs(names):
    assert len(BLOCKS) == 4
    assert names["plan"].rows.shape == (20, 1, 19)
    assert "(20, 1, 19)" in TEXT


def test_the_wrong_sign_is_caught(names):
    solver = names["Solver"]("wrong", names["wrong"], order=2, depths=(1,), state="ve")
    with pytest.raises(ValueError, match="row 0 of the table does not carry signal and noise"):
        fastdiff.plan(solver, steps=20)


def test_its_order_is_the_claimed_one(names):
    errors = []
    for steps in (96, 192):
        sigmas = np.exp(np.linspace(np.log(3.0), np.log(0.03), steps + 1))
        plan = fastdiff.plan(names["AB2"], steps=steps, spacing=sigmas)
        levels = [np.array([1.0, s]) / np.hypot(1.0, s) for s in (sigmas[0], sigmas[-1])]
        out = run(plan, DATA.network(plan, "epsilon"), X * plan.noise_scale)[-1] * levels[1][0]
        errors.append(np.sqrt(np.mean((out - DATA.flow(X, *levels)) ** 2)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(names["AB2"].order, abs=0.15)


def test_equal_levels_and_one_step(names):
    for sigmas in ([5.0, 5.0, 1.0, 1.0, 0.1], [5.0]):
        plan = fastdiff.plan(names["AB2"], steps=len(sigmas), spacing=sigmas)
        path = run(plan, DATA.network(plan, "epsilon"), X * plan.noise_scale)
        assert np.isfinite(path).all()


def test_every_field_of_the_registry_that_it_names_exists(names):
    from dataclasses import fields

    known = {f.name for f in fields(names["Solver"])}
    table = TEXT.split("| field | here | meaning |")[1].split("\n\n")[0]
    named = {
        n for line in table.splitlines()[2:] for n in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named <= known
