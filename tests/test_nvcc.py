"""Every .cu file compiles for every architecture of setup.py, without spills or a stack.

What ptxas says of each kernel is read (-Xptxas -v), and, with the disassembler that comes with
Triton, the machine code: 16-byte accesses, no float64, no product fused into a sum of a step.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text()
ARCHS = re.search(r'^CUDA_ARCHS = "(.*)"$', SETUP, re.MULTILINE)[1].split(";")
FLAGS = re.search(r'^NVCC_FLAGS = "(.*)"$', SETUP, re.MULTILINE)[1].split()
FILES = sorted(path.stem for path in (ROOT / "csrc").glob("*.cu"))
KERNELS = {  # of a file: name -> how many there are of it, and the registers that a thread may use
    "affine_step": {"affine_step_kernel": (3, 128)},  # 8 blocks of 64 threads a multiprocessor
    "group_norm": {
        "stats_last": (3, 128),  # 2 blocks of 256 threads
        "stats_first": (3, 128),
        "combine_slots": (1, 128),
        "apply_last": (3, 80),  # 3 blocks
        "apply_first": (3, 80),
        "apply_tokens": (3, 80),
    },
}

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is not on the PATH: the CUDA toolkit is not here"
)


@pytest.fixture(scope="module", params=FILES)
def compiled(request, tmp_path_factory):
    """(stem, object file, what ptxas says); one call of nvcc for all architectures."""
    stem = request.param
    target = tmp_path_factory.mktemp(stem) / f"{stem}.o"
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command = ["nvcc", *FLAGS, "--threads", "2", *codes, "-Xptxas", "-v"]
    run = subprocess.run(
        [*command, "-c", ROOT / f"csrc/{stem}.cu", "-o", target], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert "warning" not in run.stderr, run.stderr[:4000]
    return stem, target, run.stderr


def kernel_of(symbol):
    """stats_last for _ZN8fastdiff4cuda10stats_lastILi0EEEvNS0_10NormLaunchE."""
    rest, name = symbol.removeprefix("_ZN"), ""
    while number := re.match(r"\d+", rest):
        end = number.end() + int(number[0])
        name, rest = rest[number.end() : end], rest[end:]
    return name


def test_no_kernel_spills(compiled):
    stem, _, said = compiled
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    counts = {(kernel, arch): 0 for kernel in KERNELS[stem] for arch in ARCHS}
    for symbol, arch, stack, stores, loads, registers in re.findall(pattern, said, re.DOTALL):
        kernel = kernel_of(symbol)
        counts[kernel, arch] += 1
        assert (stack, stores, loads) == ("0", "0", "0"), f"{symbol} for sm_{arch}"
        assert int(registers) <= KERNELS[stem][kernel][1], f"{symbol} for sm_{arch}"
    assert counts == {(k, arch): KERNELS[stem][k][0] for k in KERNELS[stem] for arch in ARCHS}


def test_the_machine_code(compiled):
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed, whose disassembler this test uses")
    stem, target, _ = compiled
    tool = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    run = subprocess.run(
        [tool, "--dump-sass", "-arch", "sm_90a", target], capture_output=True, text=True, check=True
    )
    functions = re.split(r"^\s*Function : ", run.stdout, flags=re.MULTILINE)[1:]
    assert len(functions) == sum(count for count, _ in KERNELS[stem].values())
    for text in functions:
        symbol, code = text.split("\n", 1)
        kernel = kernel_of(symbol)
        assert not re.search(r"\b(LDL|STL)\b", code), f"{symbol} uses local memory"
        assert not re.search(r"\bD(ADD|MUL|FMA)\b|\.F64", code), f"{symbol} uses float64"
        assert re.search(r"\bLDG\.E\.128\b", code), f"{symbol} has no 16-byte load"
        if not kernel.startswith("stats"):  # those write total only with a residual
            assert re.search(r"\bSTG\.E\.128\b", code), f"{symbol} has no 16-byte store"
        if kernel == "affine_step_kernel":
            assert "FFMA" not in code, f"{symbol} fuses a product into a sum"


def test_every_file_is_compiled_here():
    assert sorted(KERNELS) == FILES
