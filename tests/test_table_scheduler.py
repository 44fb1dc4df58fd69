"""TableScheduler: a plan's JSON with no solver named, in the loop and as a drop-in scheduler."""

import copy
import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import TableScheduler
from fastdiff.registry import SOLVERS
from fastdiff.table import COLUMNS, HEAD, KE, KX, width
from tests.fake_device import FakeDevice
from tests.loop import run
from tests.mixture import Mixture
from tests.schedulers.pipelines import inputs, pipeline

DATA = Mixture()
STEPS = 6


def learned(steps=STEPS):
    """A table as a program that learns coefficients writes it, with every derivative before.

    x / alpha is moved by x' = x + sum_j w_ij n_j, and w integrates the polynomial in sigma through
    all n_j so far: no solver of the registry has that order.  NumPy alone, no code of fastdiff.
    """
    sigmas = np.append(np.geomspace(12.0, 0.4, steps), 0.2)
    depth, scale = steps - 1, 1 / np.hypot(1.0, sigmas)
    rows = np.zeros((steps, 1, 7 + 2 * (4 + depth) + 2))
    for i in range(steps):
        row = rows[i, 0]
        row[:7] = 1, 1, -sigmas[i], 0, -np.inf, np.inf, 1
        weights = np.zeros(steps)
        for j in range(i + 1):
            others = [sigmas[q] for q in range(i + 1) if q != j]
            basis = np.poly1d(others, r=True) / np.prod([sigmas[j] - o for o in others])
            integral = basis.integ()
            weights[j] = integral(sigmas[i + 1]) - integral(sigmas[i])
        x_next, kept = row[7 : 11 + depth], row[11 + depth : 15 + 2 * depth]
        x_next[0], x_next[2], x_next[4:] = 1, weights[i], 0
        x_next[4 : 4 + i] = weights[:i]  # slot j holds what row j kept
        kept[2] = 1
        row[-2:] = scale[i + 1], i if i < depth else -1
    times = np.interp(np.log(sigmas[:-1]), [-4.0, 3.0], [0.0, 999.0])
    return {
        "schema": 1,
        "solver": None,
        "trained_on": "nothing",
        "rows": [[[v if np.isfinite(v) else str(v) for v in row] for row in r] for r in
                 rows.tolist()],
        "timesteps": times.tolist(),
        "alpha": [1.0] * (steps + 1),
        "sigma": sigmas.tolist(),
        "draw": [False] * steps,
        "depths": [depth],
        "noise_scale": float(np.hypot(1.0, sigmas[0])),
        "c_in": float(scale[0]),
        "guided": False,
    }  # fmt: skip


def start(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=generator, dtype=dtype)


def wave(x, t):
    """A network that depends on the time."""
    return torch.sin(2 * x + t.to(x.dtype) / 1000)


def stepped(scheduler, noise, network, generator=None, dtype=None):
    """The loop of a pipeline."""
    scheduler.set_timesteps(scheduler.plan.steps)
    x = noise * scheduler.init_noise_sigma
    path = []
    for t in scheduler.timesteps:
        entry = scheduler.scale_model_input(x, t)
        out = network(entry if dtype is None else entry.to(dtype), t)
        x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
        path.append(x)
    return path


def test_the_written_table_follows_the_exact_solution():
    """It loads, and its order is higher than that of any solver here: it means what it says."""
    plan = fastdiff.Plan.from_json(json.dumps(learned()))
    x = np.linspace(-2.0, 2.0, 15) * plan.noise_scale
    got = run(plan, DATA.network(plan, "epsilon"), x)[-1]
    levels = [np.array([1.0, s]) / np.hypot(1.0, s) for s in plan.sigma[[0, -1]]]
    want = DATA.flow(x * levels[0][0], *levels) / levels[1][0]
    euler = fastdiff.plan("euler", steps=STEPS, spacing=plan.sigma)
    other = run(euler, DATA.network(euler, "epsilon"), x)[-1]
    error = np.abs(got - want).max()
    assert error < np.abs(other - want).max()


