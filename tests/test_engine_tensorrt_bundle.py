"""A bundle in TensorRT: its plans at export, for real with TensorRT-RTX, and which one is run."""

import contextlib
import importlib.metadata
import json
import sys
from typing import Any

import onnx
import pytest
import torch

import fastdiff
from fastdiff.cli.model import built_in, load
from fastdiff.engine import bundle, cache, here, tensorrt, tensorrt_build, tensorrt_bundle
from fastdiff.engine import manifest as manifests
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.refit import Weights
from tests import fake_tensorrt, tiny_bundle
from tests.test_engine_tensorrt import model, narrow

GPU = here.Here("11.4.0", "13.0", "580.65", "9.0", "linux", "x86_64")
HALF = {"name": "sample", "dtype": "float16", "shape": ["batch", 4, "height", "width"]}
OUT = {"name": "out_sample", "dtype": "float16", "shape": ["batch", 8, "height", "width"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))
    yield
    for entry in cache.entries():
        cache.release(entry.key)


def export(folder, target, profiles, **options):
    """A bundle of the small graph of test_engine_tensorrt, with its plans."""
    ports = {"inputs": [HALF], "outputs": [OUT]}
    graph = {"unet": {"file": "unet.onnx", "data": None, "opset": 21, **ports}}
    steps = []
    with bundle.writing(folder) as inside:
        (inside / "unet.onnx").write_bytes(model())
        where, engines = tensorrt_bundle.engines(
            target,
            inside,
            "unet",
            manifests.Graph.model_validate(graph["unet"]),
            profiles,
            lambda seconds, size: steps.append(size),
            tensorrt_build.Settings(**options),
        )
        build = {name: value for name, value in options.items() if name != "capabilities"}
        fields = tiny_bundle.fields(
            target=where,
            dtype="fp16",
            graphs=graph,
            engines=engines,
            profiles=profiles,
            build=build,
        )
        bundle.finish(inside, **fields)
    return bundle.open(folder), steps


def test_a_bundle_of_rtx_is_whole(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    found, (size,) = export(tmp_path / "out", "tensorrt-rtx", [narrow(16)])
    (engine,) = found.manifest.engines
    plan = found.plan(engine, trust_engine=True)
    assert found.manifest.files["unet.0.plan"].bytes == plan.stat().st_size == size > 100_000
    target = found.manifest.target
    assert target.version == here.look("tensorrt-rtx").version
    assert (target.compute_capability, target.driver) == ("8.0,8.6,8.9,12.0", None)
    # Who loads it without trust in its plan finds the same one in the cache.
    assert [e.bytes for e in cache.entries()] == [size]


def test_rtx_builds_the_built_in_unet(exported, tmp_path, monkeypatch):
    """With no GPU: parsed and built as it was traced, GroupNormalization whole; once."""
    pytest.importorskip("tensorrt_rtx")
    traced = exported / "unet.onnx"
    monkeypatch.setattr("fastdiff.engine.export.convert", lambda network: onnx.load(traced))
    steps: list[Any] = []
    options = {"dtype": "fp32", "batch": "1:2:3", "tokens": "16", "verify": "smallest"}

    def made(name):
        steps.clear()
        return fastdiff.export(
            load(built_in(), "cpu"),
            tmp_path / name,
            target="tensorrt-rtx",
            capabilities=("12.0",),
            samplers=(),
            tell=steps.append,
            **options,
        )

    first = made("first")
    found = first.manifest
    assert (found.target.name, found.target.compute_capability) == ("tensorrt-rtx", "12.0")
    assert found.target.version == importlib.metadata.version("tensorrt-rtx-cu13")
    assert [(e.file, e.graph, e.profile) for e in found.engines] == [("unet.0.plan", "unet", 0)]
    # As large as its weights, which it holds, and at most four times: kernels, and weights in
    # other layouts (measured: 1.5 times).
    plan, weights = (found.files[name].bytes for name in ("unet.0.plan", "unet.onnx"))
    assert weights < plan < 4 * weights
    assert [step.what for step in steps] == ["traced", "written", "checked", "built"]
    monkeypatch.setattr(tensorrt_build, "_build", None)  # a hit builds nothing
    again = made("again").manifest
    assert again.files["unet.0.plan"] == found.files["unet.0.plan"]
    options["tokens"] = "17"
    with pytest.raises(TypeError, match="NoneType"):  # a miss would: another profile
        made("other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(Incompatible, match="device must be cuda"):
        fastdiff.load_engine(first.path)


@pytest.fixture
def trt(monkeypatch):
    """TensorRT 11.4 and a GPU, as far as they are asked here; a plan answers with its profiles."""
    module = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "capability", lambda: "9.0")
    monkeypatch.setattr(tensorrt, "_device_name", lambda: "GPU")
    monkeypatch.setattr(here, "look", lambda target: GPU)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        tensorrt_bundle.Plan, "run", lambda self, inputs: {"plan": self.engine.profiles}
    )
    monkeypatch.setattr(tensorrt_bundle, "check_inputs", lambda ports, inputs, device: inputs)
    return module


SIZES = {"batch": 1, "height": 16, "width": 16}


