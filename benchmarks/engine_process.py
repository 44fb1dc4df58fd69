"""python -m benchmarks.engine_process WHO BUNDLE THREADS: what a process needs that runs a U-Net.

One WHO, in this process and no other: seconds to import, to load, to the first answer, and the most
memory it ever had, after loading and after calls with 1 and 8 samples.  Prints one line of JSON.

The most memory is VmHWM of /proc/self/status.  getrusage's ru_maxrss begins at that of the process
which started this one: 524 MB where VmHWM said 11, under a parent with 500 MB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

TORCH, ALONE = "import torch", "ONNX Runtime without PyTorch"
SIDE, TOKENS, WIDTH, SAMPLES = 16, 16, 128, (1, 8)  # of the built-in U-Net
Call = Callable[[int], object]  # with so many samples
Steps = tuple[Callable[[], Any], Callable[[Any], Call]]  # import, and load with what that returned


def peak() -> int:
    """The most bytes this process has had in memory so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM; memory is measured on Linux")


def torch_only(bundle: Path, threads: int) -> Steps:
    def load(_: Any) -> Call:
        return lambda samples: None

    return lambda: __import__("torch"), load


def engine(bundle: Path, threads: int) -> Steps:
    def packages() -> Any:
        import torch

        from fastdiff.engine.load import load_engine

        torch.set_num_threads(threads)
        return load_engine

    return packages, lambda load_engine: of_torch(load_engine(bundle))


def eager(bundle: Path, threads: int) -> Steps:
    def packages() -> Any:
        import torch
        from diffusers import UNet2DConditionModel

        torch.set_num_threads(threads)
        return UNet2DConditionModel

    def load(kind: Any) -> Call:
        from fastdiff.cli.model import built_in

        options = {"subfolder": "unet", "low_cpu_mem_usage": False, "local_files_only": True}
        return of_torch(kind.from_pretrained(built_in(), **options).eval())

    return packages, load


def of_torch(network: Any) -> Call:
    import torch

    def call(samples: int) -> object:
        with torch.no_grad():
            text = torch.zeros(samples, TOKENS, WIDTH)
            return network(torch.zeros(samples, 4, SIDE, SIDE), 500, text).sample

    return call


def alone(bundle: Path, threads: int) -> Steps:
    """As a program that deploys it would: no PyTorch, no fastdiff."""

    def packages() -> Any:
        import onnxruntime

        return onnxruntime

    def load(onnxruntime: Any) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(bundle / "unet.onnx")
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        return of_numpy(lambda *given: session.run(None, dict(zip(NAMES, given, strict=True))))

    return packages, load


def openvino(bundle: Path, threads: int) -> Steps:
    from benchmarks.openvino_peer import Network, package

    return package, lambda _: of_numpy(Network(bundle / "unet.onnx", threads))


NAMES = ("sample", "timestep", "encoder_hidden_states")


def of_numpy(run: Callable[..., Any]) -> Call:
    import numpy as np

    def call(samples: int) -> object:
        zeros = np.zeros((samples, 4, SIDE, SIDE), np.float32)
        text = np.zeros((samples, TOKENS, WIDTH), np.float32)
        return run(zeros, np.full(samples, 500, np.float32), text)

    return call


WHO: dict[str, Callable[[Path, int], Steps]] = {
    "fastdiff": engine,
    "diffusers": eager,
    ALONE: alone,
    "OpenVINO": openvino,
    TORCH: torch_only,
}


def main(argv: list[str]) -> int:
    who, bundle, threads = argv
    first, second = WHO[who](Path(bundle), int(threads))
    marks = [perf_counter()]
    found = first()
    marks.append(perf_counter())
    call = second(found)
    marks.append(perf_counter())
    most = {"loaded": peak()}
    for samples in SAMPLES:
        call(samples)
        marks.append(perf_counter())
        most[f"{samples} samples" if samples > 1 else "1 sample"] = peak()
    names = ("import", "load", "first answer")
    seconds = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
    print(json.dumps({"seconds": seconds, "peak_bytes": most}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
