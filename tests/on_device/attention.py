"""attention: numbers at the widths of models, masks, ragged ends; the kernel, if one is forced."""

import torch

from fastdiff.ops.attention import attention
from tests.attention_cases import LAYOUTS, against_torch, draw
from tests.on_device.cases import (
    assert_empty_and_scattered,
    assert_same_when_replayed,
    kernel,
    near,
    seeds,
)
from tests.pointwise_cases import DEVICE, Guarded, assert_as_good_as_torch, random

CASES = [  # queries, keys, width
    *[(129, 129, width) for width in (40, 64, 80, 128, 160)],
    (70, 70, 512),
    (1, 1, 64),
    (65, 1031, 40),
    (300, 77, 64),
    (512, 512, 64),
]


def numbers(device, dtype):
    for n, m, width in CASES:
        spec = {"n": n, "m": m, "width": width, "dtype": dtype}
        assert_as_good_as_torch(against_torch(attention, **spec), dtype, seeds(device))


def layouts(device, dtype):
    for layout in LAYOUTS:
        for size in (1.0, 20.0):  # of q: a softmax of one key
            spec = {"n": 70, "m": 65, "layout": layout, "size": size, "dtype": dtype}
            assert_as_good_as_torch(against_torch(attention, **spec), dtype, seeds(device))


def masks(device, dtype):
    """Keys left out, and numbers added; 65 keys fill no tile."""

    def some(seed):
        there = torch.rand(2, 1, 33, 65, generator=random(seed)) < 0.7
        there[..., 0] = True  # a row without a key is another test
        return there

    def added(seed):
        return torch.randn(1, 2, 33, 65, generator=random(seed)).to(dtype)

    for mask in (some, added):
        spec = {"m": 65, "dtype": dtype, "mask": mask}
        assert_as_good_as_torch(against_torch(attention, **spec), dtype, seeds(device))


def rows_without_a_key(device, dtype):
    q, k, v = draw(0, dtype=dtype)
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    mask[3] = False
    out = attention(q, k, v, mask=mask)
    assert (out[:, 3] == 0).all()
    assert not out.isnan().any()
    assert (out[:, 4] != 0).any()


def written(device, dtype):
    for layout in LAYOUTS:
        q, k, v = draw(0, n=37, m=70, width=40, dtype=dtype, layout=layout)
        out = Guarded(torch.empty(q.shape, dtype=dtype, device=q.device))
        kernel("attention", q)(q, k, v, None, 40**-0.5, out.tensor)
        out.check()
        assert torch.equal(out.tensor, attention(q, k, v))


def edges(device, dtype):
    operands = draw(0, n=37, m=70, width=40, dtype=dtype)
    same = torch.equal if device == "cuda" else near  # PyTorch sums in another order
    assert_empty_and_scattered(attention, operands, [t[:0] for t in operands], same)
    q, k, v = operands
    assert (attention(q, k[:, :0], v[:, :0]) == 0).all(), "a row without a key is 0"


def replayed(device, dtype):
    operands = draw(0, n=256, m=256, width=64, dtype=dtype)
    assert_same_when_replayed(lambda: [attention(*operands)], device)


def launch(device, dtype):
    for n, m, width in CASES[:7]:
        q, k, v = draw(0, n=n, m=m, width=width, dtype=dtype)
        attention(q, k, v)
    mask = torch.ones(n, m, dtype=torch.bool, device=DEVICE)
    attention(q, k, v, mask=mask)


ON_DEVICE = {
    "attention": {
        "numbers": numbers,
        "layouts": layouts,
        "masks": masks,
        "rows without a key": rows_without_a_key,
        "written": written,
        "edges": edges,
        "replayed": replayed,
        "launch": launch,
    },
}
