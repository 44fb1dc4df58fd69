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


def scattered(tensor):
    """The same numbers, each beside a NaN: no layout that a kernel reads in place."""
    memory = tensor.new_full((*tensor.shape, 2), float("nan"))
    memory[..., 0] = tensor
    return memory[..., 0]


def results(found):
    return [found] if torch.is_tensor(found) else list(found)


def near(a, b):
    """Within eight roundings of the largest."""
    return bool(((a - b).abs() <= 8 * torch.finfo(b.dtype).eps * b.abs().max()).all())


def assert_empty_and_scattered(run, operands, empty, same=torch.equal):
    """No sample gives results of their shapes; scattered operands those of dense ones."""
    for none, some in zip(results(run(*empty)), results(run(*operands)), strict=True):
        assert none.numel() == 0
        assert (none.dtype, none.dim()) == (some.dtype, some.dim())
    got = results(run(*(scattered(t) for t in operands)))
    for a, b in zip(got, results(run(*operands)), strict=True):
        assert not b.isnan().any()
        assert same(a, b)


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
