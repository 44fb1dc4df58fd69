"""The built-in model as a bundle, exported once for all test processes: it takes a minute.

Its graphs as they were before the target's own form lie beside it, for tests of other targets.
"""

import os
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock

OPTIONS = {"vae": True, "text_encoder": True, "step": True, "guidance": 3.0, "batch": "1:2:3"}
SAMPLERS = ("dpmpp_2m:8", "unipc_2:5", "euler_a:6")


def folder(tmp_path_factory) -> Path:
    """Where it lies, made by whichever process comes first."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = root / "exported"
    with FileLock(root / "exported.lock"):
        if not (out / "bundle").exists():
            _make(out)
    return out


def _make(out: Path) -> None:
    import onnx
    import torch

    import fastdiff
    from fastdiff.cli import model
    from fastdiff.engine import to_onnx

    out.mkdir(exist_ok=True)
    convert = to_onnx.convert

    def kept(network):
        graph = convert(network)
        onnx.save(graph, out / f"{network.name}.onnx")
        return graph

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch("fastdiff.engine.export.convert", kept):
            pipe = model.load(model.built_in(), "cpu")
            fastdiff.export(pipe, out / "bundle", samplers=SAMPLERS, **OPTIONS)
    finally:
        torch.set_num_threads(threads)
