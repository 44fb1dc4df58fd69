"""add_layer_norm: contract, numbers, errors, inside PyTorch, and the Triton kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops.add_layer_norm import MAX_WIDTH, add_layer_norm, add_layer_norm_ref
from tests import compile_gates
from tests.pointwise_cases import (
    DEVICE,
    DTYPES,
    KERNEL_DTYPES,
    Guarded,
    assert_as_good_as_torch,
    random,
    run_kernel_tests_interpreted,
    runs_kernels,
    starts_interpreter,
)

OP = torch.ops.fastdiff.add_layer_norm.default
EPS = 1e-5


def make(seed, shape, dtype=torch.float32, mean=0.0, std=1.0, residual=True, affine=True):
    """x, residual, weight, bias."""
    generator, width = random(seed), shape[-1]
    x = torch.randn(shape, generator=generator) * std + mean
    other = torch.randn(shape, generator=generator) * std
    weight = 1 + 0.5 * torch.randn(width, generator=generator)
    bias = 0.5 * torch.randn(width, generator=generator)
    there = (True, residual, affine, affine)
    tensors = (x, other, weight, bias)
    return [t.to(dtype) if here else None for t, here in zip(tensors, there, strict=True)]


def against_torch(run, shape, dtype, eps=EPS, **spec):
    """What `assert_as_good_as_torch` asks for, of y, from a seed; total must be right to the bit.

    PyTorch is given total: it is what the contract says that y is the norm of."""

    def case(seed):
        x, residual, weight, bias = make(seed, shape, dtype, **spec)
        y, total = run(x, residual, weight, bias, eps=eps)
        expected = x if residual is None else x + residual
        assert torch.equal(total, expected)
        assert y.dtype == total.dtype == dtype
        theirs = F.layer_norm(expected, shape[-1:], weight, bias, eps)
        wide = (None if p is None else p.double() for p in (weight, bias))
        return y, [theirs], F.layer_norm(expected.double(), shape[-1:], *wide, eps)

    return case


def close(y, expected):
    """One rounding of the dtype apart, or a few of float32 where y is near 0."""
    torch.testing.assert_close(y, expected, rtol=torch.finfo(y.dtype).eps, atol=1e-6)


def assert_sound(found, dtype, ratio=0.0):
    """A limit that does not lean on PyTorch: half an eps for the rounding of y, and four float32
    roundings of v - mean, the mean being rounded relative to itself: `ratio` is |mean| / std."""
    rounding = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps * (1 + ratio)
    assert found["ours"][1] <= rounding * found["result"][1], found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "spec", [{}, {"residual": False}, {"affine": False}, {"std": 1e-3}], ids=str
)
def test_numbers(dtype, spec):
    assert_as_good_as_torch(against_torch(add_layer_norm, (17, 320), dtype, **spec), dtype)


@pytest.mark.parametrize("ratio", [10, 1000])
def test_a_mean_far_from_zero(ratio):
    case = against_torch(add_layer_norm, (9, 640), torch.float32, mean=float(ratio))
    assert_sound(assert_as_good_as_torch(case, torch.float32), torch.float32, ratio)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5,), (1, 1), (0, 4), (2, 0, 3), (2, 3, 1, 7)], ids=str)
def test_shapes_and_dtypes(shape, dtype):
    x, residual, weight, bias = make(0, shape, dtype)
    y, total = add_layer_norm(x, residual, weight, bias)
    assert y.shape == total.shape == shape
    assert y.dtype == total.dtype == dtype
    assert y.is_contiguous()
    assert total.is_contiguous()
    alone, same = add_layer_norm(x, None, weight, bias)
    assert same is x
    close(alone, add_layer_norm_ref(x, None, weight, bias, EPS)[0])


def test_parameters_in_float32_beside_a_half_precision_x():
    x, residual, weight, bias = make(0, (6, 64), torch.bfloat16)
    expected = add_layer_norm(x, residual, weight, bias)[0]
    assert torch.equal(add_layer_norm(x, residual, weight.float(), bias.float())[0], expected)


def test_eps_counts():
    x = torch.tensor([[-1.0, 1.0]])
    assert torch.equal(add_layer_norm(x, None, eps=3.0)[0], x / 2)
    assert not add_layer_norm(torch.full((1, 8), 7.0), None, eps=1e-6)[0].any()


def test_what_is_not_contiguous_is_copied():
    x, residual, weight, bias = make(0, (4, 6, 10))
    for view in (
        lambda t: t.transpose(0, 1),
        lambda t: t[:, ::2],
        lambda t: t[:1].expand(3, 6, 10),
    ):
        expected = add_layer_norm(view(x).contiguous(), view(residual).contiguous(), weight, bias)
        got = add_layer_norm(view(x), view(residual), weight, bias)
        assert all(map(torch.equal, got, expected))
    strided = torch.stack([weight, bias], dim=1)
    got = add_layer_norm(x, residual, strided[:, 0], strided[:, 1])
    assert all(map(torch.equal, got, add_layer_norm(x, residual, weight, bias)))


X = torch.zeros(2, 8)
WRONG = [
    ((torch.zeros(()), None), ValueError, r"x must be \(\.\., D\) .* got \(\)"),
    ((torch.zeros(3, 0), None), ValueError, r"D from 1 to 8192, got \(3, 0\)\. For other widths"),
    ((torch.zeros(1, MAX_WIDTH + 1), None), ValueError, r"x must be .*functional\.layer_norm"),
    ((torch.zeros(2, 8, dtype=torch.int32), None), TypeError, r"x .* got torch\.int32\. Try"),
    ((X, torch.zeros(8)), ValueError, r"residual must be \(2, 8\).* got \(8,\).*Try residual\.exp"),
    ((X, X.half()), TypeError, r"residual .* dtype of x, torch\.float32; got torch\.float16\. Try"),
    ((X, None, torch.zeros(2, 8)), ValueError, r"weight must be \(8,\).* got \(2, 8\)"),
    ((X, X, None, torch.zeros(7)), ValueError, r"bias must be \(8,\).* got \(7,\)"),
    ((X, X, torch.ones(8).half()), TypeError, r"weight must be float32 or .* got torch\.float16"),
    ((X.half(), None, None, torch.ones(8).bfloat16()), TypeError, r"bias must be float32 or"),
]


@pytest.mark.parametrize(("args", "error", "words"), WRONG)
def test_errors_name_the_argument_and_what_would_do(args, error, words):
    with pytest.raises(error, match=words):
        add_layer_norm(*args)
    padded = (*args, *[None] * (4 - len(args)), EPS)
    with pytest.raises(error, match=words):
        OP(*padded)


def test_eps_must_not_be_negative():
    for eps in (-1e-5, float("nan")):
        with pytest.raises(ValueError, match=r"eps must not be negative, got .*\. Try 1e-5"):
            add_layer_norm(X, X, eps=eps)


def test_backends_say_why_not():
    key = backends.Key("cpu", torch.float32)
    native = "reference" if backends.why_no_native() else "cpu"
    assert backends.chosen("add_layer_norm", key) == native
    assert backends.chosen("add_layer_norm", backends.Key("cpu", torch.float64)) == "reference"
    on_gpu = backends.Key("cuda", torch.float32)
    if DEVICE == "cuda":
        assert backends.chosen("add_layer_norm", on_gpu) == "triton"
    else:
        why = backends.why_not("add_layer_norm", "triton", on_gpu)
        assert why.startswith("torch sees no CUDA device")
    assert backends.why_not("add_layer_norm", "cuda", key) == "not written yet for this op"
    with fastdiff.use_backend("reference"):
        assert not add_layer_norm(X, X)[0].any()


@pytest.mark.parametrize(
    ("dtype", "wants_grad", "specs"),
    [
        (torch.float32, True, [{}, {"residual": False}]),
        (torch.bfloat16, False, [{"affine": False}]),
    ],
    ids=str,
)
def test_opcheck(dtype, wants_grad, specs):
    for spec in specs:
        tensors = make(0, (2, 3, 8), dtype, **spec)
        tensors = [None if t is None else t.requires_grad_(wants_grad) for t in tensors]
        torch.library.opcheck(OP, (*tensors, EPS))


def test_gradcheck():
    tensors = [t.requires_grad_() for t in make(0, (2, 5), torch.float64)]
    assert torch.autograd.gradcheck(add_layer_norm, tensors)
    assert torch.autograd.gradgradcheck(add_layer_norm, tensors)
    x = tensors[0]
    assert torch.autograd.gradcheck(lambda x: add_layer_norm(x, x), (x,)), "x given twice"
    assert torch.autograd.gradcheck(lambda x: add_layer_norm(x, None)[0], (x,))


@pytest.mark.parametrize("which", ["y", "total", "both"])
def test_the_derivative_is_that_of_the_reference(which):
    gradients = []
    for run in (add_layer_norm, add_layer_norm_ref):
        tensors = [t.requires_grad_() for t in make(0, (3, 8))]
        y, total = run(*tensors, eps=EPS)
        loss = (y.sin().sum() if which != "total" else 0) + (total.sum() if which != "y" else 0)
        gradients.append(torch.autograd.grad(loss, tensors, allow_unused=True))
    for ours, theirs, tensor in zip(*gradients, tensors, strict=True):
        zero = torch.zeros_like(tensor)  # cos(y): y is the kernel's, or the reference's
        torch.testing.assert_close(*(zero if g is None else g for g in (ours, theirs)))


def test_compile_without_graph_breaks():
    torch._dynamo.reset()

    def block(x, residual, weight, bias):
        y, total = add_layer_norm(x.sin(), residual, weight, bias)
        return y.cos() + add_layer_norm(total, None, weight)[0]

    tensors = make(0, (3, 16))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), block(*tensors))
    tensors = [t.requires_grad_() for t in tensors]
    gradients = [torch.autograd.grad(f(*tensors).sum(), tensors) for f in (compiled, block)]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_inside_other_machinery():
    x, residual, weight, bias = make(0, (5, 8))
    along = torch.func.vmap(lambda x, r: add_layer_norm(x, r, weight, bias))(x, residual)
    torch.testing.assert_close(along, add_layer_norm(x, residual, weight, bias))
    with FakeTensorMode() as mode:
        y, total = add_layer_norm(*(mode.from_tensor(t) for t in (x, residual)))
        assert y.shape == total.shape == (5, 8)
    assert add_layer_norm(x.to("meta"), residual.to("meta"))[1].device.type == "meta"

    class Named(torch.Tensor):
        pass

    assert type(add_layer_norm(x.as_subclass(Named), residual)[0]) is Named


@starts_interpreter
def test_the_kernel_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


def launch(x, residual=None, weight=None, bias=None, eps=EPS, offset=64):
    """(y, total) by the Triton kernel, into NaN between guard bands."""
    from fastdiff.kernels.add_layer_norm import launch as kernel

    tensors = [None if t is None else t.to(DEVICE) for t in (x, residual, weight, bias)]
    y, total = Guarded(tensors[0], offset), Guarded(tensors[0], offset)
    kernel(*tensors, eps, y.tensor, None if residual is None else total.tensor)
    y.check()
    if residual is None:
        return y.tensor.cpu(), x
    total.check()
    return y.tensor.cpu(), total.tensor.cpu()


# Widths of the models, odd ones, and those beside a piece; rows beside a tile of 2 to 16.
WIDTHS = [1, 5, 63, 64, 65, 320, 333, 640, 1000, 1024, 1280, 1281, 2560]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_kernel_numbers(dtype, width):
    rows = 17 if width <= 640 else 5  # more than a tile, which has 4 rows of 1280
    found = assert_as_good_as_torch(against_torch(launch, (rows, width), dtype), dtype, seeds=2)
    assert_sound(found, dtype)


@runs_kernels
@pytest.mark.parametrize("spec", [{"residual": False}, {"affine": False}, {"std": 1e-3}], ids=str)
def test_kernel_variants(spec):
    case = against_torch(launch, (5, 320), torch.float32, **spec)
    assert_sound(assert_as_good_as_torch(case, torch.float32), torch.float32)


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-3, 3.0])
def test_kernel_where_eps_is_as_large_as_the_variance(eps, dtype):
    case = against_torch(launch, (5, 320), dtype, eps, std=eps**0.5)
    assert_sound(assert_as_good_as_torch(case, dtype, seeds=2), dtype)


@runs_kernels
@pytest.mark.parametrize("width", [320, 1281])
@pytest.mark.parametrize("ratio", [100, 1000, 30_000])
def test_kernel_a_mean_far_from_zero(width, ratio):
    """No factor for |mean| / std here: the kernel averages the deviations again."""
    case = against_torch(launch, (3, width), torch.float32, mean=float(ratio))
    assert_sound(assert_as_good_as_torch(case, torch.float32, seeds=4), torch.float32)


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_kernel_the_widest_row(dtype):
    case = against_torch(launch, (2, MAX_WIDTH), dtype)
    assert_sound(assert_as_good_as_torch(case, dtype, seeds=1), dtype)


@runs_kernels
def test_kernel_rows_without_variance_and_rows_with_a_nan():
    x = torch.randn(6, 320, generator=random())
    x[1], x[3] = 1234.567, 0.0
    y = launch(x)[0]
    assert y[1].abs().max() <= 1e-5
    assert not y[3].any()
    x[4, 7] = float("nan")
    out = torch.empty(6, 320, device=DEVICE)
    from fastdiff.kernels.add_layer_norm import launch as kernel

    kernel(x.to(DEVICE), None, None, None, EPS, out, None)
    assert out[4].isnan().all()
    others = [0, 1, 2, 3, 5]
    assert torch.equal(out[others].cpu(), y[others])


@runs_kernels
@pytest.mark.parametrize("shape", [(0, 8), (5,), (2, 3, 1, 7), (33, 320)], ids=str)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_kernel_shapes_alignments_and_parameters_in_float32(shape, offset):
    x, residual, weight, bias = make(0, shape, torch.float16)
    y, total = launch(x, residual, weight.float(), bias.float(), offset=offset)
    expected = add_layer_norm_ref(x, residual, weight, bias, EPS)
    assert torch.equal(total, expected[1])
    torch.testing.assert_close(y, expected[0], rtol=1e-3, atol=1e-6)  # one rounding to half apart


@runs_kernels
@pytest.mark.parametrize("width", [320, 2560])
def test_kernel_bits_of_a_row_do_not_depend_on_the_others(width):
    x, residual, weight, bias = make(0, (9, width))
    y, total = launch(x, residual, weight, bias)
    for part in (slice(0, 1), slice(7, 8), slice(3, 9)):
        alone = launch(x[part].contiguous(), residual[part].contiguous(), weight, bias)
        assert torch.equal(alone[0], y[part])
        assert torch.equal(alone[1], total[part])


def gates(width, dtype="bf16", parameters=None, absent=(), **rest):
    """compile_gates on the kernel for rows of a width."""
    from fastdiff.kernels import add_layer_norm as kernel

    tile = kernel.tiles(width, 4 if dtype == "fp32" else 2)
    names = ("x_ptr", "residual_ptr", "y_ptr", "total_ptr")
    types = dict.fromkeys(names, f"*{dtype}") | {"rows": "i32", "D": "i32:16", "eps": "fp32"}
    types |= dict.fromkeys(("weight_ptr", "bias_ptr"), f"*{parameters or dtype}")
    types |= rest.pop("types", {})
    types = {name: kind for name, kind in types.items() if name not in absent}
    options = kernel.OPTIONS | {"num_warps": tile.pop("num_warps")}
    rest = {"registers": kernel.REGISTERS, "widths": (128,)} | options | rest
    constants = tile | dict.fromkeys(absent)
    return compile_gates.check(kernel.add_layer_norm_kernel, types, constants, **rest)


@compile_gates.compiles
@pytest.mark.parametrize(("width", "dtype"), [(320, "bf16"), (1280, "bf16"), (640, "fp32")])
def test_compiles_to_16_byte_accesses_everywhere(width, dtype):
    """x, residual, weight and bias are read, and y and total written, in 5 pieces each."""
    seen = (80, 90)  # the machine code of these is looked at, else what it is made from
    for code in gates(width, dtype, machine=seen):
        assert code.widths(machine=False) == {128: 6 * 5}
        if dtype == "bf16":
            assert code.shared == 0, "a warp needs no shared memory for its sums"
        if code.capability in seen:
            assert code.count("LDG.E.128") == 4 * 5
            assert code.count("STG.E.128") == 2 * 5


@compile_gates.compiles
def test_launches_are_these():
    """tests/test_compile_everywhere.py compiles each."""
    from tests.gates.add_layer_norm import every_width

    assert len(every_width(2)) + len(every_width(4)) == 37


@compile_gates.compiles
def test_variants_compile():
    on_one = {"capabilities": [90], "machine": False}
    gates(320, "fp16", "fp32", **on_one)
    for absent in (("residual_ptr", "total_ptr"), ("weight_ptr", "bias_ptr"), ("bias_ptr",)):
        gates(1280, "bf16", absent=absent, **on_one)
    odd = {"types": {"D": "i32"}, "aligned": False, "registers": 168, "machine": False}
    odd["capabilities"] = [80, 90]
    gates(333, "bf16", widths=(16,), **odd)
    gates(333, "fp32", widths=(32,), **odd)
