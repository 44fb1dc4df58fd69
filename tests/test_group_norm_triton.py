"""The Triton GroupNorm against float64: in Triton's interpreter without a GPU, else on the GPU.

The interpreter replaces the compiler when Triton is imported, so without a GPU the first test runs
this file again in a process with TRITON_INTERPRET=1; the others then run there.  bfloat16 needs a
GPU: the interpreter rounds it toward zero, the GPU to nearest.  Every operand lies between NaN,
every result is NaN before and lies between guard bands, and what the kernels put in memory for
themselves starts as NaN, too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff import backends
from fastdiff.ops.group_norm_checks import channels_last
from tests import interpreter
from tests.group_norm_cases import LAYOUTS, assert_as_good_as_torch, in_layout, make_case

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
BAND = 64  # elements on either side; a multiple of 16 bytes
here = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter's process"
)
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_this_file_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that the kernels ask for is NaN until they write it."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kwargs: _poison(empty(*size, **kwargs)))


def _poison(tensor):
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


# Limits of launch_plan that lead there; the last makes few parts, of many rounds.
WAYS = {"one launch": {}, "three launches": {"SMALL": -1}, "few parts": {"SMALL": -1, "PARTS": 2}}


@pytest.fixture
def go(monkeypatch):
    """A function that sends what follows one of the WAYS."""
    from fastdiff.kernels import _group_norm_plan as plans

    def send(way):
        for name, value in WAYS[way].items():
            monkeypatch.setattr(plans, name, value)
        plans.launch_plan.cache_clear()

    yield send
    plans.launch_plan.cache_clear()


def between(tensor, around, inside=None):
    """A copy (or `inside` everywhere) in the same layout, amid bands of `around`."""
    last = channels_last(tensor)
    places = tensor.movedim(1, -1).shape if last else tensor.shape
    band = torch.full((tensor.numel() + 2 * BAND,), around, dtype=tensor.dtype, device=DEVICE)
    copy = band[BAND:-BAND].view(places)
    copy = copy.movedim(-1, 1) if last else copy
    copy.copy_(tensor) if inside is None else copy.fill_(inside)
    return band, copy


def launch(case):
    """y, or (y, total), of the kernels; `case` as make_case makes it, in its layout."""
    from fastdiff.kernels.group_norm import launch as kernels

    nan = float("nan")
    x, *rest = (
        None if case.get(name) is None else between(case[name], nan)[1]
        for name in ("x", "weight", "bias", "residual", "x2")
    )
    weight, bias, residual, x2 = rest
    addend = case.get("addend")
    if addend is not None:
        addend = addend.float().expand(x.shape[0], -1).contiguous().to(DEVICE)
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    like = torch.zeros(x.shape[0], channels, *x.shape[2:], dtype=x.dtype)
    like = in_layout(like, "channels_last" if channels_last(x) else "contiguous")
    bands = []
    if residual is not None:
        bands.append(between(like, 42.0, nan))
    if case["tokens"]:
        like = like.flatten(2).transpose(1, 2).contiguous()
    bands.append(between(like, 42.0, nan))
    total = None if residual is None else bands[0][1]
    kernels(x, case["groups"], weight, bias, case["eps"], case["silu"], addend, residual, x2,
            case["tokens"], bands[-1][1], total)  # fmt: skip
    for band, _ in bands:
        assert (band[:BAND] == 42).all(), "written before the result"
        assert (band[-BAND:] == 42).all(), "written behind the result"
    y = bands[-1][1].cpu()
    return y if total is None else (y, total.cpu())


def check(dtype, **spec):
    seeds = 8 if DEVICE == "cuda" else 1  # the interpreter takes 20 ms a program
    assert_as_good_as_torch(launch, seeds, dtype=dtype, **spec)


PLAIN = {}
ADDED = {"addend": "nc", "residual": True}
JOINED = {"addend": "nc", "tokens": True}  # and a second source
CASES = [  # shape, groups, channels of x2, what else
    ((1, 40, 9, 7), 4, 0, PLAIN),  # 10 channels a group, rows that fill no vector
    ((2, 40, 8, 8), 4, 16, JOINED),  # a group straddles the two sources, a vector does not
    ((1, 40, 9, 7), 4, 13, JOINED),  # a vector does
    ((2, 40, 8, 9), 4, 0, ADDED),
    ((1, 96, 8, 9), 8, 32, ADDED),  # one and a half blocks of 64 channels; x2 with a residual
    ((1, 160, 4, 4), 2, 0, {"silu": False, "affine": False}),  # 80 a group
    ((1, 24, 1), 6, 8, {"residual": True}),  # 4 a group, one row
    ((2, 7, 5, 5), 7, 3, {"addend": "nc"}),  # 1 a group, nothing even
]


def ways(shape, groups, second, layout, dtype, tokens=False, **_):
    """Those that differ for this case."""
    from fastdiff.kernels._group_norm_plan import launch_plan

    length = torch.Size(shape[2:]).numel()
    last = layout == "channels_last" or length == 1
    sizes = (shape[1] - second, second, length, groups, dtype.itemsize)
    one = ["one launch"] if launch_plan(*sizes, last, tokens).small else []
    return [*one, "three launches"] + ["few parts"] * (length > 256)


NUMBERS = [
    pytest.param(way, *case, dtype, layout, id=f"{way}-{i}-{str(dtype)[6:]}-{layout}")
    for i, case in enumerate(CASES)
    for dtype in DTYPES
    for layout in LAYOUTS
    for way in ways(*case[:3], layout, dtype, **case[3])
]


@here
@pytest.mark.parametrize(("way", "shape", "groups", "second", "extra", "dtype", "layout"), NUMBERS)
def test_as_good_as_torch(go, way, shape, groups, second, extra, dtype, layout):
    go(way)
    check(dtype, shape=shape, groups=groups, second=second, layout=layout, **extra)


@here
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra", [PLAIN, ADDED | {"second": 8}], ids=["plain", "added"])
def test_mean_a_thousand_times_the_deviation(go, way, extra, dtype, layout):
    go(way)
    length = (16, 17) if layout == "channels_last" else (8, 147)
    check(dtype, shape=(1, 16, *length), groups=4, mean=-1000.0, layout=layout, **extra)


@here
@pytest.mark.parametrize("way", ["one launch", "three launches"])
@pytest.mark.parametrize("eps", [1e-3, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_torch_where_eps_is_as_large_as_the_variance(go, way, eps, dtype):
    go(way)
    check(dtype, shape=(1, 40, 8, 8), eps=eps, std=eps**0.5, layout="channels_last")


@here
@pytest.mark.parametrize("way", ["one launch", "three launches"])
@pytest.mark.parametrize("parameters", [torch.float32, torch.float16], ids=str)
def test_parameters_in_either_dtype(go, way, parameters):
    go(way)
    check(torch.float16, shape=(2, 40, 8, 8), parameters=parameters, layout="channels_last")


@here
@pytest.mark.parametrize("layout", LAYOUTS)
def test_finish_goes_round(go, monkeypatch, layout):
    """Parts and channels of a group that are more than finish_kernel merges or writes at a time."""
    from fastdiff.kernels import group_norm as kernels

    go("three launches")
    monkeypatch.setattr(kernels, "FINISH", kernels.FINISH | {"BLOCK": 64})
    check(torch.float32, shape=(1, 140, 9, 7), groups=1, addend="nc", mean=3.0, layout=layout)


REAL = [  # SD 1.5: 30 channels a group in three launches (a quarter of 960), 20 and 40 in one
    ((1, 240, 32, 32), 8, 80, 1000.0),
    ((1, 640, 32, 32), 32, 320, 0.0),
    ((1, 1280, 16, 16), 32, 0, 1000.0),
]


@here
@pytest.mark.parametrize(("shape", "groups", "second", "mean"), REAL, ids=str)
def test_real_shapes(shape, groups, second, mean):
    from fastdiff.kernels._group_norm_plan import launch_plan

    sizes = (shape[1] - second, second, shape[2] * shape[3], groups, 2, True, False)
    assert launch_plan(*sizes).small == (groups == 32)
    check(torch.float16, shape=shape, groups=groups, second=second, mean=mean,
          layout="channels_last")  # fmt: skip


@here
@pytest.mark.parametrize("way", ["one launch", "three launches"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", [ADDED, JOINED | {"second": 16}], ids=["added", "joined"])
def test_a_sample_has_the_same_bits_in_every_batch(go, way, extra, layout):
    go(way)
    case = make_case(0, (2, 24, 12, 12), 4, torch.float16, layout=layout, **extra)
    for name in {"x", "x2"} & case.keys():
        case[name][0] = float("nan")  # a broken neighbour
    together = launch(case)
    one = dict(case)
    for name in {"x", "x2", "residual", "addend"} & case.keys():
        if case[name].dim() > 1:
            one[name] = in_layout(case[name][1:], layout)
    alone = launch(one)
    results = [r if isinstance(r, tuple) else (r,) for r in (together, alone)]
    for ours, same in zip(*results, strict=True):
        assert ours[0].isnan().all()
        assert torch.equal(ours[1], same[0])


@here
@pytest.mark.parametrize("way", ["one launch", "three launches"])
def test_the_same_bits_in_every_run(go, way):
    go(way)
    case = make_case(0, (1, 24, 12, 12), 4, torch.float16, layout="channels_last", **ADDED)
    for first, second in zip(launch(case), launch(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(not INTERPRETED, reason="is about the interpreter")
@pytest.mark.parametrize("way", ["one launch", "three launches"])
def test_the_quick_interpreter_is_the_interpreter(go, way):
    """tests/interpreter.py: the same bits, and a sum that overflows is no error in either."""
    from triton.runtime.interpreter import interpreter_builder, interpreter_semantic

    go(way)
    case = make_case(0, (1, 40, 9, 7), 4, torch.float16, second=13, addend="nc", residual=True)
    largest = interpreter_semantic.to_tensor(2**31 - 1)
    quick, (total,) = launch(case), interpreter_semantic.add(largest, 1, True).handle.data
    assert not interpreter_builder.options.sanitize_overflow
    with interpreter.as_it_came():
        assert interpreter_builder.options.sanitize_overflow
        assert [*interpreter_semantic.add(largest, 1, True).handle.data] == [total] == [-(2**31)]
        for ours, its in zip(quick, launch(case), strict=True):
            assert torch.equal(ours, its)


@here
@pytest.mark.parametrize("way", ["one launch", "three launches"])
def test_an_infinity_is_not_hidden(go, way):
    go(way)
    case = make_case(0, (2, 40, 8, 8), 4, layout="channels_last")
    case["x"][0, 3, 2, 2] = float("inf")
    y = launch(case)
    assert y[0, :10].isnan().all()
    assert y[0, 10:].isfinite().all()
    assert y[1].isfinite().all()


@on_gpu
def test_a_sample_that_begins_beyond_2_to_the_31():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB on the GPU")
    from fastdiff.kernels.group_norm import launch as kernels

    x = torch.randn(3, 1 << 24, 64, device=DEVICE, dtype=torch.float16).movedim(-1, 1)
    y, alone = torch.empty_like(x), torch.empty_like(x[2:])
    for source, out in ((x, y), (x[2:], alone)):
        kernels(source, 8, None, None, 1e-5, True, None, None, None, False, out, None)
    assert torch.equal(y[2], alone[0])


SIZES = [1, 7, 63, 64, 96, 256, 1024, 4096, 9216, 16384, 1 << 20]
CHANNELS = [(320, 0), (640, 0), (1280, 0), (320, 320), (640, 320), (1280, 640), (1280, 1280)]
CHANNELS += [(128, 0), (256, 0), (512, 0), (96, 32), (32, 0)]


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_plans_cover_a_sample_once(element_size, last, tokens):
    if INTERPRETED:
        return
    from fastdiff.kernels._group_norm_plan import SMALL, launch_plan

    for c1, c2 in CHANNELS:
        for length in SIZES:
            p = launch_plan(c1, c2, length, 32, element_size, last, tokens)
            assert c1 % p.cv == c2 % p.cv == length % p.rv == 0
            if last:
                assert p.cv * element_size == 16, "narrow accesses"
            elif length % 16 == 0:
                assert p.rv * element_size == 16
            if p.small:
                assert p.width % ((c1 + c2) // 32) == p.width % p.cv == 0
                assert p.width <= p.tile.channels
                assert p.width * length * element_size <= SMALL
                continue
            rows = p.steps * p.tile.rows * p.tile.unroll
            assert (p.splits - 1) * rows < length <= p.splits * rows
            assert p.splits * -(-(c1 + c2) // p.tile.channels) <= 1024 + 960  # work is read once
            assert p.splits * (c1 + c2) // 32 <= 2048, "finish takes one turn"


def test_without_a_gpu_the_backend_says_why():
    key = backends.Key("cuda", torch.float32)
    if DEVICE == "cuda":
        assert backends.why_not("group_norm", "triton", key) is None
        return
    assert "torch sees no CUDA device" in backends.why_not("group_norm", "triton", key)
