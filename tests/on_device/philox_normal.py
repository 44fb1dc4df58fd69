"""philox_normal: the same bits from every kernel, and those that affine_step draws."""

import pytest
import torch

from fastdiff.ops.philox_normal import philox_normal, philox_normal_ref
from tests.on_device.cases import assert_same_when_replayed, kernel

SEEDS = torch.tensor([7, -3, 2**62 + 12345, 0, -(2**63)])
SHAPES = [(1,), (6, 3), (4, 9, 7), (4, 64, 64), (1025,)]
STEP = torch.tensor(5, dtype=torch.int32)


def bits(device, dtype):
    for shape in SHAPES:
        for number, stream in ((0, 0), (2**31 - 3, 1)):
            want = philox_normal_ref(SEEDS, shape, STEP, number, stream, dtype)
            given = {"step": STEP.to(device), "noise_step": number, "stream": stream}
            got = philox_normal(SEEDS.to(device), shape, **given, dtype=dtype)
            assert torch.equal(got.cpu(), want), (shape, number, stream)
            alone = philox_normal(SEEDS[2:3].to(device), shape, **given, dtype=dtype)
            assert torch.equal(alone[0], got[2]), "depends on the batch"


def written(device, dtype):
    """Between guard bands, NaN before."""
    seeds = SEEDS.to(device)
    for size in (1, 5, 1023):
        band = torch.full((64 + 5 * size + 64,), 42.0, dtype=dtype, device=device)
        out = band[64:-64].view(5, size).fill_(float("nan"))
        kernel("philox_normal", out)(seeds, None, 0, 0, out)
        assert (band[:64] == 42).all(), "written before the result"
        assert (band[-64:] == 42).all(), "written behind the result"
        assert torch.equal(out, philox_normal(seeds, (size,), dtype=dtype))


def edges(device, dtype):
    """No sample, no element; seeds that do not lie side by side are refused."""
    seeds = SEEDS.to(device)
    assert philox_normal(seeds[:0], (4, 3), dtype=dtype).shape == (0, 4, 3)
    assert philox_normal(seeds, (4, 0), dtype=dtype).shape == (5, 4, 0)
    apart = torch.stack([seeds, seeds + 1], dim=1)[:, 0]
    with pytest.raises(ValueError, match="seeds must be a contiguous int64 tensor"):
        philox_normal(apart, (7,), dtype=dtype)


def replayed(device, dtype):
    seeds = SEEDS.to(device)
    assert_same_when_replayed(lambda: [philox_normal(seeds, (4, 33, 32), dtype=dtype)], device)


def counter_in_a_graph(device, dtype):
    """The step is read by the kernel, not when it is captured."""
    if device != "cuda":
        return
    seeds, step = SEEDS.to(device), STEP.to(device)
    philox_normal(seeds, (100,), step=step, dtype=dtype)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = philox_normal(seeds, (100,), step=step, dtype=dtype)
    for number in (0, 3):
        step.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        want = philox_normal_ref(SEEDS, (100,), None, number, 0, dtype)
        assert torch.equal(z.cpu(), want), number


def launch(device, dtype):
    philox_normal(SEEDS.to(device), (3, 7, 5), dtype=dtype)


ON_DEVICE = {
    "philox_normal": {
        "bits": bits,
        "written": written,
        "edges": edges,
        "replayed": replayed,
        "counter": counter_in_a_graph,
        "launch": launch,
    },
}
