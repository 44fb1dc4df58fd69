"""Saving, loading, accelerating, restoring; and what fresh interpreters make of what was saved."""

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap

import diffusers
import pytest
import torch

import fastdiff

from . import flow_pipelines
from .classes import DDIM, DDPM, DPM, NAMES, SD, UNIPC, base, both, calls, counted, ours, stock
from .loops import compare, loop, same
from .pipelines import networks, pipeline

SCM = "SCMScheduler"  # whose run of n steps has n + 1 timesteps
SHIFTED = {"shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear"}
LOAD = """
from diffusers import DiffusionPipeline, StableDiffusionPipeline
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

def load(folder, **more):
    nothing = {"text_encoder": None, "tokenizer": None} | more
    return DiffusionPipeline.from_pretrained(folder, **nothing)
"""


def fresh(code, *arguments):
    """Run code in an interpreter of its own; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pipelines on disk: with our classes ("ours") and accelerated ones ("stock"); every class."""
    top, parts = tmp_path_factory.mktemp("pipelines"), networks()
    for name in (*NAMES, SCM):
        pipeline(ours(name)(**base(name)), parts=parts).save_pretrained(top / "ours" / name)
        pipe = fastdiff.accelerate(pipeline(stock(name)(**base(name)), parts=parts))
        pipe.save_pretrained(top / "stock" / name)
        s = ours(name)(**base(name))
        s.numerics = "exact"
        s.set_timesteps(2 if name == SCM else 4)
        (top / f"{name}.pickle").write_bytes(pickle.dumps(s))
    flow = diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTED)
    s = fastdiff.sampler("dpmpp_3m", **flow.config)
    pipe = flow_pipelines.pipeline("sd3", s, flow_pipelines.networks("sd3"))
    pipe.save_pretrained(top / "ours" / "flow")
    return top


def written(folder):
    index = json.loads((folder / "model_index.json").read_text())
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return index["scheduler"], config


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written(saved, name):
    index, config = written(saved / "ours" / name)
    assert index == ["fastdiff", name]  # no file of ours is named
    assert config["_class_name"] == name
    assert "numerics" not in config
    index, accelerated = written(saved / "stock" / name)
    assert index == ["diffusers", name]
    assert accelerated == config
    plain = stock(name)(**base(name))
    assert set(config) == set(json.loads(plain.to_json_string()))


def test_a_fresh_interpreter_loads_ours_after_import_fastdiff_alone(saved):
    out = fresh(
        """
        import sys
        import fastdiff
        assert not {"torch", "numpy", "diffusers"} & set(sys.modules), "import must be light"
        import diffusers
        """
        + textwrap.indent(LOAD, " " * 8)
        + """
        import pickle
        import torch
        from pathlib import Path
        top = Path(sys.argv[1])
        for name, calls in (given.split("=") for given in sys.argv[2:]):
            s = load(top / "ours" / name).scheduler
            assert type(s) is getattr(fastdiff, name), type(s)
            if hasattr(s, "betas"):
                assert s.config.beta_start == 0.00085 and float(s.betas[0]) < 0.0009
            theirs = getattr(diffusers, name)
            assert type(theirs.from_pretrained(top / "ours" / name / "scheduler")) is theirs
            s = pickle.loads((top / f"{name}.pickle").read_bytes())
            assert type(s) is getattr(fastdiff, name) and s.numerics == "exact"
            assert len(s.timesteps) == int(calls)

        nothing = {part: None for i in (2, 3) for part in (f"text_encoder_{i}", f"tokenizer_{i}")}
        s = load(top / "ours" / "flow", **nothing).scheduler
        assert type(s) is fastdiff.DPMSolverMultistepScheduler
        c = s.config
        assert (c.use_flow_sigmas, c.prediction_type, c.flow_shift) == (True, "flow_prediction", 3)
        assert (c.solver_order, c.use_dynamic_shifting, c.time_shift_type) == (3, True, "linear")
        assert (c.shift, c.base_shift, c.max_shift) == (3, 0.5, 1.15)  # pipelines ask for these
        s.set_timesteps(sigmas=[1.0, 0.5], mu=2.0)
        assert s.sigmas.tolist() == [1, torch.tensor(2 / 3).item(), 0]
        print("loaded")
        """,
        saved,
        *(f"{name}={calls(name, 4)}" for name in NAMES),
        f"{SCM}=3",
    )
    assert out.strip().endswith("loaded")


