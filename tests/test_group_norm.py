"""group_norm: the reference and the CPU kernel against float64, and what the contract promises."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import backends
from fastdiff.ops.group_norm import channels_last, group_norm, group_norm_out
from tests.group_norm_cases import (
    DTYPES,
    LAYOUTS,
    SEEDS,
    SHAPES,
    assert_as_good_as_torch,
    exact,
    in_layout,
    make_case,
    norm,
    total_of,
)

BACKENDS = ["reference"]
if backends.why_not("group_norm", "cpu", backends.Key("cpu", torch.float32)) is None:
    BACKENDS.append("cpu")
ALL = {"addend": "nc", "residual": True, "second": 13}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backends.use_backend(request.param):
        yield request.param


def results(case):
    """y, and total or None."""
    got = group_norm(**case)
    return got if case.get("residual") is not None else (got, None)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_the_formula(backend, shape, groups, dtype, layout):
    same = {"shape": shape, "groups": groups, "dtype": dtype, "layout": layout}
    same["seeds"] = SEEDS if backend == "cpu" else 2  # the reference is made of PyTorch's operators
    assert_as_good_as_torch(**same)
    assert_as_good_as_torch(**same, silu=False, affine=False, eps=1e-3)
    assert_as_good_as_torch(**same, addend="nc", parameters=torch.float32, tokens=True)
    assert_as_good_as_torch(**same, addend="c", residual=True, silu=False)
    if shape[1] > 3:
        assert_as_good_as_torch(**same, second=shape[1] // 3, residual=True, tokens=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [4, 5, 8, 10, 16, 20, 30, 40, 60, 80])
def test_channels_of_a_group(backend, channels, layout):
    """Two groups, places that fill no vector; the second source begins inside of the first."""
    for dtype in DTYPES:
        for places in ((1,), (7,), (63,)):
            shape = (2, 2 * channels, *places)
            same = {"shape": shape, "groups": 2, "dtype": dtype, "layout": layout, "seeds": 2}
            assert_as_good_as_torch(**same, second=channels + 1, addend="nc")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [10, -100, 1000])
def test_a_mean_far_from_zero(backend, mean, dtype, layout):
    same = {"mean": mean, "dtype": dtype, "layout": layout, "shape": (1, 8, 33, 65), "groups": 2}
    assert_as_good_as_torch(**same)
    assert_as_good_as_torch(**same, addend="nc", second=3)
    if dtype != torch.bfloat16:  # in bfloat16 the sum at 1000 is one of a few numbers 4 apart
        assert_as_good_as_torch(**same, residual=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_million_elements_a_group(backend, layout):
    same = {"shape": (1, 8, 1024, 1025), "groups": 1, "layout": layout, "seeds": 1}
    assert_as_good_as_torch(**same, mean=300)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", [0, 5, 4096])
def test_an_outlier_does_not_spoil_the_sums(backend, where, layout):
    """1000 standard deviations away, also where a kernel might take the value to subtract."""
    case = make_case(shape=(1, 4, 70, 70), groups=1, layout=layout, silu=False)
    case["x"].flatten(2)[:, :, where] = -1000.0
    truth = exact(case)
    error = (group_norm(**case).double() - truth).square().mean().sqrt()
    assert error <= 2 * torch.finfo(torch.float32).eps * truth.square().mean().sqrt()


def test_eps_is_added_to_the_variance(backend):
    """Where the variance is as small as eps it matters whether it is, and that it is inside."""
    for eps in (1e-3, 1e-6):
        assert_as_good_as_torch(std=eps**0.5, eps=eps, silu=False)
    case = make_case(silu=False)
    case["x"] = torch.full_like(case["x"], 3.0)
    y = group_norm(**case)  # variance 0
    assert torch.equal(y, case["bias"][:, None, None].expand_as(y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_sources_are_one_concatenated(backend, dtype, layout):
    """To the bit, wherever the seam is: a group may straddle it."""
    for second in (1, 10, 13, 38):
        case = make_case(dtype=dtype, layout=layout, second=second, addend="c", residual=True)
        whole = in_layout(torch.cat([case["x"], case["x2"]], dim=1), layout)
        assert_same(results(case), results(case | {"x": whole, "x2": None}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", [{}, ALL], ids=["plain", "all"])
def test_tokens_are_the_same_numbers(backend, spec, dtype, layout):
    for shape in ((2, 40, 9, 7), (2, 40, 4100), (3, 40)):
        case = make_case(shape=shape, dtype=dtype, layout=layout, **spec)
        y, total = results(case)
        tokens, again = results(case | {"tokens": True})
        assert tokens.is_contiguous()
        assert tokens.shape == (shape[0], max(1, y[0, 0].numel()), 40)
        flat = y.flatten(2).transpose(1, 2) if y.dim() > 2 else y[:, None]
        assert_same((tokens, again), (flat, total))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_total_is_the_rounded_sum_and_y_its_norm(backend, dtype, layout):
    case = make_case(dtype=dtype, layout=layout, shape=(2, 40, 33, 35), **ALL)
    y, total = results(case)
    assert torch.equal(total, total_of(case))
    assert total.dtype == dtype
    assert channels_last(total) == channels_last(case["x"])
    bare = {k: v for k, v in case.items() if k not in ("x2", "addend", "residual")}
    assert torch.equal(y, group_norm(**bare | {"x": total}))


def test_an_addend_for_all_samples_is_one_for_each(backend):
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(addend="c")
        case["addend"] = case["addend"].to(dtype)
        each = case["addend"].expand(2, -1)
        assert_same(results(case), results(case | {"addend": each}))
        assert_same(results(case), results(case | {"addend": each.float().contiguous()}))


def test_an_addend_of_zero_changes_nothing(backend):
    for layout in LAYOUTS:
        case = make_case(layout=layout, residual=True)
        assert_same(results(case), results(case | {"addend": torch.zeros(40)}))
        del case["residual"]
        assert_same(results(case), results(case | {"addend": torch.zeros(40)}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", [{}, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("kernel", BACKENDS[1:])
def test_a_sample_does_not_depend_on_the_others(kernel, spec, layout):
    """To the bit: a promise of the kernels, which PyTorch's sums do not keep."""
    for dtype in DTYPES:
        case = make_case(shape=(5, 40, 34, 33), dtype=dtype, layout=layout, **spec)
        with backends.use_backend(kernel):
            together = results(case)
        for n in (0, 3):
            batched = ("x", "x2", "residual", "addend")
            one = {k: v[n : n + 1] if k in batched else v for k, v in case.items()}
            with backends.use_backend(kernel):
                alone = results(one)
            assert_same(alone, [t if t is None else t[n : n + 1] for t in together])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_stays_in_its_group(backend, layout):
    case = make_case(layout=layout, shape=(2, 40, 9, 7), groups=4)
    clean = group_norm(**case)
    case["x"][1, 13, 2, 3] = float("nan")
    y = group_norm(**case)
    assert y[1, 10:20].isnan().all()
    assert torch.equal(y[0], clean[0])
    assert torch.equal(y[1, :10], clean[1, :10])
    assert torch.equal(y[1, 20:], clean[1, 20:])


