"""upsample_conv: contract, numbers, errors, inside PyTorch, and the Triton kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops.upsample_conv import (
    launch_reference,
    pays,
    phase_weights,
    upsample_conv,
    upsample_conv_ref,
)
from tests import compile_gates
from tests.pointwise_cases import (
    DEVICE,
    DTYPES,
    KERNEL_DTYPES,
    Guarded,
    assert_as_good_as_torch,
    channels_last,
    random,
    run_kernel_tests_interpreted,
    runs_kernels,
    starts_interpreter,
)

OP = torch.ops.fastdiff.upsample_conv.default
LAYOUTS = {"contiguous": lambda t: t, "channels_last": channels_last}


def make(seed, shape, outputs, dtype=torch.float32, bias=True, layout="contiguous"):
    """x, weight, bias; results have about unit variance."""
    generator = random(seed)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(outputs, shape[1], 3, 3, generator=generator) / (9 * shape[1]) ** 0.5
    b = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    return [LAYOUTS[layout](x.to(dtype)), LAYOUTS[layout](weight.to(dtype)), b]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [False, True])
def test_numbers(dtype, layout, bias):
    """Against PyTorch's two operators in both layouts, by the rule of every op."""

    def case(seed):
        operands = make(seed, (2, 24, 6, 5), 20, dtype, bias, layout)
        theirs = []
        for arrange in LAYOUTS.values():
            x, weight, b = operands
            theirs.append(upsample_conv_ref(arrange(x), arrange(weight), b))
        wide = (None if t is None else t.double() for t in operands)
        return upsample_conv(*operands), theirs, upsample_conv_ref(*wide)

    assert_as_good_as_torch(case, dtype, seeds=8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_numbers_are_exact(layout):
    """Sums of small integers: any tap at a wrong place or counted twice shows."""
    generator = random()
    x = LAYOUTS[layout](torch.randint(-8, 9, (2, 3, 4, 5), generator=generator).float())
    weight = LAYOUTS[layout](torch.randint(-8, 9, (6, 3, 3, 3), generator=generator).float())
    bias = torch.randint(-8, 9, (6,), generator=generator).float()
    assert torch.equal(upsample_conv(x, weight, bias), upsample_conv_ref(x, weight, bias))
    assert torch.equal(upsample_conv(x, weight), upsample_conv_ref(x, weight, None))


@pytest.mark.parametrize("last", [False, True])
def test_phase_weights_are_rounded_once(last):
    weight = torch.full((1, 1, 3, 3), 1.0, dtype=torch.bfloat16)
    weight[0, 0, 1:, 1:] = torch.tensor([[1.0, 2**-7], [2**-8, 2**-8]])
    v = phase_weights(weight, last).view(2, 2, 2, 2)
    exact = 1.0 + 2**-7 + 2**-8 + 2**-8
    assert v[0, 0, 1, 1].item() == exact  # 2^-8 added on its own to 1 + 2^-7 would be lost
    assert v.shape == (2, 2, 2, 2)
    assert phase_weights(weight.expand(4, 2, 3, 3), last).is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


SHAPES = [((1, 1, 1, 1), 1), ((0, 4, 2, 2), 3), ((2, 5, 3, 1), 2), ((1, 3, 1, 4), 7)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "outputs"), SHAPES, ids=str)
def test_shapes_layouts_and_dtypes(shape, outputs, layout, dtype):
    x, weight, bias = make(0, shape, outputs, dtype, layout=layout)
    y = upsample_conv(x, weight, bias)
    assert y.shape == (shape[0], outputs, 2 * shape[2], 2 * shape[3])
    assert y.dtype == dtype
    if layout == "channels_last" and x.numel() and not x.is_contiguous():
        assert y.is_contiguous(memory_format=torch.channels_last)
    else:
        assert y.is_contiguous()


def test_views_and_mixed_layouts():
    x, weight, bias = make(0, (2, 6, 4, 5), 3)
    expected = upsample_conv_ref(x, weight, bias)
    wide = torch.randn(2, 6, 4, 10, generator=random())
    wide[..., ::2] = x
    for view in (wide[..., ::2], channels_last(x), x.mT.contiguous().mT):
        for filters in (weight, channels_last(weight), weight.mT.contiguous().mT):
            y = upsample_conv(view, filters, bias)
            torch.testing.assert_close(y, expected, rtol=0, atol=2e-6)  # 54 products of size 1/7
    assert torch.equal(upsample_conv(view, weight, bias.repeat(2)[:3]), y)


X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
WRONG = [
    ((X[0], W, None), ValueError, r"x must be \(N, C, H, W\).* got \(3, 4, 4\)\. Try x\[None\]"),
    ((X[:, :0], W[:, :0], None), ValueError, r"x must be .* at least 1, got \(2, 0, 4, 4\)"),
    ((X.int(), W, None), TypeError, r"x must be of a floating dtype .* got torch\.int32"),
    ((X, W[:, :2], None), ValueError, r"weight must be \(O, 3, 3, 3\).* got \(5, 2, 3, 3\)"),
    ((X, W[..., :1], None), ValueError, r"weight must be .*\(5, 3, 3, 1\)\. Other convolutions"),
    ((X, W[:0], None), ValueError, r"weight must be .* got \(0, 3, 3, 3\)"),
    ((X, W.half(), None), TypeError, r"weight must be of the dtype .* got torch\.float16.*to\(x"),
    ((X, W, W[:3, 0, 0, 0]), ValueError, r"bias must be \(5,\).* got \(3,\)"),
    ((X, W, W[:, 0, 0, 0].double()), TypeError, r"bias must be of the dtype .*torch\.float64"),
]


