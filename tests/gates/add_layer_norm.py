"""Launches of kernels/add_layer_norm.py: tiles x dtypes x operands."""

from collections.abc import Iterator
from functools import cache

from fastdiff.kernels.add_layer_norm import OPTIONS, REGISTERS, add_layer_norm_kernel, tiles
from fastdiff.ops.add_layer_norm import MAX_WIDTH
from tests.gates import Launch, also

TENSORS = ("x_ptr", "residual_ptr", "y_ptr", "total_ptr")
ABSENT = {
    "all": (),
    "no residual": ("residual_ptr", "total_ptr"),
    "no weight, no bias": ("weight_ptr", "bias_ptr"),
    "no bias": ("bias_ptr",),
}
ODD = 168  # registers where a row is no multiple of 16 elements or begins anywhere


def launch(width: int, dtype: str, parameters: str, flags: str = "all", odd: bool = False):
    """parameters: the dtype of weight and bias; odd: of the width and of the addresses."""
    size = 4 if dtype == "fp32" else 2
    tile = tiles(width, size)
    types = dict.fromkeys(TENSORS, f"*{dtype}") | {"rows": "i32", "eps": "fp32"}
    types |= dict.fromkeys(("weight_ptr", "bias_ptr"), f"*{parameters}")
    types["D"] = "i32" if odd else "i32:16"
    types = {name: kind for name, kind in types.items() if name not in ABSENT[flags]}
    options = OPTIONS | {"num_warps": tile.pop("num_warps")}
    narrow = {8 * size, 32 if parameters == "fp32" else 16}
    # the accesses of 16 bytes of x, y and total; 16-bit parameters beside float32 are half as wide
    whole = (64, 128) if dtype == "fp32" != parameters else (128,)
    limits = {"registers": ODD if odd else REGISTERS, "widths": tuple(narrow) if odd else whole}
    limits |= {"aligned": not odd} | options
    name = f"add_layer_norm {tile['ROWS']}x{tile['BLOCK']}x{tile['CHUNKS']} {dtype} "
    name += f"{parameters} {flags}{' odd' * odd}"
    key = (*tile.values(), size)
    constants = tile | dict.fromkeys(ABSENT[flags])
    return Launch(name, key, add_layer_norm_kernel, types, constants, limits)


@cache
def every_width(size: int) -> list[int]:
    """The widest rows of each tile that a launch can choose."""
    ways = {tuple(tiles(width, size).values()): width for width in range(1, MAX_WIDTH + 1)}
    return list(ways.values())


def launches(capability: int) -> Iterator[Launch]:
    for size, dtypes in ((2, ("bf16", "fp16")), (4, ("fp32",))):
        for width in every_width(size):
            for dtype in dtypes:
                yield launch(width, dtype, dtype)
                yield launch(width, dtype, dtype, odd=True)
                yield also(launch(width, dtype, dtype), "whole", rows="i32:16")
            for flags in tuple(ABSENT)[1:]:
                yield launch(width, dtypes[0], dtypes[0], flags)
            yield launch(width, dtypes[0], "bf16" if size == 4 else "fp32")