def test_silu_far_from_zero(backend):
    """weight 0 makes y = silu(bias): neither overflow nor a wrong sign, and NaN stays."""
    z = torch.tensor([-1e20, -1e4, -104.0, -88.8, -87.5, -1e-30, 0.0, 1e-30, 88.8, 1e4, 1e20])
    y = group_norm(torch.ones(1, 11, 4), 1, torch.zeros(11), z, silu=True)[0, :, 0]
    torch.testing.assert_close(y, F.silu(z.double()).float(), rtol=1e-5, atol=1e-15)
    nan = group_norm(torch.ones(1, 1, 4), 1, None, torch.full((1,), float("nan")), silu=True)
    assert nan.isnan().all()


def test_any_number_of_dimensions(backend):
    for places in ((), (63,), (9, 7), (3, 3, 7), (3, 3, 7, 1)):
        for layout in LAYOUTS:
            case = make_case(shape=(2, 40, 63), layout=layout)
            case["x"] = in_layout(
                case["x"][..., :1].flatten(1)
                if places == ()
                else case["x"].reshape(2, 40, *places),
                layout,
            )
            y = group_norm(**case)
            assert y.shape == case["x"].shape
            assert y.stride() == case["x"].stride()
            flat = group_norm(**case | {"x": case["x"].reshape(2, 40, -1)})
            torch.testing.assert_close(y.reshape(2, 40, -1), flat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [{}, ALL, {"tokens": True}], ids=["plain", "all", "tokens"])
