"""The CUDA kernels without a GPU: the same source, built for the CPU (tests/cuda_on_host), against
the references, under AddressSanitizer, in three orders of threads and blocks.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff.ops import affine_step_reference
from fastdiff.ops.affine_step import DTYPE_CODES
from fastdiff.ops.group_norm import channels_last
from tests import cuda_on_host
from tests.affine_step_cases import exact as exact_step
from tests.affine_step_cases import make_operands, make_row, make_rows
from tests.group_norm_cases import DTYPES, LAYOUTS, assert_as_good_as_torch, make_case

NAN = float("nan")
LOW, INF = torch.float16, float("inf")
ORDERS = (0, 1, 7)  # forward, backward, shuffled

pytestmark = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="g++ is not on the PATH")


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """{stem: future of the program}: both are built at once, and the tests of the first begin."""
    folder = tmp_path_factory.mktemp("programs")
    with ThreadPoolExecutor(2) as pool:
        build = cuda_on_host.build
        yield {stem: pool.submit(build, stem, folder / stem) for stem in cuda_on_host.KERNELS}


@pytest.fixture
def step(programs, tmp_path):
    return Step(programs["affine_step"].result(), tmp_path)


@pytest.fixture
def norm(programs, tmp_path):
    return Norm(programs["group_norm"].result(), tmp_path)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def same_bits(got, expected):
    """The same numbers, NaN in the same places."""
    return torch.equal(got.isnan(), expected.isnan()) and torch.equal(
        got.nan_to_num(77.0), expected.nan_to_num(77.0)
    )


class Step:
    """affine_step: by the CUDA kernel on the CPU, and by the reference."""

    def __init__(self, program, folder):
        self.program, self.folder, self.calls = program, folder, itertools.count()

    def __call__(
        self,
        rows,
        keeps,
        *,
        x,
        cond,
        uncond=None,
        noise=None,
        history=(),
        at=None,
        dtype=None,
        kept=True,
        ring=False,
        order=0,
        shifts=None,
        aliases=None,
        seeds=None,
        noise_step=0,
    ):
        """{name: result} of all that is written; at: the step."""
        depth, written = len(history), {"x_next", "x0", "model_input"}
        tensors = {"x": x, "uncond": uncond, "cond": cond, "noise": noise}
        outs = ["x_next", "x0", "model_input", *(f"kept{p}" for p in range(keeps if kept else 0))]
        tensors |= {name: torch.full_like(x, NAN, dtype=dtype or x.dtype) for name in outs}
        tensors |= {f"history{r}": h for r, h in enumerate(history)}
        written |= {f"history{r}" for r in range(depth if ring else 0)} | {*outs}
        tensors = {k: v for k, v in tensors.items() if v is not None and k not in (aliases or {})}
        names = ["x", "uncond", "cond", "noise", "x_next", "x0", "model_input"]
        names += [f"history{r}" for r in range(depth)] + [f"kept{p}" for p in range(keeps)]
        owner = {**{n: n for n in names}, **(aliases or {})}
        codes = [DTYPE_CODES[tensors[owner[n]].dtype] if owner[n] in tensors else 0 for n in names]
        dtypes = sum(code << 2 * i for i, code in enumerate(codes))
        tensors["rows"] = rows
        if seeds is not None:
            tensors["seeds"] = seeds
        samples = rows.shape[1] if seeds is None else len(seeds)
        if at is not None:
            tensors["step"] = torch.tensor(at, dtype=torch.int32)
        numbers = {
            "row_count": rows.shape[0],
            "samples": samples,
            "numel": x.numel() // samples,
            "shared_row": rows.shape[1] == 1,
            "noise_step": noise_step,
            "keeps": keeps,
            "depth": depth,
            "ring": ring,
            "dtypes_low": dtypes & 0xFFFFFFFF,
            "dtypes_high": dtypes >> 32,
            "order": order,
        }
        folder = self.folder / str(next(self.calls))
        written |= set((aliases or {}).values())
        got = cuda_on_host.call(self.program, folder, numbers, tensors, written=written,
                                shifts=shifts, aliases=aliases)  # fmt: skip
        return {name: got[name] for name in tensors if name in written}

    @staticmethod
    def reference(rows, keeps, *, x, cond, uncond=None, noise=None, history=(), at=None,
                  dtype=None, ring=False, seeds=None, noise_step=0, **_):  # fmt: skip
        history = [h.clone() for h in history]
        x_next, x0, entry, *kept = (
            torch.full_like(x, NAN, dtype=dtype or x.dtype) for _ in range(3 + keeps)
        )
        counter = None if at is None else torch.tensor(at, dtype=torch.int32)
        affine_step_reference.launch(x, uncond, cond, history, noise, rows, counter, keeps, x_next,
                                     x0, kept, entry, ring, seeds, noise_step)  # fmt: skip
        results = {"x_next": x_next, "x0": x0, "model_input": entry}
        results |= {f"kept{p}": t for p, t in enumerate(kept)}
        return results | ({f"history{r}": t for r, t in enumerate(history)} if ring else {})

    def agrees(self, rows, keeps, **spec):
        """The kernel writes the bits of the reference; returns them."""
        got, expected = self(rows, keeps, **spec), self.reference(rows, keeps, **spec)
        for name, tensor in got.items():
            assert same_bits(tensor, expected[name]), f"{name} differs"
        return got


STEPS = [  # shape, samples of the rows, keeps, depth, dtype of the operands, of cond and results
    ((1,), 1, 0, 0, torch.float32, torch.float32),
    ((1023,), 1, 1, 1, torch.float32, torch.float32),
    ((2, 4, 10, 16), 2, 1, 2, torch.float32, torch.float32),
    ((3, 5, 7, 11), 3, 1, 2, torch.float32, torch.float16),
    ((1031,), 1, 2, 6, torch.float16, torch.float16),
    ((2, 4, 8, 16), 2, 3, 5, torch.bfloat16, torch.bfloat16),
    ((2, 4, 8, 17), 1, 3, 9, torch.bfloat16, torch.float32),
    ((2, 340), 2, 4, 1, torch.float16, torch.float32),
    ((257,), 1, 9, 0, torch.float32, torch.bfloat16),
]


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_the_step_gives_the_bits_of_the_reference(step, case):
    shape, samples, keeps, depth, dtype, other = case
    draw = random(len(shape) + depth)
    operands = make_operands(draw, shape, depth, dtype)
    operands["cond"] = operands["cond"].to(other)
    rows = make_rows(draw, 3, samples, keeps, depth)
    got = step.agrees(rows, keeps, at=1, dtype=other, **operands)
    x_next, m, kept, entry = exact_step(rows, 1, keeps, **operands)
    truths = {"x_next": x_next, "x0": m, "model_input": entry}
    truths |= {f"kept{p}": t for p, t in enumerate(kept)}
    size = sum(operand.abs().double() for operand in [*operands["history"], operands["x"]]).numpy()
    roundings = 4 * (6 + depth) * torch.finfo(torch.float32).eps
    for name, truth in truths.items():  # float64: the reference could be wrong where we copy it
        error = abs(got[name].double().numpy() - truth.reshape(shape))
        allowed = torch.finfo(other).eps * abs(truth).reshape(shape) + roundings * 20 * (1 + size)
        assert (error <= allowed).all(), name


@pytest.mark.parametrize("order", ORDERS[1:])
def test_the_step_does_not_depend_on_the_order_of_threads(step, order):
    draw = random(order)
    operands = make_operands(draw, (2, 2, 333), 2, LOW)
    rows = make_rows(draw, 1, 2, 1, 2)
    rows[..., -1] = 1.0
    step.agrees(rows, 1, ring=True, order=order, **operands)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_operands_may_be_absent(step, guided, noisy):
    draw = random(3)
    operands = make_operands(draw, (2, 77), 1, torch.float32, guided=guided, noisy=noisy)
    rows = make_rows(draw, 1, 1, 1, 1)
    if not noisy:
        rows[..., [3, 10, 15]] = 0.0
    step.agrees(rows, 1, **operands)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("numel", "dtype"), [(8 * 80, LOW), (4 * 67, torch.float32), (333, LOW)])
def test_a_step_draws_its_noise(step, numel, dtype, samples):
    draw = random(samples)
    operands = make_operands(draw, (3, numel), 2, dtype, noisy=False)
    spec = {"seeds": torch.tensor([5, -9, 2**60 + 3]), "noise_step": 2, "at": 1, "dtype": dtype}
    rows = make_rows(draw, 3, samples, 1, 2, zeros=0.0)
    together = step.agrees(rows, 1, **spec, **operands)["x_next"]
    last = {k: v[2:] for k, v in operands.items() if k in ("x", "cond", "uncond")}
    last["history"] = [h[2:] for h in operands["history"]]
    spec["seeds"] = spec["seeds"][2:]
    alone = step(rows[:, -1:].contiguous(), 1, **spec, **last)["x_next"]
    assert torch.equal(alone[0], together[2])
    step.agrees(make_rows(draw, 1, 1, 5, 1), 5, x=last["x"], cond=last["x"],
                history=last["history"][:1], seeds=spec["seeds"])  # fmt: skip


def test_what_has_weight_zero_is_not_read(step):
    """NaN and infinity do not get through, and memory that is not there is not touched."""
    x, cond, h = (torch.randn(2, 150, generator=random(i)) for i in range(3))
    bad = torch.full_like(x, NAN)
    bad[0] = INF
    row = make_row(1, 2, k=(1, -0.5, 0), c={(0, 0): 0.7, (0, 1): 0.1, (0, 4): 0.2, (1, 1): 1})
    spec = {"x": x, "cond": cond, "noise": bad}
    step.agrees(row[None, None], 1, history=[h, bad], **spec)
    nothing = torch.empty(0)
    got = step(row[None, None], 1, history=[h, nothing], **spec | {"noise": nothing})
    assert not got["x_next"].isnan().any()
    row = make_row(0, 0, k=(0, 1, 0), c={(0, 1): 1})  # x' = m, whatever x holds
    step.agrees(row[None, None], 0, x=bad, cond=cond)


def test_a_nan_that_is_read_stays_and_the_clamp_is_one(step):
    x = torch.tensor([NAN, 3.0, -3.0, INF, -INF, -0.0])
    row = make_row(0, 0, k=(1, 0, 0), clip=(-1.0, 1.0, 0.5), c={(0, 1): 1})
    got = step.agrees(row[None, None], 0, x=x, cond=x)["x_next"]
    assert got[0].isnan()
    assert got[1:].tolist() == [0.5, -0.5, 0.5, -0.5, 0.0]


@pytest.mark.parametrize("shape", [(3, 41), (3, 8, 16)], ids=str)
@pytest.mark.parametrize("slots", [(0, 2), (2, -1), (-1, -1)])
def test_rings_and_results_in_place(step, shape, slots):
    """r_p replaces history[slot_p]; x_next replaces x; other slots keep what they hold."""
    draw = random(5)
    operands = make_operands(draw, shape, 3, torch.float32)
    rows = make_rows(draw, 2, 3, 2, 3)
    rows[..., -2], rows[..., -1] = slots
    expected = step.reference(rows, 2, at=1, ring=True, **operands)
    got = step(rows, 2, at=1, ring=True, kept=False, aliases={"x_next": "x"}, **operands)
    assert same_bits(got.pop("x"), expected["x_next"])
    for name, tensor in got.items():
        assert same_bits(tensor, expected[name]), f"{name} differs"


@pytest.mark.parametrize("name", ["x", "history0", "kept0", "x_next"])
def test_a_step_takes_any_alignment(step, name):
    operands = make_operands(random(6), (3, 200), 1, LOW)
    rows = make_rows(random(7), 1, 3, 1, 1)
    step.agrees(rows, 1, shifts={name: 2}, **operands)


@pytest.mark.parametrize("at", [-1, 3])
def test_a_step_outside_the_table_is_nan(step, at):
    operands = make_operands(random(6), (2, 20), 1, torch.float32)
    got = step(make_rows(random(7), 3, 1, 1, 1), 1, at=at, ring=True, **operands)
    assert all(got[k].isnan().all() for k in ("x_next", "x0", "model_input", "kept0"))
    assert torch.equal(got["history0"], operands["history"][0])


def test_16_bit_numbers_are_rounded_as_pytorch_rounds_them(step):
    """Of the header's float16 and bfloat16: on a GPU CUDA's own are in their place."""
    row = make_row(0, 0, c={(0, 0): 1})[None, None]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = every.view(dtype).float()
        got = step(row, 0, x=values * 1.001, cond=values, dtype=dtype)["x_next"]
        assert same_bits(got, (values * 1.001).to(dtype))


class Norm:
    """group_norm by the CUDA kernels on the CPU."""

    def __init__(self, program, folder):
        self.program, self.folder, self.calls = program, folder, itertools.count()

    def __call__(self, case, *, order=0, shifts=None):
        """y, or (y, total), for a case of tests/group_norm_cases.py."""
        x, last = case["x"], channels_last(case["x"])
        samples, first, *spatial = x.shape
        tensors = {k: v for k, v in case.items() if torch.is_tensor(v)}
        second = tensors["x2"].shape[1] if "x2" in tensors else 0
        channels = first + second
        for name in {"x", "x2", "residual"} & tensors.keys():
            tensors[name] = tensors[name].movedim(1, -1) if last else tensors[name]
        if "addend" in tensors:
            tensors["addend"] = tensors["addend"].float().expand(samples, channels)
        memory = (samples, *spatial, channels) if last else (samples, channels, *spatial)
        total = torch.full(memory, NAN, dtype=x.dtype)
        if case["tokens"]:
            memory = (samples, x.shape[2:].numel(), channels)
        tensors["out"] = torch.full(memory, NAN, dtype=x.dtype)
        if "residual" in tensors:
            tensors["total"] = total
        numbers = {
            "samples": samples,
            "channels": first,
            "channels2": second,
            "length": x.shape[2:].numel(),
            "groups": case["groups"],
            "eps": case["eps"],
            "dtype": DTYPE_CODES[x.dtype],
            "weight_dtype": DTYPE_CODES[tensors["weight"].dtype] if "weight" in tensors else 0,
            "bias_dtype": DTYPE_CODES[tensors["bias"].dtype] if "bias" in tensors else 0,
            "channels_last": last,
            "silu": case["silu"],
            "tokens": case["tokens"],
            "order": order,
        }
        folder = self.folder / str(next(self.calls))
        got = cuda_on_host.call(self.program, folder, numbers, tensors, shifts=shifts,
                                written=("out", "total"))  # fmt: skip
        y = got["out"].movedim(-1, 1) if last and not case["tokens"] else got["out"]
        if "total" not in got:
            return y
        return y, got["total"].movedim(-1, 1) if last else got["total"]


NORMS = [
    {"shape": (2, 40, 9, 7)},
    {"shape": (1, 8, 5, 7), "eps": 1e-3, "std": 0.03},
    {"shape": (1, 64, 8, 8), "second": 24, "addend": "nc", "residual": True},
    {"shape": (2, 33, 5, 11), "groups": 3, "second": 7, "addend": "c", "residual": True,
     "tokens": True, "parameters": torch.float32},
    {"shape": (1, 72, 6, 4), "second": 40, "addend": "nc", "tokens": True, "silu": False,
     "eps": 3.0},
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", NORMS, ids=str)
def test_the_norm_is_as_good_as_torchs(norm, spec, layout, dtype):
    assert_as_good_as_torch(norm, dtype=dtype, layout=layout, **spec)


BIG = [  # what the shape is for, seeds
    ({"shape": (1, 40, 28, 28), "dtype": LOW}, 2),  # several tiles
    ({"shape": (1, 20, 41, 50), "dtype": torch.bfloat16, "groups": 2, "residual": True}, 2),
    ({"shape": (1, 32, 8400), "dtype": torch.float32, "groups": 8}, 1),  # combine_slots
    ({"shape": (1, 3, 88_811), "dtype": torch.float32, "groups": 1}, 1),  # the same, contiguous
    ({"shape": (2, 2060, 3), "dtype": torch.float32, "groups": 1, "second": 1028}, 2),  # parts
    ({"shape": (1, 1030, 2), "dtype": torch.float32, "groups": 1}, 2),  # parts, no vectors
    ({"shape": (1, 2002, 2), "dtype": torch.float32, "groups": 2}, 2),  # no whole vectors
    ({"shape": (2, 24, 1), "dtype": torch.float32, "groups": 24}, 2),
    ({"shape": (1, 20, 1600), "dtype": torch.float32, "groups": 2, "mean": 1000.0}, 2),
    ({"shape": (1, 20, 1600), "dtype": torch.float32, "groups": 2, "mean": 30.0,
      "addend": "nc"}, 2),
    ({"shape": (1, 20, 1600), "dtype": LOW, "groups": 2, "mean": 100.0}, 2),
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("spec", "seeds"), BIG, ids=str)
def test_how_a_norm_is_cut_into_tiles(norm, spec, seeds, layout):
    assert_as_good_as_torch(norm, seeds, layout=layout, **{"silu": True} | spec)


ALL = {"shape": (3, 40, 15, 16), "dtype": LOW, "second": 8, "addend": "nc", "residual": True}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_a_sample_are_its_own(norm, layout):
    """They depend neither on the batch, nor on the order of threads and blocks, nor on where the
    tensors lie."""
    case = make_case(1, layout=layout, **ALL)
    y, total = norm(case)
    for n in range(3):
        rows = ("x", "x2", "residual", "addend")
        one = {k: v[n : n + 1] if k in rows else v for k, v in case.items()}
        alone, its_total = norm(one)
        assert torch.equal(alone[0], y[n])
        assert torch.equal(its_total[0], total[n])
    for order in ORDERS[1:]:
        assert all(map(torch.equal, norm(case, order=order), (y, total)))
    for name in ("x", "x2", "residual", "total", "out"):
        assert all(map(torch.equal, norm(case, shifts={name: 2}), (y, total)))
    for name in ("weight", "bias", "addend"):
        assert all(map(torch.equal, norm(case, shifts={name: 4}), (y, total)))


def test_tokens_take_any_alignment_and_order(norm):
    case = make_case(1, **ALL | {"tokens": True})
    y, total = norm(case)
    for change in ({"order": 1}, {"order": 7}, {"shifts": {"out": 2}}, {"shifts": {"x": 2}}):
        assert all(map(torch.equal, norm(case, **change), (y, total)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_stays_in_its_group(norm, layout):
    case = make_case(2, (2, 8, 5, 5), 2, layout=layout)
    case["x"][1, 5, 2, 2] = NAN
    y = norm(case)
    assert y[1, 4:].isnan().all()
    assert not y[0].isnan().any()
    assert not y[1, :4].isnan().any()
