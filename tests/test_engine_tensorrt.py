"""Building plans: TensorRT-RTX for real, with no GPU; TensorRT by a module that looks like it."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest

from fastdiff.engine import build_progress, cache, here, profiles, tensorrt, tensorrt_build
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from fastdiff.engine.manifest import Range
from tests import fake_tensorrt

RTX = "tensorrt-rtx"


class Store(dict):
    """Keys to files, as fastdiff.engine.cache has them."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, key, data, about=""):
        self[key] = self.folder / key
        self[key].write_bytes(data)
        return self[key]

    def locked(self, key):
        return contextlib.nullcontext()

    def release(self, key):
        pass


def narrow(size):
    return {
        "batch": Range(min=1, opt=2, max=2),
        "height": Range(min=size, opt=size, max=size),
        "width": Range(min=size, opt=size, max=size),
    }


def model(odd=None):
    """Convolution, GroupNormalization whole, SiLU: float16, dynamic batch, height and width."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "conv.weight": random.standard_normal((8, 4, 3, 3)) / 6,
        "norm.weight": np.ones(8),
        "norm.bias": np.zeros(8),
    }
    nodes = [
        helper.make_node("Conv", ["sample", "conv.weight"], ["c"], "conv", pads=[1] * 4),
        helper.make_node(
            "GroupNormalization",
            ["c", "norm.weight", "norm.bias"],
            ["n"],
            "norm",
            num_groups=2,
        ),
        helper.make_node(odd or "Sigmoid", ["n"], ["s"], "gate"),
        helper.make_node("Mul", ["n", "s"], ["out_sample"], "silu"),
    ]
    half = TensorProto.FLOAT16
    ports = [
        helper.make_tensor_value_info(name, half, ["batch", channels, "height", "width"])
        for name, channels in (("sample", 4), ("out_sample", 8))
    ]
    initializers = [numpy_helper.from_array(w.astype(np.float16), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], initializers)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    path.write_bytes(model())
    return path


@pytest.fixture
def pretend(monkeypatch):
    """`pretend(module)`: that is TensorRT, and a GPU of compute capability 9.0 is here."""

    def install(module, target="tensorrt", gpu="9.0"):
        monkeypatch.setitem(sys.modules, tensorrt.MODULES[target], module)
        monkeypatch.setattr(tensorrt, "capability", lambda: gpu)
        monkeypatch.setattr(tensorrt, "_device_name", lambda: "GPU")
        return module

    return install


def test_rtx_builds_a_plan_for_each_profile_once(onnx, tmp_path, monkeypatch):
    """In the real cache."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    built = []
    real = tensorrt_build._build

    def counted(path, profile, *rest):
        built.append(profile)
        return real(path, profile, *rest)

    monkeypatch.setattr(tensorrt_build, "_build", counted)
    wanted = [narrow(16), narrow(32)]
    first = tensorrt_build.plans(onnx, wanted, RTX, store=cache, progress=False)
    assert "small for tensorrt-rtx" in cache.entries()[1].about
    assert len(cache.entries()) == 2
    assert built == [[wanted[0]], [wanted[1]]]
    # The weights and the kernels for four generations of GPUs: a plan, not an empty file.
    assert all(100_000 < path.stat().st_size < 8_000_000 for path in first)
    again = tensorrt_build.plans(onnx, wanted[::-1], RTX, store=cache, progress=False)
    assert again == first[::-1]
    assert len(built) == 2
    for path in first:
        cache.release(path.parent.name)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (lambda: b"no model" * 9, Corrupt, r"odd.onnx must be an ONNX model"),
        (
            lambda: model("NoSuchOperator"),
            Incompatible,
            r"tensorrt-rtx [\d.]+ cannot take odd.onnx: node 'gate' \(NoSuchOperator\): .*"
            r"Export the model with target tensorrt-rtx, or use target onnxruntime",
        ),
    ],
)
def test_rtx_refuses_a_graph_in_one_line(content, error, message, tmp_path, caplog):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "odd.onnx"
    path.write_bytes(content())
    with caplog.at_level(logging.ERROR), pytest.raises(error, match=message) as caught:
        tensorrt_build.build(path, [narrow(16)], RTX, progress=False)
    assert "\n" not in str(caught.value)
    assert {record.name for record in caplog.records} == {"fastdiff.engine.tensorrt"}


