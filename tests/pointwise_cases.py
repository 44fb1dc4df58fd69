"""What the tests of geglu, add_layer_norm and bias_residual share.

The tolerance: over 8 seeds, the RMS of our error is at most twice PyTorch's own in that dtype (the
worse of its layouts) plus eps / 4 of the RMS of the result; the largest error at most four times
PyTorch's largest plus eps / 4 of the largest result.  Errors are those to float64, from the
operands as they were rounded.

The Triton kernels run in Triton's interpreter where there is no GPU.  It replaces the compiler when
Triton is imported, so a test file runs its tests of kernels (test_kernel_..) again in a process
with TRITON_INTERPRET=1.  bfloat16 needs a GPU: the interpreter rounds it toward zero, the GPU to
nearest.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

SEEDS = 8
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNEL_DTYPES = DTYPES if DEVICE == "cuda" else DTYPES[:2]
BAND = 64

runs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter's process"
)
starts_interpreter = pytest.mark.skipif(
    DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process"
)


def run_kernel_tests_interpreted(file: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    command += ["-k", "test_kernel"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channels_last(tensor: Tensor) -> Tensor:
    """The same numbers, the second dimension innermost in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


class Guarded:
    """A tensor to write into: NaN, so that a hole shows, between two bands that must stay 42."""

    def __init__(self, like: Tensor, offset: int = BAND):
        self.memory = torch.full((like.numel() + BAND + offset,), 42.0, dtype=like.dtype)
        self.memory = self.memory.to(like.device)
        self.first, self.end = offset, offset + like.numel()
        self.memory[self.first : self.end] = float("nan")
        self.tensor = self.memory[self.first : self.end].as_strided(
            like.shape, like.stride(), self.first
        )

    def check(self) -> None:
        assert (self.memory[: self.first] == 42).all(), "written before the result"
        assert (self.memory[self.end :] == 42).all(), "written behind the result"
        assert not self.tensor.isnan().any(), "an element was not written"


def largest_and_square(error: Tensor) -> tuple[float, float]:
    return error.abs().max().item(), error.square().mean().item()


def over_seeds(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(largest, RMS)."""
    pairs = list(pairs)
    return max(m for m, _ in pairs), (sum(s for _, s in pairs) / len(pairs)) ** 0.5


def errors(
    case: Callable[[int], tuple[Tensor, list[Tensor], Tensor]], seeds: int = SEEDS
) -> dict[str, tuple[float, float]]:
    """{"ours" | "torch" | "result": (largest, RMS)}; case(seed) is what we say, what PyTorch says
    in each of its layouts, and the truth in float64."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": [], "result": []}
    for seed in range(seeds):
        ours, theirs, truth = case(seed)
        assert truth.dtype == torch.float64
        assert ours.shape == truth.shape
        found["ours"].append(largest_and_square(ours.double().cpu() - truth))
        found["result"].append(largest_and_square(truth))
        each = [largest_and_square(t.double().cpu() - truth) for t in theirs]
        found["torch"].append((max(m for m, _ in each), max(s for _, s in each)))
    return {name: over_seeds(pairs) for name, pairs in found.items()}


def assert_as_good_as_torch(
    case: Callable[[int], tuple[Tensor, list[Tensor], Tensor]],
    dtype: torch.dtype,
    seeds: int = SEEDS,
) -> dict[str, tuple[float, float]]:
    """The rule at the head of this file."""
    found = errors(case, seeds)
    quarter = torch.finfo(dtype).eps / 4
    each = zip((4, 2), found["torch"], found["result"], strict=True)
    limits = [factor * own + quarter * result for factor, own, result in each]
    assert found["ours"][1] <= limits[1], f"RMS: {found}"
    assert found["ours"][0] <= limits[0], f"the largest error: {found}"
    return found
