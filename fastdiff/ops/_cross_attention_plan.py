"""How kernels/cross_attention.py cuts a head, and what it cannot take: arithmetic without Triton.

It stands here because the op must say why a kernel does not run where Triton is not installed.
"""

from typing import NamedTuple

# With eight tiles of 64, Triton 3.6 makes a kernel without a single instruction of sm_100.
MOST = 448


class Plan(NamedTuple):
    """How a head is cut; a row's bits depend on it, so it depends on no batch and no length N."""

    d1: int
    d2: int
    rows: int
    keys: int
    tiles: int
    warps: int

    def constants(self) -> dict[str, int]:
        """As the kernel wants them."""
        names = ("D1", "D2", "ROWS", "KEYS", "TILES", "num_warps")
        return dict(zip(names, self, strict=True))


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two (or one and 0) that hold a head."""
    for d1, d2 in ((32, 16), (64, 0), (64, 16), (128, 0), (128, 32)):
        if width <= d1 + d2:
            return d1, d2
    raise ValueError(f"width must be at most 160, got {width}")


def launch_plan(width: int, keys: int, element_size: int, memory: int) -> Plan | str:
    """memory: bytes of shared memory that a block of the device may have.  Else the reason."""
    d1, d2 = pieces(width)
    if element_size == 4:  # no matrix units: each product by the ordinary ones
        if width > 64 or keys > 96:
            return f"in float32, k and v of {keys} keys and width {width} are too large (96 and 64)"
        plan = Plan(64, 0, 32, 32, -(-keys // 32), 8)
    elif keys <= 128:
        plan = Plan(d1, d2, 64, 128, 1, 8 if width > 128 else 4)
    elif keys <= MOST and (width <= 64 or (width <= 80 and keys <= 192)):
        plan = Plan(64, 0 if width <= 64 else d2, 64, 64, -(-keys // 64), 4)
    else:
        most = 128 if width > 80 else 192 if width > 64 else MOST
        return (
            f"k and v of {keys} keys and width {width} are too large for a multiprocessor: at this "
            f"width {most} keys fit, and attention() takes any"
        )
    if (needed := bytes_on_chip(plan, element_size)) > memory:
        return (
            f"k and v of {keys} keys and width {width} need {needed >> 10} KiB of shared memory, "
            f"a block of this device has {memory >> 10}; attention() needs less"
        )
    return plan


def bytes_on_chip(plan: Plan, element_size: int) -> int:
    """Bytes for k, v and a tile of q, and 2 KiB for exchange between warps."""
    rows = 2 * plan.keys * plan.tiles + plan.rows
    return rows * (plan.d1 + plan.d2) * element_size + 2048


def why_too_large(width: int, keys: int, element_size: int, memory: int) -> str | None:
    """Why k and v of one head do not stay on a multiprocessor; None if they do."""
    plan = launch_plan(width, keys, element_size, memory)
    return plan if isinstance(plan, str) else None
