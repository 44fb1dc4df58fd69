"""Check, then time, attention against PyTorch's scaled_dot_product_attention.

    sdpa              what PyTorch chooses by itself, on views of (B, N, H, D)
    sdpa cudnn ..     each of its backends that runs there; those that do not, with the reason,
                      stand in the record under "not run"
    sdpa fa3, fa4     its flash backend with FA3 or FA4 in it, where PyTorch can activate them
                      (flash.py); with the reason under "not run" where it cannot
    torch.compile     of the formula by scaled_dot_product_attention

On a CUDA device what is timed is a graph of 20 calls, as pointwise.py says; flops and bytes are
those of all 20.  Every contestant allocates its result.  Flops count products and sums of the two
matrix products alone, bytes q, k, v and out once.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import flash
from benchmarks.pointwise import IN_A_GRAPH, ROUNDINGS, draw, graph
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS, measure
from fastdiff.ops._attention import sdpa

TORCH = "sdpa"  # PyTorch's own choice
KINDS = {
    f"{TORCH} cudnn": SDPBackend.CUDNN_ATTENTION,
    f"{TORCH} flash": SDPBackend.FLASH_ATTENTION,
    f"{TORCH} efficient": SDPBackend.EFFICIENT_ATTENTION,
    f"{TORCH} math": SDPBackend.MATH,
}
Attention = Callable[..., Tensor]
Shape = tuple[int, int, int, int, int]  # B, H, N, M, D


def operands(shape: Shape, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, n, m, width = shape
    shapes = [(batch, length, heads, width) for length in (n, m, m)]
    q, k, v = draw(*shapes, dtype=dtype)
    assert q is not None
    assert k is not None
    assert v is not None
    return q, k, v


def on(kind: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(kind):
        return sdpa(q, k, v)


def on_flash(implementation: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with flash.activated(implementation):
        return on(SDPBackend.FLASH_ATTENTION, q, k, v)


def words_of(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def held(name: str) -> contextlib.AbstractContextManager[None]:
    """For as long as this contestant is checked and captured."""
    there = flash.NAMES.get(name.removeprefix(f"{TORCH} "))
    return contextlib.nullcontext() if there is None else flash.activated(there)


def why_not_torch() -> dict[str, str]:
    """Which of PyTorch's backends are not there in this process, before a tensor is seen."""
    found = {f"{TORCH} {name}": flash.why_not(there) for name, there in flash.NAMES.items()}
    if (active := flash.active_flash()) != flash.BUILT_IN:
        found[f"{TORCH} flash"] = f"PyTorch's flash attention is {active} in this process"
    return {name: why for name, why in found.items() if why is not None}


def peers(args: tuple[Tensor, ...], compiles: bool) -> tuple[dict[str, Attention], dict[str, str]]:
    """Those that run on such tensors, and why the others do not."""
    found: dict[str, Attention] = {TORCH: sdpa}
    missing = why_not_torch()
    candidates: dict[str, Attention] = {n: functools.partial(on, k) for n, k in KINDS.items()}
    for name, there in flash.NAMES.items():
        candidates[f"{TORCH} {name}"] = functools.partial(on_flash, there)
    for name, run in candidates.items():
        if name in missing:
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                run(*args)
                found[name] = run
            except Exception as error:  # FA3 and FA4 refuse by whatever their packages raise
                if isinstance(error, flash.NotPutBack):
                    raise
                reasons = [str(w.message).split(" (Triggered")[0] for w in said]
                missing[name] = " ".join([words_of(error), *reasons])[:600]
    if compiles:
        torch._dynamo.reset()
        found[COMPILED] = torch.compile(sdpa, fullgraph=True, dynamic=False)
    return found, missing


def compare(
    benchmark: Any,
    compiles: bool,
    op: str,
    case: dict[str, str],
    ours: dict[str, Attention],
    shape: Shape,
    dtype: str,
) -> None:
    """`ours` is {"fastdiff": what is offered, "fastdiff ..": each kernel of ours that runs}."""
    args = operands(shape, dtype)
    q = args[0]
    others, missing = peers(args, compiles)
    calls = {n: functools.partial(f, *args) for n, f in {**ours, **others}.items()}
    truth = sdpa(*(t.double() for t in args))
    bound = ROUNDINGS * torch.finfo(q.dtype).eps * truth.abs().max().item()
    errors = {}
    for name, call in calls.items():
        with held(name):
            got = call()
        assert (got.shape, got.dtype) == (q.shape, q.dtype), name
        assert got.is_contiguous(), name
        errors[name] = (got.double() - truth).abs().max().item()
        assert errors[name] <= bound, name
    del truth

    batch, heads, n, m, width = shape
    repeats = IN_A_GRAPH if q.is_cuda else 1
    benchmark.group = "/".join([op, *case.values()])
    benchmark.extra_info |= {
        "case": case,
        "shape": dict(zip(("B", "H", "N", "M", "D"), shape, strict=True)),
        "flops": repeats * 4 * batch * heads * n * m * width,
        "bytes": repeats * (2 * q.nbytes + 2 * args[1].nbytes),
        "repeats": repeats,
        "flash": flash.active_flash(),
        "not run": missing,
        "check": {"largest difference from float64": errors, "bound": bound},
    }
    assert OURS in calls
    laps = {}
    for name, call in calls.items():
        with held(name):
            laps[name] = functools.partial(list, [graph(call) if q.is_cuda else call])
    rounds = max(10, min(100, 20_000_000_000 // (batch * heads * n * m * width)))
    measure(benchmark, laps, skip=0, rounds=rounds)
