"""The CPU kernel alone: the same bits on every instruction set and for every number of threads, and
float16 and bfloat16 rounded as PyTorch rounds them.
"""

import threading

import pytest
import torch

from fastdiff.ops.affine_step import affine_step, affine_step_out, launch_cpu, row_size
from tests.affine_step_cases import make_operands, make_row, make_rows

_C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")

COPY = make_row(0, 0, c={(0, 0): 1})[None, None]  # x' = x: what is left is the conversion


@pytest.fixture(params=_C.isas())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


def convert(values, dtype):
    out = torch.empty_like(values, dtype=dtype)
    launch_cpu(values, None, values, [], None, COPY, None, 0, out, None, [], None, False)
    return out


def assert_same_numbers(got, expected):
    """The same bits, except which NaN it is, and -0: a sum that starts from +0 has none."""
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan], expected[~nan])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_is_read_exactly(isa, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert_same_numbers(convert(every, torch.float32), every.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_16_bit_is_pytorchs(isa, dtype):
    """Random bits (all exponents, subnormals, NaN), and every tie and its neighbours."""
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (400_000,), generator=draw).to(torch.int32)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    upper = every.float().view(torch.int32)
    half = 2 ** (12 if dtype == torch.float16 else 15)
    ties = torch.cat([upper + half + d for d in (-1, 0, 1)])
    values = torch.cat([bits, upper, ties]).view(torch.float32)
    assert_same_numbers(convert(values, dtype), values.to(dtype))


def test_rounding_does_not_depend_on_flushing_subnormals(isa):
    every = torch.arange(0, 2**15, dtype=torch.int16).view(torch.float16)
    expected = every.float()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        assert_same_numbers(convert(every, torch.float32), expected)
        assert_same_numbers(convert(expected, torch.float16), every)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("samples", [1, 3])
def test_bits_do_not_depend_on_isa_or_threads(dtype, samples):
    draw = torch.Generator().manual_seed(0)
    operands = make_operands(draw, (3, 50_021), 3, dtype)
    rows = make_rows(draw, 1, samples, 2, 3)
    isas, threads = _C.isas(), torch.get_num_threads()
    assert isas[0] == "baseline"
    results = []
    try:
        for isa in isas:
            _C.set_isa(isa)
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                x_next, x0, kept = affine_step(rows=rows, keeps=2, **operands)
                results.append([x_next, x0, *kept])
    finally:
        torch.set_num_threads(threads)
        _C.set_isa(isas[-1])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_two_threads_share_a_table():
    """The lock of the interpreter is released, and nothing is shared but the rows."""
    draw = torch.Generator().manual_seed(0)
    rows = make_rows(draw, 8, 1, 1, 1)
    start = torch.randn(30_000, generator=draw)

    def run(out):
        x, ring = start.clone(), [torch.zeros_like(start)]
        for i in range(200):
            step = torch.tensor(i % 8, dtype=torch.int32)
            x_next = torch.empty_like(x)
            affine_step_out(x, start, rows, x_next=x_next, step=step, noise=start, history=ring,
                            keeps=1)  # fmt: skip
            x = x_next.clamp(-3, 3)
        out.append(x)

    alone, together = [], []
    run(alone)
    workers = [threading.Thread(target=run, args=(together,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(alone[0], x) for x in together)
    assert len(together) == 2


def test_an_isa_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"must be one of .*baseline.*got 'neon'"):
        _C.set_isa("neon")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keeps": 3}, "history tensors"),
        ({"samples": 0}, "at least one sample"),
        ({"dtypes": "0"}, "integer"),
    ],
)
def test_the_lean_call_refuses_what_would_crash(changes, message):
    x = torch.zeros(4)
    names = ("rows", "row_count", "step", "samples", "numel", "keeps", "ring", "threads", "dtypes")
    values = dict(zip(names, (COPY.data_ptr(), 1, 0, 1, 4, 0, 0, 1, 0), strict=True)) | changes
    addresses = (x.data_ptr(), 0, x.data_ptr(), 0, x.data_ptr(), 0, 0)
    with pytest.raises((ValueError, TypeError), match=message):
        _C.affine_step(*values.values(), addresses)
    with pytest.raises(TypeError, match="affine_step"):
        _C.affine_step()


def test_a_row_that_points_nowhere_is_refused():
    x = torch.zeros(2, 3)
    rows = torch.zeros(2, 1, row_size(1, 1))
    with pytest.raises(IndexError, match="step is 2, but rows has 2"):
        affine_step(x, x, rows, keeps=1, history=[x], step=torch.tensor(2, dtype=torch.int32))
    rows[..., -1] = 1.0
    with pytest.raises(ValueError, match="slot_1 of the row must be -1 or the index"):
        affine_step_out(x, x, rows, x_next=torch.empty(2, 3), keeps=1, history=[x.clone()])
