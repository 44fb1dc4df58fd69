"""Every .cu file compiles for every architecture of setup.py, without spills or a stack, and what
it becomes is an extension that loads.

The extension is built with CUDA as an installation builds it, in the same folder: where it was just
installed so, nothing is left to compile.  What ptxas says of each kernel is read (-Xptxas=-v) and,
with the disassembler that comes with Triton, the machine code: 16-byte accesses, no float64, no
product fused into a sum of a step.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text()
ARCHS = re.search(r'^CUDA_ARCHS = "(.*)"$', SETUP, re.MULTILINE)[1].split(";")
FILES = sorted(path.stem for path in (ROOT / "csrc").glob("*.cu"))
KERNELS = {  # of a file: name -> how many there are of it, and the registers that a thread may use
    "abs_quantile": {"abs_quantile_kernel": (2, 64)},  # a block of 1024 threads
    "affine_step": {"affine_step_kernel": (6, 128)},  # 8 blocks of 64 threads a multiprocessor
    "group_norm": {
        "stats_last": (3, 128),  # 2 blocks of 256 threads
        "stats_first": (3, 128),
        "combine_slots": (1, 128),
        "apply_last": (3, 80),  # 3 blocks
        "apply_first": (3, 80),
        "apply_tokens": (3, 80),
    },
    "philox_normal": {"philox_normal_kernel": (1, 48)},  # 10 blocks of 128 threads
}


def why_not():
    """Why there is nothing to test here, or None."""
    home = os.environ.get("CUDA_HOME")
    if not any(map(shutil.which, ("nvcc", f"{home}/bin/nvcc"))):
        return "nvcc is neither in $CUDA_HOME/bin nor on the PATH: the CUDA toolkit is not here"
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler here"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the folder of the object files and of what ptxas said, the folder of the package)."""
    library = tmp_path_factory.mktemp("cuda")
    kept = {k: v for k, v in os.environ.items() if k != "FASTDIFF_CUDA_ARCHS"}
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", library],
        env=kept | {"FASTDIFF_CUDA": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    where = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    return ROOT / "build" / where, library / "fastdiff"


@pytest.fixture(params=FILES)
def compiled(request, built):
    """(stem, object file, what ptxas said)."""
    said = (built[0] / f"{request.param}.cu.o.log").read_text()
    assert "warning" not in said, said[:4000]
    return request.param, built[0] / f"{request.param}.cu.o", said


def test_the_extension_loads_and_has_every_launcher(built):
    info = json.loads((built[1] / "_build_info.json").read_text())
    assert info["nvcc"]
    assert info["cuda_archs"] == ARCHS
    (library,) = built[1].glob("_C*.so")
    program = (
        "import sys, importlib.util as u\n"
        "spec = u.spec_from_file_location('_C', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(*dir(module))\n"
    )
    names = subprocess.check_output([sys.executable, "-c", program, library], text=True).split()
    assert {f"{stem}_cuda" for stem in FILES} <= set(names)


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
        if kernel != "philox_normal_kernel":  # it reads a seed
            assert re.search(r"\bLDG\.E\.128\b", code), f"{symbol} has no 16-byte load"
        # stats write total only with a residual, abs_quantile one number a sample
        if not kernel.startswith(("stats", "abs_quantile")):
            assert re.search(r"\bSTG\.E\.128\b", code), f"{symbol} has no 16-byte store"
        if kernel in ("affine_step_kernel", "philox_normal_kernel"):
            roots = code.count(
                "MUFU.RSQ"
            )  # a square root is refined by two, in its slow path three
            fused = code.count("FFMA")
            assert fused <= 2 * roots + (roots > 0), f"{symbol} fuses a product into a sum"


def test_every_file_is_compiled_here():
    assert sorted(KERNELS) == FILES
