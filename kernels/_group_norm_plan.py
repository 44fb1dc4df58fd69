"""How kernels/group_norm.py cuts a sample into tiles and parts, from its shape alone."""

import functools
from math import gcd, lcm
from typing import NamedTuple

import triton

from fastdiff.kernels._compiler import OLD

PARTS = 1024  # programs a sample in stats, about: four waves on 132 multiprocessors
SMALL = 96 * 1024  # bytes of v that one program may normalise alone


class Tile(NamedTuple):
    rows: int
    channels: int
    unroll: int  # as many tiles, one below the other, are loaded at a time
    warps: int

    def constants(self) -> dict[str, int]:  # as the kernels want them
        return dict(zip(("BR", "BC", "UNROLL", "num_warps"), self, strict=True))


class Plan(NamedTuple):
    """How a sample is cut.  It does not depend on how many there are, so neither do their bits."""

    small: bool
    cv: int
    rv: int
    tile: Tile
    store: Tile  # that of apply
    width: int  # channels a program, if small
    splits: int  # parts of L, if large
    steps: int  # loads of `unroll` tiles in a part
    store_steps: int


@functools.cache
def launch_plan(
    c1: int, c2: int, length: int, groups: int, element_size: int, last: bool, tokens: bool
) -> Plan:
    """last: channels are innermost in the memory of x; tokens: they shall be in that of y."""
    vector = 16 // element_size
    channels, turned = c1 + c2, tokens and not last
    cv = vector if (last or turned) and gcd(c1, c2) % vector == 0 else 1
    rv = vector if not last and length % vector == 0 else 1
    if turned and 1 in (cv, rv):
        cv = rv = 1
    width = lcm(channels // groups, cv)
    width *= max(1, 64 // width)
    size = length * width * element_size
    if max(cv, rv) > 1 and not turned and width <= 128 and size <= SMALL:
        warps, block = (4 if size <= SMALL // 8 else 16), (64 if width <= 64 else 128)
        tile = Tile(warps * 32 * vector // block, block, 4, warps)
        return Plan(True, cv, rv, tile, tile, width, 1, 1, 1)
    unroll = 4 if max(cv, rv) > 1 else 1  # what is odd is read element by element
    tile = Tile(2 * vector, 64, unroll, 4) if last else Tile(32 * vector, 4, unroll, 4)
    store = Tile(4 * vector, 32, unroll, 4) if turned else tile
    step = tile.rows * tile.unroll
    parts = max(1, PARTS // triton.cdiv(channels, tile.channels))
    steps = triton.cdiv(length, parts * step)
    return Plan(
        False, cv, rv, tile, store, width, triton.cdiv(length, steps * step), steps, min(4, steps)
    )


def cut(kernel: str, p: Plan, x2: bool, residual: bool, size: int, aligned: bool = True):
    """(tile, steps) of a launch: of many operands half as much at a time, of narrow accesses one
    tile or two, or registers spill.  The same rows in the same order, so the same bits."""
    tile, steps = (p.store, p.store_steps) if kernel == "apply" else (p.tile, p.steps)
    many = x2 and (size == 4 if kernel == "apply" else residual)
    part = 4 if OLD and many and kernel == "small" else 1 + many
    unroll = max(1, tile.unroll // (part if aligned else 8 // size))
    return tile._replace(unroll=unroll), steps * (tile.unroll // unroll)
