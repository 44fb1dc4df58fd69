"""Noise that affine_step draws by itself: what it is, that it belongs to its sample, derivatives,
layouts, errors.  The CUDA and Triton kernels: test_cuda_on_host.py, test_affine_step_triton.py.
"""

import pytest
import torch

from fastdiff import backends
from fastdiff.ops.affine_step import affine_step, affine_step_out
from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal
from tests.affine_step_cases import make_operands, make_row, make_rows

BACKENDS = ["reference", "cpu"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEEDS = torch.tensor([5, -9, 2**60 + 3])
STEP = torch.tensor(1, dtype=torch.int32)


def case(shape, dtype=torch.float32, samples=1, keeps=2, depth=2):
    draw = torch.Generator().manual_seed(0)
    operands = make_operands(draw, shape, depth, dtype, noisy=False)
    rows = make_rows(draw, 3, samples, keeps, depth, zeros=0.2)
    return operands | {"rows": rows, "keeps": keeps, "seeds": SEEDS[: shape[0]]}


def flat(results):
    x_next, x0, kept = results
    return [x_next, x0, *kept]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("numel", [1, 700, 1024, 2050, 33_333])
def test_it_is_the_noise_of_philox_normal(backend, samples, numel):
    values = case((3, numel), samples=samples)
    z = philox_normal(SEEDS, (numel,), noise_step=1 + 4, stream=STEP_STREAM)
    given = values | {"noise": z, "seeds": None}
    with backends.use_backend(backend):
        got = flat(affine_step(step=STEP, noise_step=4, **values))
        expected = flat(affine_step(step=STEP, **given))
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", [1, 3])
def test_bits_are_those_of_the_sample_alone(dtype, samples):
    """In any batch, on every backend, instruction set and number of threads."""
    _C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    values = case((3, 4, 6001), dtype, samples)
    with backends.use_backend("reference"):
        expected = flat(affine_step(step=STEP, **values))
    isas, threads = _C.isas(), torch.get_num_threads()
    try:
        for isa in isas:
            for count in (1, 3):
                _C.set_isa(isa)
                torch.set_num_threads(count)
                got = flat(affine_step(step=STEP, **values))
                assert all(map(torch.equal, got, expected))
    finally:
        torch.set_num_threads(threads)
        _C.set_isa(isas[-1])
    for b in range(3):
        one = {k: values[k][b : b + 1] for k in ("x", "cond", "uncond", "seeds")}
        one["history"] = [h[b : b + 1] for h in values["history"]]
        one["rows"] = values["rows"][:, b : b + 1].contiguous() if samples > 1 else values["rows"]
        alone = flat(affine_step(step=STEP, keeps=2, **one))
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_z_is_not_rounded_to_the_dtype_of_x(backend):
    row = make_row(0, 0, c={(0, 3): 1})[None, None]
    x = torch.zeros(3, 50, dtype=torch.bfloat16)
    with backends.use_backend(backend):
        got = affine_step(x, x, row, seeds=SEEDS, noise_step=7, out_dtype=torch.float32)[0]
    assert torch.equal(got, 0 + philox_normal(SEEDS, (50,), noise_step=7, stream=STEP_STREAM))


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_count_in_c_order_whatever_the_layout(backend):
    values = case((3, 4, 5, 6))
    last = {k: values[k].contiguous(memory_format=torch.channels_last) for k in ("x", "cond")}
    with backends.use_backend(backend):
        expected = flat(affine_step(step=STEP, **values))
        got = flat(affine_step(step=STEP, **values | last))
        into = torch.empty_like(last["x"])
        affine_step_out(step=STEP, **values, x_next=torch.empty(3, 4, 5, 6))
        ring = [h.contiguous(memory_format=torch.channels_last) for h in values["history"]]
        affine_step_out(step=STEP, **values | last | {"history": ring}, x_next=into)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(into, expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_and_samples_have_noise_of_their_own(backend):
    row = make_row(0, 0, c={(0, 3): 1})
    rows, x = row.expand(3, 1, -1).contiguous(), torch.zeros(3, 400)
    with backends.use_backend(backend):
        steps = [torch.tensor(i, dtype=torch.int32) for i in range(3)]
        noises = [affine_step(x, x, rows, seeds=SEEDS, step=s)[0] for s in steps]
        later = affine_step(x, x, rows, seeds=SEEDS, noise_step=2)[0]
    assert torch.equal(later, noises[2])
    every = torch.cat(noises)
    assert (torch.corrcoef(every) - torch.eye(9)).abs().max() < 0.25
    initial = philox_normal(SEEDS, (400,))
    assert (torch.corrcoef(torch.cat([initial, noises[0]])) - torch.eye(6)).abs().max() < 0.25


def test_weight_zero_draws_nothing_and_needs_nothing():
    row = make_row(0, 0, c={(0, 0): 2.0})[None, None]
    x = torch.randn(3, 70)
    assert torch.equal(affine_step(x, x, row, seeds=SEEDS)[0], 2 * x)


def test_inside_pytorch():
    values = case((2, 3, 4), samples=2)
    names = ("x", "uncond", "cond", "history", "noise", "rows")
    for tensor in (values["x"], values["cond"], *values["history"]):
        tensor.requires_grad_()
    args = [values[n] for n in names] + [STEP, 2, torch.float32, torch.float32, values["seeds"], 3]
    torch.library.opcheck(torch.ops.fastdiff.affine_step.default, args)
    detached = {k: v.detach() if torch.is_tensor(v) else v for k, v in values.items()}
    detached["history"] = [h.detach() for h in values["history"]]
    outs = {"x_next": torch.zeros(2, 3, 4), "kept": []}
    args = [detached[n] for n in names] + [STEP, 2, detached["seeds"], 3]
    quick = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fastdiff.affine_step.out, args, outs, test_utils=quick)


def test_gradcheck():
    """The noise decides which m are clamped: the derivative must draw the same."""
    values = case((2, 5), torch.float64, 2)
    values["rows"][..., 1:7] = torch.tensor([0.7, -0.5, 1.5, -1.0, 1.0, 0.7])
    inputs = [values["x"].requires_grad_(), values["cond"].requires_grad_()]

    def step(x, cond):
        return tuple(flat(affine_step(step=STEP, **values | {"x": x, "cond": cond})))

    assert torch.autograd.gradcheck(step, inputs)
    single = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in values.items()}  # fmt: skip
    single["history"] = [h.float() for h in values["history"]]
    single |= {k: single[k].detach().requires_grad_() for k in ("x", "cond")}
    total = sum(t.sum() for t in flat(affine_step(step=STEP, **single)))  # the registered one
    exact = sum(t.sum() for t in step(*inputs))
    got = torch.autograd.grad(total, (single["x"], single["cond"]))
    for ours, theirs in zip(got, torch.autograd.grad(exact, inputs), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


WRONG = {
    "noise, too": ({"noise": torch.zeros(3, 4)}, "noise and seeds were both given: pass noise, or"),
    "seeds for another batch": (
        {"seeds": SEEDS[:2]},
        r"seeds must be \(3,\), one for each sample of x, on cpu; got \(2,\) on cpu",
    ),
    "seeds of another dtype": ({"seeds": SEEDS.int()}, "seeds must be .*int64.*torch.int32"),
    "a negative step": ({"noise_step": -1}, "noise_step must be an integer from 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong):
    changes, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        affine_step(**case((3, 4)) | changes)
    with pytest.raises(ValueError, match=message):
        affine_step_out(**case((3, 4)) | changes, x_next=torch.zeros(3, 4))


def test_the_lean_call_refuses_seeds_that_do_not_fit_the_rows():
    _C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    x, rows = torch.zeros(3, 4), torch.zeros(1, 3, 12)
    addresses = (x.data_ptr(), 0, x.data_ptr(), 0, x.data_ptr(), 0, 0)
    with pytest.raises(ValueError, match="2 seeds, but rows for 3 samples"):
        _C.affine_step(rows.data_ptr(), 1, 0, 3, 12, 0, 0, 1, 0, addresses, SEEDS.data_ptr(), 2, 0)
