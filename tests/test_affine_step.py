"""affine_step: the reference and the CPU kernel against the formula, and against each other."""

import numpy as np
import pytest
import torch

from fastdiff import backends
from fastdiff.ops import affine_step_reference
from fastdiff.ops.affine_step import (
    affine_step,
    affine_step_out,
    affine_step_ref,
    launch_cpu,
    row_size,
)
from tests.affine_step_cases import (
    OFF,
    assert_as_good_as_torch,
    exact,
    make_operands,
    make_row,
    make_rows,
)

BACKENDS = ["reference", "cpu"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0,), (1,), (1023,), (1025,), (3, 700), (2, 4, 5), (2, 4, 16, 17), (2, 3, 2, 5, 7)]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(results):
    x_next, x0, kept = results
    return [x_next, x0, *kept]


def in_place_of(like, keeps, dtype=None):
    """Outputs for the out form, filled with NaN so that a hole would show."""
    x_next, x0, entry, *kept = (
        torch.full_like(like, float("nan"), dtype=dtype or like.dtype) for _ in range(3 + keeps)
    )
    return {"x_next": x_next, "x0": x0, "model_input": entry, "kept": kept}


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*((b, d) for b in BACKENDS for d in DTYPES), ("reference", torch.float64)],
    ids=str,
)
@pytest.mark.parametrize(("keeps", "depth"), [(0, 0), (1, 1), (1, 3), (3, 5)])
def test_the_formula(backend, dtype, keeps, depth):
    draw = random()
    operands = make_operands(draw, (3, 5, 331), depth, dtype)
    for per_sample in (1, 3):
        rows = make_rows(draw, 2, per_sample, keeps, depth)
        step = torch.tensor(1, dtype=torch.int32)
        out = in_place_of(operands["x"], keeps)
        with backends.use_backend(backend):
            affine_step_out(rows=rows, step=step, keeps=keeps, **operands, **out)
        x_next, m, kept, entry = exact(rows, 1, keeps, **operands)
        torch_says = naive(rows[1], keeps, **operands)
        results = [out["x_next"], out["x0"], *out["kept"], out["model_input"]]
        for got, says, truth in zip(results, torch_says, [x_next, m, *kept, entry], strict=True):
            assert_as_good_as_torch(got, says, truth, dtype)


