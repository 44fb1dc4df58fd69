"""philox_normal: Random123's known answers, the formula in float64, its distribution, and the same
bits from every kernel: on every instruction set, in Triton's interpreter, from CUDA C++ on the CPU.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff import backends
from fastdiff.ops import philox_normal_reference as reference
from fastdiff.ops.philox_normal import (
    DTYPE_CODES,
    STEP_STREAM,
    launch_cpu,
    philox_normal,
    philox_normal_ref,
)
from tests import cuda_on_host

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = torch.tensor([7, -3, 2**62 + 12345, 0, -(2**63)])
STEP = torch.tensor(5, dtype=torch.int32)
EPS = 2.0**-24  # half a unit in the last place of a number in [1/2, 1)


def test_random123s_known_answers():
    """From the file kat_vectors of Random123: counter, key, words."""
    ones = 0xFFFFFFFF
    answers = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]  # fmt: skip
    for counter, key, words in answers:
        got = reference.words(*(tuple(map(torch.tensor, v)) for v in (key, counter)))
        assert " ".join(f"{int(w):08x}" for w in got) == words
        assert " ".join(f"{w:08x}" for w in philox(key, counter)) == words


def philox(key, counter):
    """Philox4x32-10 in Python's integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_contract_as_another_language_would_write_it(backend):
    with backends.use_backend(backend):
        got = philox_normal(SEEDS, (6, 3), step=STEP, noise_step=2**31 - 3, stream=9)
    for b, seed in enumerate(SEEDS.tolist()):
        key, flat = (seed % 2**32, seed // 2**32 % 2**32), []
        for block in range(5):
            w = philox(key, (block, (5 + 2**31 - 3) % 2**32, 9, 0))
            for first, second in ((w[0], w[1]), (w[2], w[3])):
                radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
                angle = 2 * math.pi * second / 2**32
                flat += [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(got[b].flatten(), flat[:18], rtol=0, atol=2.5e-6)


def test_some_numbers_never_change():
    """Pictures that people have made depend on them."""
    bits = philox_normal(torch.tensor([0, 1]), (6,)).view(torch.int32).long() & 0xFFFFFFFF
    assert [[f"{b:08x}" for b in row] for row in bits.tolist()] == [
        GOLDEN[0].split(),
        GOLDEN[1].split(),
    ]


GOLDEN = [
    "3f7dbb31 bf6cb6b0 bf1e1b9e bef6d1b1 be1d5358 3e392a6d",
    "3ec2c3e3 be97b1bc be7f370d bf807dbd 3f207fa8 bf224cc3",
]


def test_the_transform_is_as_exact_as_it_says():
    """Within 6 * 2^-24 * radius of Box and Muller's formula in float64; at the ends of all ranges,
    where the branches meet, and at random.  Its roundings: 3 of the radius, 3 of the rest."""
    draw = torch.Generator().manual_seed(0)
    ends = torch.cat([2**k + torch.arange(-9, 9) for k in range(33)])
    ends = torch.cat([ends, 0xB504F333 + torch.arange(-300, 300), 2**29 * torch.arange(8)])
    ends = ends[(ends >= 0) & (ends < 2**32)].unique()
    w0 = torch.cat([ends, torch.randint(0, 2**32, (600_000,), generator=draw)])
    w1 = torch.cat([ends.flip(0), torch.randint(0, 2**32, (600_000,), generator=draw)])
    u = (w0.double().numpy() + 0.5) / 2**32
    below = (2**32 - 1 - w0.double().numpy() + 0.5) / 2**32  # 1 - u, exactly
    radius = np.sqrt(-2 * np.where(u > 0.5, np.log1p(-below), np.log(u)))
    angle = 2 * np.pi * w1.double().numpy() / 2**32
    assert (abs(reference.radius(w0).double().numpy() - radius) <= 3 * EPS * radius).all()
    for got, exact in zip(reference.normals(w0, w1), (np.cos(angle), np.sin(angle)), strict=True):
        assert (abs(got.double().numpy() - radius * exact) <= 6 * EPS * radius).all()
    extreme = reference.normals(torch.tensor([0, 2**32 - 1]), torch.tensor([0, 0]))[0]
    assert abs(extreme[0] - math.sqrt(66 * math.log(2))) < 3e-6
    assert 0 < extreme[1] < 2e-5


def test_the_distribution_is_normal():
    """Moments, Kolmogorov and Smirnov's distance, tails; each within 4.5 standard deviations."""
    n = 2**21
    z = philox_normal(torch.tensor([20261121]), (n,))[0].double().numpy()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - mean) < 4.5 * math.sqrt(variance / n), power
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in np.sort(z)[::16]])
    distance = abs(cdf - (np.arange(0, n, 16) + 0.5) / n).max()
    assert distance < 2.2 / math.sqrt(n)  # exceeded once in 8000 times
    for bound in (1.0, 2.0, 3.0, 4.0, 4.5):
        p = math.erfc(bound / math.sqrt(2))
        assert abs((abs(z) > bound).sum() - n * p) < 4.5 * math.sqrt(n * p), bound
        assert abs((z > bound).sum() - n * p / 2) < 4.5 * math.sqrt(n * p / 2), bound


