"""Launches of kernels/affine_step.py: P and R, which operands there are, dtypes, addresses.

The pairs (P, R) that the package's solvers have are compiled with everything, with as little as
there can be, as a plan's loop and as a scheduler's step launches them.  Of what the op accepts
besides, those pairs to which no vector can be added: they hold all others.
"""

from collections.abc import Iterator, Set
from itertools import product

from fastdiff.kernels.affine_step import NUM_WARPS, OPTIONS, affine_step_kernel, block_size
from fastdiff.ops.affine_step_checks import MAX_COLUMNS, MAX_VECTORS, row_size
from fastdiff.registry import SOLVERS
from tests.gates import Launch, also

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
DTYPES = [(d, d) for d in ("bf16", "fp16", "fp32")] + [("fp32", "bf16"), ("fp32", "fp16")]
OPTIONAL = {"uncond_ptr", "noise_ptr", "x0_ptr", "model_input_ptr", "step_ptr", "seeds_ptr", "kept"}
NETWORK = {"cond_ptr", "uncond_ptr", "model_input_ptr"}  # in the dtype of the network
ALL = OPTIONAL - {"seeds_ptr"}
DRAWN = OPTIONAL - {"noise_ptr"}
LOOP = {"uncond_ptr", "model_input_ptr"}  # of sample()
STEP = {"x0_ptr", "kept"}  # of a scheduler

REGISTERS = 65_536  # of a multiprocessor; a thread has a multiple of 8
SOLVED = {(len(s.depths), sum(s.depths)) for s in SOLVERS.values()}
DRAWING = {
    (len(s.depths), sum(s.depths))
    for s in SOLVERS.values()
    if s.noise or s.options.keys() & {"eta", "s_churn"}
}
ACCEPTED = {
    (keeps, depth)
    for keeps, depth in product(range(MAX_VECTORS + 1), repeat=2)
    if keeps + depth <= MAX_VECTORS and row_size(keeps, depth) <= MAX_COLUMNS
}
LARGEST = {(p, r) for p, r in ACCEPTED if not {(p + 1, r), (p, r + 1)} & ACCEPTED}


def launch(
    keeps: int,
    depth: int,
    state: str,
    network: str,
    present: Set[str],
    *,
    ring: bool = True,
    aligned: bool = True,
    whole: bool = True,
) -> Launch:
    """state, network: dtypes of all that is x or comes of it, and of what the network reads and
    writes; present: of OPTIONAL, what is there; whole: samples are multiples of 16 elements."""
    sizes = (SIZES[state], SIZES[network])
    constants = {"P": keeps, "R": depth, "RING": ring, "BLOCK": block_size(min(sizes))}
    constants |= dict.fromkeys(OPTIONAL - present - {"kept"})
    types = {"rows_ptr": "*fp32", "step_ptr": "*i32", "seeds_ptr": "*i64", "samples": "i32"}
    types |= {"numel": "i32:16" if whole else "i32", "noise_step": "i32", "first": "i32"}
    types |= {"history": (f"*{state}",) * depth}
    types |= {"kept": (f"*{state}" if "kept" in present else None,) * keeps}
    types |= dict.fromkeys(NETWORK, f"*{network}")
    types = {n: types.get(n, f"*{state}") for n in affine_step_kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name not in constants}
    # Blocks of 128 threads that fit at once: of what a solver has, six if accesses are wide, else
    # three; where it keeps two vectors, whose sums are held besides, four, else two, and then a
    # thread may have all that there is, but spill nothing; with a third vector three and two.  Of
    # what else the op accepts two, with some room: up to 25 sums and rings are held at once.
    solved, wide = (keeps, depth) in SOLVED, aligned and whole
    blocks = ((6, 4, 3) if wide else (3, 2, 2))[(keeps > 1) + (keeps > 2)]
    limits = {
        "registers": REGISTERS // (32 * NUM_WARPS * blocks) // 8 * 8 if solved else 208,
        "widths": (32, 64, 128) if wide else (16, 32, 64),
    }
    limits |= {"aligned": aligned, "num_warps": NUM_WARPS, **OPTIONS}
    names = ",".join(sorted(name.removesuffix("_ptr") for name in present))
    name = f"affine_step {keeps} {depth} {state} {network} {names}{' ring' * ring}"
    name += " odd address" * (not aligned) + " odd size" * (not whole)
    # Of the pairs that no solver has, the one that needs the most registers is compiled in turn.
    key = (keeps, depth, *sizes) if solved else ("accepted", *sizes)
    return Launch(
        name,
        (*key, (keeps, depth) == max(DRAWING) and "seeds_ptr" in present),
        affine_step_kernel,
        types,
        constants,
        limits,
        fused=False,
    )


def everything(pair: tuple[int, int]) -> tuple[Set[str], ...]:
    """All operands that a launch of this pair can have, noise that is read or drawn in the kernel
    among them; no solver with this pair may have any."""
    return (ALL - {"noise_ptr"},) if pair in SOLVED - DRAWING else (ALL, DRAWN)


def launches(capability: int) -> Iterator[Launch]:
    for pair in sorted(SOLVED | LARGEST):
        for (state, network), present in product(DTYPES, everything(pair)):
            if pair in SOLVED or "fp16" not in (state, network):
                yield launch(*pair, state, network, present)
    for pair, (state, network) in product(sorted(SOLVED), DTYPES):
        for noise in (set(), {"noise_ptr"}, {"seeds_ptr"}) if pair in DRAWING else (set(),):
            yield launch(*pair, state, network, LOOP | noise)
            yield launch(*pair, state, network, STEP | noise, ring=False)
        yield launch(*pair, state, network, set(), ring=False)
        for present in everything(pair):
            # With two vectors kept, a ring and memory for them besides is more than anybody asks
            # for at once, and with narrow accesses would spill: as the loop and as a step has it.
            noise = present & {"noise_ptr", "seeds_ptr"}
            asked = ((LOOP | noise, True), (STEP | noise, False))
            real = asked if pair[0] > 1 else ((present, True),)
            for operands, ring in real:
                yield launch(*pair, state, network, operands, ring=ring, aligned=False)
                yield launch(*pair, state, network, operands, ring=ring, whole=False)
            yield also(launch(*pair, state, network, present), "long", numel="i64:16")
