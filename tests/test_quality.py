"""`fastdiff bench quality`: what it measures on a tiny model, its record and what is made of it."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

import fastdiff
from fastdiff.cli import UserError
from fastdiff.cli.quality import quality
from fastdiff.quality import runs
from fastdiff.quality.page import page, sentence
from fastdiff.quality.picture import svg
from fastdiff.quality.ranking import best, rows
from fastdiff.quality.record import Task, as_csv, load
from fastdiff.quality.samplers import LEFT_OUT, STEPS, samplers, scheduler_of
from fastdiff.registry import SOLVERS
from fastdiff.shapes.evaluate import wilson
from fastdiff.shapes.fingerprint import part_hash, weights_hash
from fastdiff.shapes.networks import NOISE_SCHEDULE
from fastdiff.tune.subject import Start, Subject

ROOT = Path(__file__).parents[1]
CONFIG = {**NOISE_SCHEDULE, "_class_name": "DPMSolverMultistepScheduler"}


@pytest.fixture(scope="module", autouse=True)
def judged():
    """The oracle reads 64x64: of the tiny model's pictures it finds the brighter half right."""

    def judge(picture, prompt):
        return SimpleNamespace(right=bool(picture.mean() > 0.5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "judge", judge)
        yield


def test_every_sampler_takes_part_or_is_left_out_for_a_reason():
    assert {*samplers(), *LEFT_OUT} == set(SOLVERS)
    assert not set(samplers()) & set(LEFT_OUT)
    assert len(samplers()) > 30


@pytest.mark.parametrize("name", samplers())
def test_a_sampler_is_its_drop_in_class_on_the_models_schedule(name):
    scheduler = scheduler_of(name, CONFIG)
    assert type(scheduler).__name__ == SOLVERS[name].scheduler[0]
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.get("timestep_spacing", "trailing") == "trailing"
    for steps in (1, 2, 4):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999
        x = scheduler.init_noise_sigma * torch.ones(1, 4, 2, 2)
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t) / 2, t, x).prev_sample
        assert x.shape == (1, 4, 2, 2)


START = Start(("a red circle", "a blue cross", "a black square"), (7, 8, 9))


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc_2"])
def test_what_is_measured_is_the_run_of_the_plan(name, subject):
    """Drop-in and plan have the same rows and, with 4 steps, the same times: what is left is the
    rounding of float32, 6e-8, through four calls of the network."""
    end = subject.run(subject.plan(name, 4, "trailing"), START).double()
    found = runs.measure(subject, scheduler_of(name, CONFIG), 4, START, end[:2])
    assert (found.evaluations, found.count, found.compared) == (4, 3, 2)
    assert found.squares < 1e-10 * end[:2].square().sum().item()
    moved = runs.measure(subject, scheduler_of(name, CONFIG), 4, START, end[:2] + 1)
    assert moved.squares == pytest.approx(end[:2].numel(), rel=1e-2)
    assert found.cpu_seconds > 0
    assert 0 <= found.right <= 3


def test_noise_of_a_picture_does_not_depend_on_its_batch(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(Subject, "pictures", lambda self, x: seen.append(x) or torch.zeros(len(x)))
    for start in (START, *START.parts(1)):
        result = runs.measure(subject, scheduler_of("euler_a", CONFIG), 3, start, None)
        assert (result.squares, result.compared, result.right) == (None, 0, 0)
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]), rtol=1e-4, atol=1e-4)
    assert seen[0].std() > 0


def test_what_is_not_finite_is_not_judged(subject, monkeypatch):
    bad = replace(subject)
    monkeypatch.setattr(Subject, "network", lambda self, prompts: lambda x, t: x * float("nan"))
    result = runs.measure(bad, scheduler_of("ddim", CONFIG), 2, START, None)
    assert (result.right, result.squares, result.count) == (None, None, 3)


def test_the_reference_is_kept_and_is_float64(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "AT_ONCE", 2)
    path, told = tmp_path / "r.pt", []
    first = runs.reference_of(subject, START.first(2), path, 6, tell=told.append)
    both = runs.reference_of(subject, START, path, 6, tell=told.append)
    assert told == ["reference: 1 of 1 parts", "reference: 2 of 2 parts"]
    assert torch.equal(runs.reference_of(subject, START.first(1), path, 6), both[:1])
    assert both.dtype == torch.float64
    assert torch.equal(both[:2], first)
    want = subject.run(subject.reference(6), START)
    torch.testing.assert_close(both.float(), want, rtol=1e-4, atol=1e-4)
    assert not torch.equal(both.float(), want)  # which is of float32


