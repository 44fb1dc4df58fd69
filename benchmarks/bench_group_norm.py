"""group_norm with SiLU at the shapes of U-Nets and of the VAE's decoder: 2 reads and 1 write.

    fastdiff              CPU: into memory that is there; CUDA: a new tensor, in the pool of a graph
    fastdiff, new memory  CPU: a new tensor in each call, as PyTorch makes two
    fastdiff triton, cuda CUDA: each backend that can run, beside the one that is chosen
    eager formula         `silu(group_norm(x, 32, weight, bias))`, in the same layout
    torch.compile         of that; on the CPU at one shape, for it compiles for seconds

CPU calls are timed one by one, with one thread and with two; on a CUDA device what is timed is a
graph of 20 calls, as pointwise.py says, and bytes and flops are those of all 20.  "target" of the
record: how many times as long as fastdiff each peer shall take.  Where nothing is timed for its own
sake, pictures of at most 64x64 do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pointwise import DEVICE, IN_A_GRAPH, ROUNDINGS, draw, graph
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, measure, small
from fastdiff import backends
from fastdiff.ops.group_norm import group_norm, group_norm_out

EAGER, NEW = "eager formula", "fastdiff, new memory"
GROUPS = 32
FLOPS = 15  # of an element: 4 for the sums, 2 for the affine map, 9 for SiLU with its exponential
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}

ON_CUDA = [  # (N, C, H, W): SD1.5 at 512x512, SDXL at 1024x1024, and the VAE at both
    *[(2, c, 64, 64) for c in (320, 640, 960)],
    *[(2, c, 32, 32) for c in (320, 640, 960, 1280, 1920)],
    *[(2, c, 16, 16) for c in (640, 1280, 1920, 2560)],
    *[(2, c, 8, 8) for c in (1280, 2560)],
    *[(2, c, 128, 128) for c in (320, 640, 960)],
    *[(2, c, 64, 64) for c in (1280, 1920)],
    (2, 2560, 32, 32),
    *[(1, 128, n, n) for n in (512, 1024)],
    *[(1, 256, n, n) for n in (256, 512, 1024)],
    *[(1, 512, n, n) for n in (64, 128, 256, 512)],
]
ON_CPU = [
    (1, 320, 64, 64),
    (1, 640, 32, 32),
    (1, 1280, 16, 16),
    (1, 320, 128, 128),
    (1, 128, 256, 256),
]
SHAPES = ON_CUDA if DEVICE == "cuda" else ON_CPU
DTYPES = ("bfloat16",) if DEVICE == "cuda" else ("float32", "bfloat16")
THREADS = (1,) if DEVICE == "cuda" else (1, 2)


class Problem(NamedTuple):
    operands: tuple[Tensor, Tensor, Tensor]  # x, weight, bias
    truth: Tensor  # from float64
    bound: float  # of our error
    naive: float  # of that of PyTorch, whose sums over rows of channels last are plain chains


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, GROUPS, weight, bias))


@functools.lru_cache(maxsize=1)
def problem(shape: tuple[int, ...], layout: str, dtype: str) -> Problem:
    x, weight, bias = draw(shape, shape[1:2], shape[1:2], dtype=dtype)
    assert x is not None
    assert weight is not None
    assert bias is not None
    x = x.contiguous(memory_format=LAYOUTS[layout])
    truth = F.group_norm(x.double(), GROUPS, weight.double(), bias.double())
    largest = F.silu(truth, inplace=True).max().item()  # it is no smaller than -0.28
    bound = ROUNDINGS * torch.finfo(x.dtype).eps * largest
    chain = (x[0, 0].numel() ** 0.5) * torch.finfo(torch.float32).eps * largest  # a random walk
    return Problem((x, weight, bias), truth, bound, bound + chain)


def contestants(x: Tensor, compiles: bool) -> dict[str, Callable[..., Tensor]]:
    ours = functools.partial(_ours, None)
    found: dict[str, Callable[..., Tensor]] = {OURS: ours}
    if x.is_cuda:
        key = backends.Key("cuda", x.dtype)
        for backend in ("triton", "cuda"):
            if backends.why_not("group_norm", backend, key) is None:
                found[f"fastdiff {backend}"] = functools.partial(_on, backend)
    else:
        found |= {OURS: functools.partial(_ours, torch.empty_like(x)), NEW: ours}
    found[EAGER] = formula
    if not x.is_cuda and (x.shape, x.dtype) != (ON_CPU[0], torch.float32):
        compiles = False
    if compiles:
        torch._dynamo.reset()
        found[COMPILED] = torch.compile(formula, fullgraph=True, dynamic=False)
    return found


def _ours(out: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Into out, or into new memory."""
    if out is None:
        y: Tensor = group_norm(x, GROUPS, weight, bias, silu=True)
        return y
    group_norm_out(x, GROUPS, weight, bias, out=out, silu=True)
    return out


def _on(backend: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with backends.use_backend(backend):
        return _ours(None, x, weight, bias)


def target(x: Tensor, layout: str, threads: int) -> dict[str, float]:
    """How many times as long as fastdiff each peer shall take."""
    if x.is_cuda:
        large = layout == "channels last" and x.nbytes > 16e6
        return {EAGER: 8, COMPILED: 1.3} if large else {EAGER: 1, COMPILED: 1}
    if threads > 1:
        least = 1.3 if x.nbytes >= 1e6 else 1.0
    else:  # where PyTorch's new memory is mapped page by page, 3
        least = 3.0 if x.nbytes >= 32 << 20 else 1.3
    return {EAGER: max(least, 1.5) if x.dtype == torch.bfloat16 else least}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm(
    benchmark: Any, compiles: bool, threads: int, dtype: str, layout: str, shape: tuple[int, ...]
):
    torch.set_num_threads(threads)
    where = "x".join(map(str, shape))
    if small(benchmark):
        shape = (*shape[:2], *(min(side, 64) for side in shape[2:]))
    operands, truth, bound, naive = problem(shape, layout, dtype)
    x = operands[0]
    calls = {n: functools.partial(run, *operands) for n, run in contestants(x, compiles).items()}
    errors = {}
    for name, call in calls.items():
        got, own = call(), name.startswith(OURS)
        assert (got.shape, got.dtype) == (x.shape, x.dtype), name
        assert got.stride() == x.stride() or not own, name
        errors[name] = got.double().sub_(truth).abs_().max().item()
        assert errors[name] <= (bound if own else naive), name

    case = {"shape": where, "layout": layout, "dtype": dtype}
    case |= {} if x.is_cuda else {"threads": f"{threads} thread{'s'[: threads - 1]}"}
    case["backend"] = backends.chosen("group_norm", backends.Key(x.device.type, x.dtype))
    repeats = IN_A_GRAPH if x.is_cuda else 1
    benchmark.group = "/".join(["group_norm", *case.values()])
    benchmark.extra_info |= {
        "case": case,
        "bytes": repeats * 3 * x.nbytes,
        "flops": repeats * FLOPS * x.numel(),
        "target": target(x, layout, threads),
        "check": {"largest difference from float64": errors, "bound": bound, "of peers": naive},
    }
    laps = {n: functools.partial(list, [graph(c) if x.is_cuda else c]) for n, c in calls.items()}
    measure(benchmark, laps, skip=0, rounds=max(10, min(60, 20_000_000 // x.numel())))
