"""abs_quantile and threshold_rows: the bits of torch.quantile from every kernel, on every
instruction set, in Triton's interpreter and from CUDA C++ on the CPU; values that are hard to tell
apart.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff import backends
from fastdiff.ops.abs_quantile import (
    DTYPE_CODES,
    WORKSPACE,
    abs_quantile,
    launch_reference,
    place,
    threshold_rows,
    threshold_rows_ref,
    workspaces,
)
from fastdiff.ops.affine_step import row_size
from tests import cuda_on_host
from tests.affine_step_cases import make_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "cpu"]
RATIOS = (0.0, 0.1, 0.5, 0.75, 0.995, 1.0)
INF, NAN = float("inf"), float("nan")


def values(kind, samples, n, dtype=torch.float32):
    """(samples, n), a kind of values for each way in which a selection can go wrong."""
    draw = torch.Generator().manual_seed(n + samples)
    x = torch.randn(samples, n, generator=draw)
    if kind == "all sizes":  # every exponent, subnormal numbers and both zeros
        x = torch.randint(-(2**31), 2**31 - 1, (samples, n), generator=draw).to(torch.int32)
        x = x.view(torch.float32)
        x[(x.abs() >= 2.0**100) | x.isnan()] = -0.0
    if kind == "few values":  # ranks end inside and at the ends of runs of equal numbers
        x = torch.randint(-3, 4, (samples, n), generator=draw).float()
    if kind == "equal":
        x = torch.full((samples, n), -1.5)
    if kind == "neighbours":  # differ in the last digit, and where the digits of a pass meet
        bits = torch.randint(-2, 3, (samples, n), generator=draw)
        x = (bits + 0x3F900000 + 1024 * torch.randint(0, 2, (samples, n), generator=draw)).int()
        x = x.view(torch.float32)
    return x.to(dtype)


KINDS = ["normal", "all sizes", "few values", "equal", "neighbours"]


def assert_bits(got, expected):
    assert got.dtype == expected.dtype == torch.float32
    assert torch.equal(got.isnan(), expected.isnan())
    kept = ~expected.isnan()
    assert torch.equal(got[kept].view(torch.int32), expected[kept].view(torch.int32))


def by_torch(x, p):
    return torch.quantile(x.float().abs().flatten(1), p, dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_torch_quantile(kind, dtype, backend):
    for samples, n in ((1, 1), (3, 2), (9, 7), (17, 1000), (2, 4099)):
        x = values(kind, samples, n, dtype)
        for p in RATIOS:
            with backends.use_backend(backend):
                assert_bits(abs_quantile(x, p), by_torch(x, p))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
def test_nan_and_infinity(dtype, backend):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    x[0, 3] = NAN
    x[1, 4] = -NAN
    x[2, :2] = torch.tensor([INF, -INF])
    x[3] = INF
    x[4, 0], x[4, 1] = INF, NAN
    x[5, 0] = torch.finfo(dtype).max
    x = x.to(dtype)
    for p in (*RATIOS, 0.985):
        with backends.use_backend(backend):
            got = abs_quantile(x, p)
        assert_bits(got, by_torch(x, p))
        assert got.isnan()[[0, 1, 4]].all()
        assert not got.isnan()[5]


@pytest.mark.parametrize("kind", ["normal", "few values"])
def test_bits_do_not_depend_on_isa_or_threads(kind):
    _C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    x, before = values(kind, 2, 150_001), torch.get_num_threads()
    try:
        for isa in _C.isas():
            _C.set_isa(isa)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for p in (0.3, 0.995):
                    assert_bits(abs_quantile(x, p), by_torch(x, p))
    finally:
        torch.set_num_threads(before)
        _C.set_isa(_C.isas()[-1])


def test_the_next_value_is_that_of_whichever_thread_has_it():
    """Half-way from 1 to the least of the others, which lies first or last in memory."""
    pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    x = torch.cat([torch.linspace(2, 3, 40_000), torch.ones(40_000)])[None]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for _ in range(4):  # threads end in any order
                assert abs_quantile(x, 0.5).item() == abs_quantile(x.flip(1), 0.5).item() == 1.5
    finally:
        torch.set_num_threads(before)


def test_a_sample_of_two_to_the_24_and_one_more():
    """The limit of torch.quantile; an even place, then one between two elements."""
    x = torch.zeros(1, 2**24)
    x[0, -1], x[0, -2], x[0, 5] = 3.0, -2.0, 1.0
    assert abs_quantile(x, 1.0).item() == 3.0
    assert abs_quantile(x, (2**24 - 2) / (2**24 - 1)).item() == 2.0
    with pytest.raises(ValueError, match=r"1 to 2\^24 elements a sample; got \(1, 16777217\)"):
        abs_quantile(torch.zeros(1, 1).expand(1, 2**24 + 1), 0.5)


def test_layouts():
    x = torch.randn(3, 4, 5, 6)
    expected = by_torch(x, 0.9)
    assert_bits(abs_quantile(x.contiguous(memory_format=torch.channels_last), 0.9), expected)
    assert_bits(abs_quantile(x.transpose(0, 1).contiguous().transpose(0, 1), 0.9), expected)
    wide = torch.cat([x, 100 * x], dim=-1)
    assert_bits(abs_quantile(wide[..., :6], 0.9), expected)
    assert abs_quantile(x[:0], 0.9).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [1, 3])
def test_rows_of_dynamic_thresholding(backend, samples):
    """-bound, bound, 1 / bound; the bound is at least 1, at most maximum, which wins."""
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[0.1], [1.0], [50.0]]
    )
    row = make_rows(torch.Generator().manual_seed(0), 1, samples, 1, 2)
    before = row.clone()
    for maximum, bounds in ((4.0, None), (0.5, [0.5] * 3), (INF, None)):
        with backends.use_backend(backend):
            rows = threshold_rows(x, 0.95, maximum, row)
        q = by_torch(x, 0.95).clamp(min=1.0, max=maximum)
        assert bounds is None or q.tolist() == bounds
        assert rows.shape == (1, 3, row_size(1, 2))
        assert torch.equal(rows[0, :, 4:7], torch.stack([-q, q, 1 / q], dim=1))
        others = [k for k in range(rows.shape[2]) if k not in (4, 5, 6)]
        assert torch.equal(rows[..., others], row.expand(1, 3, -1)[..., others])
        assert torch.equal(rows, threshold_rows_ref(x, 0.95, maximum, row))
    assert torch.equal(row, before)
    x[1, 7] = NAN
    with backends.use_backend(backend):
        rows = threshold_rows(x, 0.95, 4.0, row)
    assert rows[0, 1, 4:7].isnan().all()
    assert not rows[0, [0, 2]].isnan().any()


def test_inside_pytorch():
    x, row = torch.randn(3, 40), torch.randn(1, 1, 12)
    quantile, rows = torch.ops.fastdiff.abs_quantile.default, torch.ops.fastdiff.threshold_rows
    torch.library.opcheck(quantile, (x, 0.7))
    torch.library.opcheck(quantile, (x.clone().requires_grad_(), 0.7))
    torch.library.opcheck(quantile, (x.bfloat16(), 0.7))
    torch.library.opcheck(rows.default, (x, 0.7, 2.0, row))
    wide = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: abs_quantile(x, 0.7), wide)
    assert torch.equal(abs_quantile(wide, 0.7), torch.quantile(wide.abs(), 0.7, dim=1))
    assert threshold_rows(wide, 0.7, 2.0, row.double()).dtype == torch.float64
    half = x.half()
    with FakeTensorMode() as mode:
        fake = abs_quantile(mode.from_tensor(half), 0.7)
    assert (fake.shape, fake.dtype) == ((3,), torch.float32)
    compiled = torch.compile(
        lambda x: abs_quantile(x * 2, 0.7), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), abs_quantile(x * 2, 0.7))


X, ROW = torch.ones(2, 3), torch.zeros(1, 1, 12)
WRONG = {
    "integers": (
        (X.int(), 0.5),
        "x must be of a floating dtype of 16 bits or more, got torch.int32",
    ),
    "a number": ((torch.tensor(1.0), 0.5), r"x must be \(B, ..\) .*got \(\). Try x\[None\]"),
    "nothing": ((torch.ones(2, 0), 0.5), r"1 to 2\^24 elements a sample; got \(2, 0\)"),
    "a percentage": ((X, 99.5), r"p must be from 0 to 1, got 99.5. A percentage is p / 100"),
    "float8": ((X.to(torch.float8_e4m3fn), 0.5), "x must be of a floating .*got torch.float8_e4m3"),
    "p as a tensor": (
        (X, torch.tensor(1)),
        r"p must be a number, .* got a tensor \(\).*Try p.item",
    ),
    "no p": ((X, None), "p must be a number, such as 1.0; got None"),
    "no maximum": ((X, 0.5, None, ROW), "maximum must be a number, .*got None"),
    "rows as a list": ((X, 0.5, 1.0, [0.0]), r"row must be a tensor, got \[0.0\]"),
    "NaN": ((X, NAN), "p must be from 0 to 1, got nan"),
    "a negative maximum": ((X, 0.5, -1.0, ROW), "maximum must be above 0"),
    "rows of two steps": ((X, 0.5, 1.0, ROW.expand(2, 1, 12)), r"row must be \(1, 1 or 2, K\)"),
    "rows of a larger batch": ((X, 0.5, 1.0, ROW.expand(1, 3, 12)), r"row must be \(1, 1 or 2, K"),
    "short rows": ((X, 0.5, 1.0, ROW[..., :6]), "row must hold the columns of affine_step"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument_and_what_would_do(wrong):
    arguments, message = WRONG[wrong]
    run = abs_quantile if len(arguments) == 2 else threshold_rows
    with pytest.raises((ValueError, TypeError), match=message):
        run(*arguments)


def check_launch(launch, x, p, tmp=None):
    """A launcher against torch.quantile, with rows and with guard bands around what it writes."""
    k, w = place(p, x[0].numel())
    bands = torch.full((len(x) + 16,), 42.0, device=x.device)
    table = torch.full((len(x) + 2, 9), 42.0, device=x.device)
    launch(x, k, w, 3.0, bands[8:-8], table[1:-1])
    assert_bits(bands[8:-8], by_torch(x, p))
    bound = bands[8:-8].clamp(min=1.0, max=3.0)
    expected = torch.full_like(table, 42.0)
    expected[1:-1, 4:7] = torch.stack([-bound, bound, 1 / bound], dim=1)
    assert torch.equal(table.nan_to_num(-7.0), expected.nan_to_num(-7.0))
    assert (bands[:8] == 42).all()
    assert (bands[-8:] == 42).all()


def test_nothing_is_written_beside_the_results():
    key = backends.Key("cpu", torch.float32)
    for launch in (launch_reference, backends.resolve("abs_quantile", key)):
        check_launch(launch, values("normal", 3, 1001), 0.995)


# ---- Triton ----------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernel runs in this process")
def test_the_triton_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, "-k", "triton_bits"], env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter's process")
@pytest.mark.parametrize("kind", KINDS)
def test_triton_bits(kind, monkeypatch):
    """The interpreter rounds a fused product twice: there, ranks fall on elements, or half-way."""
    from fastdiff.kernels import _grid
    from fastdiff.kernels import abs_quantile as kernel

    monkeypatch.setattr(kernel, "PROGRAMS", 6)  # 2 for each sample, which go round twice
    monkeypatch.setattr(_grid, "SAMPLES", 2)  # of 3: two launches a pass
    for n, p, dtype in (
        (1, 0.5, torch.float32),
        (4001, 0.75, torch.float16),
        (1500, 0.5, torch.float32),  # between two elements
        (9001, 0.25, torch.float32),
        (700, 1.0, torch.float32),
    ):
        check_launch(kernel.launch, values(kind, 3, n, dtype).to(DEVICE), p)
    if kind != "normal":
        return
    x = values("normal", 3, 101).to(DEVICE)
    x[0, 5], x[1, 6], x[2] = NAN, INF, INF
    for p, dtype in ((0.5, torch.float32), (1.0, torch.float32), (0.3, torch.float16)):
        check_launch(kernel.launch, x.to(dtype), p)


def gates(kernel, types, constants, capabilities):
    from fastdiff.kernels import abs_quantile
    from tests import compile_gates

    return compile_gates.check(
        kernel,
        types,
        constants | {"WORK": WORKSPACE},
        registers=abs_quantile.REGISTERS,
        widths=(32, 64, 128),
        capabilities=capabilities,
        **abs_quantile.OPTIONS,
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_machine_code(number):
    pytest.importorskip("triton", reason="Triton is not installed")
    if INTERPRETED:
        pytest.skip("the interpreter does not compile")
    from fastdiff.kernels import abs_quantile
    from tests.compile_gates import CAPABILITIES

    capabilities = CAPABILITIES if number == 2 else (90,)
    constants = {"PASS": number}
    types = {"x_ptr": ("*fp32", "*bf16", "*i32")[number], "work_ptr": "*i32", "numel": "i32:16"}
    types["first"] = "i32"
    block = {"BLOCK": abs_quantile.BLOCK, "copy_ptr": None}
    for code in gates(abs_quantile.count_kernel, types, constants | block, capabilities):
        assert number == 2 or code.count("LDG.E.128") >= 1
    types = {"work_ptr": "*i32", "out_ptr": "*fp32", "rows_ptr": "*fp32", "first_rank": "i32"}
    types |= {"weight": "fp32", "maximum": "fp32", "columns": "i32"}
    constants["LAST"] = number > 0
    for code in gates(abs_quantile.pick_kernel, types, constants, capabilities):
        fused = code.ptx.count("fma.rn.f32")
        assert fused == 2 * (number > 0), "the interpolation is fused, and nothing else"


# ---- CUDA C++ on the CPU ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if cuda_on_host.compiler() is None:
        pytest.skip("g++ is not on the PATH")
    return cuda_on_host.build("abs_quantile", tmp_path_factory.mktemp("programs") / "quantile")


CUDA = [  # kind, samples, elements, dtype, bytes by which x lies off 16: one block, then several
    ("normal", 3, 1000, torch.float32, 0),
    ("all sizes", 2, 1003, torch.float32, 4),
    ("few values", 2, 777, torch.float16, 0),
    ("neighbours", 2, 1200, torch.float32, 0),
    ("equal", 1, 1, torch.bfloat16, 0),
    ("normal", 1, 65_544, torch.bfloat16, 0),
    ("neighbours", 2, 65_537, torch.float32, 0),
    ("equal", 1, 65_544, torch.float32, 0),  # all are copied; then a few, by one of the blocks
    ("normal", 1, 65_544, torch.float32, 0),
]
WRITTEN = ("out", "rows", "workspace", "copies", "loaded")


@pytest.mark.parametrize("case", CUDA, ids=str)
def test_the_cuda_kernel_gives_the_bits_of_torch_quantile(program, tmp_path, case):
    kind, samples, n, dtype, shift = case
    x = values(kind, samples, n, dtype)
    for number, p in enumerate((0.5, 0.9951)):
        order = 3 * number  # forward, then shuffled

        def launch(x, k, w, maximum, q, rows, number=number, order=order):
            numbers = {"samples": samples, "numel": n, "columns": rows.shape[1], "rank": k}
            numbers |= {"weight": w, "maximum": maximum, "dtype": DTYPE_CODES[dtype]}
            tensors = {"x": x, "out": q.clone(), "rows": rows.clone()}
            counts, copies = workspaces(x)
            tensors |= {"workspace": counts}
            if copies is not None:  # behind the copy lies what must not count once more
                low = x.abs().sort(dim=1)[0][:, k : k + 1].expand_as(x)
                tensors["copies"] = low.contiguous().view(torch.int32)
            tensors["loaded"] = torch.zeros(1, dtype=torch.int64)
            got = cuda_on_host.call(
                program, tmp_path / str(number), numbers | {"order": order}, tensors,
                written=WRITTEN, shifts={"x": shift},
            )  # fmt: skip
            if n % 8 == shift == 0:  # whole vectors alone
                assert got["loaded"].item() == 2 * x.nbytes, "x is read twice"
            q.copy_(got["out"])
            rows.copy_(got["rows"])

        check_launch(launch, x, p)


def test_the_cuda_kernel_and_nan(program, tmp_path):
    x = values("normal", 4, 200)
    x[0, 5], x[1, 6], x[2] = NAN, INF, INF
    for number, (p, dtype) in enumerate(zip((0.5, 0.9975, 1.0), DTYPE_CODES, strict=True)):
        x = x.to(dtype)
        counts, copies = workspaces(x)
        tensors = {"x": x, "out": torch.zeros(4), "workspace": counts}
        tensors |= {} if copies is None else {"copies": copies.zero_()}
        k, w = place(p, 200)
        numbers = {"samples": 4, "numel": 200, "columns": 0, "rank": k, "weight": w}
        numbers |= {"maximum": math.inf, "dtype": DTYPE_CODES[dtype], "order": number}
        got = cuda_on_host.call(program, tmp_path / str(number), numbers, tensors, written=WRITTEN)
        assert_bits(got["out"], by_torch(x, p))