@pytest.fixture
def ctrl_c():
    """A shell that starts tests in the background has them ignore it, and nothing would end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_build(onnx, monkeypatch):
    """In the middle of TensorRT's own work, by the same way as from a terminal."""
    pytest.importorskip("tensorrt_rtx")
    steps = []

    def step(self, phase, number):
        if not steps:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the main thread sees it within 0.1 s
                time.sleep(0.0 if self.cancelled else 0.01)
        steps.append(phase)
        return not self.cancelled

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(build_progress.Progress, "step", step)
    with pytest.raises(KeyboardInterrupt):
        tensorrt_build.build(onnx, [narrow(16)], RTX, progress=False)
    assert len(steps) < 10  # 100 and more where nobody stops it
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_twice_does_not_wait(monkeypatch):
    """And an error of the work itself is raised here."""
    progress, go_on = build_progress.Progress("", shown=False), threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        while not progress.cancelled:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(60)

    with pytest.raises(KeyboardInterrupt):
        build_progress.cancellable(work, progress)
    assert not go_on.is_set()  # the work still waits
    go_on.set()
    with pytest.raises(ZeroDivisionError):
        build_progress.cancellable(lambda: 1 / 0, build_progress.Progress("", shown=False))


def test_a_missing_file_is_named(tmp_path, pretend):
    pretend(fake_tensorrt.module())
    with pytest.raises(Corrupt, match=r"there is none at .*none\.onnx"):
        tensorrt_build.build(tmp_path / "none.onnx", [narrow(16)], "tensorrt", progress=False)


@pytest.mark.parametrize("target", ["tensorrt", RTX])
def test_without_it_the_error_names_the_extra(target, onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, tensorrt.MODULES[target], None)
    extra = re.escape(f"pip install 'fastdiff-engine[{target}]'")
    with pytest.raises(Incompatible, match=extra):
        tensorrt_build.build(onnx, [narrow(16)], target)


def test_an_old_version_is_refused(pretend):
    pretend(fake_tensorrt.module("10.8.0"))
    with pytest.raises(Incompatible, match=r"needs version 10\.9 or newer; 10\.8\.0"):
        tensorrt.load("tensorrt")
    with pytest.raises(ValueError, match="target must be one of tensorrt, tensorrt-rtx"):
        tensorrt.load("onnxruntime")


@pytest.mark.parametrize(
    ("target", "gpu", "settings", "message"),
    [
        ("tensorrt", None, {}, "builds only on the GPU that will run the plan"),
        (RTX, None, {"refittable": True}, "only where there is a GPU"),
        (RTX, None, {"strip": True}, "only where there is a GPU"),
        (RTX, None, {"capabilities": ["7.5"]}, "7.5 only where there is a GPU"),
        (RTX, "9.0", {"capabilities": ["9.0"]}, r"got 9\.0 \(Hopper.*Use target tensorrt there"),
    ],
)
def test_what_cannot_be_built_here_is_said_first(target, gpu, settings, message, onnx, pretend):
    trt = pretend(fake_tensorrt.module("1.7.1" if target == RTX else "11.4"), target, gpu)
    with pytest.raises(Incompatible, match=message):
        tensorrt_build.build(onnx, [narrow(16)], target, progress=False, **settings)
    assert trt.built == []


@pytest.mark.parametrize("capabilities", ["12.0", 12.0, None, (), ["banana"], ["12.0", 8.9]])
def test_capabilities_that_are_none_are_named(capabilities, onnx, pretend):
    trt = pretend(fake_tensorrt.module("1.7.1"), RTX)
    words = r"^capabilities must be a tuple like \('12.0',\); got "
    with pytest.raises((TypeError, ValueError), match=words + re.escape(repr(capabilities))):
        tensorrt_build.build(onnx, [narrow(16)], RTX, progress=False, capabilities=capabilities)
    assert trt.built == []


def test_a_hopper_cannot_run_rtx(pretend):
    pretend(fake_tensorrt.module("1.7.1"), RTX, "9.0")
    with pytest.raises(Incompatible, match=r"got 9\.0 \(Hopper .*Use target tensorrt"):
        tensorrt.check_device(tensorrt.load(RTX))


