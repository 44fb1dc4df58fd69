"""No number on a red check: ceilings, sets of GroupNorms, the step, whole models, red ops."""

import pytest
import torch

import fastdiff
from benchmarks.campaign import ceilings, models, norms, record, step
from benchmarks.campaign.task import Task
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS


def rows_of(work, *args, **task):
    rows = []
    with torch.no_grad():
        work(*args, Task(dry=True, compiles=False, emit=rows.append, **task))
    for row in rows:
        record.check_row(row)  # which says that only what was measured has times
    return {row["id"]: row for row in rows}


def statuses(rows):
    return {name: row["status"] for name, row in rows.items()}


def test_ceilings(monkeypatch):
    assert set(statuses(rows_of(ceilings.run)).values()) == {"measured", "skipped"}
    conv2d = torch.conv2d

    def shifted(x, w, **options):
        return conv2d(x, w.flip(-1) if w.dtype == torch.bfloat16 else w, **options)

    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.fill_(0.5))
    monkeypatch.setattr(torch, "conv2d", shifted)
    monkeypatch.setattr(torch, "neg", lambda x, out: out)
    found = rows_of(ceilings.run)
    assert statuses(found) == {
        "copy 0.1 MB": "failed",
        "matrix tiny": "failed",
        "convolution tiny": "failed",
        "launch": "skipped",
    }
    assert "neg: no copy" in found["copy 0.1 MB"]["why"]
    assert "convolution is wrong" in found["convolution tiny"]["why"]


@pytest.mark.parametrize("who", ["ours", "native"])
def test_sets_of_group_norms(monkeypatch, who):
    """A kernel of ours that is wrong; a peer that is wrong where all is contiguous."""
    one = getattr(norms, who)

    def wrong(x, *args):
        bad = x.dtype == torch.bfloat16 and (who == "ours" or x.is_contiguous())
        return one(x, *args) * (1.2 if bad else 1)

    monkeypatch.setattr(norms, who, wrong)
    found = rows_of(norms.run)
    assert set(statuses(found).values()) == {"failed"}
    words = "fastdiff at" if who == "ours" else "eager, contiguous at"
    assert words in found["sd15 own"]["why"]


GRAPHS = [
    f"graph {shape} {dtype}, noise {noise}"
    for shape in ("2x4x64x64", "2x4x128x128")
    for dtype in ("float32", "bfloat16")
    for noise in ("given", "drawn")
]


def test_the_step(monkeypatch):
    right = step.affine_step_out

    def wrong(x, *args, **options):
        right(x, *args, **options)
        options["x_next"].mul_(1.01)

    monkeypatch.setattr(step, "affine_step_out", wrong)
    found = statuses(rows_of(step.run))
    assert {n: s for n, s in found.items() if n.startswith("graph")} == dict.fromkeys(
        GRAPHS, "failed"
    )


def small_steps(monkeypatch, **task):
    """What a device is asked for, on the CPU: full rows, small and quick."""
    monkeypatch.setattr(step, "SHAPES", dict.fromkeys(step.SHAPES, step.TINY))
    monkeypatch.setattr(step, "compare", lambda task, timers: {n: {} for n in timers})
    monkeypatch.setattr(step, "scheduler_step", lambda *args: {"times": {}})
    rows = []
    with torch.no_grad():
        step.run(Task(emit=rows.append, **task))
    return {row["id"]: row for row in rows if row["id"].startswith("graph")}


def test_the_step_has_its_formula_as_a_peer_eager_and_compiled(monkeypatch):
    """With noise that is given and noise that is drawn."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append((f, options)) or f)
    found = small_steps(monkeypatch)
    assert list(found) == GRAPHS
    plain = {"fullgraph": True, "dynamic": False}
    for name, row in found.items():
        given, options = name.endswith("given"), [asked.pop(0)]
        peers = {"eager formula", COMPILED}
        if given:
            peers.add(step.MOST)
            options.append(asked.pop(0))
        assert peers == {who for who in row["times"] if not who.startswith(OURS)}, name
        assert options[0] == (step.formula if given else step.drawing, plain)
        assert [o["mode"] for _, o in options[1:]] == ["max-autotune-no-cudagraphs"] * given
        assert "left out" not in row
    assert not asked
    left = small_steps(monkeypatch, compiles=False)
    assert {row["left out"] for row in left.values()} == {COMPILED}
    assert not asked


@pytest.mark.parametrize("part", [0, 1])
def test_a_peer_of_the_step_that_is_wrong_has_no_number(monkeypatch, part):
    def wrong(f, **options):
        return lambda *args: tuple(t * (1 + (i == part) / 20) for i, t in enumerate(f(*args)))

    monkeypatch.setattr(torch, "compile", wrong)
    found = small_steps(monkeypatch)
    assert statuses(found) == dict.fromkeys(GRAPHS, "failed")
    assert all(COMPILED in row["why"] for row in found.values())


def test_a_dry_run_compiles_one_step(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append(f) or f)
    rows = []
    with torch.no_grad():
        step.run(Task(dry=True, emit=rows.append))
    assert asked == [step.formula]
    assert {row["status"] for row in rows} == {"measured"}
    assert [COMPILED in row["times"] for row in rows] == [True] + [False] * 11


@pytest.mark.parametrize("name", ["sd15", "vae"])
def test_whole_models(monkeypatch, name):
    right, accelerate, restore = models.call, fastdiff.accelerate, fastdiff.restore
    swapped = []
    monkeypatch.setattr(fastdiff, "accelerate", lambda n: swapped.append(1) or accelerate(n))
    monkeypatch.setattr(fastdiff, "restore", lambda n: swapped.clear() or restore(n))
    monkeypatch.setattr(models, "call", lambda *args: right(*args) * (1.001 if swapped else 1))
    found = {row["case"]["contestant"]: row for row in rows_of(models.run, name).values()}
    assert found[OURS]["status"] == "failed"
    assert "wrong by" in found[OURS]["why"]
    assert not {"times", "cold_start_s", "peak_bytes"} & set(found[OURS])
    assert found[models.EAGER]["status"] == "measured"


def test_what_is_red_on_the_device_is_timed_nowhere():
    """The eager peers of a network still are."""
    found = rows_of(norms.run, context={"red": {"group_norm": "3 of 9 fail"}})
    assert statuses(found) == {"group_norm": "skipped"}
    for op in ("affine_step", "philox_normal"):
        found = rows_of(step.run, context={"red": {op: "3 of 9 fail"}})
        assert statuses(found) == {op: "skipped"}
        assert "check on this device is red: 3 of 9 fail" in found[op]["why"]
    found = rows_of(models.run, "vae", context={"red": {"geglu": "3 of 9 fail"}})
    by_name = {row["case"]["contestant"]: row for row in found.values()}
    assert by_name[OURS]["status"] == "skipped"
    assert "geglu: 3 of 9 fail" in by_name[OURS]["why"]
    assert by_name[models.EAGER]["status"] == "measured"
