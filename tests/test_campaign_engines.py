"""Engines in the campaign: what a dry run leaves out, what is missing, what is wrong."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import fastdiff
from benchmarks.campaign import engines, models, record
from benchmarks.campaign.model_configs import TINY
from benchmarks.campaign.stages import stages
from benchmarks.campaign.task import Task

RTX = "engine, TensorRT-RTX"


def rows_of(**task):
    rows = []
    with torch.no_grad():
        stages()["model_sd15_engines"].work(Task(emit=rows.append, **task))
    for row in rows:
        record.check_row(row)
    return {row["case"]["contestant"]: row for row in rows}


def test_a_dry_run_times_eager_alone(monkeypatch):
    monkeypatch.setattr(fastdiff, "export", None)
    found = rows_of(dry=True)
    assert list(found) == [models.EAGER, *engines.TARGETS]
    assert found.pop(models.EAGER)["status"] == "measured"
    assert {row["why"] for row in found.values()} == {"a dry run exports nothing"}


def test_what_is_not_installed_is_named(monkeypatch):
    from fastdiff.engine import here

    there = SimpleNamespace(version=None)
    monkeypatch.setattr(here, "look", lambda target: there)
    words = engines.lacking("tensorrt", Task())
    assert words == "tensorrt is not installed: pip install 'fastdiff-engine[tensorrt]'"
    there.version = "10.9"
    assert engines.lacking("tensorrt", Task()) == ""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "no CUDAExecutionProvider here" in engines.lacking("onnxruntime", Task())
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [engines.CUDA])
    assert engines.lacking("onnxruntime", Task()) == ""


@pytest.mark.parametrize("wrong", [False, True])
def test_an_engine_is_exported_at_the_size_of_the_row_and_checked(monkeypatch, wrong):
    """Export and engine are stood for: the network itself, or one that is wrong by a thousandth."""
    asked, closed = [], []

    def export(network, out, **options):
        asked.append(options)
        out.mkdir()
        (out / "unet.onnx").write_bytes(b"0123456789")
        export.network = network

    @contextlib.contextmanager
    def load_engine(out, device, trust_engine):
        assert trust_engine
        assert (out / "unet.onnx").exists()

        def run(**inputs):
            (answer,) = export.network(**inputs)
            return (answer * (1.001 if wrong else 1),)

        run.manifest = SimpleNamespace(target=SimpleNamespace(name="tensorrt-rtx", version="1.4"))
        yield run
        closed.append(out)

    monkeypatch.setattr(fastdiff, "export", export)
    monkeypatch.setattr(fastdiff, "load_engine", load_engine)
    monkeypatch.setattr(engines, "lacking", lambda target, task: "" if "rtx" in target else "no")
    row = rows_of(dry=True)[RTX]
    (options,) = asked
    assert options["target"] == "tensorrt-rtx"
    assert (options["height"], options["batch"]) == ((32, 64, 64), (1, 2, 2))
    assert options["tokens"] == (TINY["sd15"].tokens,) * 3
    if wrong:
        assert row["status"] == "failed"
        assert "wrong by" in row["why"]
        return
    assert row["times"][RTX]["median"] > 0
    assert row["bundle_bytes"] == 10
    assert row["engine"] == "tensorrt-rtx 1.4"
    assert closed
    assert not closed[0].exists()
