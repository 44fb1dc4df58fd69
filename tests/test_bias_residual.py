"""bias_residual: contract, numbers, errors, inside PyTorch, and the Triton kernels."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops.bias_residual import bias_residual, bias_residual_ref
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

OP = torch.ops.fastdiff.bias_residual.default
LAYOUTS = {"contiguous": lambda t: t, "channels_last": channels_last}


def make(seed, shape, dtype=torch.float32, bias="nc", residual=True, layout="contiguous"):
    """x, bias, residual."""
    generator = random(seed)
    x, other = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    b = torch.randn(shape[:2], generator=generator).to(dtype)
    b = {"nc": b, "c": b[0] if len(b) else b.new_zeros(shape[1]), None: None}[bias]
    return [LAYOUTS[layout](x), b, LAYOUTS[layout](other) if residual else None]


def eager(x, bias, residual, scale):
    """In the dtype of x, one operation after the other, as diffusers' ResnetBlock2D does."""
    if bias is not None:
        x = x + bias.reshape(*(bias.shape if bias.dim() == 2 else (1, -1)), *(1,) * (x.dim() - 2))
    return (x if residual is None else x + residual) * scale


def against_torch(run, shape, dtype, scale=0.7, **spec):
    """What `assert_as_good_as_torch` asks for, from a seed."""

    def case(seed):
        x, bias, residual = make(seed, shape, dtype, **spec)
        theirs = eager(x, bias, residual, scale)
        wide = (None if t is None else t.double() for t in (x, bias, residual))
        return run(x, bias, residual, scale=scale), [theirs], eager(*wide, scale)

    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", ["c", "nc", None])
@pytest.mark.parametrize("residual", [False, True])
def test_numbers(dtype, layout, bias, residual):
    spec = {"layout": layout, "bias": bias, "residual": residual}
    case = against_torch(bias_residual, (2, 20, 5, 7), dtype, **spec)
    assert_as_good_as_torch(case, dtype, seeds=8)


def test_each_operation_is_rounded_once_in_this_order():
    x = torch.tensor([[1.0]])
    half, tiny = torch.tensor([2.0**-24]), torch.tensor([[2.0**-24]])
    assert bias_residual(x, half, tiny, scale=3.0).item() == 3.0  # not 3 * (1 + 2^-23)
    assert bias_residual(x, None, 2 * tiny).item() == 1 + 2**-23


