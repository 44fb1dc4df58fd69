"""cross_attention: contract, numbers, errors, inside PyTorch, and the Triton kernel."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import backends
from fastdiff.ops import cross_attention as module
from fastdiff.ops._attention import in_place, readable, sdpa, strides
from fastdiff.ops.cross_attention import cross_attention, cross_attention_ref, why_not
from tests import compile_gates
from tests.attention_cases import LAYOUTS, against_torch, draw, exact, lay
from tests.pointwise_cases import (
    DEVICE,
    DTYPES,
    KERNEL_DTYPES,
    Guarded,
    assert_as_good_as_torch,
    run_kernel_tests_interpreted,
    runs_kernels,
    starts_interpreter,
)

OP = torch.ops.fastdiff.cross_attention.default
WIDTHS = [40, 64, 80, 128, 160]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_numbers(dtype, width):
    case = against_torch(cross_attention, dtype=dtype, width=width)
    assert_as_good_as_torch(case, dtype, seeds=3)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (1, 1, 1), (3, 65, 512)], ids=str)
def test_shapes_and_dtypes(shape, dtype):
    batch, n, m = shape
    for heads in (0, 3):
        q, k, v = draw(0, batch, n, m, heads, 8, dtype)
        out = cross_attention(q, k, v)
        assert out.shape == q.shape
        assert out.dtype == dtype
        assert out.is_contiguous()


def test_one_key_gives_its_value():
    q, k, v = draw(0, m=1)
    torch.testing.assert_close(cross_attention(q, k, v), v.expand_as(q))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    q, k, v = draw(0, dtype=torch.float32, layout=layout)
    out = cross_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(out.double().cpu(), exact(q, k, v, scale=0.3), rtol=0, atol=1e-5)
    assert out.is_contiguous()


def test_on_the_cpu_it_is_what_torch_does_on_views():
    q, k, v = draw(0, layout="merged")
    assert torch.equal(cross_attention_ref(q, k, v, 0.25), sdpa(q, k, v, None, 0.25))
    assert torch.equal(cross_attention(q, k, v, scale=0.25), sdpa(q, k, v, None, 0.25))


ERRORS = [
    ({"q": torch.zeros(2, 3, 16)}, ValueError, r"q must be \(B, N, H, D\).*got \(2, 3, 16\)"),
    ({"k": torch.zeros(2, 5, 16)}, ValueError, r"k must be \(B, N, H, D\)"),
    ({"q": torch.zeros(2, 3, 2, 8).int()}, TypeError, r"q must be of a floating dtype.*q\.float"),
    ({"k": torch.zeros(2, 5, 2, 8).half()}, TypeError, r"k must have the dtype.*Try k\.to\(q\)"),
    ({"v": torch.zeros(2, 5, 2, 8).half()}, TypeError, r"v must have the dtype.*Try v\.to\(q\)"),
    ({"k": torch.zeros(1, 5, 2, 8)}, ValueError, r"k must be \(2, M, 2, 8\).*got \(1, 5, 2, 8\)"),
    ({"v": torch.zeros(2, 6, 2, 8)}, ValueError, r"v must be \(2, 5, 2, 8\).*got \(2, 6, 2, 8\)"),
]
WIDE = [((2, 3, 2, 12), 5), ((2, 3, 2, 168), 5), ((2, 3, 2, 0), 5)]


@pytest.mark.parametrize(("change", "error", "words"), ERRORS)
def test_errors_name_the_argument_and_what_would_do(change, error, words):
    args = {"q": torch.zeros(2, 3, 2, 8)} | dict.fromkeys("kv", torch.zeros(2, 5, 2, 8)) | change
    for run in (cross_attention, lambda q, k, v: OP(q, k, v, 1.0)):
        with pytest.raises(error, match=words):
            run(**args)


@pytest.mark.parametrize(("shape", "keys"), WIDE)
def test_errors_of_the_width(shape, keys):
    k = torch.zeros(shape[0], keys, *shape[2:])
    with pytest.raises(ValueError, match="q must have heads"):
        cross_attention(torch.zeros(shape), k, k)


@pytest.mark.parametrize("keys", [0, 513])
def test_errors_of_the_length(keys):
    k = torch.zeros(2, keys, 2, 8)
    with pytest.raises(ValueError, match=rf"k must have 1 to 512 places, got {keys}.*attention"):
        cross_attention(torch.zeros(2, 3, 2, 8), k, k)


def test_backends_say_why_not():
    key = backends.Key("cpu", torch.float32)
    assert backends.chosen("cross_attention", key) == "reference"
    assert backends.why_not("cross_attention", "cpu", key) == "not written yet for this op"
    q, k, v = (t.cpu() for t in draw(0))
    with fastdiff.use_backend("reference"):
        assert torch.equal(cross_attention(q, k, v), sdpa(q, k, v))
    with fastdiff.use_backend("cpu"), pytest.raises(backends.BackendError, match="not written yet"):
        cross_attention(q, k, v)
    if DEVICE == "cpu":
        assert re.match("torch sees no CUDA device", why_not(q, k))


def test_a_backend_that_was_asked_for_runs_or_raises(monkeypatch):
    """What a GPU does with k and v that do not fit on chip."""
    q, k, v = draw(0)
    monkeypatch.setattr(backends, "chosen", lambda op, key: "triton")
    monkeypatch.setattr(module, "_too_large", lambda q, k: "too large")
    assert torch.equal(cross_attention(q, k, v), sdpa(q, k, v))
    monkeypatch.setattr(module, "is_forced", lambda: True)
    with pytest.raises(backends.BackendError, match=r"'triton' cannot run .*: too large"):
        cross_attention(q, k, v)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_read_in_place(layout):
    x = lay(torch.randn(2, 3, 5, 40), layout)
    assert readable(x) is x
    assert strides(x) == tuple(s // 8 for s in x.stride()[:3])


def test_what_cannot_be_read_in_place_is_copied():
    x = torch.randn(2, 3, 5, 80)
    memory = torch.randn(x.numel() + 1)
    odd = torch.randn(2, 3, 5, 84)[..., :80]
    for view in (x[..., ::2], memory[1:].view_as(x), odd, x.expand(2, 3, 5, 80)[..., 1:41]):
        assert not in_place(view)
        copy = readable(view)
        assert torch.equal(copy, view)
        assert in_place(copy)
    assert in_place(x[:1].expand(2, 3, 5, 80))
    assert strides(x[:1, :1]) == (0, 0, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("wants_grad", [False, True])
def test_opcheck(dtype, wants_grad):
    operands = [t.cpu().requires_grad_(wants_grad) for t in draw(0, 1, 3, 5, 2, 8, dtype)]
    torch.library.opcheck(OP, (*operands, 0.4))


def test_gradcheck():
    operands = [t.requires_grad_() for t in draw(0, 1, 3, 4, 2, 8, torch.float64)]
    assert torch.autograd.gradcheck(cross_attention, operands)
    assert torch.autograd.gradcheck(lambda *a: OP(*a, 0.7), operands)


def test_compile_without_graph_breaks():
    torch._dynamo.reset()

    def block(q, k, v):
        return cross_attention(q.sin(), k, v).cos()

    operands = draw(0)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), block(*operands))


def test_inside_other_machinery():
    q, k, v = (t.cpu() for t in draw(0, dtype=torch.float16))
    stacked = [torch.stack([t, t + 1]) for t in (q, k, v)]
    again = torch.stack([cross_attention(*(t[i] for t in stacked)) for i in range(2)])
    torch.testing.assert_close(torch.func.vmap(cross_attention)(*stacked), again)
    with FakeTensorMode() as mode:
        assert cross_attention(*map(mode.from_tensor, (q, k, v))).shape == q.shape
    assert cross_attention(*(t.to("meta") for t in (q, k, v))).is_contiguous()

    class Named(torch.Tensor):
        pass

    assert type(cross_attention(q.as_subclass(Named), k, v)) is Named


@starts_interpreter
def test_the_kernel_in_the_interpreter():
    run_kernel_tests_interpreted(__file__)


def launch(q, k, v, scale=None, offset=64):
    """out by the Triton kernel, into NaN between guard bands."""
    from fastdiff.kernels.cross_attention import launch as kernel

    out = Guarded(q.new_empty(q.shape), offset)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kernel(readable(q), readable(k), readable(v), scale, out.tensor)
    out.check()
    return out.tensor.cpu()


# Rows beside a tile of 64 (or 32), keys beside those of 64 and 128; all pieces of heads.
CASES = [(1, 1, 8), (64, 64, 16), (65, 65, 24), (63, 77, 40), (130, 77, 64), (33, 128, 80)]
CASES += [(17, 77, 128), (70, 77, 160), (31, 129, 48), (40, 154, 72), (64, 192, 80), (5, 333, 64)]
CASES += [(3, 512, 40)]


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "width"), CASES)
def test_kernel_numbers(n, m, width, dtype):
    if dtype == torch.float32:
        m, width = min(m, 96), min(width, 64)
    layout = LAYOUTS[1 + (n + m + width // 8) % 3]
    spec = {"n": n, "m": m, "width": width, "layout": layout, "dtype": dtype}
    assert_as_good_as_torch(against_torch(launch, **spec), dtype, seeds=2)


@runs_kernels
def test_kernel_numbers_at_a_real_shape():
    """A layer of SD1.5 at 32x32, two of its heads."""
    spec = {"batch": 1, "n": 1024, "m": 77, "heads": 2, "width": 80, "dtype": torch.float16}
    assert_as_good_as_torch(against_torch(launch, **spec), torch.float16, seeds=1)


@runs_kernels
@pytest.mark.parametrize("programs", [3, 2, 1])
def test_kernel_steps_change_no_bit(programs, monkeypatch):
    """7 tiles, in groups of 2, 3 and 7: the last group is smaller than the others."""
    from fastdiff.kernels import cross_attention as kernels

    q, k, v = draw(0, 1, 390, 77, 1, 64, torch.float16)
    once = launch(q, k, v)
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    assert torch.equal(launch(q, k, v), once)


@runs_kernels
def test_kernel_bits_of_a_row_do_not_depend_on_the_others():
    q, k, v = draw(0, 3, 70, 77, 2, 40, torch.float16)
    out = launch(q, k, v)
    assert torch.equal(launch(q[1:2], k[1:2], v[1:2])[0], out[1])
    assert torch.equal(launch(q[:, 65:], k, v), out[:, 65:])
    assert torch.equal(launch(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:]), out[:, :, 1:])


@runs_kernels
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("m", [77, 154])
def test_kernel_large_logits(dtype, m):
    """Logits up to 1e4: more than float16 holds of their exponentials, or of their products."""
    m = 90 if dtype == torch.float32 else m
    spec = {"size": 1500.0, "dtype": dtype, "width": 64, "m": m, "n": 20, "heads": 1, "batch": 1}
    q, k, _ = draw(0, **spec)
    logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) / 8
    assert 5_000 < logits.abs().max() < 2e4
    assert_as_good_as_torch(against_torch(launch, **spec), dtype, seeds=2)


@runs_kernels
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.3])
def test_kernel_scale(scale):
    case = against_torch(launch, scale=scale, dtype=torch.float16)
    assert_as_good_as_torch(case, torch.float16, seeds=1)


@runs_kernels
@pytest.mark.parametrize("offset", [63, 60])
def test_kernel_results_at_any_address(offset):
    q, k, v = draw(0, dtype=torch.float16)
    assert torch.equal(launch(q, k, v, offset=offset), launch(q, k, v))


@runs_kernels
def test_kernel_does_not_read_beyond_its_keys():
    """Rows of k and v behind the last are NaN, which a weight of 0 would not hide."""
    q, k, v = draw(0, m=80, dtype=torch.float16)
    out = launch(q, k[:, :77], v[:, :77])
    k[:, 77:], v[:, 77:] = float("nan"), float("nan")
    assert torch.equal(launch(q, k[:, :77], v[:, :77]), out)


def test_without_a_gpu_the_backend_says_why():
    key = backends.Key("cuda", torch.float16)
    if DEVICE == "cuda":
        assert backends.chosen("cross_attention", key) == "triton"
        return
    assert re.match("torch sees no CUDA", backends.why_not("cross_attention", "triton", key))


# KiB of shared memory that a block may have.
MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


def plans(capability, size):
    """{plan: width}, of all widths and lengths; the widest head of each plan."""
    from fastdiff.ops._cross_attention_plan import Plan, launch_plan

    memory = MEMORY[capability] * 1024
    every = [(launch_plan(d, m, size, memory), d) for m in range(1, 513) for d in range(8, 161, 8)]
    return {plan: width for plan, width in every if isinstance(plan, Plan)}


def gates(plan, width, dtype="bf16", capabilities=(90,), **rest):
    """compile_gates on the kernel as `plan` launches it."""
    from fastdiff.kernels.cross_attention import (
        INTEGERS,
        OPTIONS,
        cross_attention_kernel,
    )
    from fastdiff.ops._cross_attention_plan import bytes_on_chip

    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(INTEGERS, "i32") | {"scale": "fp32"}
    constants = plan.constants() | {"D": width}
    options = OPTIONS | {"num_warps": constants.pop("num_warps")} | rest
    options = {"registers": 255, "widths": (128,), "capabilities": capabilities} | options
    codes = compile_gates.check(cross_attention_kernel, types, constants, **options)
    for code in codes:
        assert code.shared <= bytes_on_chip(plan, 4 if dtype == "fp32" else 2)
    return codes


@compile_gates.compiles
def test_why_k_and_v_are_too_large():
    from fastdiff.ops._cross_attention_plan import why_too_large

    large, small = 227 * 1024, 99 * 1024
    for keys, width in ((77, 160), (154, 80), (333, 64), (512, 64)):
        assert why_too_large(width, keys, 2, large) is None
    assert re.search("at this width 128 keys fit.*attention", why_too_large(88, 154, 2, large))
    assert re.search("at this width 192 keys fit", why_too_large(80, 333, 2, large))
    assert re.search("need 138 KiB .* has 99", why_too_large(64, 512, 2, small))
    assert re.search("in float32", why_too_large(128, 77, 4, large))
    assert re.search("need 102 KiB .* has 99", why_too_large(160, 77, 2, small))
    assert why_too_large(128, 77, 2, small) is None


@compile_gates.compiles
def test_launches_are_these():
    assert len(plans(90, 2)) == len(plans(80, 2)) == 12
    assert len(plans(120, 2)) == 8
    assert len(plans(90, 4)) == 3


def check_code(code, dtype):
    """Products by the matrix units, and none of k and v lost to memory."""
    if dtype != "fp32" and code.capability in (80, 86, 89, 120):
        assert code.count("HMMA")
    if dtype != "fp32" and code.capability == 90:
        assert code.count("HGMMA")
        assert not code.count("HMMA")
    assert code.count("STG.E.128")


@compile_gates.compiles
def test_compiles_on_sm_90():
    """Every launch but those of 4 to 7 tiles of keys, which lie between those of 3 and of 8."""
    for plan, width in plans(90, 2).items():
        if plan.tiles in (1, 3, 8):
            check_code(*gates(plan, width), "bf16")
    (plan,) = (p for p in plans(90, 4) if p.tiles == 3)
    check_code(*gates(plan, 64, "fp32"), "fp32")
