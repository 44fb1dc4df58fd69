"""Launches of kernels/bias_residual.py: layouts, tiles, operands, dtypes, sizes and addresses."""

from collections.abc import Iterator

from fastdiff.kernels import bias_residual
from fastdiff.kernels.bias_residual import OPTIONS, REGISTERS, columns, tile_size
from tests.gates import Launch, also

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
CHANNELS = (4, 5, 32, 320, 640, 960, 1280)  # of channels last, a constant of the kernel
ABSENT = {
    "all": (),
    "no bias": ("bias_ptr",),
    "no residual": ("residual_ptr",),
    "none": ("bias_ptr", "residual_ptr"),
}
ODD = 128  # registers where accesses are narrow


def launch(
    kernel: str,
    tile: int,
    dtype: str,
    bias: str,
    flags: str = "all",
    odd: bool = False,
) -> Launch:
    """tile: the channels, channels last, else the columns of a tile; bias: its dtype; odd: sizes
    and addresses."""
    function = getattr(bias_residual, f"{kernel}_kernel")
    size, block = SIZES[dtype], tile_size(SIZES[dtype])
    types = dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr"), f"*{dtype}")
    types |= {"bias_ptr": f"*{bias}", "scale": "fp32", "rows": "i32", "biases": "i32"}
    types |= dict.fromkeys(("size", "L"), "i32" if odd else "i32:16")
    types = {n: t for n, t in types.items() if n in function.arg_names and n not in ABSENT[flags]}
    constants = {"C": tile, "BLOCK": block, "ROWS": block // tile, "COLUMNS": tile}
    constants |= dict.fromkeys(ABSENT[flags])
    constants = {n: v for n, v in constants.items() if n in function.arg_names}
    limits = OPTIONS | {"registers": ODD if odd or tile == 5 else REGISTERS, "aligned": not odd}
    # A bias is read once for each row, channels last in as wide pieces as channels can be.
    narrow = (8 * SIZES[bias],) if kernel == "contiguous" or tile == 5 else ()
    narrow = (32, 64) if kernel == "channels_last" and tile == 4 else narrow
    limits["widths"] = (8 * size, 8 * SIZES[bias]) if odd else (128, *narrow)
    name = f"bias_residual {kernel} {tile} {dtype} {bias} {flags}{' odd' * odd}"
    wide = 0 if odd else 2 * (2 + (flags in ("all", "no bias")))
    key = (kernel, size, tile if kernel == "contiguous" else tile % 16)
    return Launch(name, key, function, types, constants, limits, fused=False, wide=wide)


def launches(capability: int) -> Iterator[Launch]:
    for dtype in SIZES:
        tiles = {columns(1280, 1 << n, SIZES[dtype]) for n in range(14)}
        ways = [("channels_last", c) for c in CHANNELS]
        ways += [("contiguous", width) for width in sorted(tiles)]
        for kernel, tile in ways:
            yield launch(kernel, tile, dtype, dtype)
            if kernel == "channels_last":
                yield also(launch(kernel, tile, dtype, dtype), "long", size="i64:16")
            else:
                yield also(launch(kernel, tile, dtype, dtype), "whole", rows="i32:16")
            if dtype == "fp16":
                continue
            for flags in tuple(ABSENT)[1:]:
                yield launch(kernel, tile, dtype, dtype, flags)
            yield launch(kernel, tile, dtype, "bf16" if dtype == "fp32" else "fp32")
            yield launch(kernel, tile, dtype, dtype, odd=True)