def test_an_interpreter_without_fastdiff_loads_accelerated_pipelines(saved):
    out = fresh(
        """
        import sys
        sys.modules["fastdiff"] = None  # importing it raises
        import diffusers
        """
        + textwrap.indent(LOAD, " " * 8)
        + """
        import torch
        from pathlib import Path
        for name in sys.argv[2:]:
            pipe = load(Path(sys.argv[1]) / "stock" / name)
            pipe.set_progress_bar_config(disable=True)
            assert type(pipe.scheduler) is getattr(diffusers, name), type(pipe.scheduler)
            if not hasattr(pipe.scheduler, "betas"):
                continue  # a flow is none that Stable Diffusion runs on
            e = torch.ones(1, 4, 8)
            pipe(prompt_embeds=e, negative_prompt_embeds=-e, num_inference_steps=2, height=32,
                 width=32, output_type="latent")
        print("loaded")
        """,
        saved,
        *NAMES,
    )
    assert out.strip().endswith("loaded")


@pytest.mark.parametrize("name", NAMES)
class TestAccelerate:
    def test_on_a_scheduler(self, name):
        theirs = stock(name)(**base(name))
        expected = loop(stock(name)(**base(name)))
        assert fastdiff.accelerate(theirs) is theirs
        assert isinstance(theirs, ours(name))
        assert type(theirs).__name__ == name
        assert type(theirs).__module__ == stock(name).__module__
        for a, b in zip(loop(theirs), expected, strict=True):
            same(a, b)
        assert counted(theirs).fused == calls(name, 8)

    def test_twice_is_once(self, name):
        s = fastdiff.accelerate(stock(name)(**base(name)))
        cls, state = type(s), set(s.__dict__)
        assert type(fastdiff.accelerate(s)) is cls
        assert set(s.__dict__) == state
        mine = ours(name)(**base(name))
        assert type(fastdiff.accelerate(mine)) is ours(name)  # a drop-in is what it is

    def test_restore_leaves_nothing(self, name):
        s, untouched = stock(name)(**base(name)), stock(name)(**base(name))
        fastdiff.accelerate(s)
        s.numerics = "exact"
        loop(s)
        assert fastdiff.restore(s) is s
        assert type(s) is stock(name)
        loop(untouched)
        assert set(s.__dict__) == set(untouched.__dict__)
        compare(s, untouched)

    def test_restore_of_what_was_never_accelerated(self, name):
        theirs, mine = stock(name)(**base(name)), ours(name)(**base(name))
        before = dict(theirs.__dict__)
        assert type(fastdiff.restore(theirs)) is stock(name)
        assert theirs.__dict__ == before
        assert type(fastdiff.restore(mine)) is ours(name)

    def test_in_the_middle_of_a_run(self, name):
        """Swapped there and back while it runs: state is diffusers' own, so nothing is lost."""

        def edit(i, s, x):
            if i == 3:
                fastdiff.accelerate(s)
            if i == 6:
                fastdiff.restore(s)

        results = [loop(stock(name)(**base(name)), change) for change in (edit, None)]
        for a, b in zip(*results, strict=True):
            same(a, b)

    def test_copies_stay_accelerated(self, name):
        s = fastdiff.accelerate(stock(name)(**base(name)))
        s.numerics = "exact"
        loop(s)
        for twin in (copy.deepcopy(s), copy.copy(s), pickle.loads(pickle.dumps(s))):
            assert type(twin) is type(s)
            assert twin.numerics == "exact"
            assert torch.equal(twin.timesteps, s.timesteps)
            twin.set_timesteps(3)
            assert len(s.timesteps) == calls(name, 8)
        again = type(s).from_config(s.config)
        assert isinstance(again, stock(name))

    def test_a_pipeline_and_its_other_parts(self, name):
        pipe = pipeline(stock(name)(**base(name)))
        state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
        fastdiff.accelerate(pipe)
        rows = {row.name: row for row in fastdiff.report(pipe)}
        assert {row.partition(".")[0] for row in rows} == {"scheduler", "unet", "vae"}
        assert name in rows["scheduler"].kind
        for part in ("unet", "vae"):
            assert rows[part].backend == "swapped"
        assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())
        fastdiff.restore(pipe)
        assert type(pipe.scheduler) is stock(name)


class Two(diffusers.DiffusionPipeline):
    """Nothing but two schedulers."""

    def __init__(self, first, second):
        super().__init__()
        self.register_modules(first=first, second=second)


