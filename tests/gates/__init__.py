"""Every launch that the Triton kernels' launchers can choose, as something to compile and judge.

    python -m tests.gates                              all of them on all of CAPABILITIES
    python -m tests.gates attention --capability 80    some of them

Each module here is named like a kernel and has

    launches(capability) -> Iterator[Launch]

A launch belongs to a plan: what the launcher decides from shapes, dtypes and the capability.
Launches of one plan differ in what the compiler sees besides: which of the 16-bit dtypes, which
operands are absent, the width of a head.  The command compiles every launch for every capability.
tests/test_compile_everywhere.py compiles the first launches of some plans, so that each kernel is
compiled for each capability; where the record is of another Triton, of all plans, each for one.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.compile_gates import CAPABILITIES, Code, check

FOLDER = Path(__file__).parent
STEMS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
# KiB of shared memory that a block may have.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Instructions of PTX for products of tiles.
PRODUCTS = {90: "wgmma.mma_async", 100: "tcgen05.mma"}


class Launch(NamedTuple):
    """kernel, types, constants, limits: arguments of compile_gates.check.

    products   a dot is meant to be computed by the matrix units of the capability
    fused      products may be fused into sums
    wide       accesses of 128 bits that there must be at least
    """

    name: str
    plan: Any
    kernel: Any
    types: dict[str, Any]
    constants: dict[str, Any]
    limits: dict[str, Any]
    products: bool = False
    fused: bool = True
    wide: int = 0


def also(launch: Launch, what: str, **types: str) -> Launch:
    """The launch where other sizes make other types: multiples of 16, more than 31 bits."""
    assert types.keys() <= launch.types.keys(), types
    return launch._replace(name=f"{launch.name} {what}", types=launch.types | types)


def launches(stem: str, capability: int) -> list[Launch]:
    """All of a kernel's for a capability, names all different."""
    found = list(import_module(f"tests.gates.{stem}").launches(capability))
    names = [launch.name for launch in found]
    assert len(names) == len(set(names)), [n for n in names if names.count(n) > 1]
    return found


def firsts(stem: str, capability: int) -> list[Launch]:
    """Of each plan the launch that stands first: it has the most operands."""
    found: dict[Any, Launch] = {}
    for launch in launches(stem, capability):
        found.setdefault(launch.plan, launch)
    return list(found.values())


def judge(launch: Launch, capability: int, machine: bool = False) -> Code:
    """Compile it and hold it to its limits, and to those of every kernel."""
    (code,) = check(
        launch.kernel,
        launch.types,
        launch.constants,
        capabilities=[capability],
        machine=machine,
        **launch.limits,
    )
    name = f"{launch.name} on sm_{capability}"
    assert code.shared <= SHARED[capability] * 1024, f"{name}: {code.shared} bytes shared"
    if launch.products:
        product = PRODUCTS.get(capability, "mma.sync")
        assert product in code.ptx, f"{name}: no {product}"
    if not launch.fused:
        assert not re.search(r"\bfma\.rn\.f32", code.ptx), f"{name}: a product was fused"
    found = code.widths(machine=False)[128]
    assert found >= launch.wide, f"{name}: {found} accesses of 128 bits, not {launch.wide}"
    return code


def in_turn(stem: str) -> Iterator[tuple[int, Launch]]:
    """(capability, launch): each plan once, the capabilities in turn."""
    plans: dict[Any, dict[int, Launch]] = defaultdict(dict)
    for capability in CAPABILITIES:
        for launch in firsts(stem, capability):
            plans[launch.plan][capability] = launch
    turn = dict.fromkeys(CAPABILITIES, 0)
    for chosen in plans.values():
        # The one that had the fewest so far; of equals the first.
        capability = min(chosen, key=turn.__getitem__)
        turn[capability] += 1
        yield capability, chosen[capability]
    for capability in CAPABILITIES:
        if not turn[capability]:  # fewer plans than capabilities
            yield capability, next(iter(plans.values()))[capability]


def sample(stem: str) -> Iterator[tuple[int, Launch]]:
    """Of these the first of each kernel on each capability."""
    seen = set()
    for capability, launch in in_turn(stem):
        if (launch.kernel, capability) not in seen:
            seen.add((launch.kernel, capability))
            yield capability, launch
