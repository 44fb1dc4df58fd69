"""The CPU kernel alone: the same bits on every instruction set and for every number of threads,
16-bit numbers rounded as PyTorch rounds them, and its SiLU within the ulps that it states.
"""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdiff.ops.group_norm import group_norm
from tests.group_norm_cases import DTYPES, LAYOUTS, in_layout, make_case

_C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")

SIXTEEN = [torch.float16, torch.bfloat16]


@pytest.fixture(params=_C.isas())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


def on_all_isas_and_threads(run, counts=(1, 2, 3, 7)):
    """[run() on each instruction set for each number of threads]"""
    found, isas, threads = [], _C.isas(), torch.get_num_threads()
    assert isas[0] == "baseline"
    try:
        for isa in isas:
            _C.set_isa(isa)
            for count in counts:
                torch.set_num_threads(count)
                found.append(run())
    finally:
        torch.set_num_threads(threads)
        _C.set_isa(isas[-1])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 40, 61, 61),
        (2, 60, 33, 35),
        (3, 320, 8, 9),
        (5, 40, 7, 63),
        (13, 24, 7, 63),
        (1, 1100, 63),
        (2, 40, 4097),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_isa_or_threads(shape, dtype, layout):
    """Above 65,536 elements and below; samples one by one or side by side (there are at least four
    a thread, or as many for each), divisible among the threads or not."""
    for spec in ({}, {"addend": "nc", "residual": True, "second": 13, "tokens": True}):
        case = make_case(shape=shape, dtype=dtype, layout=layout, mean=3.0, **spec)

        def run(case=case, spec=spec):
            return group_norm(**case) if spec else (group_norm(**case),)

        first, *others = on_all_isas_and_threads(run)
        assert not first[0].isnan().any()
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_in_parts_of_every_size(layout, mean):
    """1 to 20 parts, the last one whole or not: the bits of any number of threads, and right, also
    where the mean does not fit into float32."""
    for places in (1, 31, 32, 33, 255, 256, 257, 1023, 1025, 2048, 2049, 5000):
        case = make_case(shape=(1, 24, places), groups=3, layout=layout, silu=False, mean=mean)
        first, *others = on_all_isas_and_threads(lambda case=case: group_norm(**case), (1, 3))
        assert all(torch.equal(first, other) for other in others)
        wide = {k: v.double() if torch.is_tensor(v) else v for k, v in case.items()}
        truth = group_norm(**wide)  # v - mean, product, sum, and half as much for mean and rstd
        atol = 4 * torch.finfo(torch.float32).eps * truth.abs().max().item()
        torch.testing.assert_close(first.double(), truth, rtol=0, atol=atol)


def sums(x, addend=None, residual=None):
    """total = ((x + addend) + residual) of 1-D tensors: what is left is reading and rounding."""
    residual = torch.zeros_like(x) if residual is None else residual
    results = []
    for shape in ((1, -1, 1), (-1, 1, 8), (-1, 8, 1)):
        if addend is not None and shape[0] != 1:
            continue
        n = len(x) // 8 * 8
        view = [t[:n].reshape(shape) for t in (x, residual)]
        _, total = group_norm(view[0], 1, residual=view[1], addend=addend)
        results.append(total.flatten())
    assert all(torch.equal(a.nan_to_num(), results[0].nan_to_num()) for a in results)
    return results[0]


def assert_same_numbers(got, expected):
    """The same bits, except which NaN it is."""
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan], expected[~nan])


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_every_16_bit_number_is_read_exactly(isa, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert_same_numbers(sums(every), every + 0)
    assert_same_numbers(sums(torch.zeros_like(every), residual=every), every + 0)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_rounding_to_16_bit_is_pytorchs(isa, dtype):
    """Random bits (all exponents, subnormals, NaN), and every tie and its neighbours."""
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=draw).to(torch.int32)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    upper = every.float().view(torch.int32)
    half = 2 ** (12 if dtype == torch.float16 else 15)
    ties = torch.cat([upper + half + d for d in (-1, 0, 1)])
    values = torch.cat([bits, upper, ties]).view(torch.float32)
    zeros = torch.zeros(len(values), dtype=dtype)
    assert_same_numbers(sums(zeros, addend=values), (0 + values).to(dtype))