def naive(row, keeps, *, x, cond, uncond, noise, history):
    """The formula as one would write it in PyTorch, summed in float32 by a matrix product."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    row = row.to(wide).t()[:, :, None, None]
    u, c, x0, z = (t.to(wide) for t in (uncond, cond, x, noise))
    e = u + row[0] * (c - u)
    m = row[6] * (row[1] * x0 + row[2] * e + row[3] * z).clamp(-2.0, 2.0)
    vectors = torch.stack([x0, m, e, z, *(h.to(wide) for h in history)])
    matrix = row[7 : 7 + (1 + keeps) * len(vectors)].reshape(1 + keeps, len(vectors), -1)
    matrix = matrix.expand(-1, -1, len(x))
    results = torch.einsum("jkb,kb...->jb...", matrix, vectors)
    entry = row[-1 - keeps] * results[0]
    return [t.to(x.dtype) for t in (results[0], m, *results[1:], entry)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_reference_give_the_same_bits(dtype, out_dtype, shape):
    draw = random(len(shape))
    operands = make_operands(draw, shape, 2, dtype)
    operands["cond"] = operands["cond"].to(out_dtype)  # dtypes need not agree
    rows = make_rows(draw, 1, 1, 2, 2)
    results = []
    for backend in BACKENDS:
        with backends.use_backend(backend):
            results.append(flat(affine_step(rows=rows, keeps=2, out_dtype=out_dtype, **operands)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == out_dtype
        assert a.shape == shape
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_weight_zero_is_not_read(backend):
    """Uninitialised history, noise that is not drawn: NaN and infinity must not get through."""
    x, cond, h = (torch.randn(2, 1500, generator=random(i)) for i in range(3))
    bad = torch.full_like(x, float("nan"))
    bad[0] = float("inf")
    row = make_row(1, 2, k=(1, -0.5, 0), c={(0, 0): 0.7, (0, 1): 0.1, (0, 4): 0.2, (1, 1): 1})
    with backends.use_backend(backend):
        x_next, x0, (kept,) = affine_step(
            x, cond, row[None, None], noise=bad, history=[h, bad], keeps=1
        )
    m = x - 0.5 * cond
    assert torch.equal(x0, m)
    assert torch.equal(kept, m)
    assert torch.equal(x_next, 0.7 * x + 0.1 * m + 0.2 * h)
    row = make_row(0, 0, k=(0, 1, 0), c={(0, 1): 1})  # sigma' = 0: x' = m, whatever x holds
    with backends.use_backend(backend):
        assert torch.equal(affine_step(bad, cond, row[None, None])[0], cond)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_that_is_read_stays(backend):
    x = torch.tensor([float("nan"), 3.0, -3.0])
    row = make_row(0, 0, k=(1, 0, 0), clip=(-1.0, 1.0, 0.5), c={(0, 1): 1})
    with backends.use_backend(backend):
        got = affine_step(x, x, row[None, None])[0]
    assert got.isnan().tolist() == [True, False, False]
    assert got[1:].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("g", [7.5, 1.0, 0.0, 0.3, -2.0])
def test_guidance_is_bit_identical_to_pytorch(backend, g):
    u, c = torch.randn(2, 40_000, generator=random()) * torch.logspace(-6, 6, 40_000)
    row = make_row(0, 0, g=g, k=(0, 1, 0), c={(0, 2): 1})
    with backends.use_backend(backend):
        e, m, _ = affine_step(u, c, row[None, None], uncond=u)
    expected = u + row[0] * (c - u)
    assert torch.equal(e, expected)
    assert torch.equal(m, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_and_mixed_layouts(backend):
    draw = random()
    operands = make_operands(draw, (3, 4, 9, 11), 1, torch.float32)
    for rows in (make_rows(draw, 1, 1, 1, 1), make_rows(draw, 1, 3, 1, 1)):
        with backends.use_backend(backend):
            expected = flat(affine_step(rows=rows, keeps=1, **operands))
        last = {k: v for k, v in operands.items() if k != "history"}
        last = {k: v.contiguous(memory_format=torch.channels_last) for k, v in last.items()}
        with backends.use_backend(backend):  # the history stays contiguous: it is brought to x's
            got = flat(affine_step(rows=rows, keeps=1, history=operands["history"], **last))
        for a, b in zip(got, expected, strict=True):
            assert a.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views(backend):
    wide = torch.randn(4, 3, 20, generator=random())
    rows = make_rows(random(), 1, 3, 0, 0)
    for x in (wide[:3, :, ::2], wide[:3].expand(3, 3, 20), wide.transpose(0, 1)):
        with backends.use_backend(backend):
            got = affine_step(x, x, rows, uncond=x, noise=x)[0]
            expected = affine_step(x.contiguous(), x, rows, uncond=x, noise=x)[0]
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample_rows_are_the_samples_one_by_one(backend):
    draw = random()
    operands = make_operands(draw, (3, 4, 600), 2, torch.float16)
    rows = make_rows(draw, 1, 3, 1, 2)
    with backends.use_backend(backend):
        together = flat(affine_step(rows=rows, keeps=1, **operands))
        for b in range(3):
            one = {k: v[b : b + 1] for k, v in operands.items() if k != "history"}
            one["history"] = [h[b : b + 1] for h in operands["history"]]
            alone = flat(affine_step(rows=rows[:, b : b + 1].contiguous(), keeps=1, **one))
            assert all(torch.equal(a[b : b + 1], s) for a, s in zip(together, alone, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_sample", [1, 2])
def test_a_ring_of_depth_slots_is_a_history_by_age(backend, per_sample):
    """x' = 0.9 x + 0.3 m - 0.2 m_1 + 0.1 m_2 over 7 steps: columns by slot against by age."""
    x = torch.randn(2, 1100, generator=random())
    ring = [torch.full_like(x, float("nan")) for _ in range(2)]
    by_slot, by_age, ages = x.clone(), x, []
    for i in range(7):
        c = {(0, 0): 0.9, (0, 1): 0.3, (1, 1): 1}
        weights = [-0.2, 0.1][: min(i, 2)]
        old = {(0, 4 + (i - 1 - age) % 2): w for age, w in enumerate(weights)}
        ring_row = make_row(1, 2, k=(0.5, 0.5, 0), c=c | old, slots=[i % 2])
        new = {(0, 4 + age): w for age, w in enumerate(weights)}
        row = make_row(1, len(ages), k=(0.5, 0.5, 0), c=c | new, slots=[-1])
        cond = torch.sin(by_age)
        with backends.use_backend(backend):
            table = ring_row.expand(1, per_sample, -1).contiguous()
            affine_step_out(by_slot, cond, table, x_next=by_slot, history=ring, keeps=1)
            by_age, _, (m,) = affine_step(by_age, cond, row[None, None], history=ages, keeps=1)
        ages = [m, *ages][:2]
        # Sums follow the columns, whose order differs: two additions may round differently.
        terms = 0.9 * by_slot.abs().max() + 0.6 * max(a.abs().max() for a in [m, *ages])
        assert (by_slot - by_age).abs().max() <= 4 * torch.finfo(torch.float32).eps * terms
        by_age = by_slot.clone()
        assert torch.equal(ring[i % 2], m)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vector_goes_to_kept_and_to_its_slot(backend, dtype):
    operands = make_operands(random(), (2, 1030), 3, dtype)
    rows = make_rows(random(1), 1, 1, 2, 3)
    rows[..., -2:] = torch.tensor([2.0, 0.0])
    before = [h.clone() for h in operands["history"]]
    expected = flat(affine_step(rows=rows, keeps=2, **operands))
    assert all(torch.equal(a, b) for a, b in zip(before, operands["history"], strict=True))
    out = in_place_of(operands["x"], 2)
    with backends.use_backend(backend):
        affine_step_out(rows=rows, keeps=2, **operands, **out)
    results = [out["x_next"], out["x0"], *out["kept"]]
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert torch.equal(operands["history"][2], out["kept"][0])
    assert torch.equal(operands["history"][0], out["kept"][1])
    assert torch.equal(operands["history"][1], before[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operand", ["x", "cond", "uncond", "noise", "history"])
def test_all_of_an_element_is_read_before_any_of_it_is_written(backend, operand):
    """Whichever result lies in place of an operand that the others read."""
    rows = make_rows(random(1), 1, 1, 2, 1, zeros=0.0)
    launch = {"reference": affine_step_reference.launch, "cpu": launch_cpu}[backend]

    def run(place=None):
        given = make_operands(random(), (2, 1030), 1, torch.float32)
        out = in_place_of(given["x"], 2)
        target = given["history"][0] if operand == "history" else given[operand]
        if place == "kept":
            out["kept"][0] = target
        elif place is not None:
            out[place] = target
        operands = [given[name] for name in ("x", "uncond", "cond", "history", "noise")]
        launch(*operands, rows, None, 2, **out, ring=False)
        return [out["x_next"], out["x0"], out["model_input"], *out["kept"]]

    expected = run()
    for place in ("x_next", "x0", "model_input", "kept"):
        assert all(map(torch.equal, run(place), expected)), place


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gain_without_bounds(backend):
    x = torch.randn(3, 50, generator=random())
    row = make_row(0, 0, k=(1, 0, 0), clip=(*OFF[:2], 0.5), c={(0, 1): 1})
    with backends.use_backend(backend):
        x_next, x0, _ = affine_step(x, x, row[None, None])
    assert torch.equal(x0, 0.5 * x)
    assert torch.equal(x_next, x0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 70_001])
def test_nothing_is_written_beside_the_outputs(backend, dtype, n):
    operands = make_operands(random(), (n,), 1, dtype)
    rows = make_rows(random(1), 1, 1, 1, 1)
    expected = flat(affine_step(rows=rows, keeps=1, **operands))
    bands = [torch.full((n + 128,), 42.0, dtype=dtype) for _ in range(4)]
    x_next, x0, entry, kept = (band[64:-64] for band in bands)
    with backends.use_backend(backend):
        affine_step_out(
            rows=rows, keeps=1, x_next=x_next, x0=x0, model_input=entry, kept=[kept], **operands
        )
    assert all(torch.equal(a, b) for a, b in zip([x_next, x0, kept], expected, strict=True))
    for band in bands:
        assert (band[:64] == 42).all()
        assert (band[-64:] == 42).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_input_is_scaled_before_it_is_rounded(backend):
    x = torch.randn(1, 2000, generator=random())
    row = make_row(0, 0, c={(0, 0): 0.9}, c_in=0.3)
    out = in_place_of(x, 0)
    out["model_input"] = torch.empty_like(x, dtype=torch.bfloat16)
    with backends.use_backend(backend):
        affine_step_out(x, x, row[None, None], **out)
    assert torch.equal(out["x_next"], 0.9 * x)
    assert torch.equal(out["model_input"], (0.3 * (0.9 * x)).bfloat16())


def test_defaults_of_the_dtypes():
    x = torch.zeros(3, dtype=torch.bfloat16)
    rows = torch.zeros(1, 1, row_size(1, 0))
    assert [t.dtype for t in flat(affine_step(x, x, rows, keeps=1))] == [torch.bfloat16] * 3
    results = flat(affine_step(x, x, rows, keeps=1, out_dtype=torch.float32))
    assert [t.dtype for t in results] == [torch.float32] * 3
    results = flat(affine_step(x, x, rows, keeps=1, x0_dtype=torch.float16))
    assert [t.dtype for t in results] == [torch.bfloat16, torch.float16, torch.float16]


def test_float64_rows_are_computed_in_float64():
    x, cond = torch.randn(2, 100, generator=random(), dtype=torch.float64)
    rows = torch.randn(1, 1, row_size(0, 0), generator=random(), dtype=torch.float64)
    rows[..., 4], rows[..., 5] = -9, 9
    x_next, m, _, _ = exact(rows, 0, 0, x=x, cond=cond, uncond=x, noise=cond)
    got = affine_step(x, cond, rows, uncond=x, noise=cond)
    np.testing.assert_allclose(got[0], x_next, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got[1], m, rtol=0, atol=1e-13)
    args = (x, x, cond, [], cond, rows, None, 0, torch.float64, torch.float64)
    assert torch.equal(affine_step_ref(*args)[0], got[0])
