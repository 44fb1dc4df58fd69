"""CUDA kernels on the CPU: csrc/*.cu built by g++ with host_cuda.h, one process a call.

`build` makes the program of a kernel, with AddressSanitizer; `call` runs it on tensors.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = ("affine_step", "group_norm")
FLAGS = (
    "-std=c++17 -O1 -g1 -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -ffp-contract=off"
    " -fsanitize=address,alignment -fno-sanitize-recover=all"
)


class Crash(AssertionError):
    """The program ended early; the message is what the sanitizer, or host_cuda.h, said."""


def compiler():
    """The path of g++, or None."""
    return shutil.which("g++")


def build(stem, program):
    """Compile tests/cuda_on_host/<stem>.cpp, with csrc/<stem>.cu in it, to the path `program`."""
    command = [compiler(), *FLAGS.split(), f"-I{CSRC}", f"-I{HERE}", HERE / f"{stem}.cpp"]
    subprocess.run([*command, "-o", program], check=True)
    return program


def bytes_of(tensor):
    """What lies in memory for a tensor, (bytes,) uint8."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def call(program, folder, numbers, tensors, *, written=(), shifts=None, aliases=None):
    """Run one case (case.h); return {name: tensor after the call}, in the shapes and dtypes given.

    tensors: {name: contiguous tensor}.  All that are not `written` must come back as they were.
    """
    folder.mkdir()
    lines = [f"number {name} {float(value)!r}" for name, value in numbers.items()]
    lines += [f"buffer {name} {(shifts or {}).get(name, 0)}" for name in tensors]
    lines += [f"alias {name} {other}" for name, other in (aliases or {}).items()]
    (folder / "case.txt").write_text("\n".join(lines) + "\n")
    for name, tensor in tensors.items():
        bytes_of(tensor).tofile(folder / f"{name}.bin")
    options = {"ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"}
    run = subprocess.run(
        [program, folder], capture_output=True, text=True, env=os.environ | options
    )
    if run.returncode != 0:
        raise Crash(run.stderr[:4000])
    after = {}
    for name, tensor in tensors.items():
        found = np.fromfile(folder / f"{name}.out", np.uint8)
        assert name in written or (found == bytes_of(tensor)).all(), f"{name} was written"
        if tensor.numel():  # PyTorch views no empty tensor as another dtype
            after[name] = torch.from_numpy(found).view(tensor.dtype).reshape(tensor.shape)
    return after
