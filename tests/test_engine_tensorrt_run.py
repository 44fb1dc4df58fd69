"""Running a plan: what is asked of TensorRT, by a module that looks like it; on a GPU for real."""

import contextlib
import json
import sys
import threading
import types

import pytest
import torch

from fastdiff.engine import cache, tensorrt, tensorrt_build, tensorrt_run
from fastdiff.engine.errors import EngineError, Incompatible, Untrusted
from tests import fake_tensorrt
from tests.fake_tensorrt import CudaTensor

SMALL = {"sample": [[1, 4, 8, 8], [2, 4, 16, 16], [2, 4, 16, 16]]}
WIDE = {"sample": [[1, 4, 8, 8], [2, 4, 16, 16], [8, 4, 32, 32]]}
PLAN = json.dumps([WIDE, SMALL]).encode()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of capability 9.0 as far as `run` asks torch; `gpu.stream` is the current stream."""
    here = types.SimpleNamespace(stream=7, made=[], waited=0)

    def empty(shape, dtype, device):
        assert device == CudaTensor.device
        here.made.append(CudaTensor(shape, 1000 + len(here.made), dtype))
        return here.made[-1]

    def stream(device):
        return types.SimpleNamespace(cuda_stream=here.stream)

    monkeypatch.setattr(tensorrt, "capability", lambda: "9.0")
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(here, "waited", 1))
    monkeypatch.setattr(torch, "empty", empty)
    return here


@pytest.fixture
def trt(monkeypatch):
    module = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def load(plan=PLAN, **options):
    return tensorrt_run.Plan(plan, tensorrt.load("tensorrt"), **options)


def sample(*shape, address=64):
    return {"sample": CudaTensor(shape, address)}


def test_addresses_of_torchs_tensors_and_the_smallest_profile(trt, gpu):
    with load() as plan:
        assert plan.inputs == {"sample": torch.float16}
        out = plan.run(sample(2, 4, 16, 16))["out_sample"]
        (context,) = trt.engine.contexts
        assert context.calls == [
            ("set_optimization_profile_async", 1, 7),  # SMALL is the second of the plan
            ("set_tensor_address", "sample", 64),
            ("set_tensor_address", "out_sample", out.address),
            ("execute_async_v3", 7),
        ]
        assert (out.shape, out.dtype) == ((2, 4, 16, 16), torch.float16)
        context.calls.clear()
        plan.run(sample(1, 4, 8, 8))  # in SMALL too: no other profile, no wait for it
        assert context.called("set_optimization_profile_async") == []
        plan.run(sample(8, 4, 32, 32))
        assert context.called("set_optimization_profile_async") == [(0, 7)]
    assert gpu.waited
    with pytest.raises(EngineError, match="is closed; load it again"):
        plan.run(sample(1, 4, 8, 8))
    plan.close()  # twice is once


def test_outputs_are_new_or_reused(trt, gpu):
    plan = load()
    first, second = (plan.run(sample(1, 4, 8, 8))["out_sample"] for _ in range(2))
    assert first is not second
    plan = load(reuse_outputs=True)
    first, second = (plan.run(sample(1, 4, 8, 8))["out_sample"] for _ in range(2))
    assert first is second
    assert plan.run(sample(1, 4, 16, 8))["out_sample"].shape == (1, 4, 16, 8)


def test_a_context_for_each_thread_and_stream(trt, gpu):
    plan, shared = load(reuse_outputs=True), sample(1, 4, 8, 8)
    here = plan.run(shared)["out_sample"]
    gpu.stream = 8
    assert plan.run(shared)["out_sample"] is not here
    there = []
    thread = threading.Thread(target=lambda: there.append(plan.run(shared)["out_sample"]))
    thread.start()
    thread.join()
    gpu.stream = 7
    assert plan.run(shared)["out_sample"] is here is not there[0]
    streams = [[s for (s,) in c.called("execute_async_v3")] for c in trt.engine.contexts]
    assert streams == [[7, 7], [8], [8]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (sample(1, 4, 64, 8), r"in a profile .*\[0\] sample 1x4x8x8..8x4x32x32; \[1\].*1x4x64x8"),
        (sample(4, 8, 8), r"got sample 4x8x8\. Export"),
        ({}, "inputs must be sample; got none"),
        ({"x": CudaTensor((1, 4, 8, 8), 1)}, "inputs must be sample; got x"),
        (
            {"sample": CudaTensor((1, 4, 8, 8), 1, torch.float32)},
            r"sample must be torch.float16 on cuda; got torch.float32 on cuda:0. Try \.to\('cuda'",
        ),
        ({"sample": torch.zeros(1, 4, 8, 8, dtype=torch.half)}, "on cuda; got .* on cpu"),
    ],
)
def test_what_it_does_not_take_is_named(inputs, message, trt, gpu):
    with load() as plan, pytest.raises(Incompatible, match=message):
        plan.run(inputs)


def test_a_failed_run_says_what_tensorrt_said(trt, gpu, monkeypatch):
    plan = load()

    def fail(self, stream):
        plan.flavour.logger.log(fake_tensorrt.Severity.ERROR, "out of\nmemory")

    monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", fail)
    with pytest.raises(EngineError, match=r"failed: out of memory\. Try a smaller batch"):
        plan.run(sample(1, 4, 8, 8))


def test_only_our_cache_or_who_trusts_it(trt, gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    ours, outside = cache.put("a", PLAN), tmp_path / "plan"
    cache.release("a")
    outside.write_bytes(PLAN)
    link = cache.folder() / "link"
    link.symlink_to(outside)
    for path in (outside, link, cache.folder() / ".." / "plan"):
        with pytest.raises(Untrusted, match=r"a plan is code.*trust_engine=True"):
            tensorrt_run.read(path, "tensorrt", cache=cache.folder())
    assert not hasattr(trt, "runtime")  # nothing was deserialised
    tensorrt_run.read(ours, "tensorrt", cache=cache.folder()).close()
    tensorrt_run.read(outside, "tensorrt", cache=cache.folder(), trust_engine=True).close()
    assert trt.runtime.engine_host_code_allowed is False


def test_a_plan_that_cannot_be_read_says_so(trt, gpu):
    with pytest.raises(Incompatible, match=r"cannot read the plan: magic tag .*Build it again"):
        load(b"no plan")


def test_no_gpu_and_a_gpu_that_rtx_does_not_know(gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module("1.7.1"))
    plan = tmp_path / "plan"
    plan.write_bytes(PLAN)
    with pytest.raises(Incompatible, match="Use target tensorrt there"):
        tensorrt_run.read(plan, "tensorrt-rtx", cache=tmp_path, trust_engine=True)
    monkeypatch.setattr(tensorrt, "capability", lambda: None)
    with pytest.raises(Incompatible, match=r"torch sees none .*target onnxruntime"):
        tensorrt_run.read(plan, "tensorrt-rtx", cache=tmp_path, trust_engine=True)


def test_rtx_keeps_what_it_compiled(trt, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module("1.7.1"))
    flavour = tensorrt.load("tensorrt-rtx")
    plan = tensorrt_run.Plan(PLAN, flavour, runtime_cache=b"of last time")
    plan.run(sample(1, 4, 8, 8))
    (config,) = flavour.trt.engine.contexts[0].config
    assert config.called("deserialize") == [(b"of last time",)]
    assert len(config.called("set_runtime_cache")) == 1
    assert plan.runtime_cache() == b"kernels"
    assert load().runtime_cache() == b""


def test_streamed_weights_have_a_budget(trt, gpu, monkeypatch):
    engine = fake_tensorrt.Engine
    monkeypatch.setattr(engine, "streamable_weights_size", 100)
    monkeypatch.setattr(
        engine, "get_weight_streaming_automatic_budget", lambda self: 60, raising=False
    )
    assert load().engine.weight_streaming_budget_v2 == 60
    assert load(weights_budget=40).engine.weight_streaming_budget_v2 == 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_on_a_gpu_as_pytorch(target, tmp_path):
    from tests.test_engine_tensorrt import model, narrow

    pytest.importorskip(tensorrt.MODULES[target])
    flavour = tensorrt.load(target)
    if flavour.portable and tensorrt.capability() not in flavour.capabilities():
        pytest.skip("TensorRT-RTX does not know this GPU")
    path = tmp_path / "small.onnx"
    path.write_bytes(model())
    (data,) = tensorrt_build.build(path, [narrow(16)], target, progress=False)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half().cuda()
    import onnx

    weights = {
        w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()).cuda()
        for w in onnx.load(path).graph.initializer
    }

    def network(dtype):
        def of(name):
            return weights[name].to(dtype)

        y = torch.nn.functional.conv2d(x.to(dtype), of("conv.weight"), padding=1)
        y = torch.nn.functional.group_norm(y, 2, of("norm.weight"), of("norm.bias"))
        return torch.nn.functional.silu(y).double()

    with tensorrt_run.Plan(data, flavour) as plan:
        got = plan.run({"sample": x})["out_sample"].double()
    exact = network(torch.float64)
    torch_error = (network(torch.float16) - exact).square().mean().sqrt()
    # At most twice what torch itself loses in float16, in RMS.
    assert (got - exact).square().mean().sqrt() <= 2 * torch_error
