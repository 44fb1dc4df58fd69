"""The CPU kernel of bias_residual: the bits of the reference on every instruction set and for every
number of threads, pieces of every size, memory around the result.
"""

import pytest
import torch

import fastdiff
from fastdiff.accelerate import choice
from fastdiff.ops.bias_residual import bias_residual_ref, launch_cpu
from tests.pointwise_cases import DTYPES, Guarded, assert_as_good_as_torch
from tests.test_bias_residual import LAYOUTS, SHAPES, against_torch, make

_C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")


def native(x, bias=None, residual=None, scale=1.0, offset=64):
    """y by the CPU kernel, into NaN between guard bands."""
    out = Guarded(x, offset)
    launch_cpu(x, bias, residual, scale, out.tensor)
    out.check()
    return out.tensor


@pytest.fixture
def settings():
    """What is set back after the test: the instruction set and the number of threads."""
    before, threads = _C.isa(), torch.get_num_threads()
    yield
    _C.set_isa(before)
    torch.set_num_threads(threads)


# Channels last: few channels, whose places are taken together, one piece, and more; contiguous: a
# channel of more than a piece.
SIZES = [(3, 5, 7), (2, 7, 5003), (2, 511, 65), (2, 512, 33), (2, 513, 33), (1, 640, 8, 9)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.usefixtures("settings")
def test_bits_do_not_depend_on_isa_or_threads(shape, layout, dtype):
    """Below 32,768 elements and above: always those of the reference."""
    x, bias, residual = make(1, shape, dtype, layout=layout)
    expected = bias_residual_ref(x, bias, residual, 0.7)
    for isa in _C.isas():
        _C.set_isa(isa)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(native(x, bias, residual, 0.7), expected), (isa, threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", ["c", "nc", None])
@pytest.mark.parametrize("residual", [False, True])
def test_numbers(dtype, layout, bias, residual):
    spec = {"layout": layout, "bias": bias, "residual": residual}
    assert_as_good_as_torch(against_torch(native, (2, 20, 5, 7), dtype, **spec), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_shapes_alignments_and_a_bias_in_float32(shape, layout, offset):
    for dtype in DTYPES:
        for kind in ("c", "nc"):
            x, bias, residual = make(0, shape, dtype, bias=kind, layout=layout)
            y = native(x, bias.float(), residual, offset=offset)
            assert torch.equal(y, bias_residual_ref(x, bias, residual, 1.0))


def test_without_a_bias_the_sign_of_zero_stays():
    x = torch.full((1, 2, 3), -0.0)
    assert native(x).signbit().all()
    assert not native(x, torch.zeros(2)).signbit().any()


def test_values_that_are_not_finite():
    infinite = float("inf")
    x = torch.tensor([[[infinite, -infinite, float("nan"), 1.0]]])
    out = torch.zeros_like(x)
    launch_cpu(x, torch.zeros(1), torch.zeros_like(x), 2.0, out)
    assert out[0, 0, 0] == infinite
    assert out[0, 0, 1] == -infinite
    assert out[0, 0, 2].isnan()
    assert out[0, 0, 3] == 2.0
    for dtype in DTYPES[1:]:
        out = torch.zeros_like(x, dtype=dtype)
        launch_cpu(x.to(dtype), None, None, 1.0, out)
        assert torch.equal(out.float().nan_to_num(7.0, 8.0, 9.0), x.nan_to_num(7.0, 8.0, 9.0))


def test_networks_leave_it_to_pytorch():
    """Whose convolution adds its bias, and whose residual is added in place (choice.CPU_LEAST)."""
    x = torch.empty(2, 320, 64, 64)
    assert not choice.has_kernel("bias_residual", x)
    with fastdiff.use_backend("cpu"):
        assert choice.has_kernel("bias_residual", x)


def test_the_extension_refuses_what_is_not_there():
    x, out = torch.ones(1, 2, 4), torch.ones(1, 2, 4)
    rest = ((1, 2, 4), False, False, 1.0, 1)
    with pytest.raises(ValueError, match="must be there and not empty"):
        _C.bias_residual((0, 0, 0, out.data_ptr()), 0, *rest)
    with pytest.raises(ValueError, match="must be there and not empty"):
        _C.bias_residual((x.data_ptr(), 0, 0, out.data_ptr()), 0, (1, 0, 4), *rest[1:])
    with pytest.raises(ValueError, match="a dtype is 0, 1 or 2"):
        _C.bias_residual((x.data_ptr(), 0, 0, out.data_ptr()), 3, *rest)
