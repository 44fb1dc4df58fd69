"""The CPU kernel of geglu: the same bits on every instruction set and for every number of threads,
numbers, memory around the result, and gelu against mpmath.
"""

import mpmath
import pytest
import torch

from fastdiff.ops.geglu import geglu_ref, launch_cpu
from tests.pointwise_cases import DTYPES, Guarded, assert_as_good_as_torch
from tests.test_geglu import SHAPES, against_torch, close, draw

_C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")


def native(x, offset=64):
    """y by the CPU kernel, into NaN between guard bands."""
    out = Guarded(x.new_empty((*x.shape[:-1], x.shape[-1] // 2)), offset)
    launch_cpu(x, out.tensor)
    out.check()
    return out.tensor


@pytest.fixture
def settings():
    """What is set back after the test: the instruction set and the number of threads."""
    before, threads = _C.isa(), torch.get_num_threads()
    yield
    _C.set_isa(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 2 * 331), (3, 2 * 1025), (37, 2 * 1280)], ids=str)
@pytest.mark.usefixtures("settings")
def test_bits_do_not_depend_on_isa_or_threads(shape, dtype):
    """Below 32,768 elements and above; pieces that begin anywhere in a row."""
    x, results = draw(1, shape, dtype, scale=2.0), []
    for isa in _C.isas():
        _C.set_isa(isa)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native(x))
    assert all(torch.equal(results[0], other) for other in results[1:])
    _C.set_isa("baseline")
    alone = torch.cat([native(row[None]) for row in x])
    assert torch.equal(alone, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 100.0])
def test_numbers(dtype, scale):
    assert_as_good_as_torch(against_torch(native, (3, 2050), dtype, scale), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_shapes_and_alignments(shape, offset):
    for dtype in DTYPES:
        x = draw(1, shape, dtype)
        close(native(x, offset), geglu_ref(x))


def test_gelu_against_mpmath():
    """The accuracy that csrc/geglu.cpp states, over 2,001 gates and those near zero."""
    gate = torch.cat([torch.linspace(-13, 13, 2001), torch.logspace(-30, 0, 61)])
    eps = torch.finfo(torch.float32).eps
    for dtype in DTYPES:
        g = gate.to(dtype)
        y = native(torch.stack([torch.ones_like(g), g], dim=-1))[:, 0]
        for z, got in zip(g.tolist(), y.double().tolist(), strict=True):
            truth = float(z * mpmath.ncdf(z))
            below = float(mpmath.ncdf(-abs(z)))
            if dtype == torch.float32:
                error = (2 * eps if z > 0 else 3e-6) * abs(truth)
            else:
                error = abs(z) * 6e-5 * max(below, 1e-4) + torch.finfo(dtype).eps / 2 * abs(truth)
                error += 2.0**-25 if dtype == torch.float16 else 0  # half of the least number
            assert abs(got - truth) <= error + (1e-11 if z < -5.5 else 0), (dtype, z)


def test_values_at_the_ends():
    infinite = float("inf")
    gate = torch.tensor([infinite, -infinite, float("nan"), -0.0, 65504.0, -65504.0])
    x = torch.stack([torch.ones_like(gate), gate], dim=-1)
    out = torch.full((6, 1), 42.0)
    launch_cpu(x, out)
    y = out[:, 0]
    assert y[0] == infinite
    assert y[2].isnan()
    assert y[3] == 0
    assert y[4] == 65504
    assert y[[1, 5]].abs().max() <= 1e-20
    launch_cpu(torch.tensor([[float("nan"), 1.0]]), out[:1])
    assert out[0].isnan()


def test_the_extension_refuses_what_is_not_there():
    x, out = torch.ones(2, 4), torch.ones(2, 2)
    with pytest.raises(ValueError, match="must be there and not empty"):
        _C.geglu(0, out.data_ptr(), 0, 2, 2, 1)
    with pytest.raises(ValueError, match="a dtype is 0, 1 or 2"):
        _C.geglu(x.data_ptr(), out.data_ptr(), 3, 2, 2, 1)