def test_an_empty_batch(backend, spec):
    case = make_case(shape=(0, 40, 9, 7), **spec)
    y, total = results(case)
    assert y.shape == ((0, 63, 40) if case["tokens"] else (0, 40, 9, 7))
    assert total is None or total.shape == (0, 40, 9, 7)
    out = torch.empty_like(y)
    group_norm_out(**case, out=out, total=total)


def test_operands_in_other_layouts(backend):
    """x decides; what lies otherwise is copied."""
    for layout in LAYOUTS:
        case = make_case(layout=layout, **ALL)
        expected = results(case)
        other = LAYOUTS[layout == "contiguous"]
        for names in (("x2",), ("residual",), ("x2", "residual")):
            changed = case | {name: in_layout(case[name], other) for name in names}
            got = results(changed)
            assert_same(got, expected)
            assert all(channels_last(t) == (layout != "contiguous") for t in got)
        wide = torch.zeros(2, 40, 9, 14)
        wide[..., ::2] = case["residual"]
        strided = torch.stack([case["weight"], case["bias"]], dim=1)
        changed = {"residual": wide[..., ::2], "weight": strided[:, 0], "bias": strided[:, 1]}
        assert_same(results(case | changed), expected)


def test_an_x_with_gaps_becomes_contiguous(backend):
    case = make_case()
    wide = torch.zeros(3, 80, 9, 14)
    wide[:2, 1:41, :, ::2] = case["x"]
    views = [wide[:2, 1:41, :, ::2], case["x"].permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)]
    for x in views:
        got = group_norm(**case | {"x": x})
        assert got.is_contiguous()
        assert torch.equal(got, group_norm(**case))
    same = case["x"][:1].expand(3, -1, -1, -1)
    assert torch.equal(group_norm(**case | {"x": same}), group_norm(**case | {"x": same.clone()}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("shape", [(1, 40, 1), (2, 40, 7), (1, 40, 63), (2, 40, 4097)], ids=str)
def test_all_of_the_outputs_is_written_and_nothing_beside(backend, shape, tokens, dtype, layout):
    """Into memory full of NaN, between guard bands."""
    for spec in ({}, ALL):
        case = make_case(shape=shape, dtype=dtype, layout=layout, tokens=tokens, **spec)
        expected = [t for t in results(case) if t is not None]
        bands = [torch.full((t.numel() + 128,), float("nan"), dtype=dtype) for t in expected]
        for band in bands:
            band[:64], band[-64:] = 42.0, 42.0
        into = [
            b[64:-64].as_strided(t.shape, t.stride(), 64)
            for b, t in zip(bands, expected, strict=True)
        ]
        group_norm_out(**case, out=into[0], total=into[1] if spec else None)
        assert_same(into, expected)
        for band in bands:
            assert (band[:64] == 42).all()
            assert (band[-64:] == 42).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_are_not_written(backend, dtype):
    case = make_case(dtype=dtype, **ALL)
    before = {k: v.clone() for k, v in case.items() if torch.is_tensor(v)}
    group_norm(**case)
    assert all(torch.equal(case[k], v) for k, v in before.items())


def test_float64_runs_the_reference():
    case = make_case(dtype=torch.float64, parameters=torch.float64, **ALL)
    y, total = group_norm(**case)
    assert y.dtype == total.dtype == torch.float64
    torch.testing.assert_close(y, norm(total_of(case), case), rtol=0, atol=1e-13)
    key = backends.Key("cpu", torch.float64)
    assert backends.chosen("group_norm", key) == "reference"
