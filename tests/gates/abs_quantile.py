"""Launches of kernels/abs_quantile.py: its passes, dtypes, sizes."""

from collections.abc import Iterator

from fastdiff.kernels.abs_quantile import BLOCK, OPTIONS, REGISTERS, count_kernel, pick_kernel
from fastdiff.ops.abs_quantile import WORKSPACE
from tests.gates import Launch


def count(number: int, dtype: str, odd: bool) -> Launch:
    """Of pass 1 in float32 with the copy, which pass 2 reads."""
    types = {"x_ptr": f"*{dtype}", "copy_ptr": "*i32", "work_ptr": "*i32"}
    types |= {"numel": "i32" if odd else "i32:16", "first": "i32"}
    constants: dict[str, object] = {"PASS": number, "WORK": WORKSPACE, "BLOCK": BLOCK}
    copies = number == 1 and dtype == "fp32"
    if not copies:
        del types["copy_ptr"]
        constants["copy_ptr"] = None
    scalar = odd or number == 2  # of the copy, whose end is anywhere
    widths = (16, 32, 64, 128) if scalar else (32, 64, 128)
    limits = OPTIONS | {"registers": REGISTERS, "widths": widths}
    name = f"abs_quantile count {number} {dtype}{' odd' * odd}"
    plan = (number, copies, odd)
    return Launch(name, plan, count_kernel, types, constants, limits, wide=not scalar)


def pick(number: int, last: bool, rows: bool) -> Launch:
    types = {"work_ptr": "*i32", "out_ptr": "*fp32", "rows_ptr": "*fp32", "first_rank": "i32"}
    types |= {"weight": "fp32", "maximum": "fp32", "columns": "i32"}
    constants: dict[str, object] = {"PASS": number, "LAST": last, "WORK": WORKSPACE}
    if not rows:
        del types["rows_ptr"]
        constants["rows_ptr"] = None
    limits = OPTIONS | {"registers": REGISTERS, "widths": (32, 64, 128)}
    name = f"abs_quantile pick {number}{' last' * last}{' rows' * rows}"
    return Launch(name, (number, last), pick_kernel, types, constants, limits)


def launches(capability: int) -> Iterator[Launch]:
    for number, dtypes in enumerate((("fp32", "bf16", "fp16"), ("fp32", "bf16", "fp16"), ("i32",))):
        for dtype in dtypes:
            yield count(number, dtype, odd=False)
            yield count(number, dtype, odd=True)
    for number, last in ((0, False), (1, False), (1, True), (2, True)):
        yield pick(number, last, rows=True)
        yield pick(number, last, rows=False)
