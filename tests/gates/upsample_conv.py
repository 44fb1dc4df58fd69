"""Launches of kernels/upsample_conv.py: layouts, tiles, dtypes."""

from collections.abc import Iterator

from fastdiff.kernels.upsample_conv import (
    OPTIONS,
    REGISTERS,
    channels_last_kernel,
    columns,
    contiguous_kernel,
    tile_size,
)
from tests.gates import Launch, also

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
OUTPUTS = (3, 4, 128, 320, 512, 640, 1280)  # of channels last, a constant of the kernel


def channels_last(outputs: int, dtype: str) -> Launch:
    types = {"z_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "H": "i32", "W": "i32"}
    constants = {"CO": outputs, "BLOCK": tile_size(SIZES[dtype])}
    whole = outputs % 16 == 0
    limits = OPTIONS | {"registers": REGISTERS}
    limits |= {"widths": (128,) if whole else (8 * SIZES[dtype], 32, 64, 128)}
    name = f"upsample_conv last {outputs} {dtype}"
    key = ("last", whole, SIZES[dtype])
    return Launch(name, key, channels_last_kernel, types, constants, limits, wide=4 * whole)


def contiguous(across: int, dtype: str) -> Launch:
    types = {"z_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "rows": "i32", "CO": "i32"}
    types |= {"H": "i32", "W": "i32"}
    constants = {"ROWS": tile_size(SIZES[dtype]) // across, "COLUMNS": across}
    # Rows of z, W + 1 elements, and of out, 2 W, begin anywhere.
    limits = OPTIONS | {"registers": REGISTERS, "widths": (8 * SIZES[dtype], 32, 64, 128)}
    name = f"upsample_conv first {across} {dtype}"
    key = ("first", across, SIZES[dtype])
    return Launch(name, key, contiguous_kernel, types, constants, limits)


def launches(capability: int) -> Iterator[Launch]:
    for dtype in ("bf16", "fp16", "fp32"):
        for outputs in OUTPUTS:
            yield channels_last(outputs, dtype)
            yield also(channels_last(outputs, dtype), "whole", H="i32:16", W="i32:16")
        for across in sorted(
            {columns(width, SIZES[dtype]) for width in (1 << n for n in range(1, 14))}
        ):
            yield contiguous(across, dtype)
            yield also(contiguous(across, dtype), "whole", H="i32:16", W="i32:16", rows="i32:16")
