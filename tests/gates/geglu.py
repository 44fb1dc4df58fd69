"""Launches of kernels/geglu.py: dtypes, sizes, addresses."""

from collections.abc import Iterator

from fastdiff.kernels.geglu import OPTIONS, REGISTERS, block_size, geglu_kernel
from tests.gates import Launch

# Of the width and the number of elements, what is a multiple of 16; int64 beyond 2^31 elements.
SIZES = {
    "": {"D": "i32:16", "numel": "i32:16"},
    "large": {"D": "i32:16", "numel": "i64:16"},
    "odd": {"D": "i32", "numel": "i32"},
    "odd large": {"D": "i32", "numel": "i64"},
}
ODD = 128  # registers where accesses are narrow


def launch(dtype: str, sizes: str, aligned: bool = True) -> Launch:
    size = 4 if dtype == "fp32" else 2
    types = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", **SIZES[sizes]}
    wide = aligned and "odd" not in sizes
    # The result is flat memory: its accesses are wide where its address is.
    widths = (128,) if wide else (8 * size, 128) if aligned else (8 * size,)
    limits = {"registers": REGISTERS if wide else ODD, "widths": widths, "aligned": aligned}
    name = f"geglu {dtype} {sizes}{' odd address' * (not aligned)}"
    constants, wide = {"BLOCK": block_size(size)}, 6 * wide
    return Launch(
        name, (size, "odd" in sizes), geglu_kernel, types, constants, limits | OPTIONS, wide=wide
    )


def launches(capability: int) -> Iterator[Launch]:
    for dtype in ("bf16", "fp16", "fp32"):
        for sizes in SIZES:
            yield launch(dtype, sizes)
        yield launch(dtype, "", aligned=False)