def test_a_reference_of_something_else_is_made_anew(subject, tmp_path):
    """What `--fresh` finds, and a larger run where a smaller one was."""
    path, other = tmp_path / "r.pt", replace(subject, guidance=3.0)
    want = runs.reference_of(other, START, tmp_path / "new.pt", 6, origin={"guidance": 3})
    runs.reference_of(subject, START, path, 6, origin={"guidance": 2})
    one = runs.reference_of(other, START.first(1), path, 6, origin={"guidance": 3})
    assert torch.equal(one, runs.reference_of(other, START.first(1), tmp_path / "one.pt", 6))
    assert torch.equal(runs.reference_of(other, START, path, 6, origin={"guidance": 3}), want)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"r\.pt must be what .* keeps of its reference"):
        runs.reference_of(subject, START, path, 6)
    torch.save([1], path)  # read, but nothing of ours
    with pytest.raises(ValueError, match=r"r\.pt must be what .* keeps of its reference"):
        runs.reference_of(subject, START, path, 6)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Two pictures, then three: the second call adds what is not there."""
    out = tmp_path_factory.mktemp("out") / "q"
    options = {"steps": "1,2", "sampler": ["ddim", "DPM++ 2M", "heun"], "batch": 2, "compared": 2}
    options |= {"weights": tiny, "reference_calls": 8, "student": tiny / "unet"}
    quality(out, pictures=2, **options)
    first = load(out / "quality.json")
    quality(out, pictures=3, **options)
    return out, options, first


def test_a_record_grows(run):
    out, options, first = run
    second = load(out / "quality.json")
    assert [len(r["parts"]) for r in first["rows"]] == [1] * 8  # student at both steps
    assert [len(r["parts"]) for r in second["rows"]] == [2] * 8
    assert [r["parts"][0] for r in second["rows"]] == [r["parts"][0] for r in first["rows"]]
    quality(out, pictures=3, **options)
    assert load(out / "quality.json") == second
    assert second["student"] == part_hash(options["student"])
    with pytest.raises(UserError, match=r"measured with batch 2.*now it is batch 3.*--fresh"):
        quality(out, pictures=3, **{**options, "batch": 3})


def test_a_batch_of_fewer_pictures_is_measured_again(run, tmp_path):
    out, options, _ = run
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    quality(tmp_path, pictures=4, **{**options, "steps": "2", "sampler": ["ddim"]})
    before, after = (
        [r for r in load(folder / "quality.json")["rows"] if r["sampler"] == "ddim"]
        for folder in (out, tmp_path)
    )
    assert [[p["count"] for p in r["parts"]] for r in after] == [[2, 1], [2, 2]]
    assert after[0] == before[0]
    assert after[1]["parts"][0] == before[1]["parts"][0]


def test_another_student_is_refused(run, tmp_path):
    out, options, _ = run
    weights = tmp_path / "unet"
    shutil.copytree(options["student"], weights)
    (weights / "more.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"a student of weights .*; now they are .*--fresh"):
        quality(out, pictures=3, **{**options, "student": weights})
    (weights / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"--student must be the folder of a U-Net; got .*cannot"):
        quality(tmp_path / "out", pictures=3, **{**options, "student": weights})


def test_rows_are_sums_over_the_parts(run):
    record = load(run[0] / "quality.json")
    found = rows(record)
    assert {(r.model, r.sampler, r.steps, r.evaluations) for r in found} == {
        *(("teacher", name, n, n) for name in ("ddim", "dpmpp_2m") for n in (1, 2)),
        *(("teacher", "heun", n, 2 * n - 1) for n in (1, 2)),
        *(("student", "lcm", n, n) for n in (1, 2)),
    }
    one = json.loads(json.dumps(record["rows"][0]))
    one["parts"][0] |= {"right": 1, "squares": 4 * 2048.0, "cpu_seconds": 0.1}
    one["parts"][1] |= {"right": 1, "cpu_seconds": 0.2}
    (row,) = rows({"rows": [one]})
    assert (row.pictures, row.right, row.compared, row.rms) == (3, 0.6667, 2, 2.0)
    assert (row.low, row.high) == pytest.approx(wilson(2, 3), abs=1e-4)
    assert row.cpu_ms == 100.0
    one["parts"][1]["right"] = None
    assert rows({"rows": [one]})[0].right is None
    a, b = (row._replace(sampler=n, evaluations=4, rms=d) for n, d in (("a", 0.2), ("b", 0.1)))
    assert best([a, b], 4) is b
    assert best([a, b._replace(evaluations=5)], 4) is a
    assert best([a], 3) is None


def test_files_are_made_of_the_record(run):
    record = load(run[0] / "quality.json")
    text = (run[0] / "quality.md").read_text()
    assert text == page(record)
    assert "Every number is of 3 pictures." in text
    assert "A step is a call, but of `heun`: see the last table." in text
    assert "## Teacher and student" in text
    assert f"weights `{record['student'][:16]}`" in text
    table = list(csv.DictReader(io.StringIO((run[0] / "quality.csv").read_text())))
    assert len(table) == 8
    assert table[0]["sampler"] == "ddim"
    assert (run[0] / "quality.csv").read_text() == as_csv(record)
    drawn = (run[0] / "quality.svg").read_text()
    assert drawn == svg(record)
    assert ">student, lcm</text>" in drawn
    lines = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(lines)) == 4 + 3  # the student has no distance


def test_a_distance_beyond_the_axis_is_said_to_be_there(run):
    record = load(run[0] / "quality.json")
    assert "&gt;" not in svg(record)
    record["rows"][0]["parts"][0]["squares"] = 2 * 1024 * 5.0**2
    assert rows(record)[0].rms == 5
    # beyond 3, the next quarter of a decade
    assert ">&gt; 3.2</text>" in svg(record)


def test_what_stands_out_is_what_the_record_holds(run):
    def part(right):
        one = load(run[0] / "quality.json")["rows"][0]["parts"][0]
        return [one | {"right": right, "count": 32}]

    def told(shares):
        name = "dpmsolver_2m_sde"
        found = [
            {"model": "teacher", "sampler": name, "class": "", "steps": n, "parts": part(right)}
            for n, right in shares.items()
        ]
        return page(load(run[0] / "quality.json") | {"rows": found})

    said = "is right in 97 % at 10 steps but 0 % at 15, 3 % at 30: from 15 steps on"
    assert said in told({10: 31, 15: 0, 30: 1, 50: 31})
    for shares in ({2: 0, 10: 31}, {10: 31, 15: 30}, {15: 0}):
        assert "What stands out" not in told(shares)


def test_the_committed_record_is_of_the_model_that_ships():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "docs").glob("quality.json"):
        record = load(path)
        assert sentence(record) in " ".join(readme.split())
        card = (ROOT / "fastdiff/shapes/weights/base/README.md").read_text()
        assert record["conditions"]["weights"] in card
        few_step = ROOT / "fastdiff/shapes/weights/few_step"
        assert record["student"] == part_hash(few_step / "unet") == weights_hash(few_step)
        assert {r.sampler for r in rows(record)} <= {*samplers(), "lcm"}


@pytest.mark.parametrize("how", ["no record", "a row without parts", "cut"])
def test_a_file_that_is_no_record_is_refused(how, tmp_path, tiny, run):
    record = load(run[0] / "quality.json")
    record["rows"][1].pop("parts")
    text = {"no record": "[]", "a row without parts": json.dumps(record), "cut": '{"schema": 1'}[
        how
    ]
    (tmp_path / "quality.json").write_text(text)
    with pytest.raises(UserError, match=r"quality\.json must be a record of .*--fresh"):
        quality(tmp_path, weights=tiny, compared=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "0"}, r"--steps must be numbers of steps in 1 \.\. 1000, .*got '0'"),
        ({"pictures": 0}, r"--pictures must be in 1 \.\. 100000; got 0"),
        ({"compared": 17}, r"--compared must be in 0 \.\. 16, the --batch; got 17"),
        ({"sampler": ["lcm"]}, "--sampler must be one that takes part; lcm its network returns"),
        ({"sampler": ["nope"]}, "--sampler must be of the registry: solver must be one of"),
        ({"student": Path("nowhere")}, "--student must be the folder of a U-Net"),
    ],
)
def test_bad_options_of_quality_are_refused_by_name(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        quality(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_is_at_every_number_of_steps_on_prompts_of_no_fit():
    task = Task(pictures=5)
    assert task.steps == STEPS == (1, 2, 4, 6, 8, 10, 15, 20, 30, 50)
    assert task.calls == 1000
    assert len(set(task.start().prompts)) == 5
    assert fastdiff.plan("dpmpp_2m", steps=1000, spacing="trailing").timesteps[-1] == 0