SHAPES = [
    (2, 3),
    (1, 1, 1),
    (0, 4, 2, 2),
    (2, 0, 3),
    (2, 5, 0),
    (3, 4, 7),
    (2, 6, 3, 5),
    (1, 2, 3, 4, 5),
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_layouts_and_dtypes(shape, layout, dtype):
    x, bias, residual = make(0, shape, dtype, layout=layout)
    y = bias_residual(x, bias, residual, scale=0.5)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.stride() == x.stride() or x.numel() < 2
    assert torch.equal(y, bias_residual_ref(x, bias, residual, 0.5))
    assert torch.equal(bias_residual(x), x)


def test_a_residual_in_another_layout_and_an_x_in_neither():
    x, bias, residual = make(0, (2, 6, 4, 5))
    expected = bias_residual(x, bias, residual)
    assert torch.equal(bias_residual(x, bias, channels_last(residual)), expected)
    y = bias_residual(channels_last(x), bias, residual)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    wide = torch.randn(2, 6, 4, 10, generator=random())
    for view in (wide[..., ::2], wide[:1, ..., :5].expand(2, 6, 4, 5), wide[..., :4].mT):
        plain = view.contiguous()
        y = bias_residual(view, bias, view)
        assert y.is_contiguous()
        assert torch.equal(y, bias_residual(plain, bias, plain))
    column = torch.stack([bias, bias], dim=-1)[..., 0]
    assert torch.equal(bias_residual(x, column, residual), expected)


def test_a_bias_in_float32_beside_a_half_precision_x():
    x, bias, residual = make(0, (2, 6, 4), torch.bfloat16)
    assert torch.equal(bias_residual(x, bias.float(), residual), bias_residual(x, bias, residual))


X = torch.zeros(2, 3, 4)
WRONG = [
    ((torch.zeros(3),), ValueError, r"x must be \(N, C, \*spatial\), got \(3,\)\. Try x\[None\]"),
    ((torch.zeros(2, 3, dtype=torch.int8),), TypeError, r"x .* got torch\.int8\. Try x\.float"),
    (
        (X.to(torch.float8_e4m3fn),),
        TypeError,
        r"x must be .* 16 bits or more, got torch\.float8_e4",
    ),
    ((X, torch.zeros(4)), ValueError, r"bias must be \(3,\) or \(2, 3\) .* got \(4,\).*bias\.flat"),
    ((X, torch.zeros(1, 3)), ValueError, r"bias must be \(3,\) or \(2, 3\) .* got \(1, 3\)"),
    ((X, torch.zeros(3).half()), TypeError, r"bias must be float32 or .* got torch\.float16"),
    ((X, None, X[:1]), ValueError, r"residual must be \(2, 3, 4\).* got \(1, 3, 4\)"),
    ((X, None, X.double()), TypeError, r"residual must be of the dtype of x, .*torch\.float64"),
]


@pytest.mark.parametrize(("args", "error", "words"), WRONG)
def test_errors_name_the_argument_and_what_would_do(args, error, words):
    with pytest.raises(error, match=words):
        bias_residual(*args)
    padded = (*args, *[None] * (3 - len(args)), 1.0)
    with pytest.raises(error, match=words):
        OP(*padded)


@pytest.mark.parametrize("scale", [None, "2", torch.ones(2)], ids=str)
def test_what_is_no_number_and_no_tensor(scale):
    with pytest.raises(TypeError, match=r"bias must be a tensor, got \[0\.0\]"):
        bias_residual(X, [0.0])
    with pytest.raises(TypeError, match=r"scale must be a number, such as 1\.0; got"):
        bias_residual(X, scale=scale)


def test_backends_say_why_not():
    key = backends.Key("cpu", torch.float32)
    native = "reference" if backends.why_no_native() else "cpu"
    assert backends.chosen("bias_residual", key) == native
    assert backends.chosen("bias_residual", backends.Key("cpu", torch.float64)) == "reference"
    on_gpu = backends.Key("cuda", torch.float32)
    if DEVICE == "cuda":
        assert backends.chosen("bias_residual", on_gpu) == "triton"
    else:
        why = backends.why_not("bias_residual", "triton", on_gpu)
        assert why.startswith("torch sees no CUDA device")
    assert backends.why_not("bias_residual", "cuda", key) == "not written yet for this op"
    with fastdiff.use_backend("reference"):
        assert not bias_residual(X).any()


@pytest.mark.parametrize(
    ("dtype", "wants_grad", "specs"),
    [
        (torch.float32, True, [{}, {"bias": "c", "residual": False}]),
        (torch.bfloat16, False, [{"bias": None, "layout": "channels_last"}]),
    ],
    ids=str,
)
def test_opcheck(dtype, wants_grad, specs):
    for spec in specs:
        tensors = make(0, (2, 3, 4, 2), dtype, **spec)
        tensors = [None if t is None else t.requires_grad_(wants_grad) for t in tensors]
        torch.library.opcheck(OP, (*tensors, 0.5))


@pytest.mark.parametrize("bias", ["c", "nc"])
def test_gradcheck(bias):
    tensors = [t.requires_grad_() for t in make(0, (2, 3, 2), torch.float64, bias=bias)]
    assert torch.autograd.gradcheck(lambda *t: bias_residual(*t, scale=0.7), tensors)
    x = tensors[0]
    assert torch.autograd.gradcheck(lambda x: bias_residual(x, None, x), (x,)), "x given twice"


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    torch._dynamo.reset()

    def block(x, bias, residual):
        return bias_residual(x.sin(), bias, residual, scale=0.5).cos()

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for layout in LAYOUTS:
        tensors = make(0, (2, 4, 3, 5), layout=layout)
        torch.testing.assert_close(compiled(*tensors), block(*tensors))
    tensors = [t.requires_grad_() for t in tensors]
    gradients = [torch.autograd.grad(f(*tensors).sum(), tensors) for f in (compiled, block)]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_inside_other_machinery():
    x, bias, residual = make(0, (5, 3, 4), layout="channels_last")
    along = torch.func.vmap(lambda x, b, r: bias_residual(x[None], b, r[None])[0])
    torch.testing.assert_close(along(x, bias, residual), bias_residual(x, bias, residual))
    with FakeTensorMode() as mode:
        y = bias_residual(*(mode.from_tensor(t) for t in (x, bias, residual)))
        assert y.stride() == x.stride()
    assert bias_residual(x.to("meta"), bias.to("meta")).stride() == x.stride()

    class Named(torch.Tensor):
        pass

    assert type(bias_residual(x.as_subclass(Named), bias)) is Named


@starts_interpreter
def test_the_kernels_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


def launch(x, bias=None, residual=None, scale=1.0, offset=64):
    """y by the Triton kernel, into NaN between guard bands."""
    from fastdiff.kernels.bias_residual import launch as kernel

    x, bias, residual = (None if t is None else t.to(DEVICE) for t in (x, bias, residual))
    out = Guarded(x, offset)
    kernel(x, bias, residual, scale, out.tensor)
    out.check()
    return out.tensor.cpu()


# Channels of latents and U-Nets, odd ones, and places beside a tile; both kernels, many tiles.
KERNEL_SHAPES = [
    *((2, 4, 9, 7), (3, 4, 32, 32), (2, 320, 8, 8), (1, 640, 7), (2, 3, 1031), (2, 5, 17)),
    *((3, 7), (1, 1, 2049), (2, 8, 2, 3, 5), (1, 24, 64), (5, 1, 3), (2, 960, 3)),
]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_kernel_bits_of_the_reference(shape, layout, dtype):
    for bias, residual in (("nc", True), ("c", True), ("nc", False), (None, False)):
        tensors = make(0, shape, dtype, bias=bias, residual=residual, layout=layout)
        got = launch(*tensors, scale=0.7)
        assert torch.equal(got, bias_residual_ref(*tensors, 0.7)), (bias, residual)


@runs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_kernel_alignments_and_a_bias_in_float32(layout, offset):
    x, bias, residual = make(0, (2, 16, 48), torch.float16, layout=layout)
    got = launch(x, bias.float(), residual, offset=offset)
    assert torch.equal(got, bias_residual_ref(x, bias, residual, 1.0))


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_numbers(layout, dtype):
    case = against_torch(launch, (2, 40, 11), dtype, layout=layout)
    assert_as_good_as_torch(case, dtype)


@runs_kernels
def test_kernel_empty():
    for shape in ((0, 4, 2), (2, 0, 3), (2, 5, 0)):
        assert launch(*make(0, shape)).shape == shape


def gates(kernel_name, constants, dtype="bf16", bias=None, absent=(), **rest):
    """compile_gates on one of the kernels; sizes are multiples of 16, as those of every model."""
    from fastdiff.kernels import bias_residual as kernel

    function = getattr(kernel, kernel_name)
    types = dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr"), f"*{dtype}") | {"scale": "fp32"}
    types |= {"bias_ptr": f"*{bias or dtype}", "size": "i32:16", "L": "i32:16"}
    types |= {"rows": "i32", "biases": "i32"} | rest.pop("types", {})
    types = {n: t for n, t in types.items() if n in function.arg_names and n not in absent}
    rest = {"registers": kernel.REGISTERS} | kernel.OPTIONS | rest
    codes = compile_gates.check(function, types, constants | dict.fromkeys(absent), **rest)
    for code in codes:
        assert not re.search(r"\bfma\.rn\.f32", code.ptx), "a product was fused into a sum"
    return codes


SEEN = (80, 90)  # the machine code of these is looked at, else what it is made from


@compile_gates.compiles
@pytest.mark.parametrize(
    ("channels", "dtype", "capabilities"),
    [
        (320, "bf16", compile_gates.CAPABILITIES),
        (4, "bf16", compile_gates.CAPABILITIES),
        (320, "fp32", SEEN),
        (4, "fp32", [90]),
        (960, "bf16", [90]),
    ],
)
def test_compiles_to_16_byte_accesses_channels_last(channels, dtype, capabilities):
    """All but the bias of 4 channels in 16 bit, which is 8 bytes."""
    from fastdiff.kernels.bias_residual import tile_size

    constants = {"C": channels, "BLOCK": tile_size(4 if dtype == "fp32" else 2)}
    few = channels == 4 and dtype == "bf16"
    rest = {"widths": (64, 128), "machine": SEEN, "capabilities": capabilities}
    for code in gates("channels_last_kernel", constants, dtype, **rest):
        assert code.widths(machine=False)[128] >= 6
        if code.capability in SEEN:
            assert code.count("LDG.E.128") >= 4
            assert code.count("STG.E.128") == 2
            assert code.widths().get(64, 0) == few


@compile_gates.compiles
@pytest.mark.parametrize(
    ("length", "dtype", "capabilities"),
    [
        (4096, "bf16", compile_gates.CAPABILITIES),
        (64, "bf16", SEEN),
        (64, "fp32", SEEN),
        (4096, "fp32", [90]),
    ],
)
def test_compiles_to_16_byte_accesses_contiguous(length, dtype, capabilities):
    """All but the bias, one number for each row that a thread has a part of."""
    from fastdiff.kernels.bias_residual import columns, tile_size

    size = 4 if dtype == "fp32" else 2
    width = columns(640, length, size)
    constants = {"ROWS": tile_size(size) // width, "COLUMNS": width}
    rest = {"widths": (8 * size, 128), "machine": SEEN, "capabilities": capabilities}
    for code in gates("contiguous_kernel", constants, dtype, **rest):
        assert code.widths(machine=False)[128] == 6
        if code.capability in SEEN:
            assert code.count("LDG.E.128") == 4
            assert code.count("STG.E.128") == 2
            assert code.widths()[8 * size] <= 2


def test_tiles_leave_few_lanes_idle():
    from fastdiff.kernels.bias_residual import columns, tile_size

    assert columns(640, 4096, 2) == tile_size(2) == 2048
    assert columns(640, 64, 2) == 64
    assert columns(2560, 49, 2) == 64  # three pieces of 16 and one number: as many idle
    assert columns(2560, 40, 2) == 16  # 48 columns, not 64
    assert columns(1, 2049, 4) == 1024  # one row: tiles of many rows would be idle but for one
    for rows, length, size in ((1, 2049, 4), (6, 1031, 4), (640, 49, 2), (33, 7, 2)):
        tile, width = tile_size(size), columns(rows, length, size)
        blocks = -(-length // width) * -(-rows // (tile // width))
        assert blocks <= -(-length // tile) * rows, "no worse than a tile a row"


@compile_gates.compiles
def test_tiles_are_these():
    """tests/test_compile_everywhere.py compiles each."""
    from fastdiff.kernels.bias_residual import columns
    from tests.gates import launches

    tiles = {("contiguous", s, columns(1280, n, s)) for s in (2, 4) for n in range(1, 4097)}
    assert len(tiles) == 2 * 8
    assert tiles <= {launch.plan for launch in launches("bias_residual", 90)}


@compile_gates.compiles
def test_variants_compile():
    """Absent operands, a bias in float32, halves; odd sizes and addresses: narrow, not worse."""
    last, first = {"C": 320, "BLOCK": 2048}, {"ROWS": 2, "COLUMNS": 1024}
    one = {"capabilities": [90], "machine": False}
    for absent in (("bias_ptr",), ("residual_ptr",), ("bias_ptr", "residual_ptr")):
        gates("channels_last_kernel", last, absent=absent, widths=(128,), **one)
        gates("contiguous_kernel", first, absent=absent, widths=(16, 128), **one)
    gates("channels_last_kernel", last, "fp16", "fp32", widths=(128,), **one)
    gates("contiguous_kernel", first, "fp16", "fp32", widths=(32, 128), **one)
    odd = {"types": {"size": "i32", "L": "i32"}, "aligned": False, "registers": 128}
    odd |= {"capabilities": SEEN, "machine": False, "widths": (16,)}
    gates("channels_last_kernel", last | {"C": 5}, **odd)
    gates("contiguous_kernel", first, **odd)
