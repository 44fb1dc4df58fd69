"""What the checks share."""

import torch

from fastdiff import backends
from tests.pointwise_cases import random

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def seeds(device):
    """On the CPU these checks are only seen to work: one."""
    return 8 if device == "cuda" else 1


def kernel(op, tensor):
    """What the chosen backend launches."""
    return backends.resolve(op, backends.Key(tensor.device.type, tensor.dtype))


def assert_same_when_replayed(run, device):
    """Three calls, one on another stream, and two replays of a CUDA graph give the same bits."""
    expected = [t.clone() for t in run()]

    def same(got):
        for a, b in zip(got, expected, strict=True):
            assert not b.isnan().any()
            assert torch.equal(a, b)

    same(run())
    if device != "cuda":
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = run()
    torch.cuda.synchronize()
    same(got)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for _ in range(2):
        for t in got:
            t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        same(got)


def normal(seed, *shapes, dtype, device="cpu", scale=1.0):
    draw = random(seed)
    return [(torch.randn(s, generator=draw) * scale).to(dtype).to(device) for s in shapes]
