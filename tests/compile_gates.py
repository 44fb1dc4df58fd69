"""Compiles a Triton kernel for GPUs that are not here and judges the machine code.

    from tests import compile_gates

    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "scale_ptr": "*fp32", "numel": "i32"}
    options = {"num_warps": 4, "enable_fp_fusion": True, "ptx_version": 87}
    for code in compile_gates.check(kernel, types, {"BLOCK": 1024}, registers=64, **options):
        assert code.count("LDG.E.128") == 1

`check` compiles for every capability in CAPABILITIES, or those named, and asserts: nothing became
float64, no stack, no spilled register, at most `registers` of them, loads and stores of global
memory only of the `widths` named (in bits; 16 is what a vectorised 16-bit kernel must not have).
What else a kernel promises (how many 16-byte accesses, HGMMA, no fused product) its test asks of
the Code that it gets back.  Each kernel is compiled and disassembled once in a session.

types      of each argument that is not a constant: "*bf16", "i32", "fp32", a tuple of them for a
           tuple of tensors, None in it for one that is absent; "i32:16" is an integer known to
           be a multiple of 16
constants  values of the constexpr arguments; an optional tensor that is absent is None here
aligned    pointers are multiples of 16 bytes, as those of whole tensors are
options    of the launch; num_warps, enable_fp_fusion and ptx_version must be said, for their
           defaults differ between versions of Triton

Registers and stack are read by the cuobjdump, instructions by the nvdisasm that Triton brings.
"""

import functools
import os
import re
import subprocess
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

CAPABILITIES = (80, 86, 89, 90, 100, 120)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SASS_ACCESS = re.compile(r"\b(?:LDG|STG)\.[A-Z0-9.]+")
PTX_ACCESS = re.compile(r"\b(?:ld|st)\.global(?:\.(?!v\d)[\w:]+)*?(?:\.v(\d))?\.[bfus](\d+)\b")

# Python 3.11 counts the depth of a syntax tree for all threads together, and raised SystemError
# when two threads made one.
_parsing, _parse = threading.Lock(), JITFunction.parse


def _one_at_a_time(function):
    with _parsing:
        return _parse(function)


JITFunction.parse = _one_at_a_time

# The interpreter stands in for the compiler from the import of Triton on.
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile"
)


@dataclass(frozen=True)
class Code:
    """What a kernel became."""

    capability: int
    ptx: str
    cubin: bytes
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a block
    warps: int

    @functools.cached_property
    def sass(self) -> str:
        """The instructions; half a second."""
        return _tool("nvdisasm", self.cubin, "-c", "-ndf")

    def count(self, opcode: str) -> int:
        """Instructions of this opcode, with any further modifiers: "LDG.E.128", "HGMMA"."""
        return len(re.findall(rf"\b{re.escape(opcode)}\b", self.sass))

    def widths(self, machine: bool = True) -> Counter[int]:
        """{bits: accesses} to global memory, in the machine code or in the PTX before it."""
        if not machine:
            return Counter(int(n or 1) * int(bits) for n, bits in PTX_ACCESS.findall(self.ptx))
        names = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
        modifiers = (access.split(".") for access in SASS_ACCESS.findall(self.sass))
        return Counter(next((names[m] for m in all_ if m in names), 32) for all_ in modifiers)

    def blocks(self) -> int:
        """Blocks that the 65,536 registers of a multiprocessor hold; they are given out by 8."""
        return 65536 // (32 * self.warps * (-(-self.registers // 8) * 8))


def compile_for(capability, kernel, types, constants, *, aligned=True, **options) -> Code:
    """The machine code of `kernel`; arguments as at the head of this file."""
    missing = {"num_warps", "enable_fp_fusion", "ptx_version"} - options.keys()
    assert not missing, f"say {sorted(missing)}: the defaults differ between versions of Triton"
    names = kernel.arg_names
    unknown = set(names) ^ (types.keys() | constants.keys())
    assert not unknown, f"{kernel.__name__}: {sorted(unknown)} not given or not arguments"
    items = tuple((name, types.get(name, "constexpr")) for name in names)
    values = tuple((name, constants[name]) for name in names if name in constants)
    return _compile(capability, kernel, items, values, aligned, tuple(sorted(options.items())))


@functools.cache
def _compile(capability, kernel, types, constants, aligned, options) -> Code:
    signature, attributes, values = {}, {}, dict(constants)
    for i, (name, kind) in enumerate(types):
        parts = kind if isinstance(kind, tuple) else (kind,)
        values |= {(i, j): None for j, part in enumerate(parts) if part is None}
        parts = tuple("constexpr" if part is None else part for part in parts)
        for j, part in enumerate(parts):
            if part.endswith(":16") or (part.startswith("*") and aligned):
                place = (i, j) if isinstance(kind, tuple) else (i,)
                attributes[place] = [["tt.divisibility", 16]]
        bare = tuple(part.removesuffix(":16") for part in parts)
        signature[name] = bare if isinstance(kind, tuple) else bare[0]
    source = ASTSource(kernel, signature, values, attributes)
    options = dict(options)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = built.asm["cubin"]
    usage = _tool("cuobjdump", cubin, "--dump-resource-usage")
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    shared, warps = built.metadata.shared, options["num_warps"]
    return Code(capability, built.asm["ptx"], cubin, registers, stack, shared, warps)


def at_once(function, arguments) -> list:
    """[function(a) for a in arguments], side by side: LLVM and ptxas let other threads run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, arguments))


def _tool(name, cubin, *arguments) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [TOOLS / name, *arguments, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check(
    kernel,
    types,
    constants,
    *,
    registers,
    widths=(32, 128),
    capabilities=CAPABILITIES,
    machine=True,
    **rest,
) -> list[Code]:
    """Compile `kernel` for each capability, hold it to the limits of every kernel, return it all.

    machine: disassemble it, for all or for the capabilities named; else the widths are taken from
    the PTX, and a spill from the stack alone, which is where it goes.  rest: aligned, and the
    options of the launch.
    """

    apart = {c for c in capabilities if machine is True or (machine and c in machine)}

    def build(capability):
        code = compile_for(capability, kernel, types, constants, **rest)
        return code, capability in apart and code.sass  # disassembled here, beside the others

    codes = [code for code, _ in at_once(build, capabilities)]
    for code in codes:
        name = f"{kernel.__name__} on sm_{code.capability}"
        assert not re.search(r"\.f64", code.ptx), f"{name}: something became float64"
        assert code.stack == 0, f"{name}: {code.stack} bytes of stack"
        if code.capability in apart:
            assert not code.count("LDL") + code.count("STL"), f"{name}: registers were spilled"
        assert code.registers <= registers, f"{name}: {code.registers} registers"
        found = code.widths(code.capability in apart)
        assert found, f"{name}: compiled to nothing"  # as Triton 3.6 did of a loop with 16 dots
        assert found.keys() <= set(widths), f"{name}: accesses not of {widths} bits: {found}"
    return codes
