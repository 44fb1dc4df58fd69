"""Every Triton kernel compiles for every GPU we name, without one, and the machine code is what was
meant: no float64, no spills, 16-byte loads and stores, products rounded before they are added.
"""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastdiff.kernels import affine_step  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 86, 89, 90, 100, 120)
KERNELS = Path(affine_step.__file__).parent


def compile_step(capability, dtype, keeps, depth, ring):
    """affine_step with every operand there; sizes are multiples of 16, as those of latents are."""
    pointers = {"history": (dtype,) * depth, "kept": (dtype,) * keeps}
    names = affine_step.affine_step_kernel.arg_names
    constants = {"P": keeps, "R": depth, "RING": ring}
    constants["BLOCK"] = affine_step.block_size(4 if dtype == "*fp32" else 2)
    types = {"rows_ptr": "*fp32", "step_ptr": "*i32", "samples": "i32", "numel": "i32"}
    signature = {}
    for name in names:
        default = "constexpr" if name in constants else dtype
        signature[name] = pointers.get(name) or types.get(name, default)
    aligned = [["tt.divisibility", 16]]
    attributes = {}
    for i, name in enumerate(names):
        if name in pointers:
            attributes |= {(i, j): aligned for j in range(len(pointers[name]))}
        elif name.endswith("_ptr") or name == "numel":
            attributes[(i,)] = aligned
    source = ASTSource(affine_step.affine_step_kernel, signature, constants, attributes)
    options = {"num_warps": affine_step.NUM_WARPS, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassemble(kernel, folder):
    """(registers, stack bytes, machine code) by the tools that come with Triton."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage, code = (
        subprocess.run([TOOLS / tool, *options, cubin], capture_output=True, text=True, check=True)
        for tool, *options in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
    )
    registers = int(re.search(r"REG:(\d+)", usage.stdout)[1])
    return registers, int(re.search(r"STACK:(\d+)", usage.stdout)[1]), code.stdout


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("dtype", "keeps", "depth", "ring"), [("*fp32", 1, 2, True), ("*bf16", 3, 5, False)]
)
def test_affine_step(capability, dtype, keeps, depth, ring, tmp_path):
    kernel = compile_step(capability, dtype, keeps, depth, ring)
    ptx = kernel.asm["ptx"]
    assert not re.search(r"\.f64", ptx), "something in the kernel became float64"
    assert not re.search(r"\bfma", ptx), "a product was fused into a sum"
    registers, stack, code = disassemble(kernel, tmp_path)
    assert stack == 0
    assert not re.search(r"\b(LDL|STL)\b", code), "registers were spilled"
    assert registers <= 168  # three blocks of 128 threads fit the 65,536 of a multiprocessor
    operands, results = 4 + depth, 3 + keeps
    assert len(re.findall(r"\bLDG\.E\.128\b", code)) == operands
    assert len(re.findall(r"\bSTG\.E\.128\b", code)) == results + (keeps * depth if ring else 0)
    assert not re.search(r"\b(LDG|STG)\.E\.(U8|U16|64)\b", code), "a narrow load or store"


def test_every_kernel_is_compiled_here():
    assert {path.stem for path in KERNELS.glob("[!_]*.py")} == {"affine_step"}
