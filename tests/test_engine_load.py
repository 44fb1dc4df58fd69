"""load_engine: bundles whose hashes are right and whose graph or manifest is no network's."""

import copy
import json
import shutil

import pytest
import torch
from onnx import helper

import fastdiff
from fastdiff.cli import UserError
from fastdiff.engine import bundle
from fastdiff.engine.errors import Corrupt, EngineError
from tests import tiny_bundle
from tests.test_generate import PROMPT, generate


def bundle_of(folder, monkeypatch, graph="unet", profile=None, **shapes):
    """A bundle that answers its sample, with ports of these shapes; a name can be another."""
    ports = copy.deepcopy(tiny_bundle.PORTS)
    for port in (*ports["inputs"], *ports["outputs"]):
        port["shape"] = shapes.get(port["name"], port["shape"])
        port["name"] = shapes.get(f"{port['name']}_name", port["name"])
    monkeypatch.setattr(tiny_bundle, "PORTS", ports)
    ends = [ports[which][0]["name"] for which in ("inputs", "outputs")]
    made = tiny_bundle.model([helper.make_node("Identity", ends[:1], ends[1:])], [])
    changed = {} if profile is None else {"profiles": [profile]}
    graphs = {graph: {"file": "unet.onnx", "data": None, "opset": 21, **ports}}
    with bundle.writing(folder) as inside:
        tiny_bundle.save(inside, made)
        bundle.finish(inside, **tiny_bundle.fields(graphs=graphs, **changed))
    return folder


FIXED = {"sample": ["batch", 4, 4, 4], "out_sample": ["batch", 4, 4, 4]}
NO_SIZES = {axis: {"min": 1, "opt": 2, "max": 4} for axis in ("batch", "tokens")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**FIXED, "profile": NO_SIZES}, "graphs.unet: sample must have a free height; got"),
        ({"out_sample_name": "answer"}, "graphs.unet must have the port out_sample; got sample,"),
        ({"sample_name": "x"}, "graphs.unet must have the port sample; got x,"),
        ({"graph": "transformer"}, "graphs.transformer must have the port hidden_states; got"),
    ],
)
def test_a_graph_that_is_no_such_network_is_corrupt(tmp_path, monkeypatch, options, message):
    folder = bundle_of(tmp_path / "bundle", monkeypatch, **options)
    with pytest.raises(Corrupt, match=message):
        fastdiff.load_engine(folder)


def test_answers_past_all_memory_are_an_engines_error(tmp_path, monkeypatch):
    huge = ["batch", 1 << 30, "999999*height", "999999*width"]
    folder = bundle_of(tmp_path / "bundle", monkeypatch, out_sample=huge)
    with fastdiff.load_engine(folder, threads=1) as engine:
        given = torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 3, 8)
        with pytest.raises(EngineError, match=r"outputs of unet\.onnx must fit into memory"):
            engine(*given)


def test_nothing_is_printed_beside_the_error(tmp_path, monkeypatch, capfd):
    """ONNX Runtime's own line, in colours, came before it."""
    folder = bundle_of(tmp_path / "bundle", monkeypatch, out_sample=["batch", 4, 1, 1])
    engine = fastdiff.load_engine(folder, threads=1)
    with pytest.raises(EngineError, match=r"ONNX Runtime failed in unet\.onnx"):
        engine(torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 3, 8))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        {"config": {}},
        {"config": {"sample_size": "16"}},
        {"config": {"sample_size": -16}},
        {"config_sha256": "0" * 64},
        {"kind": "UNet2DModel"},
    ],
)
def test_generate_does_not_believe_a_config_hash(exported, tmp_path, change):
    folder = tmp_path / "bundle"
    shutil.copytree(exported / "bundle", folder)
    path = folder / "manifest.json"
    said = json.loads(path.read_text())
    config = change.get("config")
    if config:
        change = {"config": said["model"]["config"] | config}
    said["model"] |= change
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"--engine must (be of a U-Net with|hold a UNet2DCond)"):
        generate(PROMPT, "--engine", folder, "--steps", 1, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()
