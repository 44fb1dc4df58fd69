"""OpenVINO as a peer of an engine: the bundle's own unet.onnx, float32, as many threads.

Importing openvino sends an event of use to its makers where the package openvino_telemetry is
installed, which pip brings with it.  Where that cannot be imported nothing is sent; so here it
cannot.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

NAMES = ("sample", "timestep", "encoder_hidden_states")
TELEMETRY = "openvino_telemetry"


def installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def package() -> Any:
    """The module openvino; ImportError where it is not installed."""
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # importing it then fails
    import openvino

    return openvino


class Network:
    """unet.onnx in OpenVINO's CPU plugin, tuned for the time of one call.

    shapes  of the inputs by name, where the graph shall have no others; None: as it lies there
    """

    def __init__(
        self, path: Path, threads: int, shapes: dict[str, tuple[int, ...]] | None = None
    ) -> None:
        core = package().Core()
        model = core.read_model(path)
        if shapes is not None:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it: other work
            "INFERENCE_NUM_THREADS": threads,
        }
        self.request = core.compile_model(model, "CPU", config).create_infer_request()

    def __call__(self, *inputs: Any) -> Any:
        """Arrays in the order of NAMES; the answer is in memory that the next call overwrites."""
        given = dict(zip(NAMES, inputs, strict=True))
        return self.request.infer(given, share_inputs=True, share_outputs=True)["out_sample"]