def test_nothing_is_correlated():
    """Neighbours, the two of a pair, samples with neighbouring seeds, steps and streams."""
    n = 2**16
    z = philox_normal(torch.tensor([1, 2, 2 + 2**32]), (n,)).double()
    noises = [z[0], z[1], z[2]]
    noises += [philox_normal(torch.tensor([1]), (n,), noise_step=s)[0].double() for s in (1, 2)]
    noises += [philox_normal(torch.tensor([1]), (n,), stream=s)[0].double() for s in (1, 2)]
    limit = 4.5 / math.sqrt(n)
    for i, a in enumerate(noises):
        for b in noises[:i]:
            assert abs((a * b).mean()) < limit
            assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 2 * limit
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs((z[0, lag:] * z[0, :-lag]).mean()) < 1.01 * limit, lag


def test_noise_belongs_to_its_sample():
    together = philox_normal(SEEDS, (3, 41), step=STEP, stream=2)
    for b in range(len(SEEDS)):
        alone = philox_normal(SEEDS[b : b + 1], (3, 41), noise_step=5, stream=2)
        assert torch.equal(alone[0], together[b])
        larger = philox_normal(SEEDS[b : b + 1], (5, 41), noise_step=5, stream=2)
        assert torch.equal(larger[0, :3], together[b])


SHAPES = [(0,), (1,), (3,), (5, 7), (255,), (1, 256), (4, 10, 26), (4099,)]


def assert_bits(got, expected):
    kind = torch.int32 if got.dtype == torch.float32 else torch.int16
    assert torch.equal(got.view(kind), expected.view(kind))


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cpu_kernel_gives_the_bits_of_the_reference(shape, dtype):
    _C = pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    expected = philox_normal_ref(SEEDS, shape, STEP, 4, 3, dtype)
    try:
        for isa in _C.isas():
            _C.set_isa(isa)
            with backends.use_backend("cpu"):
                got = philox_normal(SEEDS, shape, step=STEP, noise_step=4, stream=3, dtype=dtype)
            assert got.dtype == dtype
            assert_bits(got, expected)
    finally:
        _C.set_isa(_C.isas()[-1])


def test_bits_do_not_depend_on_threads():
    """Which divide what is to be done, or do not."""
    pytest.importorskip("fastdiff._C", reason="the native extension was not built")
    expected = philox_normal_ref(SEEDS, (40_001,), None, 0, 0, torch.float32)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5, 7, 11):
            torch.set_num_threads(threads)
            out = torch.full_like(expected, math.nan)
            launch_cpu(SEEDS, None, 0, 0, out)
            assert_bits(out, expected)
    finally:
        torch.set_num_threads(before)


def test_nothing_is_written_beside_the_output():
    band = torch.full((5 * 1003 + 128,), 42.0)
    for launch in (reference.launch, backends.resolve("philox_normal", backends.Key("cpu", torch.float32))):  # noqa: E501  # fmt: skip
        launch(SEEDS, None, 0, 0, band[64:-64].view(5, 1003))
        assert (band[:64] == 42).all()
        assert (band[-64:] == 42).all()


def test_no_samples():
    assert philox_normal(SEEDS[:0], (3, 4)).shape == (0, 3, 4)
    assert philox_normal(SEEDS, ()).shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inside_pytorch(dtype):
    op = torch.ops.fastdiff.philox_normal.default
    torch.library.opcheck(op, (SEEDS, [3, 5], STEP, 1, 2, dtype))
    torch.library.opcheck(op, (SEEDS, [3, 5], None, 1, 2, dtype))
    with FakeTensorMode() as mode:
        fake = philox_normal(mode.from_tensor(SEEDS), (3, 5), dtype=dtype)
    assert (fake.shape, fake.dtype) == ((5, 3, 5), dtype)

    def noisy(seeds):
        return philox_normal(seeds + 1, (3, 5), dtype=dtype) * 2

    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(SEEDS), noisy(SEEDS))
    mapped = torch.func.vmap(lambda seed: philox_normal(seed[None], (3, 5))[0])(SEEDS)
    assert torch.equal(mapped, philox_normal(SEEDS, (3, 5)))


