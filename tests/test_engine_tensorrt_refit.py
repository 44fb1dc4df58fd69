"""New weights for an engine: all of the graph's, or none; by a module that looks like TensorRT."""

import json
import sys

import pytest
import torch

from fastdiff.engine import tensorrt, tensorrt_refit, tensorrt_run
from fastdiff.engine.errors import EngineError, Incompatible
from tests import fake_tensorrt

PLAN = json.dumps([{"sample": [[1, 4, 8, 8]] * 3}]).encode()


@pytest.fixture
def waits(monkeypatch):
    """How often the GPU was waited for."""
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append(1))
    return seen


def load(monkeypatch, *, refittable=True, **options):
    trt = fake_tensorrt.module()
    fake_tensorrt.refitting(trt, **options)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    plan = tensorrt_run.Plan(PLAN, tensorrt.load("tensorrt"))
    plan.engine.refittable = refittable
    return trt, plan


def test_every_weight_comes_from_the_graph(monkeypatch, waits, tmp_path):
    trt, plan = load(monkeypatch)
    tensorrt_refit.refit(plan, b"a graph")
    tensorrt_refit.refit(plan, tmp_path / "unet.onnx")  # its weights lie beside it
    graphs = [("bytes", b"a graph"), ("file", str(tmp_path / "unet.onnx"))]
    assert trt.refits == [
        call for graph in graphs for call in (("engine", plan.engine), graph, ("done",))
    ]
    assert len(waits) == 2


def test_an_engine_that_is_not_refittable_says_what_would_do(monkeypatch, waits):
    trt, plan = load(monkeypatch, refittable=False)
    with pytest.raises(Incompatible, match=r"cannot be refitted.*with --refittable, or fuse"):
        tensorrt_refit.refit(plan, b"a graph")
    assert trt.refits == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": ["val_65"]}, r"must hold the weights of the engine: it lacks 'val_65'"),
        ({"taken": False}, r"no reason given\. Build the engine again"),
    ],
)
def test_a_graph_that_lacks_weights_changes_nothing(options, message, monkeypatch, waits):
    trt, plan = load(monkeypatch, **options)
    with pytest.raises(Incompatible, match=message):
        tensorrt_refit.refit(plan, b"a graph")
    assert ("done",) not in trt.refits
    assert plan.refittable  # and it is still there


def test_an_engine_that_failed_half_way_is_closed(monkeypatch, waits):
    _, plan = load(monkeypatch, done=False)
    with pytest.raises(EngineError, match=r"could not replace the weights.*Load the engine again"):
        tensorrt_refit.refit(plan, b"a graph")
    with pytest.raises(EngineError, match="is closed"):
        tensorrt_refit.refit(plan, b"a graph")
