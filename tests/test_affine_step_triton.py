"""The Triton kernel against the reference: in Triton's interpreter without a GPU, else on the GPU.

The interpreter replaces the compiler when Triton is imported, so without a GPU the first test runs
this file again in a process with TRITON_INTERPRET=1; the others then run there.  bfloat16 needs a
GPU: the interpreter rounds it toward zero, the GPU to nearest.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff import backends
from fastdiff.ops.affine_step_reference import launch as reference
from tests.affine_step_cases import make_operands, make_row, make_rows

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
here = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter's process"
)


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernel runs in this process")
def test_this_file_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


def launch(*arguments):
    from fastdiff.kernels.affine_step import launch as kernel

    kernel(*arguments)


def run(function, operands, rows, keeps, *, step=None, dtype=None, ring=False, wants=(), drawn=()):
    """All that `function` writes: x_next, then x0, model_input, kept if wanted, then history."""
    x, history = operands["x"], [h.clone() for h in operands["history"]]

    def out():
        return torch.full_like(x, 42.0, dtype=dtype or x.dtype)

    x_next = out()
    x0 = out() if "x0" in wants else None
    entry = out() if "model_input" in wants else None
    kept = [out() for _ in range(keeps)] if "kept" in wants else []
    function(x, operands["uncond"], operands["cond"], history, operands["noise"], rows, step, keeps,
             x_next, x0, kept, entry, ring, *drawn)  # fmt: skip
    return [t for t in (x_next, x0, entry, *kept, *history) if t is not None]


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0))


LATENT = (3, 4, 16, 17)
CASES = [  # shape, keeps, depth, dtype of the operands, dtype of cond and of the results
    ((0,), 0, 0, torch.float32, torch.float32),
    ((1,), 1, 1, torch.float16, torch.float32),
    ((1023,), 2, 2, torch.float32, torch.float16),
    (LATENT, 0, 0, torch.float32, torch.float32),
    (LATENT, 1, 1, torch.float16, torch.float16),
    (LATENT, 1, 3, torch.float16, torch.float32),
    (LATENT, 3, 5, torch.float32, torch.float32),
]
CASES += [(LATENT, 1, 2, a, b) for a in DTYPES for b in DTYPES if torch.bfloat16 in (a, b)]


@here
@pytest.mark.parametrize(("shape", "keeps", "depth", "dtype", "out_dtype"), CASES, ids=str)
def test_bits_of_the_reference(shape, keeps, depth, dtype, out_dtype):
    draw = torch.Generator().manual_seed(len(shape))
    for guided, noisy, samples in ((True, True, 1), (False, False, shape[0] or 1)):
        operands = make_operands(draw, shape, depth, dtype, guided, noisy, DEVICE)
        operands["cond"] = operands["cond"].to(out_dtype)
        rows = make_rows(draw, 3, samples if len(shape) > 1 else 1, keeps, depth).to(DEVICE)
        if not noisy:  # the row must not weigh what is not there
            rows[..., 3] = 0
            rows[..., 7 : 7 + (1 + keeps) * (4 + depth)].unflatten(-1, (1 + keeps, -1))[..., 3] = 0
        rows[..., rows.shape[2] - keeps :] = torch.arange(keeps, device=DEVICE) - 1.0
        step = torch.tensor(2, dtype=torch.int32, device=DEVICE)
        options = {"step": step, "dtype": out_dtype, "ring": depth > 0}
        wants = ("x0", "model_input", "kept") if guided else ()
        expected = run(reference, operands, rows, keeps, wants=wants, **options)
        assert_same_bits(run(launch, operands, rows, keeps, wants=wants, **options), expected)


@here
def test_what_has_weight_zero_is_not_read():
    operands = make_operands(torch.Generator().manual_seed(0), (2, 700), 2, torch.float32,
                             device=DEVICE)  # fmt: skip
    operands["uncond"] = None
    operands["noise"].fill_(float("nan"))
    operands["history"][1].fill_(float("inf"))
    operands["history"][0][0, 0] = float("inf")  # x_next weighs it, kept does not
    row = make_row(1, 2, k=(1, -0.5, 0), c={(0, 0): 0.7, (0, 1): 0.1, (0, 4): 0.2, (1, 1): 1})
    wants = ("x0", "kept")
    x_next, x0, kept, *_ = run(launch, operands, row[None, None].to(DEVICE), 1, wants=wants)
    x, m = operands["x"], operands["x"] - 0.5 * operands["cond"]
    assert torch.equal(x0, m)
    assert torch.equal(kept, m)
    assert torch.equal(x_next, 0.7 * x + 0.1 * m + 0.2 * operands["history"][0])


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples_a_launch", [65_535, 2])
def test_noise_that_is_drawn(dtype, samples_a_launch, monkeypatch):
    from fastdiff.kernels import _grid

    monkeypatch.setattr(_grid, "SAMPLES", samples_a_launch)
    draw = torch.Generator().manual_seed(0)
    operands = make_operands(draw, (3, 1, 777), 1, dtype, noisy=False, device=DEVICE)
    step = torch.tensor(1, dtype=torch.int32, device=DEVICE)
    drawn = (torch.tensor([5, -9, 2**60 + 3], device=DEVICE), 2)
    for samples in (1, 3):
        rows = make_rows(draw, 3, samples, 1, 1, zeros=0.0).to(DEVICE)
        options = {"step": step, "wants": ("x0", "kept"), "drawn": drawn}
        expected = run(reference, operands, rows, 1, **options)
        assert_same_bits(run(launch, operands, rows, 1, **options), expected)
    rows[..., 3] = rows[..., 10] = rows[..., 15] = 0.0  # no result weighs the noise
    expected = run(reference, operands, rows, 1, step=step)
    assert_same_bits(run(launch, operands, rows, 1, step=step, drawn=drawn), expected)


@here
@pytest.mark.parametrize("g", [7.5, 0.3, -2.0])
def test_guidance_is_bit_identical_to_pytorch(g):
    u, c = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    operands = {"x": u, "uncond": u, "cond": c, "noise": None, "history": []}
    row = make_row(0, 0, g=g, c={(0, 2): 1}).to(DEVICE)
    assert torch.equal(run(launch, operands, row[None, None], 0)[0], u + row[0] * (c - u))


@here
def test_a_nan_that_is_read_stays_and_x_is_updated_in_place():
    x = torch.tensor([float("nan"), 3.0, -3.0], device=DEVICE)
    row = make_row(0, 0, k=(1, 0, 0), clip=(-1.0, 1.0, 0.5), c={(0, 1): 1}).to(DEVICE)
    launch(x, None, x, [], None, row[None, None], None, 0, x, None, [], None, False)
    assert x.isnan().tolist() == [True, False, False]
    assert x[1:].tolist() == [0.5, -0.5]


@here
@pytest.mark.parametrize("n", [1, 511, 513])
def test_nothing_is_written_beside_the_output(n):
    band = torch.full((n + 64,), 42.0, device=DEVICE)
    x = torch.randn(n, device=DEVICE)
    row = make_row(0, 0, c={(0, 0): 0.5}).to(DEVICE)
    launch(x, None, x, [], None, row[None, None], None, 0, band[32:-32], None, [], None, False)
    assert torch.equal(band[32:-32], 0.5 * x)
    assert (band[:32] == 42).all()
    assert (band[-32:] == 42).all()


def test_without_a_gpu_the_backend_says_why():
    if DEVICE == "cuda":
        assert backends.chosen("affine_step", backends.Key("cuda", torch.float32)) == "triton"
        return
    with (
        pytest.raises(backends.BackendError, match="torch sees no CUDA device"),
        backends.use_backend("triton"),
    ):
        pass
