"""What the compiler makes of every plan of every kernel on every capability: gates/record.json.

    python -m tests.gates --plans --record              compile them all again, write it
    python -m tests.gates attention --plans --record    of one kernel, after a change to it

Compiling them all takes as long as a whole test run, so it is done when a kernel changes and not
at every test.  tests/test_compile_everywhere.py fails if a kernel's source, a launch or a limit is
not that of the record, and compiles some of each kernel's again: they must need the very registers
and shared memory that the record says.
"""

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from tests.gates import Launch

PATH = Path(__file__).parent / "gates/record.json"


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def functions(stem: str) -> dict[str, JITFunction]:
    """What is compiled: the functions of the kernel's file and of those it takes some from."""
    seen: dict[str, JITFunction] = {}
    todo = [f"fastdiff.kernels.{stem}"]
    while todo:
        name = todo.pop()
        for function in vars(import_module(name)).values():
            if isinstance(function, JITFunction):
                where = function.fn.__module__
                key = f"{where}.{function.fn.__name__}"
                if key not in seen:
                    seen[key] = function
                    todo.append(where)
    return seen


def source(stem: str) -> str:
    """A digest of them.  Launchers and prose around them may change."""
    return short(repr(sorted((key, one.src) for key, one in functions(stem).items())))


def terms(launch: Launch) -> str:
    """A digest of what a launch is compiled with and held to."""
    parts = (sorted(part.items()) for part in (launch.types, launch.constants, launch.limits))
    return short(repr([*parts, launch.products, launch.fused, launch.wide]))


def load() -> dict[str, Any]:
    """{"kernels": {stem: {"source": digest, "triton": version, "launches": {"name on sm_90":
    [digest of its terms, registers a thread, bytes of shared memory]}}}}."""
    return json.loads(PATH.read_text()) if PATH.exists() else {"kernels": {}}


def save(found: dict[str, dict[str, list[Any]]]) -> None:
    """Put what was compiled in the place of what the record says of these kernels."""
    kernels = load()["kernels"]
    for stem, made in found.items():
        kernels[stem] = {"source": source(stem), "triton": triton.__version__, "launches": made}
    lines = []
    for stem, entry in sorted(kernels.items()):
        each = [
            f"   {json.dumps(name)}: {json.dumps(it)}" for name, it in entry["launches"].items()
        ]
        head = f'  "source": "{entry["source"]}", "triton": "{entry["triton"]}", "launches": {{\n'
        lines.append(f' "{stem}": {{\n{head}' + ",\n".join(each) + "\n  }\n }")
    PATH.write_text('{"kernels": {\n' + ",\n".join(lines) + "\n}}\n")
