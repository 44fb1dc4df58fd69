"""A bundle of one tiny graph, made with onnx.helper: what the tests of trust begin from.

out_sample = weight (1x1 convolution) of sample + the mean of the text; weights beside the graph
if asked.  Nothing of it is a network: it has the ports of one, a sub-set of its operators.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastdiff.engine import bundle, manifest

CHANNELS, TOKEN = 4, 8
SHAPE = ["batch", CHANNELS, "height", "width"]
PORTS = {
    "inputs": [
        {"name": "sample", "dtype": "float32", "shape": SHAPE},
        {"name": "timestep", "dtype": "float32", "shape": ["batch"]},
        {
            "name": "encoder_hidden_states",
            "dtype": "float32",
            "shape": ["batch", "tokens", TOKEN],
        },
    ],
    "outputs": [{"name": "out_sample", "dtype": "float32", "shape": SHAPE}],
}


def ports(which):
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    return [
        helper.make_tensor_value_info(port["name"], kinds[port["dtype"]], port["shape"])
        for port in PORTS[which]
    ]


def weights():
    random = np.random.default_rng(0)
    return {
        "weight": random.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32),
        "project": random.standard_normal((TOKEN, CHANNELS)).astype(np.float32),
        "tail": np.array([1, 1], np.int64),
    }


def model(nodes=None, initializers=None, opset=21, **graph):
    """The ModelProto; nodes and initializers instead of its own."""
    if nodes is None:
        nodes = [
            helper.make_node("Conv", ["sample", "weight"], ["convolved"], name="conv"),
            helper.make_node("MatMul", ["encoder_hidden_states", "project"], ["text"]),
            helper.make_node("ReduceMean", ["text", "axes"], ["mean"], keepdims=0),
            helper.make_node("Constant", [], ["axes_"], value_ints=[1]),
            helper.make_node("Shape", ["mean"], ["rows"]),
            helper.make_node("Concat", ["rows", "tail"], ["shape"], axis=0),
            helper.make_node("Reshape", ["mean", "shape"], ["bias"]),
            helper.make_node("Add", ["convolved", "bias"], ["sum"]),
            helper.make_node("Reshape", ["timestep", "column"], ["time"]),
            helper.make_node("Add", ["sum", "time"], ["out_sample"], name="last"),
        ]
    if initializers is None:
        initializers = [numpy_helper.from_array(v, k) for k, v in weights().items()]
        initializers += [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("column", TensorProto.INT64, [4], [-1, 1, 1, 1]),
        ]
    made = helper.make_graph(nodes, "tiny", ports("inputs"), ports("outputs"), initializers)
    for name, value in graph.items():
        getattr(made, name).extend(value)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(folder: Path, made=None, data=None, file="unet.onnx"):
    """Write the model; data: the file beside it where its weights of 16 bytes and more lie."""
    made = model() if made is None else made
    if data is None:
        (folder / file).write_bytes(made.SerializeToString())
    else:
        onnx.save(made, folder / file, save_as_external_data=True, location=data, size_threshold=16)


def fields(data=None, **changed):
    """What bundle.finish takes."""
    found = {
        "fastdiff": "0.0",
        "target": {"name": "onnxruntime", "version": "1.22.0", "os": "linux", "machine": "x86_64"},
        "dtype": "fp32",
        "model": {
            "kind": "UNet2DConditionModel",
            "config": {"in_channels": CHANNELS, "center_input_sample": False},
            "config_sha256": "0" * 64,
            "weights_sha256": "1" * 64,
            "prediction_type": "epsilon",
        },
        "profiles": [
            {
                axis: {"min": 1, "opt": 2, "max": 64}
                for axis in ("batch", "height", "width", "tokens")
            }
        ],
        "graphs": {"unet": {"file": "unet.onnx", "data": data, "opset": 21, **PORTS}},
    }
    return {**found, **changed}


def write(out: Path, data="unet.onnx.data", plan=b"", replace=False):
    """A valid bundle at `out`; plan: the bytes of an engine, if there are any."""
    changed = {}
    with bundle.writing(out, replace=replace) as folder:
        save(folder, data=data)
        if plan:
            (folder / "unet.plan").write_bytes(plan)
            changed["engines"] = [{"file": "unet.plan", "graph": "unet", "profile": 0}]
        bundle.finish(folder, **fields(data, **changed))
    return out


def rewrite(folder: Path, name: str, content: bytes):
    """Change a file and make the manifest's length and hash fit: what a forger would do."""
    (folder / name).write_bytes(content)
    path = folder / manifest.NAME
    found = json.loads(path.read_text())
    found["files"][name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path.write_text(json.dumps(found))