def test_rounding_does_not_depend_on_flushing_subnormals(isa):
    every = torch.arange(0, 2**15, dtype=torch.int16).view(torch.float16)
    expected = every + 0
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        assert_same_numbers(sums(every), expected)
    finally:
        torch.set_flush_denormal(False)


# log2(e) 2^-f by powers of f from the second on, the constant, and how far it may be off: in ulp
# (float32), or of itself.
POLYNOMIALS = {
    torch.float32: (1.4426951, [0.34656653, -0.080077246, 0.013956209, -0.0019207298]),
    torch.float16: (1.4426906, [0.34666055, -0.08049326, 0.013611673]),
    torch.bfloat16: (1.442572, [0.35002553, -0.08021049]),
}


def own_silu(z, dtype=torch.float32):
    """The kernel's silu in NumPy float32, operation by operation, and log2(e) 2^-w in it."""
    f32 = np.float32
    constant, (c2, c3, *more) = POLYNOMIALS[dtype]
    w = (z.astype(np.float64) * np.float64(1.4426950408889634)).astype(f32)
    bounded = np.clip(w, f32(-126), f32(126))
    rounded = f32(12582912) - bounded
    f = bounded + (rounded - f32(12582912))
    square = f * f
    p = f32(c3) * f + f32(c2)
    if more:
        high = f32(more[0]) if len(more) == 1 else f32(more[1]) * f + f32(more[0])
        p = high * square + p
    p = p * square + (f32(constant) - f)
    with np.errstate(over="ignore"):
        n = rounded.view(np.int32) << np.int32(23)
    power = (p.view(np.int32) + n).view(f32)
    return w / (f32(1.4426950) + power), w, power


def test_silu_is_within_its_ulps(isa):
    """log2(e) 2^-w is within 3 ulp of float64; then a sum and a division are rounded, 1/2 ulp each.

    weight 0 makes y = silu(bias).  With z, which is rounded to w, e^-z is |z| / 2 ulp away.
    """
    spread = np.random.default_rng(0).normal(size=200_000) * 3
    z = np.concatenate([np.linspace(-86, 87, 600_001), np.linspace(-1, 1, 200_001), spread])
    z = z.astype(np.float32)
    expected, w, power = own_silu(z)
    truth = np.log2(np.e) * np.exp2(-w.astype(np.float64))
    ulp = np.exp2(np.floor(np.log2(truth)) - 23)
    assert np.max(np.abs(power - truth) / ulp) <= 2.5  # measured 2.47: a change would be noticed
    bias = torch.from_numpy(z)
    y = group_norm(torch.ones(1, len(z), 1), 1, torch.zeros(len(z)), bias, silu=True).flatten()
    assert torch.equal(y, torch.from_numpy(expected))
    exact = z.astype(np.float64) / (1 + np.exp(-z.astype(np.float64)))
    # in units of 2^-24 of y: w, log2(e) in float32, the sum, the quotient, 3 ulp, and |z| as said
    allowed = (10 + np.abs(z)) * 2.0**-24 * np.abs(exact)
    assert np.all(np.abs(y.double().numpy() - exact) <= allowed)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float16, 5.4e-6), (torch.bfloat16, 8.6e-5)])
def test_silu_for_16_bits_is_off_by_less_than_they_round(isa, dtype, off):
    """log2(e) 2^-w by less than `off`, y by less than that and the rounding to 16 bits."""
    z = np.linspace(-20, 20, 400_001).astype(np.float32)
    expected, w, power = own_silu(z, dtype)
    truth = np.log2(np.e) * np.exp2(-w.astype(np.float64))
    assert np.max(np.abs(power / truth - 1)) <= off
    assert off < torch.finfo(dtype).eps / 4 / 20
    ones, zeros = torch.ones(1, len(z), 1, dtype=dtype), torch.zeros(len(z))
    y = group_norm(ones, 1, zeros, torch.from_numpy(z), silu=True).flatten()
    assert torch.equal(y, torch.from_numpy(expected).to(dtype))