@pytest.mark.parametrize(
    ("version", "typed", "flags"), [("10.16.1", True, 2), ("11.4.0", False, 0)]
)
def test_what_is_asked_of_tensorrt(version, typed, flags, onnx, tmp_path, pretend):
    trt, store = pretend(fake_tensorrt.module(version, strongly_typed=typed)), Store(tmp_path)
    settings = {"memory_limit": 1 << 30, "strip": True, "weight_streaming": True}
    wide = {**narrow(16), "height": Range(min=8, opt=16, max=32)}
    plan, _ = tensorrt_build.build(
        onnx, [wide, narrow(16)], "tensorrt", store=store, progress=False, **settings
    )
    assert json.loads(plan) == [{"sample": [[1, 4, 8, 16], [2, 4, 16, 16], [2, 4, 32, 16]]}]
    (network, first), (_, second) = trt.built
    assert network == flags
    flags = [flag.name for (flag,) in first.called("set_flag")]
    assert flags == ["REFIT", "STRIP_PLAN", "WEIGHT_STREAMING"]
    assert first.called("clear_flag") == [(trt.BuilderFlag.TF32,)]  # as torch multiplies
    assert first.called("set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 1 << 30)]
    # The second build has the timings of the first.
    assert first.called("create_timing_cache") == [(b"",)]
    assert second.called("create_timing_cache") == [(b"timings",)]
    assert second.called("set_timing_cache") == [(b"timings", False)]


def test_a_failed_build_says_what_tensorrt_said(onnx, pretend):
    pretend(fake_tensorrt.module()).fails = True
    message = r"could not find any implementation\. Try a narrower profile, a memory limit above 8 "
    with pytest.raises(EngineError, match=message):
        tensorrt_build.build(onnx, [narrow(16)], "tensorrt", memory_limit=8, progress=False)


def test_a_profile_without_an_axis_of_the_graph_is_refused(onnx, pretend):
    pretend(fake_tensorrt.module())
    few = {name: axis for name, axis in narrow(16).items() if name != "width"}
    with pytest.raises(Incompatible, match=r"dimension 'width' .* must be an axis"):
        tensorrt_build.build(onnx, [few], "tensorrt", progress=False)


def test_the_key_changes_with_all_that_a_plan_depends_on(pretend, monkeypatch):
    pretend(fake_tensorrt.module())
    settings, tall = tensorrt_build.Settings(), {**narrow(16), "height": Range(min=8, opt=8, max=8)}
    flavour = tensorrt.load("tensorrt")

    def key(content=("a",), sizes=None, of=flavour, **changes):
        return tensorrt_build.key(
            content, sizes or [narrow(16)], of, tensorrt_build.Settings(**changes)
        )

    keys = [key(), key(("b",)), key(("a", "data")), key(sizes=[tall]), key(refittable=True)]
    keys += [key(strip=True), key(weight_streaming=True), key(memory_limit=1)]
    pretend(fake_tensorrt.module("11.5.0"))
    keys.append(key(of=tensorrt.load("tensorrt")))
    pretend(fake_tensorrt.module("1.7.1"), RTX)
    rtx = tensorrt.load(RTX)
    keys += [key(of=rtx), key(of=rtx, capabilities=("12.0",))]
    with monkeypatch.context() as other:
        other.setattr(tensorrt, "_device_name", lambda: "another")
        keys.append(key())
    found = here.look("tensorrt")
    for field in ("compute_capability", "driver", "cuda", "os"):
        there = dataclasses.replace(found, **{field: "another"})
        with monkeypatch.context() as other:
            other.setattr(here, "look", lambda target, there=there: there)
            keys.append(key())
            # A plan of RTX is built with no GPU, so it is not of one.
            assert (key(of=rtx) == keys[9]) == (field != "os")
    assert len(set(keys)) == len(keys)
    assert key() == keys[0] == tensorrt_build.key(["a"], [narrow(16)], flavour, settings)
    assert all(re.fullmatch("[0-9a-f]{64}", k) for k in keys)


def test_progress_goes_forward_along_phases_inside_phases():
    progress = build_progress.Progress("", shown=False)
    seen = []
    for phase, parent, steps in [("all", None, 2), ("clone", "all", 2), ("time", "all", 4)]:
        progress.start(phase, parent, steps)
        if phase != "all":
            for i in range(steps):
                assert progress.step(phase, i)
                seen.append(progress.fraction())
            progress.finish(phase)
            progress.step("all", 0 if phase == "clone" else 1)
    assert seen == [1 / 4, 2 / 4, 5 / 8, 6 / 8, 7 / 8, 1.0]
    assert progress.fraction() == 1.0
    progress.cancelled = True
    assert not progress.step("all", 1)


def test_a_build_of_ours_ends_where_the_monitor_says_so(onnx, pretend, monkeypatch):
    """TensorRT goes by step_complete alone: False from it is the end."""
    pretend(fake_tensorrt.module(phases=[("all", None, 3)]))
    monkeypatch.setattr(build_progress.Progress, "step", lambda self, phase, i: i < 1)
    with pytest.raises(EngineError, match="no reason given"):
        tensorrt_build.build(onnx, [narrow(16)], "tensorrt", progress=False)
    assert profiles.show(narrow(16)) == "batch 1..2, height 16, width 16"
