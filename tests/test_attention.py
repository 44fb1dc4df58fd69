"""attention: contract, numbers, masks, errors, inside PyTorch, and the Triton kernel."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops._attention import readable, sdpa
from fastdiff.ops.attention import attention, attention_choice, why_not
from tests import compile_gates
from tests.attention_cases import LAYOUTS, against_torch, draw, exact
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

OP = torch.ops.fastdiff.attention.default


def masks(kind, shape, dtype):
    """{seed: a mask}; "rows": some rows have no key at all."""

    def make(seed):
        keep = torch.rand(shape, generator=random(seed + 100)) < 0.7
        if kind == "rows":
            keep[..., ::3, :] = False
        if kind == "added":
            return torch.randn(shape, generator=random(seed)).mul(3).to(dtype)
        if kind == "infinite":
            return torch.zeros(shape).masked_fill(~keep, -torch.inf).to(dtype)
        return keep

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [None, "bool", "added"])
def test_numbers(kind, dtype):
    mask = kind and masks(kind, (2, 1, 33, 70), dtype)
    case = against_torch(attention, mask=mask, dtype=dtype, m=70)
    assert_as_good_as_torch(case, dtype, seeds=2)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (1, 1, 600)], ids=str)
def test_shapes_and_dtypes(shape, dtype):
    for heads, width in ((0, 8), (2, 1), (1, 13)):
        q, k, v = draw(0, *shape, heads, width, dtype)
        out = attention(q, k, v)
        assert out.shape == q.shape
        assert out.dtype == dtype
        assert out.is_contiguous()
        assert shape[2] or not out.any()


@pytest.mark.parametrize("kind", ["rows", "infinite"])
def test_a_row_without_a_key_is_zero(kind):
    mask = masks("rows", (2, 2, 33, 20), torch.float32)(0)
    if kind == "infinite":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    q, k, v = (t.cpu() for t in draw(0, m=20))
    out = attention(q, k, v, mask=mask)
    assert not out[:, ::3].any()
    assert out[:, 1::3].all()
    torch.testing.assert_close(out.double(), exact(q, k, v, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 1, 5), (4, 1, 3, 5), (4, 2, 1, 5)])
def test_masks_that_fit(shape):
    q, k, v = (t.cpu() for t in draw(0, 4, 3, 5, 2, 8))
    mask = torch.rand(shape, generator=random()) < 0.8
    if len(shape) == 1:
        with pytest.raises(ValueError, match=r"mask must be .*\(4, 2, 3, 5\).*got \(5,\)"):
            attention(q, k, v, mask=mask)
        return
    torch.testing.assert_close(attention(q, k, v, mask=mask), sdpa(q, k, v, mask))


EIGHT = torch.zeros(2, 3, 2, 8).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(3, 16)}, ValueError, r"q must be \(B, N, H, D\).*got \(3, 16\)"),
        ({"k": torch.zeros(1, 5, 2, 8)}, ValueError, r"k must be \(2, M, 2, 8\).*\(1, 5, 2, 8\)"),
        ({"mask": torch.zeros(3, 4).bool()}, ValueError, r"mask must be .*got \(3, 4\)"),
        ({"mask": torch.zeros(2, 2, 4, 5).bool()}, ValueError, r"mask .*got \(2, 2, 4, 5\)"),
        ({"mask": torch.zeros(3, 5).half()}, TypeError, r"mask must be bool.*Try mask\.to\(q\)"),
        (
            dict.fromkeys("qkv", EIGHT),
            TypeError,
            r"q must be .* 16 bits or more, got torch\.float8",
        ),
        ({"mask": torch.zeros(3, 5).int()}, TypeError, r"mask must be bool .*got torch\.int32"),
    ],
)
def test_errors_name_the_argument_and_what_would_do(change, error, words):
    args = {"q": torch.zeros(2, 3, 2, 8)} | dict.fromkeys("kv", torch.zeros(2, 5, 2, 8)) | change
    with pytest.raises(error, match=words):
        attention(**args)
    args.setdefault("mask", None)
    with pytest.raises(error, match=words):
        OP(**args, scale=1.0)


def test_compiled_once_for_every_scale():
    """Which torch.compile makes a symbol when it changes."""
    q = torch.randn(1, 4, 2, 8, generator=random())
    run = torch.compile(lambda scale: attention(q, q, q, scale=scale), fullgraph=True,
                        backend="eager")  # fmt: skip
    for scale in (0.5, 0.7, 0.9):
        torch.testing.assert_close(run(scale), sdpa(q, q, q, None, scale))


def test_what_is_no_tensor_and_no_number():
    q = torch.zeros(2, 3, 2, 8)
    with pytest.raises(TypeError, match=r"k must be a tensor, got \[1\]"):
        attention(q, [1], q)
    with pytest.raises(TypeError, match=r"mask must be a tensor, got \[True\]"):
        attention(q, q, q, mask=[True])
    with pytest.raises(TypeError, match=r"scale must be a number, such as 1\.0; got '1'"):
        attention(q, q, q, scale="1")


def test_backends_say_why_not():
    q, k, v = (t.cpu() for t in draw(0))
    key = backends.Key("cpu", torch.float32)
    assert backends.why_not("attention", "cpu", key) == "not written yet for this op"
    with fastdiff.use_backend("reference"):
        assert torch.equal(attention(q, k, v), sdpa(q, k, v))
        assert attention_choice(q, k, v).name == "torch"
    with fastdiff.use_backend("cpu"), pytest.raises(backends.BackendError, match="not written yet"):
        attention(q, k, v)
    if DEVICE == "cpu":
        assert re.match("torch sees no CUDA device", why_not(q))
        assert re.match("torch sees no CUDA", backends.why_not("attention", "triton", key))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wants_grad", [False, True])
def test_opcheck(masked, wants_grad):
    operands = [t.cpu().requires_grad_(wants_grad) for t in draw(0, 1, 3, 5, 2, 8)]
    mask = torch.randn(1, 2, 3, 5, generator=random()) if masked else None
    torch.library.opcheck(OP, (*operands, mask, 0.4))


def test_gradcheck():
    operands = [t.requires_grad_() for t in draw(0, 1, 3, 4, 2, 8, torch.float64)]
    mask = torch.rand(1, 1, 3, 4, generator=random()) < 0.7
    assert torch.autograd.gradcheck(lambda *a: attention(*a, mask=mask), operands)
    assert torch.autograd.gradcheck(lambda *a: OP(*a, mask, 0.7), operands)


def test_compile_without_graph_breaks():
    torch._dynamo.reset()

    def block(q, k, v, mask):
        return attention(q.sin(), k, v, mask=mask).cos()

    operands = (*draw(0), torch.ones(33, 77, dtype=torch.bool, device=DEVICE))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), block(*operands))


def test_inside_other_machinery():
    q, k, v = (t.cpu() for t in draw(0, dtype=torch.float16))
    with FakeTensorMode() as mode:
        assert attention(*map(mode.from_tensor, (q, k, v))).shape == q.shape
    assert attention(*(t.to("meta") for t in (q, k, v))).is_contiguous()
    names = {attention_choice(*(t.to(d) for t in (q, k, v))).name for d in ("cpu", "meta")}
    assert names == {"torch"}


@starts_interpreter
def test_the_kernel_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


def launch(q, k, v, scale=None, mask=None, offset=64):
    """out by the Triton kernel, into NaN between guard bands."""
    from fastdiff.kernels.attention import launch as kernel

    out = Guarded(q.new_empty(q.shape), offset)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    kernel(readable(q), readable(k), readable(v), mask, scale, out.tensor)
    out.check()
    return out.tensor.cpu()


# Rows beside a tile of 128, keys beside those of 64 and 32; all pieces of heads.
CASES = [(1, 1, 8), (128, 64, 40), (129, 65, 64), (33, 200, 80), (20, 129, 128), (37, 63, 160)]
CASES += [(9, 33, 256), (130, 70, 512)]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "width"), CASES)
def test_kernel_numbers(n, m, width, dtype):
    if dtype == torch.float32:
        n, m = min(n, 33 if width <= 64 else 17), min(m, 70)  # tiles of 32 and 16
    layout = LAYOUTS[1 + (n + m + width // 8) % 3]
    spec = {"n": n, "m": m, "width": width, "layout": layout, "dtype": dtype, "heads": 2}
    assert_as_good_as_torch(against_torch(launch, **spec), dtype, seeds=1)


@runs_kernels
@pytest.mark.parametrize(
    ("capability", "width", "kind", "dtype"),
    [
        (80, 80, None, torch.float16),
        (80, 160, None, torch.float16),
        (80, 160, "bool", torch.float16),
        (120, 256, None, torch.float16),
        (100, 256, None, torch.float16),
        (100, 512, None, torch.float32),
    ],
)
def test_kernel_plans_of_other_capabilities(capability, width, kind, dtype, monkeypatch):
    from fastdiff.kernels import attention as kernels

    here = kernels.launch_plan(width, dtype.itemsize, 90, kind is not None)
    assert kernels.launch_plan(width, dtype.itemsize, capability, kind is not None) != here
    monkeypatch.setattr(kernels, "INTERPRETED_AS", capability)
    mask = kind and masks(kind, (1, 1, 67, 41), dtype)
    spec = {"batch": 1, "n": 67, "m": 41, "heads": 1, "width": width, "dtype": dtype}
    assert_as_good_as_torch(against_torch(launch, mask=mask, **spec), dtype, seeds=1)


@runs_kernels
def test_kernel_numbers_at_a_real_shape():
    """The self-attention of SD1.5 at 32x32, one of its heads."""
    spec = {"batch": 1, "n": 1024, "m": 1024, "heads": 1, "width": 80, "dtype": torch.float16}
    assert_as_good_as_torch(against_torch(launch, **spec), torch.float16, seeds=1)


@runs_kernels
@pytest.mark.parametrize("kind", ["bool", "rows", "added", "infinite"])
@pytest.mark.parametrize("shape", [(2, 1, 33, 100), (1, 2, 1, 100), (1, 100)], ids=str)
def test_kernel_masks(shape, kind):
    dtype = torch.float32 if len(shape) == 2 else torch.float16
    if shape[-2] == 1 and kind == "rows":
        shape = (*shape[:-2], 33, 100)
    mask = masks(kind, shape, dtype)
    case = against_torch(launch, mask=mask, dtype=dtype, m=100)
    assert_as_good_as_torch(case, dtype, seeds=1)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.bool, torch.float16], ids=str)
def test_kernel_rows_without_a_key_are_zero(dtype):
    """No key in the first tile of 64, in the last one, in any."""
    keep = torch.ones(1, 1, 4, 150, dtype=torch.bool)
    keep[..., 1, :64], keep[..., 2, 64:], keep[..., 3, :] = False, False, False
    mask = keep if dtype == torch.bool else torch.zeros(1, 1, 4, 150, dtype=dtype)
    if dtype != torch.bool:
        mask = mask.masked_fill(~keep, -torch.inf)
    q, k, v = draw(0, 1, 4, 150, 1, 64, torch.float16)
    out = launch(q, k, v, mask=mask.to(DEVICE))
    assert not out[:, 3].any()
    torch.testing.assert_close(out.double(), exact(q, k, v, keep), rtol=0, atol=2e-3)


@runs_kernels
@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernel_rows_of_the_least_number_are_a_mean(dtype, width):
    """Finite, so the row is not 0, though the number times log2(e) is beyond float32; whatever
    the sign of the number, and of the logit it is added to."""
    least, most = torch.finfo(dtype).min, torch.finfo(dtype).max
    mask = torch.full((1, 1, 6, 100), least, dtype=dtype)
    mask[..., 1, :40], mask[..., 2, 70:] = 0.0, -torch.inf
    mask[..., 3, :], mask[..., 4, :80], mask[..., 5, 33] = -torch.inf, -torch.inf, most
    q, k, v = draw(0, 1, 6, 100, 1, width)
    out = launch(q, k, v, mask=mask.to(DEVICE))
    assert not out[:, 3].any()
    # A float32 sum with 65,504 is 2^-9 off at most; with numbers near 3e38 nothing is left to be.
    atol = 2**-8 * v.abs().max().item() if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out.double(), exact(q, k, v, mask), rtol=0, atol=atol)
    if dtype != torch.float16:
        mean = v[:, :, 0].cpu().double().mean(1)
        torch.testing.assert_close(out[:, 0, 0].double(), mean, rtol=0, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_kernel_large_logits(dtype):
    """Up to 1e4, in tiles whose maxima are far apart."""
    spec = {"size": 1500.0, "dtype": dtype, "width": 64, "m": 150, "n": 20, "heads": 1}
    assert_as_good_as_torch(against_torch(launch, **spec, batch=1), dtype, seeds=2)


@runs_kernels
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_kernel_scale(scale):
    mask = masks("added", (2, 2, 33, 77), torch.float16)
    case = against_torch(launch, scale=scale, mask=mask, dtype=torch.float16)
    assert_as_good_as_torch(case, torch.float16, seeds=1)


@runs_kernels
def test_kernel_bits_of_a_row_do_not_depend_on_the_others():
    q, k, v = draw(0, 3, 140, 77, 2, 40, torch.float16)
    out = launch(q, k, v, offset=60)
    assert torch.equal(launch(q[1:2], k[1:2], v[1:2])[0], out[1])
    assert torch.equal(launch(q[:, 130:, 1:], k[:, :, 1:], v[:, :, 1:]), out[:, 130:, 1:])


@runs_kernels
def test_kernel_does_not_read_beyond_its_keys():
    """Rows of k and v behind the last are NaN, which a weight of 0 would not hide."""
    q, k, v = draw(0, m=80, dtype=torch.float16)
    out = launch(q, k[:, :77], v[:, :77])
    k[:, 77:], v[:, 77:] = float("nan"), float("nan")
    assert torch.equal(launch(q, k[:, :77], v[:, :77]), out)


MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB shared by a block, at most


def gates(width, capability, dtype="bf16", mask=None):
    """compile_gates on the kernel; mask: "*u8", "*bf16"."""
    from fastdiff.kernels import attention as kernels

    plan = kernels.launch_plan(width, 4 if dtype == "fp32" else 2, capability, mask is not None)
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(kernels.INTEGERS, "i32") | {"scale": "fp32"}
    constants = plan.constants() | {"D": width}
    if mask:
        types["mask_ptr"] = mask
    else:
        constants["mask_ptr"] = None
    options = kernels.OPTIONS | {n: constants.pop(n) for n in ("num_warps", "num_stages")}
    options |= {"registers": 255, "widths": (8, 16, 32, 64, 128) if mask else (64, 128)}
    (code,) = compile_gates.check(
        kernels.attention_kernel, types, constants, capabilities=[capability], **options
    )
    assert code.shared <= MEMORY[capability] * 1024
    if dtype != "fp32" and capability < 100:
        assert code.count("HGMMA" if capability == 90 else "HMMA")
        assert capability < 90 or not code.count("HMMA")


def test_widths_have_few_plans():
    """So that the gates below see the code of each: 40 stands for 8 .. 40, and so on."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from fastdiff.kernels.attention import launch_plan

    for capability in MEMORY:
        plans = {launch_plan(w, 2, capability) for w in range(8, 161, 8)}
        few = {launch_plan(w, 2, capability) for w in (40, 48, 64, 80, 128, 160)}
        assert plans == few
        assert len(few) == (6 if capability == 100 else 5)  # 48 apart, see launch_plan


@compile_gates.compiles
@pytest.mark.parametrize("width", [40, 64, 80, 128, 160, 256, 512])
def test_compiles_on_sm_90(width):
    gates(width, 90)


@compile_gates.compiles
def test_compiles_with_masks_and_in_float32():
    gates(64, 90, mask="*u8")
    gates(160, 90, mask="*bf16")
    gates(64, 90, "fp32")
