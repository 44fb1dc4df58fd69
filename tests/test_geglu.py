"""geglu: contract, numbers, errors, inside PyTorch, and the Triton kernel."""

import re

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops.geglu import geglu, geglu_ref
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

OP = torch.ops.fastdiff.geglu.default
SHAPES = [(2, 6), (0, 8), (3, 0), (1, 2), (10,), (2, 3, 1, 34), (5, 4098)]


def draw(seed, shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape, generator=random(seed)) * scale).to(dtype)


def close(y, expected):
    """Within two roundings of the dtype."""
    rtol = 2 * torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, expected, rtol=rtol, atol=1e-7 * expected.abs().amax().item()
                               if expected.numel() else 0.0)  # fmt: skip


def eager(x):
    """diffusers' GEGLU, in the dtype of x."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def against_torch(run, shape, dtype, scale):
    """What `assert_as_good_as_torch` asks for, from a seed."""

    def case(seed):
        x = draw(seed, shape, dtype, scale)
        return run(x), [eager(x)], eager(x.double())

    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0, 100.0])
def test_numbers(dtype, scale):
    assert_as_good_as_torch(against_torch(geglu, (17, 130), dtype, scale), dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(shape, dtype):
    x = draw(0, shape, dtype)
    y = geglu(x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert y.dtype == dtype
    assert y.is_contiguous()
    close(y, geglu_ref(x))


def test_value_comes_first():
    x = torch.tensor([[3.0, 0.5, 0.0, 20.0]])
    assert torch.equal(geglu(x), torch.tensor([[0.0, 10.0]]))


def test_the_gate_is_exact_not_tanh():
    gate = torch.linspace(-4, 4, 101, dtype=torch.float64)
    y = geglu(torch.stack([torch.ones_like(gate), gate], dim=-1))[:, 0]
    for g, got in zip(gate.tolist(), y.tolist(), strict=True):
        assert abs(got - float(g * mpmath.ncdf(g))) <= 4 * torch.finfo(torch.float64).eps * abs(g)


def test_what_is_not_contiguous_is_copied():
    x = draw(0, (4, 6, 10))
    for view in (x.transpose(0, 1), x[:, ::2], x[..., 1:9], x[:1].expand(3, 6, 10)):
        assert torch.equal(geglu(view), geglu(view.contiguous()))


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 7), ValueError, r"x must be \(\.\., 2D\).* got \(2, 7\)\. Try torch\.cat"),
        (torch.zeros(()), ValueError, r"x must be \(\.\., 2D\).* got \(\)"),
        (torch.zeros(4, dtype=torch.int64), TypeError, r"x .* got torch\.int64\. Try x\.float\(\)"),
    ],
)
def test_errors_name_the_argument_and_what_would_do(x, error, words):
    for run in (geglu, OP):
        with pytest.raises(error, match=words):
            run(x)


def test_backends_say_why_not():
    key = backends.Key("cpu", torch.float32)
    assert backends.chosen("geglu", key) == ("reference" if backends.why_no_native() else "cpu")
    assert backends.chosen("geglu", backends.Key("cpu", torch.float64)) == "reference"
    with fastdiff.use_backend("reference"):
        assert geglu(torch.ones(2)).shape == (1,)
    assert backends.why_not("geglu", "cuda", key) == "not written yet for this op"


@pytest.mark.parametrize(
    ("dtype", "wants_grad"), [(torch.float32, True), (torch.bfloat16, False)], ids=str
)
def test_opcheck(dtype, wants_grad):
    torch.library.opcheck(OP, (draw(0, (2, 3, 8), dtype).requires_grad_(wants_grad),))


def test_gradcheck():
    x = draw(0, (2, 6), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(geglu, (x,))
    assert torch.autograd.gradgradcheck(geglu, (x,))


@pytest.mark.parametrize("through_op", [False, True])
def test_the_derivative_is_that_of_the_reference(through_op):
    x = draw(0, (3, 8)).requires_grad_()
    run = OP if through_op else geglu
    gradients = [torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (run, geglu_ref)]
    torch.testing.assert_close(*gradients)  # cos(y): y is the kernel's, or the reference's
    with torch.no_grad():
        assert not geglu(x).requires_grad


def test_compile_without_graph_breaks():
    torch._dynamo.reset()

    def block(x):
        return geglu(x.sin()).cos()

    x = draw(0, (3, 16))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    x.requires_grad_()
    gradients = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, block)]
    torch.testing.assert_close(*gradients)


def test_inside_other_machinery():
    x = draw(0, (5, 8))
    close(torch.func.vmap(geglu)(x), geglu(x))
    half = x.half()
    with FakeTensorMode() as mode:
        assert geglu(mode.from_tensor(half)).shape == (5, 4)
    assert geglu(x.to("meta")).shape == (5, 4)

    class Named(torch.Tensor):
        pass

    assert type(geglu(x.as_subclass(Named))) is Named

    class Block(torch.nn.Module):
        def forward(self, x):
            return geglu(x)

    batch = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Block(), (x,), dynamic_shapes=batch)
    assert "fastdiff.geglu" in str(program.graph)
    assert torch.equal(program.module()(x[:3]), geglu(x[:3]))


@starts_interpreter
def test_the_kernel_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


def launch(x, offset=64):
    """y by the Triton kernel, into NaN between guard bands."""
    from fastdiff.kernels.geglu import launch as kernel

    x = x.to(DEVICE)
    out = Guarded(x.new_empty((*x.shape[:-1], x.shape[-1] // 2)), offset)
    kernel(x, out.tensor)
    out.check()
    return out.tensor.cpu()


# D: odd, beside a tile of 2048 (16 bit) or 1024, over rows, and those of SD1.5 and SDXL.
WIDTHS = [1, 2, 5, 16, 31, 1000, 1023, 1024, 1025, 1280, 2049]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_kernel_numbers(dtype, width):
    rows = max(1, 5000 // width)
    case = against_torch(launch, (rows, 2 * width), dtype, 1.5)
    assert_as_good_as_torch(case, dtype, seeds=2)


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 100.0])
def test_kernel_numbers_over_scales(dtype, scale):
    assert_as_good_as_torch(against_torch(launch, (2, 640), dtype, scale), dtype)


@runs_kernels
def test_kernel_gelu_against_mpmath():
    """The accuracy that kernels/geglu.py states, over 2,001 gates and those near zero."""
    gate = torch.cat([torch.linspace(-13, 13, 2001), torch.logspace(-30, 0, 61)])
    y = launch(torch.stack([torch.ones_like(gate), gate], dim=-1))[:, 0]
    eps = torch.finfo(torch.float32).eps
    for g, got in zip(gate.tolist(), y.double().tolist(), strict=True):
        truth = float(g * mpmath.ncdf(g))
        limit = 2 * eps if g > 0 else 3e-6
        assert abs(got - truth) <= limit * abs(truth) + (1e-11 if g < -5.5 else 0), g


@runs_kernels
def test_kernel_values_at_the_ends():
    """Infinite gates have the limits of gelu; a NaN stays; halves do not overflow inside."""
    infinite = float("inf")
    gate = torch.tensor([infinite, -infinite, float("nan"), -0.0, 65504.0, -65504.0])
    y = launch_ends(torch.stack([torch.full_like(gate, 1.0), gate], dim=-1))
    assert y[0] == infinite
    assert y[1] == 0
    assert y[2].isnan()
    assert y[3] == 0
    assert y[4] == 65504
    assert y[5] == 0


def launch_ends(x):
    """As `launch`, where the result may be NaN."""
    from fastdiff.kernels.geglu import launch as kernel

    out = torch.full((len(x), 1), 42.0, device=DEVICE)
    kernel(x.to(DEVICE), out)
    return out[:, 0].cpu()


@runs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [64, 63, 57])
def test_kernel_shapes_and_alignments(shape, offset):
    x = draw(1, shape, torch.float16)
    y = launch(x, offset)
    assert y.shape == geglu(x).shape
    torch.testing.assert_close(y, geglu(x), rtol=1e-3, atol=1e-7)  # one rounding to half apart


@runs_kernels
def test_kernel_bits_of_a_row_do_not_depend_on_the_others():
    x = draw(0, (7, 2 * 331))
    y = launch(x)
    for i in range(len(x)):
        assert torch.equal(launch(x[i : i + 1]), y[i : i + 1])


def test_without_a_gpu_the_backend_says_why():
    if DEVICE == "cuda":
        assert backends.chosen("geglu", backends.Key("cuda", torch.float32)) == "triton"
        return
    reason = backends.why_not("geglu", "triton", backends.Key("cuda", torch.float32))
    assert re.match("torch sees no CUDA device", reason)


SEEN = (80, 90)  # the machine code of these is looked at, else what it is made from
ALIGNED = {"D": "i32:16", "numel": "i64:16"}  # as those of every model


def gates(dtype, sizes=ALIGNED, **rest):
    """compile_gates on the kernel for x of a dtype, "bf16"."""
    from fastdiff.kernels import geglu as kernel

    size = 4 if dtype == "fp32" else 2
    types = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", **sizes}
    constants = {"BLOCK": kernel.block_size(size)}
    rest = {"registers": kernel.REGISTERS, "widths": (128,)} | kernel.OPTIONS | rest
    return compile_gates.check(kernel.geglu_kernel, types, constants, **rest)


@compile_gates.compiles
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_to_16_byte_accesses_everywhere(dtype):
    for code in gates(dtype, machine=SEEN):
        assert code.widths(machine=False) == {128: 6}
        if code.capability in SEEN:
            assert code.count("LDG.E.128") == 4
            assert code.count("STG.E.128") == 2


@compile_gates.compiles
def test_compiles_to_few_instructions():
    """16 elements a thread: at most 34 for each, of the 43 that kernels/geglu.py counts with."""
    for dtype in ("bf16", "fp16"):
        (code,) = gates(dtype, capabilities=[90])
        assert len(re.findall(r"^\s+/\*[0-9a-f]{4}\*/\s", code.sass, re.MULTILINE)) <= 16 * 34


@compile_gates.compiles
@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 16), ("fp32", 32)])
def test_compiles_for_odd_widths_and_addresses(dtype, bits):
    """Narrow accesses, but nothing worse."""
    odd = {"D": "i32", "numel": "i64"}
    rest = {"aligned": False, "capabilities": SEEN, "machine": False}
    gates(dtype, odd, widths=(bits,), registers=128, **rest)
