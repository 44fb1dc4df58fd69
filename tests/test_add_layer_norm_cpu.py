"""The CPU kernel of add_layer_norm: the same bits on every instruction set and for every number of
threads, numbers, means far from zero, memory around the results.
"""

import pytest
import torch

import fastdiff
from fastdiff.accelerate import choice
from fastdiff.ops.add_layer_norm import MAX_WIDTH, add_layer_norm_ref, launch_cpu
from tests.pointwise_cases import DTYPES, Guarded, assert_as_good_as_torch
from tests.test_add_layer_norm import EPS, WIDTHS, against_torch, assert_sound, close, make

_C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")


def native(x, residual=None, weight=None, bias=None, eps=EPS, offset=64):
    """(y, total) by the CPU kernel, into NaN between guard bands."""
    y, total = Guarded(x, offset), Guarded(x, offset)
    launch_cpu(x, residual, weight, bias, eps, y.tensor, None if residual is None else total.tensor)
    y.check()
    if residual is None:
        return y.tensor, x
    total.check()
    return y.tensor, total.tensor


@pytest.fixture
def settings():
    """What is set back after the test: the instruction set and the number of threads."""
    before, threads = _C.isa(), torch.get_num_threads()
    yield
    _C.set_isa(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(7, 331), (37, 1025), (131, 320)], ids=str)
@pytest.mark.usefixtures("settings")
def test_bits_do_not_depend_on_isa_or_threads(shape, residual, dtype):
    """Below 32,768 elements and above; rows that no number of threads divides."""
    tensors, results = make(1, shape, dtype, mean=3.0, residual=residual), []
    for isa in _C.isas():
        _C.set_isa(isa)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native(*tensors))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])
    _C.set_isa("baseline")
    x, other, *parameters = tensors
    for row in (0, shape[0] - 1):
        part = slice(row, row + 1)
        alone = native(x[part], other[part] if residual else None, *parameters)
        assert torch.equal(alone[0], results[0][0][part])
        assert torch.equal(alone[1], results[0][1][part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [*WIDTHS, 15, 16, 17, 31, 33, 95, 513])
def test_numbers(width, dtype):
    found = assert_as_good_as_torch(against_torch(native, (5, width), dtype), dtype)
    if width > 1:  # of one number y is its bias, or wholly cancels
        assert_sound(found, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", [{"residual": False}, {"affine": False}, {"std": 1e-3}], ids=str)
def test_variants(spec, dtype):
    case = against_torch(native, (5, 320), dtype, **spec)
    assert_sound(assert_as_good_as_torch(case, dtype), dtype)


@pytest.mark.parametrize("width", [65, 320, 1281])
@pytest.mark.parametrize("ratio", [100, 1000, 30_000])
def test_a_mean_far_from_zero(width, ratio):
    """No factor for |mean| / std here: the kernel averages the deviations again."""
    case = against_torch(native, (3, width), torch.float32, mean=float(ratio))
    assert_sound(assert_as_good_as_torch(case, torch.float32), torch.float32)


def test_a_first_element_far_from_the_others():
    """The mean is found from differences to the first element, whatever that is."""

    def launch(x, residual, weight, bias, eps):
        x[:, 0] = 0.0
        return native(x, residual, weight, bias, eps=eps)

    case = against_torch(launch, (3, 640), torch.float32, mean=1000.0)
    assert_sound(assert_as_good_as_torch(case, torch.float32), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_row(dtype):
    case = against_torch(native, (2, MAX_WIDTH), dtype)
    assert_sound(assert_as_good_as_torch(case, dtype, seeds=2), dtype)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 3), (5,), (2, 3, 1, 7), (33, 320)], ids=str)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_shapes_alignments_and_parameters_in_float32(shape, offset):
    for dtype in DTYPES:
        x, residual, weight, bias = make(0, shape, dtype)
        y, total = native(x, residual, weight.float(), bias.float(), offset=offset)
        for parameters in ((weight, bias), (weight.float(), bias), (weight, bias.float())):
            same = native(x, residual, *parameters)
            assert torch.equal(y, same[0])
        expected = add_layer_norm_ref(x, residual, weight, bias, EPS)
        assert torch.equal(total, expected[1])
        close(y, expected[0])


def test_rows_without_variance_and_rows_that_are_not_finite():
    x = torch.randn(7, 320, generator=torch.Generator().manual_seed(0))
    x[1], x[3] = 1234.567, 0.0
    y = native(x)[0]
    assert not y[1].any()
    assert not y[3].any()
    x[4, 7], x[6, 319] = float("nan"), float("inf")
    out = torch.zeros(7, 320)
    launch_cpu(x, None, None, None, EPS, out, None)
    assert out[4].isnan().all()
    assert out[6].isnan().all(), "as PyTorch's"
    others = [0, 1, 2, 3, 5]
    assert torch.equal(out[others], y[others])


def test_eps_counts():
    x = torch.tensor([[-1.0, 1.0]])
    assert torch.equal(native(x, eps=3.0)[0], x / 2)


def test_networks_choose_it_where_it_pays():
    """Tokens enough that the pass it saves is more than the call costs."""
    few, many = torch.empty(2, 256, 320), torch.empty(2, 256, 1280)
    assert not choice.has_kernel("add_layer_norm", few)
    assert choice.has_kernel("add_layer_norm", many)
    with fastdiff.use_backend("cpu"):
        assert choice.has_kernel("add_layer_norm", few)


def test_the_extension_refuses_what_it_cannot_do():
    x, out = torch.ones(2, 4), torch.ones(2, 4)
    at, to = x.data_ptr(), out.data_ptr()
    plain, sizes = (0, 0, 0), (2, 4, EPS, 1)
    with pytest.raises(ValueError, match="must be there and not empty"):
        _C.add_layer_norm((0, 0, 0, 0, to, 0), plain, *sizes)
    with pytest.raises(ValueError, match="a dtype is 0, 1 or 2"):
        _C.add_layer_norm((at, 0, 0, 0, to, 0), (3, 0, 0), *sizes)
    with pytest.raises(ValueError, match="at most 8192 elements, got 8193"):
        _C.add_layer_norm((at, 0, 0, 0, to, 0), plain, 1, MAX_WIDTH + 1, EPS, 1)
    with pytest.raises(ValueError, match="total must be there with residual"):
        _C.add_layer_norm((at, at, 0, 0, to, 0), plain, *sizes)
    with pytest.raises(ValueError, match="weight and bias are float32 or of the dtype of x"):
        _C.add_layer_norm((at, 0, at, 0, to, 0), (1, 2, 0), *sizes)
