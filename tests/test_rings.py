"""The step of a run by addresses is the op's, bit by bit, and taken only where it may be."""

import pytest
import torch

import fastdiff
from fastdiff import rings
from fastdiff.ops.affine_step import affine_step_out

CASES = {
    "dpmpp_3m": {},
    "unipc_2": {"guidance": 3.0},
    "dpmpp_2m_sde": {},
    "ddim": {"guidance": [[1.0, 2.0, 7.0]]},
    "kdpm2_a": {"prediction": "v_prediction"},
}
needs_kernel = pytest.mark.skipif(
    fastdiff.backends.why_no_native() is not None, reason="without the native extension"
)


def run(plan, dtype, like, layout=lambda x: x):
    """Whole, from one seed; the network answers in `dtype`."""
    calls = []

    def denoise(x, t):
        calls.append(x.dtype)
        out = torch.tanh(x) * 0.9
        return (out, out.sin()) if plan.guided else out

    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(like)
    generator = torch.Generator().manual_seed(1)
    out = fastdiff.sample(denoise, layout(x), plan, generator=generator, dtype=dtype)
    assert set(calls) == {dtype}
    return out


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", CASES)
def test_the_bits_of_the_op(solver, dtype, monkeypatch):
    plan = fastdiff.plan(solver, steps=7, **CASES[solver])
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        affine_step_out(*args, **kwargs)

    monkeypatch.setattr(rings, "affine_step_out", counted)
    at_once = run(plan, dtype, torch.float32)
    assert not calls
    monkeypatch.setattr(rings.backends, "native", lambda function: None)
    assert torch.equal(at_once, run(plan, dtype, torch.float32))
    assert len(calls) == plan.steps


@needs_kernel
@pytest.mark.parametrize(
    "why", ["float64", "layout", "reference", "gradient", "a subclass", "a network's layout"]
)
def test_the_op_where_addresses_would_be_wrong(why, monkeypatch):
    plan, calls = fastdiff.plan("dpmpp_2m", steps=4), []

    def counted(*args, **kwargs):
        calls.append(args)
        affine_step_out(*args, **kwargs)

    monkeypatch.setattr(rings, "affine_step_out", counted)
    x = torch.randn(3, 4, 5, 6)
    want = fastdiff.sample(lambda x, t: x.sin(), x, plan)
    assert not calls
    if why == "float64":
        got = fastdiff.sample(lambda x, t: x.sin(), x.double(), plan)
    elif why == "layout":
        got = fastdiff.sample(lambda x, t: x.sin(), x.to(memory_format=torch.channels_last), plan)
    elif why == "reference":
        with fastdiff.use_backend("reference"):
            got = fastdiff.sample(lambda x, t: x.sin(), x, plan)
    elif why == "gradient":
        scale = torch.ones((), requires_grad=True)
        got = fastdiff.sample(lambda x, t: x.sin() * scale, x, plan)
        assert got.requires_grad
        assert not calls  # the differentiable form
        calls.append(None)
    elif why == "a subclass":
        got = fastdiff.sample(lambda x, t: torch.nn.Parameter(x.sin(), False), x, plan)
    else:
        got = fastdiff.sample(
            lambda x, t: x.sin().transpose(0, 1).contiguous().transpose(0, 1), x, plan
        )
    assert calls
    torch.testing.assert_close(got, want, check_dtype=False, check_stride=False)


@needs_kernel
def test_large_latents_obey_the_number_of_threads(monkeypatch):
    plan, x = fastdiff.plan("dpmpp_2m", steps=2), torch.randn(1, 4, 160, 160)
    want = fastdiff.sample(lambda x, t: x.sin(), x, plan)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(fastdiff.sample(lambda x, t: x.sin(), x, plan), want)
    finally:
        torch.set_num_threads(before)
