"""The U-Net of SD1.5 with random weights in an engine on the device, fp16, against eager.

    eager                   as in models.py, in this stage again, for a ratio within one run
    engine, TensorRT-RTX    fastdiff.export with plans built here, fastdiff.load_engine
    engine, TensorRT        the same
    engine, ONNX Runtime    its CUDA provider

A row each, as of models.py, with the seconds of the export and the bytes of the bundle; what is not
installed is a row that says so.  The error is judged as that of every network there.  A dry run
exports nothing.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.campaign.clock import Timer, on_the_device, on_the_host
from benchmarks.campaign.model_configs import MODELS, TINY
from benchmarks.campaign.models import EAGER, Bench, Step, call
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import Task

NAME, DTYPE, EXPORTED = "sd15", "float16", "fp16"
TARGETS = {
    "engine, TensorRT-RTX": "tensorrt-rtx",
    "engine, TensorRT": "tensorrt",
    "engine, ONNX Runtime": "onnxruntime",
}
CUDA = "CUDAExecutionProvider"


def run(task: Task) -> None:
    model = (TINY if task.dry else MODELS)[NAME]
    bench = EngineBench(task, model, torch.float32 if task.dry else getattr(torch, DTYPE))
    case = {"model": NAME, "batch": model.batch, "dtype": "float32" if task.dry else DTYPE}
    for who in (EAGER, *TARGETS):
        what = {"benchmark": "model", "case": {**case, "contestant": who}}
        name = " ".join([NAME, "engines", who])
        if who != EAGER and (why := lacking(TARGETS[who], task)):
            task.skip(name, why, **what)
        else:
            task.measure(name, functools.partial(bench.measure, who), **what)


def lacking(target: str, task: Task) -> str:
    """Why there is no engine of this target here; "" if there is one."""
    if task.dry:
        return "a dry run exports nothing"
    from fastdiff.engine import here

    if here.look(target).version is None:
        return f"{target} is not installed: pip install 'fastdiff-engine[{here.EXTRAS[target]}]'"
    if target == "onnxruntime":
        import onnxruntime

        if CUDA not in onnxruntime.get_available_providers():
            return f"ONNX Runtime has no {CUDA} here: pip install onnxruntime-gpu"
    return ""


class EngineBench(Bench):
    """With the network in an engine where the contestant is one."""

    @contextlib.contextmanager
    def _as(self, who: str) -> Iterator[tuple[Step, Timer, float, Row]]:
        if who == EAGER:
            with super()._as(who) as found:
                yield found
            return
        import fastdiff

        model = self.model
        sides = (4 * model.side, 8 * model.side, 8 * model.side)  # pixels; the least is checked
        sizes = {"batch": (1, model.batch, model.batch), "height": sides, "width": sides}
        sizes["tokens"] = (model.tokens,) * 3
        with tempfile.TemporaryDirectory() as folder:
            start, out = time.perf_counter(), Path(folder) / "bundle"
            options = {"target": TARGETS[who], "dtype": EXPORTED, "verify": "smallest", **sizes}
            fastdiff.export(self.network, out, **options)
            facts: Row = {"export_s": round(time.perf_counter() - start, 3)}
            facts["bundle_bytes"] = sum(path.stat().st_size for path in out.iterdir())
            start, device = time.perf_counter(), self.task.device
            with fastdiff.load_engine(out, device, trust_engine=True) as engine:
                made_for = engine.manifest.target
                facts["engine"] = f"{made_for.name} {made_for.version}"
                step = functools.partial(call, model, engine, self.inputs)
                step()
                if device == "cuda":
                    torch.cuda.synchronize()
                cold = time.perf_counter() - start
                timer = on_the_device(step, 1) if device == "cuda" else on_the_host(step)
                yield step, timer, cold, facts
