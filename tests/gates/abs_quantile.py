"""Launches of kernels/abs_quantile.py: its three passes, dtypes, sizes."""

from collections.abc import Iterator

from fastdiff.kernels.abs_quantile import BLOCK, OPTIONS, REGISTERS, count_kernel, pick_kernel
from fastdiff.ops.abs_quantile import WORKSPACE
from tests.gates import Launch


def count(number: int, dtype: str, odd: bool) -> Launch:
    types = {"x_ptr": f"*{dtype}", "work_ptr": "*i32", "numel": "i32" if odd else "i32:16"}
    types["first"] = "i32"
    constants = {"PASS": number, "WORK": WORKSPACE, "BLOCK": BLOCK}
    widths = (16, 32, 64, 128) if odd else (32, 64, 128)
    limits = OPTIONS | {"registers": REGISTERS, "widths": widths}
    name = f"abs_quantile count {number} {dtype}{' odd' * odd}"
    return Launch(name, (number, odd), count_kernel, types, constants, limits, wide=not odd)


def pick(number: int, rows: bool) -> Launch:
    types = {"work_ptr": "*i32", "out_ptr": "*fp32", "rows_ptr": "*fp32", "first_rank": "i32"}
    types |= {"weight": "fp32", "maximum": "fp32", "columns": "i32"}
    constants: dict[str, object] = {"PASS": number, "WORK": WORKSPACE}
    if not rows:
        del types["rows_ptr"]
        constants["rows_ptr"] = None
    limits = OPTIONS | {"registers": REGISTERS, "widths": (32, 64, 128)}
    name = f"abs_quantile pick {number}{' rows' * rows}"
    return Launch(name, number, pick_kernel, types, constants, limits)


def launches(capability: int) -> Iterator[Launch]:
    for number in range(3):
        for dtype in ("fp32", "bf16", "fp16"):
            yield count(number, dtype, odd=False)
            yield count(number, dtype, odd=True)
        yield pick(number, rows=True)
        yield pick(number, rows=False)