@pytest.mark.parametrize(("args", "error", "words"), WRONG)
def test_errors_name_the_argument_and_what_would_do(args, error, words):
    for function in (upsample_conv, OP):
        with pytest.raises(error, match=words):
            function(*args)


def test_where_it_pays():
    x, weight, _ = make(0, (1, 128, 32, 32), 4)
    assert pays(x, weight) is None
    assert "below 1024 pixels, here are 992" in pays(x[:, :, :31], weight)
    assert "below 128 channels, here are 127" in pays(x[:, 1:], weight[:, 1:])
    assert "torch.bfloat16" in pays(x.bfloat16(), weight.bfloat16())
    assert "not yet measured on meta devices" in pays(x.to("meta"), weight.to("meta"))


def test_backends_say_why_not():
    key = backends.Key("cpu", torch.float32)
    assert backends.chosen("upsample_conv", key) == "reference"
    assert backends.why_not("upsample_conv", "cpu", key) == "not written yet for this op"
    with fastdiff.use_backend("cpu"), pytest.raises(backends.BackendError, match="not written yet"):
        upsample_conv(X, W)


@pytest.mark.parametrize("wants_grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, wants_grad):
    for bias in (False, True):
        tensors = make(0, (2, 3, 4, 2), 5, bias=bias, layout=layout)
        tensors = [None if t is None else t.requires_grad_(wants_grad) for t in tensors]
        torch.library.opcheck(OP, tuple(tensors))


def test_gradcheck():
    tensors = [t.requires_grad_() for t in make(0, (2, 2, 2, 3), 2, torch.float64)]
    assert torch.autograd.gradcheck(upsample_conv, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inside_other_machinery(layout):
    tensors = make(0, (2, 4, 3, 5), 6, layout=layout)
    expected = upsample_conv(*tensors)
    torch._dynamo.reset()
    compiled = torch.compile(upsample_conv, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), expected)
    x, weight, bias = tensors
    each = torch.func.vmap(lambda x: upsample_conv(x[None], weight, bias)[0])(x)
    torch.testing.assert_close(each, expected)
    with FakeTensorMode() as mode:
        assert upsample_conv(*(mode.from_tensor(t) for t in tensors)).stride() == expected.stride()
    assert upsample_conv(*(t.to("meta") for t in tensors)).stride() == expected.stride()


@starts_interpreter
def test_the_kernels_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


KERNEL_SHAPES = [  # (N, O, H, W) of the result before doubling
    *((1, 1, 1, 1), (2, 3, 5, 7), (1, 4, 3, 64), (2, 5, 2, 33), (1, 80, 2, 3), (3, 8, 1, 9)),
    *((1, 3, 2, 1100), (1, 4, 1, 1024)),
]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_kernel_bits_of_the_reference(shape, layout, dtype):
    """Into NaN between guard bands; a launch moves numbers and makes none."""
    from fastdiff.kernels.upsample_conv import launch

    samples, outputs, height, width = shape
    arrange = LAYOUTS[layout]
    z = torch.randn(samples, 4 * outputs, height + 1, width + 1, generator=random()).to(dtype)
    z = arrange(z).to(DEVICE)
    like = arrange(torch.empty(samples, outputs, 2 * height, 2 * width, dtype=dtype, device=DEVICE))
    expected = torch.empty_like(like)
    launch_reference(z, expected)
    for offset in (64, 57):
        out = Guarded(like, offset)
        launch(z, out.tensor)
        out.check()
        assert torch.equal(out.tensor, expected)


@runs_kernels
def test_kernel_empty():
    from fastdiff.kernels.upsample_conv import launch

    out = torch.empty(0, 3, 4, 4, device=DEVICE)
    launch(torch.empty(0, 12, 3, 3, device=DEVICE), out)


def gates(kernel_name, constants, dtype="bf16", **rest):
    from fastdiff.kernels import upsample_conv as kernel

    function = getattr(kernel, kernel_name)
    types = {"z_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "H": "i32", "W": "i32", "CO": "i32"}
    types |= {"rows": "i32"}
    types = {n: t for n, t in types.items() if n in function.arg_names and n not in constants}
    rest = {"registers": kernel.REGISTERS} | kernel.OPTIONS | rest
    return compile_gates.check(function, types, constants, **rest)


@compile_gates.compiles
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("outputs", [128, 640])
def test_compiles_to_16_byte_accesses_channels_last(outputs, dtype):
    from fastdiff.kernels.upsample_conv import tile_size

    constants = {"CO": outputs, "BLOCK": tile_size(4 if dtype == "fp32" else 2)}
    some = {} if outputs == 640 else {"capabilities": [90]}
    for code in gates("channels_last_kernel", constants, dtype, widths=(128,), **some):
        assert code.count("LDG.E.128") == 2
        assert code.count("STG.E.128") == 2


@compile_gates.compiles
def test_tiles_are_these():
    """tests/test_compile_everywhere.py compiles each."""
    from fastdiff.kernels.upsample_conv import columns, tile_size
    from tests.gates import launches

    plans = {launch.plan for launch in launches("upsample_conv", 90)}
    for size in (2, 4):
        found = {columns(n, size) for n in range(2, 5000, 2)}
        assert found == {1 << k for k in range(4, tile_size(size).bit_length())}
        assert {("first", width, size) for width in found} <= plans
