"""upsample_conv: numbers in both layouts, exact sums of integers."""

import functools

import torch

from fastdiff.ops.upsample_conv import upsample_conv, upsample_conv_ref
from tests.group_norm_cases import LAYOUTS, in_layout
from tests.on_device.cases import (
    assert_empty_and_scattered,
    assert_same_when_replayed,
    kernel,
    normal,
    seeds,
)
from tests.pointwise_cases import Guarded, assert_as_good_as_torch, random


def make(seed, shape, outputs, dtype, device, layout):
    """x, weight, bias; results have about unit variance."""
    filters = (outputs, shape[1], 3, 3)
    x, bias = normal(seed, shape, (outputs,), dtype=dtype, device=device)
    (weight,) = normal(seed + 99, filters, dtype=dtype, device=device, scale=(9 * shape[1]) ** -0.5)
    return in_layout(x, layout), in_layout(weight, layout), bias


def numbers(device, dtype):
    for shape, outputs in (((2, 24, 6, 5), 20), ((1, 64, 17, 16), 64), ((1, 3, 1, 4), 7)):
        for layout in LAYOUTS:

            def case(seed, shape=shape, outputs=outputs, layout=layout):
                operands = make(seed, shape, outputs, dtype, device, layout)
                each = [[in_layout(t, o) for t in operands[:2]] for o in LAYOUTS]
                theirs = [upsample_conv_ref(*pair, operands[2]) for pair in each]
                wide = (t.double().cpu() for t in operands)
                return upsample_conv(*operands), theirs, upsample_conv_ref(*wide)

            assert_as_good_as_torch(case, dtype, seeds(device))


def whole_numbers(device, dtype):
    """Sums of small integers: any tap at a wrong place or counted twice shows."""
    draw = random()
    x, weight = (torch.randint(-2, 3, s, generator=draw) for s in ((2, 3, 5, 7), (6, 3, 3, 3)))
    want = upsample_conv_ref(x.float(), weight.float(), None)
    for layout in LAYOUTS:
        operands = (in_layout(t.to(dtype), layout).to(device) for t in (x, weight))
        assert torch.equal(upsample_conv(*operands).float().cpu(), want), layout


def written(device, dtype):
    """The pass over memory alone."""
    for layout in LAYOUTS:
        (z,) = normal(0, (2, 4 * 5, 6, 8), dtype=dtype, device=device)
        z = in_layout(z, layout)
        out = Guarded(in_layout(torch.empty(2, 5, 10, 14, dtype=dtype, device=device), layout))
        kernel("upsample_conv", z)(z, out.tensor)
        out.check()


def edges(device, dtype):
    for layout in LAYOUTS:
        x, weight, bias = make(0, (2, 8, 5, 6), 4, dtype, device, layout)
        upsample = functools.partial(upsample_conv, weight=weight, bias=bias)
        assert upsample(x[:0]).shape == (0, 4, 10, 12)
        assert_empty_and_scattered(upsample, [x.contiguous()], [x[:0]])


def replayed(device, dtype):
    operands = make(0, (1, 32, 16, 16), 32, dtype, device, "channels_last")
    upsample_conv(*operands)  # whatever a convolution sets up
    assert_same_when_replayed(lambda: [upsample_conv(*operands)], device)


def launch(device, dtype):
    for layout in LAYOUTS:
        upsample_conv(*make(0, (2, 5, 7, 3), 6, dtype, device, layout))


ON_DEVICE = {
    "upsample_conv": {
        "numbers": numbers,
        "whole numbers": whole_numbers,
        "written": written,
        "edges": edges,
        "replayed": replayed,
        "launch": launch,
    },
}