def test_a_nan_of_any_bits_stays_one(isa):
    """Also where all its bits are set, and rounding to bfloat16 would carry into the sign."""
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x = torch.ones(1, 3, 4)
    for dtype in DTYPES:
        for silu in (False, True):
            for layout in LAYOUTS:
                one = in_layout(x.to(dtype), layout)
                for parameters in ((nan, None), (None, nan)):
                    assert group_norm(one, 3, *parameters, silu=silu).isnan().all()
                assert group_norm(one, 3, addend=nan, silu=silu).isnan().all()
                y, total = group_norm(one, 3, addend=nan, residual=one, silu=silu)
                assert y.isnan().all()
                assert total.isnan().all()


@pytest.mark.parametrize("places", [1, 5, 16, 17, 127, 129, 1023, 1025])
def test_silu_is_the_same_in_every_lane(isa, places):
    """Blocks, vectors and their tails hold the same arithmetic, in every dtype and layout."""
    z = torch.linspace(-9, 9, 24)
    for dtype in DTYPES:
        expected = torch.from_numpy(own_silu(z.numpy(), dtype)[0])
        for layout in LAYOUTS:
            x = in_layout(torch.ones(2, 24, places, dtype=dtype), layout)
            y = group_norm(x, 3, torch.zeros(24), z, silu=True)
            assert torch.equal(y, expected.to(dtype)[:, None].expand_as(y))


def test_two_threads_share_operands():
    """The lock of the interpreter is released, and calls share nothing that is written."""
    cases = [make_case(shape=(2, 40, 33, 33), layout=layout, residual=True) for layout in LAYOUTS]
    alone = [group_norm(**case) for case in cases]
    wrong = []

    def run():
        for _ in range(20):
            for case, expected in zip(cases, alone, strict=True):
                got = group_norm(**case)
                wrong.extend(not torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    workers = [threading.Thread(target=run) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 160
    assert not any(wrong)


def test_what_the_cuda_launcher_is_given(monkeypatch):
    """The operands of the CPU call, scratch memory of the size that was asked for, the stream."""
    from fastdiff.ops.group_norm import launch_cpu, launch_cuda

    asked, given = [], []

    def workspace(sizes, groups, dtype, last):
        asked.append((sizes, groups, dtype, last))
        return 4096

    def native(*args):
        *operands, address, stream = args
        given.append((address, stream))
        _C.group_norm(*operands, 1)

    monkeypatch.setattr(_C, "group_norm_cuda_workspace", workspace, raising=False)
    monkeypatch.setattr(_C, "group_norm_cuda", native, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    empty = torch.empty
    made = []
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    x = in_layout(torch.randn(2, 24, 5, 7, dtype=torch.float16), "channels_last")
    outs = [torch.zeros_like(x) for _ in range(2)]
    for launch, out in zip((launch_cpu, launch_cuda), outs, strict=True):
        launch(x, 3, None, None, 1e-5, True, None, None, None, False, out, None)
    assert torch.equal(*outs)
    assert asked == [((2, 35, 24, 0), 3, 1, True)]
    (scratch,) = made
    assert (scratch.dtype, scratch.numel()) == (torch.uint8, 4096)
    assert given == [(scratch.data_ptr(), 77)]


def lean(**changes):
    """The bare call, sound but for the changes."""
    x, out = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    values = {"addresses": (x.data_ptr(), 0, 0, 0, 0, 0, out.data_ptr(), 0), "dtypes": (0, 0, 0)}
    values |= {"sizes": (2, 3, 4, 0), "groups": 2, "eps": 1e-5, "silu": False, "tokens": False}
    values |= {"last": False, "threads": 1}
    return _C.group_norm(**values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (0, 3, 4, 0)}, "must be positive"),
        ({"sizes": (2, 0, 4, 0)}, "must be positive"),
        ({"sizes": (2, 3, 4, 1)}, "groups 2 must divide C1 \\+ C2 = 5"),
        ({"groups": 0}, "groups 0 must divide"),
        ({"sizes": (2, 3, 2, 2)}, "x2 with C2 > 0"),
        ({"addresses": (0,) * 8}, "x and out must be there"),
        ({"addresses": (8, 0, 8, 0, 0, 0, 8, 0)}, "total with residual"),
        ({"dtypes": (3, 0, 0)}, "a dtype is 0, 1 or 2"),
    ],
)
def test_the_lean_call_refuses_what_would_crash(changes, message):
    assert lean() is None
    with pytest.raises(ValueError, match=message):
        lean(**changes)