class TestReport:
    def test_can_be_written_as_json_and_read_by_people(self):
        pipe = fastdiff.accelerate(pipeline(stock(DPM)(**SD, solver_order=3)))
        loop(pipe.scheduler)
        report = fastdiff.report(pipe)
        data = json.loads(json.dumps(report.to_dict()))
        (row,) = [r for r in data["rows"] if r["name"] == "scheduler"]
        assert set(row) == {"name", "kind", "backend", "why", "calls"}
        assert row["calls"]["fused"] == 8
        for text in (DPM, row["backend"], "unet", "ResnetBlock2D"):
            assert text in str(report)

    def test_of_a_scheduler_that_we_do_not_have(self):
        s = diffusers.RePaintScheduler()
        assert type(fastdiff.accelerate(s)) is diffusers.RePaintScheduler
        (row,) = fastdiff.report(s)
        assert "RePaintScheduler" in row.why
        assert "DDIMScheduler" in row.why  # what there is
        with pytest.raises(ValueError, match="RePaintScheduler"):
            fastdiff.accelerate(s, strict=True)

    def test_a_subclass_is_not_the_class_it_extends(self):
        """Somebody's own step would be lost."""

        class Own(diffusers.DDIMScheduler):
            def step(self, *args, **kwargs):
                raise AssertionError("not ours to replace")

        s = fastdiff.accelerate(Own())
        assert type(s) is Own

    def test_before_accelerate_says_what_to_call(self):
        (row,) = fastdiff.report(stock(DDIM)())
        assert "fastdiff.accelerate" in row.why

    def test_counts_steps_that_leave_the_kernels_by_reason(self):
        s = ours(DDIM)(**SD)
        s.set_timesteps(4)
        x = torch.randn(1, 4, 4, 4)
        s.step(x, s.timesteps[0], x)
        s.step(x.clone().requires_grad_(), s.timesteps[1], x)
        s.step(x.double(), s.timesteps[2], x.double())
        seen = counted(s)
        assert seen.fused == 1
        assert sum(seen.reference.values()) == 2
        assert len(seen.reference) == 2

    def test_counts_a_learned_variance_which_is_no_row(self):
        s = ours(DDPM)(**SD, variance_type="learned_range")
        s.set_timesteps(4)
        x = torch.randn(1, 4, 4, 4)
        s.step(torch.randn(1, 8, 4, 4), s.timesteps[0], x)
        assert counted(s).fused == 0
        assert any("variance_type" in reason for reason in counted(s).reference)

    def test_counts_a_predictor_that_is_another_scheduler(self):
        runs = []
        for cls in (ours(UNIPC), stock(UNIPC)):
            s = cls(**SD, solver_p=diffusers.DDIMScheduler(**SD))
            runs.append(loop(s))
            if cls is ours(UNIPC):
                assert counted(s).fused == 0
                assert counted(s).reference == {"reference: solver_p is another scheduler": 8}
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    @pytest.mark.parametrize("name", NAMES)
    def test_strict_raises_instead_of_leaving_the_kernels(self, name):
        s = fastdiff.accelerate(stock(name)(**base(name)), strict=True)
        s.set_timesteps(4)
        x = torch.randn(1, 4, 4, 4)
        s.scale_model_input(x, s.timesteps[0])
        x = s.step(x, s.timesteps[0], x)[0]
        with pytest.raises(RuntimeError, match="gradient"):
            s.step(x.requires_grad_(), s.timesteps[1], x)

    @pytest.mark.parametrize("made", [stock, ours], ids=["swapped", "drop-in"])
    @pytest.mark.parametrize("undo", ["accelerate", "restore"])
    @pytest.mark.parametrize("name", NAMES)
    def test_strict_is_undone(self, name, undo, made):
        s = fastdiff.accelerate(made(name)(**base(name)), strict=True)
        s.set_timesteps(4)
        x = torch.randn(1, 4, 4, 4).double()
        s.scale_model_input(x, s.timesteps[0])
        with pytest.raises(RuntimeError, match="strict=False"):
            s.step(x, s.timesteps[0], x)
        fastdiff.accelerate(s, strict=False) if undo == "accelerate" else fastdiff.restore(s)
        assert s.step(x, s.timesteps[0], x)[0].dtype == torch.float64
        assert "strict" not in s.__dict__

    def test_strict_swaps_all_or_nothing(self):
        pipe = Two(stock(DDIM)(**SD), diffusers.VQDiffusionScheduler(8))
        with pytest.raises(ValueError, match=r"second cannot be accelerated: .*VQDiffusion"):
            fastdiff.accelerate(pipe, strict=True)
        assert type(pipe.first) is stock(DDIM)
        assert "strict" not in pipe.first.__dict__
        fastdiff.accelerate(pipe)
        assert isinstance(pipe.first, ours(DDIM))

    def test_a_scheduler_that_hangs_in_two_places(self):
        pipe = Two(*[stock(DDIM)(**SD)] * 2)
        assert type(fastdiff.accelerate(pipe, strict=True).first) is type(pipe.second)
        assert isinstance(pipe.first, ours(DDIM))
        fastdiff.restore(pipe)
        assert type(pipe.first) is stock(DDIM)

    def test_of_something_else_is_an_error(self):
        for call in (fastdiff.accelerate, fastdiff.restore, fastdiff.report):
            with pytest.raises(TypeError, match="pipeline"):
                call("a string")


def test_numerics_survives_what_pipelines_do():
    mine, _ = both(DPM, **SD)
    mine.numerics = "exact"
    mine.set_timesteps(4)
    assert copy.deepcopy(mine).numerics == pickle.loads(pickle.dumps(mine)).numerics == "exact"
