"""cross_attention: numbers at the widths and lengths of models, ragged ends, layouts."""

import torch

from fastdiff.ops.cross_attention import cross_attention, why_not
from tests.attention_cases import LAYOUTS, against_torch, draw
from tests.on_device.cases import (
    assert_empty_and_scattered,
    assert_same_when_replayed,
    kernel,
    near,
    seeds,
)
from tests.pointwise_cases import Guarded, assert_as_good_as_torch

CASES = [  # queries, keys, heads, width
    *[(33, 77, 2, width) for width in (40, 64, 80, 128, 160)],
    *[(65, keys, 2, 64) for keys in (1, 16, 154, 333)],
    (1, 77, 1, 8),
    (1031, 77, 3, 40),
]


def specs(dtype):
    """Those that the kernel takes, where there is one."""
    for n, m, heads, width in CASES:
        spec = {"n": n, "m": m, "heads": heads, "width": width, "dtype": dtype}
        q, k, _ = draw(0, **spec)
        if not q.is_cuda or why_not(q, k) is None:
            yield spec


def numbers(device, dtype):
    found = list(specs(dtype))
    assert len(found) >= 5, "the kernel takes hardly anything"
    for spec in found:
        case = against_torch(cross_attention, **spec)
        assert_as_good_as_torch(case, dtype, seeds(device))


def layouts(device, dtype):
    for layout in LAYOUTS:
        for size in (1.0, 20.0):  # of q: a softmax of one key
            case = against_torch(cross_attention, dtype=dtype, layout=layout, size=size)
            assert_as_good_as_torch(case, dtype, seeds(device))


def written(device, dtype):
    for layout in LAYOUTS:
        q, k, v = draw(0, n=37, width=40, dtype=dtype, layout=layout)
        out = Guarded(torch.empty(q.shape, dtype=dtype, device=q.device))
        kernel("cross_attention", q)(q, k, v, 40**-0.5, out.tensor)
        out.check()
        assert torch.equal(out.tensor, cross_attention(q, k, v))


def edges(device, dtype):
    operands = draw(0, n=37, width=40, dtype=dtype)
    same = torch.equal if device == "cuda" else near  # PyTorch sums in another order
    assert_empty_and_scattered(cross_attention, operands, [t[:0] for t in operands], same)


def batch(device, dtype):
    q, k, v = draw(0, batch=4, n=70, dtype=dtype)
    whole = cross_attention(q, k, v)
    one = cross_attention(q[2:3, :50], k[2:3], v[2:3])
    assert torch.equal(one[0], whole[2, :50]), "depends on other rows"


def replayed(device, dtype):
    operands = draw(0, n=256, width=64, dtype=dtype)
    assert_same_when_replayed(lambda: [cross_attention(*operands)], device)


def launch(device, dtype):
    for layout in LAYOUTS:
        cross_attention(*draw(0, n=37, width=40, dtype=dtype, layout=layout))


ON_DEVICE = {
    "cross_attention": {
        "numbers": numbers,
        "layouts": layouts,
        "written": written,
        "batch": batch,
        "edges": edges,
        "replayed": replayed,
        "launch": launch,
    },
}