def test_the_loop_runs_it():
    plan = fastdiff.Plan.from_json(json.dumps(learned()))
    noise = start(torch.float64)
    got = fastdiff.sample(DATA.network(plan, "epsilon"), noise, plan)
    want = run(plan, DATA.network(plan, "epsilon"), noise.numpy() * plan.noise_scale)[-1]
    # six rows of at most seven products each, on numbers below 50
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [None, *SOLVERS])
def test_the_scheduler_is_the_loop_bit_by_bit(name, tmp_path):
    """Every plan without guidance is such a table: any depth, noise, c_in."""
    path = tmp_path / "table.json"
    if name is None:
        path.write_text(json.dumps(learned()))
    else:
        fastdiff.plan(name, steps=7).save(path)
    scheduler = TableScheduler(path)
    plan = fastdiff.Plan.load(path)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    want = []
    fastdiff.sample(
        wave, start(), plan, generator=seeds[0], callback=lambda i, t, x: want.append(x)
    )
    got = stepped(scheduler, start(), lambda x, t: wave(x, t.float()), generator=seeds[1])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    again = stepped(
        scheduler, start(), lambda x, t: wave(x, t.float()),
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.equal(again[-1], got[-1])  # a second run begins anew
    report = fastdiff.report(scheduler)
    assert next(iter(report)).calls["fused"] == 2 * plan.steps


@pytest.mark.parametrize(
    ("sample", "output", "prev", "wide"),
    [
        (torch.float32, torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes(sample, output, prev, wide):
    scheduler = TableScheduler(learned())
    scheduler.set_timesteps()
    x = start(sample)
    for t in scheduler.timesteps[:3]:
        assert scheduler.scale_model_input(x, t).dtype == x.dtype
        step = scheduler.step(torch.ones_like(x, dtype=output), t, x)
        assert (step.prev_sample.dtype, step.pred_original_sample.dtype) == (prev, wide)
        x = step.prev_sample.to(sample)
    assert {kept.dtype for kept in scheduler._ring} == {wide}


def test_timesteps_are_whole_numbers_where_the_table_has_them():
    whole = fastdiff.plan("dpmpp_2m", steps=5, spacing="trailing")
    assert TableScheduler(whole).timesteps.dtype == torch.int64
    assert TableScheduler(whole).timesteps.tolist() == whole.timesteps.tolist()
    assert TableScheduler(learned()).timesteps.dtype == torch.float32


# saving


def test_the_config_is_the_table(tmp_path):
    scheduler = TableScheduler(learned())
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["_class_name"] == "TableScheduler"
    assert config["table"]["trained_on"] == "nothing"
    assert config["table"]["solver"] is None
    for twin in (
        TableScheduler.from_pretrained(tmp_path),
        TableScheduler.from_config(scheduler.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        assert twin.plan.to_json() == scheduler.plan.to_json()
        ends = [stepped(s, start(), lambda x, t: wave(x, t))[-1] for s in (twin, scheduler)]
        assert torch.equal(*ends)


def test_a_pipeline_with_it_runs_and_loads_in_a_fresh_interpreter(tmp_path):
    table = fastdiff.plan("dpmpp_2m", steps=4, spacing="trailing")
    pipe = pipeline(TableScheduler(table))
    want = pipe(**inputs("txt2img", steps=4)).images
    ours = fastdiff.sampler("dpmpp_2m", spacing="trailing", final_sigmas_type="zero")
    other = pipeline(ours)(**inputs("txt2img", steps=4)).images
    # the same numbers by two ways: float32 sigmas there, float64 here
    np.testing.assert_allclose(np.array(want), np.array(other), rtol=0, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fastdiff", "TableScheduler"]
    program = (
        "import sys, fastdiff\nfrom diffusers import DiffusionPipeline\n"
        "parts = ('text_encoder', 'tokenizer', 'safety_checker', 'feature_extractor')\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **dict.fromkeys(parts))\n"
        "assert type(pipe.scheduler) is fastdiff.TableScheduler\n"
        "print(pipe.scheduler.plan.about['solver'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "dpmpp_2m", done.stderr[-2000:]


# image to image


def test_a_pipeline_from_image_to_image():
    table = fastdiff.plan("euler", steps=5, spacing="trailing")
    ours = fastdiff.sampler("euler", spacing="trailing")
    made = [
        pipeline(scheduler, "img2img")(**inputs("img2img", steps=5)).images
        for scheduler in (TableScheduler(table), ours)
    ]
    np.testing.assert_allclose(*map(np.array, made), rtol=0, atol=1e-4)


def test_a_table_without_history_begins_anywhere():
    plan = fastdiff.plan("euler", steps=8)
    scheduler = TableScheduler(plan)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    x0, noise = start(seed=1), start()
    x = scheduler.add_noise(x0, noise, scheduler.timesteps[3:4].repeat(2))
    want = float(plan.alpha[3]) * x0 + float(plan.sigma[3]) * noise
    assert torch.equal(x, want)
    later = fastdiff.plan("euler", steps=8, begin=3)
    end = fastdiff.sample(wave, noise, later, start=x0)
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(wave(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    assert scheduler.step_index == 8
    assert torch.equal(x, end)


def test_without_a_begin_the_level_is_that_of_the_timestep():
    scheduler = TableScheduler(learned())
    scheduler.set_timesteps()
    x0, noise = start(seed=1), start()
    x = scheduler.add_noise(x0, noise, scheduler.timesteps[[4, 1]])
    sigmas = torch.tensor(scheduler.plan.sigma[[4, 1]], dtype=torch.float32).reshape(2, 1, 1, 1)
    assert torch.equal(x, x0 + sigmas * noise)


# errors


def put(value, *path):
    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


@pytest.mark.parametrize("form", ["dict", "file"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("x", "rows", 1, 0, 2), "field 'rows' of a plan must hold numbers; got 'x'"),
        (put(2, "schema"), "schema of a plan must be 1; got 2"),
        (lambda b: b.pop("depths"), "a plan must have the field 'depths'; got"),
        (put([4], "depths"), "field 'rows' of a plan must have 25 columns for depths (4,); got 27"),
        (put([True], "timesteps"), "field 'timesteps' of a plan must hold numbers; got True"),
        (put([1.0], "sigma"), "sigma must have shape (7,) for 6 timesteps; got (1,)"),
        (put(0.5, "rows", 1, 0, HEAD + 3), "row 1 of the table weighs the noise z, but draw[1]"),
        (put(0.5, "rows", 0, 0, HEAD + COLUMNS), "row 0 of the table reads slot 0, which no row"),
        (put(True, "guided"), "guided of the table must be false: a pipeline guides by itself"),
        (
            lambda b: b.update(rows=[[row[0], row[0]] for row in b["rows"]]),
            "rows of the table must have shape (N, 1, K), the same for every sample; got (6, 2,",
        ),
    ],
)
def test_a_malformed_table_names_the_field(change, message, form, tmp_path):
    body = learned()
    change(body)
    if form == "file":
        (tmp_path / "table.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        TableScheduler(body if form == "dict" else str(tmp_path / "table.json"))


@pytest.mark.parametrize("table", [None, 3, [1.0], np.ones(2)])
def test_what_a_table_may_be(table):
    with pytest.raises(ValueError, match=r"^table must be a fastdiff\.Plan, the path of a file"):
        TableScheduler(table)


def test_a_config_of_another_class_has_no_table():
    with pytest.raises(ValueError, match=r"^table must be a fastdiff\.Plan.*; got NoneType"):
        TableScheduler.from_config(fastdiff.sampler("ddim").config)


def test_a_run_that_the_table_does_not_have_is_refused():
    scheduler = TableScheduler(learned())
    with pytest.raises(ValueError, match=r"^num_inference_steps must be 6, the rows of the table"):
        scheduler.set_timesteps(7)
    scheduler.set_timesteps(6)
    for wrong in (6, -1, 1.5):
        with pytest.raises(ValueError, match=r"^begin_index must be in 0 \.\. 5; got"):
            scheduler.set_begin_index(wrong)
    with pytest.raises(ValueError, match=r"^begin_index must be 0 for this table, .*; got 2"):
        scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match=r"^begin_index must be 0 for this table, .*; got 3"):
        scheduler.step(start(), scheduler.timesteps[3], start())  # the same by a timestep
    scheduler.set_timesteps(6)
    with pytest.raises(ValueError, match=r"^timestep must be one of scheduler\.timesteps; got 3"):
        scheduler.step(start(), 3, start())
    with pytest.raises(ValueError, match=r"^timesteps must be of scheduler\.timesteps, .*; got"):
        scheduler.add_noise(start(), start(), torch.tensor([3.0]))
    with pytest.raises(TypeError, match=r"^original_samples must be a tensor .*; got NoneType"):
        scheduler.add_noise(None, start(), scheduler.timesteps[:1])
    stepped(scheduler, start(), wave)
    with pytest.raises(IndexError, match=r"^step_index must be below 6"):
        scheduler.step(start(), scheduler.timesteps[-1], start())
    with pytest.raises(TypeError, match=r"^model_output must be a tensor"):
        TableScheduler(learned()).step(None, 3, start())


def test_no_wait_and_one_upload_a_run(monkeypatch):
    """As the other classes: counted on a device that is not there."""
    import fastdiff.ops.affine_step  # noqa: F401

    op = torch.ops.fastdiff.affine_step.default
    module = sys.modules["fastdiff.ops.affine_step"]
    monkeypatch.setattr(module, "affine_step_ref", lambda *args: op(*args))
    scheduler = TableScheduler(learned())
    with FakeDevice() as device:
        x = torch.randn(1, 4, 8, 8, device=device.name)
        scheduler.set_timesteps(6, device=device.name)
        device.clear()
        for t in scheduler.timesteps:
            out = scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x, return_dict=False)[0]
        assert device.syncs == []
        assert len(device.uploads) == 1
        assert len(device.kernels) == 2 * 6  # the network's input, and the step


def test_the_written_table_is_as_wide_as_it_says():
    body = learned()
    assert len(body["rows"][0][0]) == width(1, STEPS - 1)
    assert body["rows"][2][0][KX] == 1
    assert body["rows"][2][0][KE] == -body["sigma"][2]