def test_the_plan_of_the_smallest_profile_is_loaded_once(trt, tmp_path):
    wide = {axis: manifests.Range(min=1, opt=16, max=32) for axis in SIZES}
    found, steps = export(tmp_path / "out", "tensorrt", [wide, narrow(16)])
    assert (len(trt.built), len(steps)) == (2, 1)
    assert found.manifest.target.compute_capability == "9.0"
    with runner_of(found) as runner:
        (shapes,) = runner.run(SIZES)["plan"]
        assert shapes["sample"][2] == [2, 4, 16, 16]
        engine = trt.engine
        runner.run(SIZES)
        assert trt.engine is engine  # not deserialised again
        (shapes,) = runner.run({**SIZES, "height": 8})["plan"]
        assert shapes["sample"][2] == [32, 4, 32, 32]
        with pytest.raises(
            Incompatible, match=r"height must be 1\.\.32, got 40.*--height 8:128:320"
        ):
            runner.run({**SIZES, "height": 40})
    assert len(trt.built) == 2  # all came from the cache, none from the bundle
    with pytest.raises(EngineError, match="is closed"):
        runner.run(SIZES)


def runner_of(found, **options):
    return contextlib.closing(tensorrt_bundle.runner(found, "unet", "cuda", **options))


def test_a_plan_of_the_bundle_is_read_only_with_trust(trt, tmp_path):
    found, _ = export(tmp_path / "out", "tensorrt", [narrow(16)])
    forged = json.dumps([{"sample": [[1, 4, 1, 1]] * 3}]).encode()
    tiny_bundle.rewrite(found.path, "unet.0.plan", forged)
    found = bundle.open(found.path)
    with runner_of(found) as runner:
        assert runner.run(SIZES)["plan"] != json.loads(forged)
    with runner_of(found, trust_engine=True) as runner:
        assert runner.run(SIZES)["plan"] == json.loads(forged)


def test_an_empty_cache_is_filled_from_the_graph(trt, tmp_path):
    found, _ = export(tmp_path / "out", "tensorrt", [narrow(16)], refittable=True)
    assert found.manifest.engines[0].refittable
    for entry in cache.entries():
        cache.release(entry.key)
    assert cache.clear().in_use == 0
    with runner_of(found) as runner:
        runner.run(SIZES)
    assert [c.called("set_flag") for _, c in trt.built] == [[(trt.BuilderFlag.REFIT,)]] * 2


def test_a_cpu_is_refused(trt, tmp_path):
    found, _ = export(tmp_path / "out", "tensorrt", [narrow(16)])
    with pytest.raises(Incompatible, match=r"device must be cuda .*got cpu\. Export .*onnxruntime"):
        tensorrt_bundle.runner(found, "unet", "cpu")


def test_new_weights_reach_plans_that_are_read_later(trt, tmp_path, monkeypatch):
    wide = {axis: manifests.Range(min=1, opt=16, max=32) for axis in SIZES}
    found, _ = export(tmp_path / "out", "tensorrt", [wide, narrow(16)], refittable=True)
    fake_tensorrt.refitting(trt)
    monkeypatch.setattr(fake_tensorrt.Engine, "refittable", True)
    with runner_of(found) as runner:
        runner.run(SIZES)
        first = trt.engine
        runner.refit(Weights(onnx.load(found.graph("unet")), {}))
        runner.run({**SIZES, "height": 8})
    given = [call[1] for call in trt.refits if call[0] == "engine"]
    assert given == [first, trt.engine]
    assert first is not trt.engine


def test_a_stripped_plan_gets_the_weights_of_the_graph_before_it_runs(trt, tmp_path, monkeypatch):
    """And a LoRA's in their place: then from the changed graph alone."""
    wide = {axis: manifests.Range(min=1, opt=16, max=32) for axis in SIZES}
    found, _ = export(tmp_path / "out", "tensorrt", [wide, narrow(16)], strip=True)
    assert found.manifest.build.strip
    assert all(engine.refittable for engine in found.manifest.engines)
    flags = [[(trt.BuilderFlag.REFIT,), (trt.BuilderFlag.STRIP_PLAN,)]] * 2
    assert [c.called("set_flag") for _, c in trt.built] == flags
    fake_tensorrt.refitting(trt)
    monkeypatch.setattr(fake_tensorrt.Engine, "refittable", True)
    with runner_of(found) as runner:
        runner.run(SIZES)
        runner.run(SIZES)
        graph = str(found.graph("unet"))
        assert trt.refits == [("engine", trt.engine), ("file", graph), ("done",)]
        trt.refits.clear()
        runner.refit(Weights(onnx.load(graph), {}))
        runner.run({**SIZES, "height": 8})
    assert [call[0] for call in trt.refits] == ["engine", "bytes", "done"] * 2
    assert len(trt.built) == 2  # none of them anew


def test_what_rtx_compiled_is_kept(monkeypatch, trt, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module("1.7.1"))
    monkeypatch.setattr(tensorrt, "capability", lambda: "12.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    found, _ = export(tmp_path / "out", "tensorrt-rtx", [narrow(16)])
    seen = []
    plan = tensorrt_bundle.Plan
    kept = plan.__init__

    def noted(self, *args, **options):
        seen.append((options["runtime_cache"], options["reuse_outputs"]))
        kept(self, *args, **options)

    monkeypatch.setattr(plan, "__init__", noted)
    for _ in range(2):
        with runner_of(found, reuse_outputs=True) as runner:
            runner.run(SIZES)
    assert seen == [(b"", True), (b"kernels", True)]