WRONG = {
    "seeds of another dtype": ({"seeds": SEEDS.int()}, "seeds must be .*int64.*got .* torch.int32"),
    "one seed": ({"seeds": SEEDS[0]}, r"seeds must be .*\(B,\).*Try torch.tensor"),
    "seeds as a list": ({"seeds": [7, 8]}, r"seeds must be a tensor, got \[7, 8\]. Try"),
    "seeds with gaps": ({"seeds": SEEDS[::2]}, "seeds must be a contiguous"),
    "a step in int64": ({"step": torch.tensor(1)}, r"step must be a 0-d int32.*Try noise_step=i"),
    "a step as a number": ({"step": 1}, "step must be a 0-d int32 tensor, got 1. Try noise_step=i"),
    "half a step": ({"noise_step": 0.5}, "noise_step must be an integer, such as 1; got 0.5"),
    "half a stream": ({"stream": 0.5}, "stream must be an integer, such as 1; got 0.5"),
    "one size": ({"shape": 5}, r"shape must hold the sizes .*got 5. Try \(5,\)"),
    "half a size": ({"shape": (2, 2.5)}, r"shape\[1\] must be an integer, .*got 2.5"),
    "a negative step": ({"noise_step": -1}, r"noise_step must be .*0 to 2\^31 - 1, got -1"),
    "a large stream": ({"stream": 2**31}, "stream must be"),
    "a negative size": ({"shape": (3, -1)}, r"shape must hold sizes of one sample, got \(3, -1\)"),
    "float64": ({"dtype": torch.float64}, "dtype must be one of .*float32.*Try .to"),
    "a sample too large": ({"shape": (2**20, 2**15)}, r"at most 2\^34 elements"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument_and_what_would_do(wrong):
    changes, message = WRONG[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        philox_normal(**{"seeds": SEEDS, "shape": (3,)} | changes)


# ---- Triton ----------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernel runs in this process")
def test_the_triton_kernel_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, "-k", "triton_bits"], env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter's process")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((0,), torch.float32),
        ((3,), torch.float16),
        ((255,), torch.float32),
        ((4099,), torch.float16),
    ],
    ids=str,
)
def test_triton_bits(shape, dtype, monkeypatch):
    from fastdiff.kernels import philox_normal as kernel

    monkeypatch.setattr(kernel, "SAMPLES", 2)  # of 5: three launches
    numel = math.prod(shape)
    band = torch.full((5 * numel + 64,), 42.0, dtype=dtype, device=DEVICE)
    out = band[32:-32].view(5, *shape)
    seeds = SEEDS.to(DEVICE)
    for step, noise_step in ((STEP.to(DEVICE), 2**31 - 1), (None, 6)):
        kernel.launch(seeds, step, noise_step, 3, out)
        assert_bits(out, philox_normal_ref(seeds, shape, step, noise_step, 3, dtype))
    assert (band[:32] == 42).all()
    assert (band[-32:] == 42).all()


@pytest.mark.parametrize("dtype", ["*fp32", "*bf16"])
def test_the_machine_code(dtype):
    pytest.importorskip("triton", reason="Triton is not installed")
    if INTERPRETED:
        pytest.skip("the interpreter does not compile")
    from fastdiff.kernels import philox_normal as kernel
    from tests import compile_gates

    types = {"seeds_ptr": "*i64", "step_ptr": "*i32", "out_ptr": dtype}
    types |= {"noise_step": "i32", "stream": "i32", "numel": "i32:16", "first": "i32"}
    codes = compile_gates.check(
        kernel.philox_normal_kernel,
        types,
        {"BLOCK": kernel.BLOCK},
        registers=kernel.REGISTERS,
        widths=(32, 64, 128),  # the step, the seed, the noise
        capabilities=compile_gates.CAPABILITIES if dtype == "*fp32" else (90,),
        **kernel.OPTIONS,
    )
    for code in codes:
        assert "fma" not in code.ptx, "a product was fused into a sum"
        assert "sqrt.rn.f32" in code.ptx
        assert "sqrt.approx" not in code.ptx
        assert code.count("STG.E.128") == (2 if dtype == "*fp32" else 1)


# ---- CUDA C++ on the CPU ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if cuda_on_host.compiler() is None:
        pytest.skip("g++ is not on the PATH")
    return cuda_on_host.build("philox_normal", tmp_path_factory.mktemp("programs") / "philox")


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize(("numel", "shift"), [(1, 0), (7, 0), (520, 0), (516, 4), (1030, 0)])
def test_the_cuda_kernel_gives_the_bits_of_the_reference(program, tmp_path, numel, shift, dtype):
    expected = philox_normal_ref(SEEDS, (numel,), STEP, 2**31 - 1, STEP_STREAM, dtype)
    numbers = {"samples": 5, "numel": numel, "noise_step": 2**31 - 1, "stream": STEP_STREAM}
    numbers["dtype"] = DTYPE_CODES[dtype]
    for order in (0, 1):
        tensors = {"seeds": SEEDS, "step": STEP, "out": torch.full_like(expected, float("nan"))}
        got = cuda_on_host.call(program, tmp_path / str(order), numbers | {"order": order}, tensors,
                                written=("out",), shifts={"out": shift})  # fmt: skip
        assert_bits(got["out"], expected)
