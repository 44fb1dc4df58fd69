"""Launches of kernels/attention.py: widths x dtypes x masks."""

from collections.abc import Iterator

from fastdiff.kernels._compiler import OLD
from fastdiff.kernels.attention import INTEGERS, OPTIONS, Plan, attention_kernel, launch_plan
from fastdiff.ops.attention import WIDTHS
from tests.gates import Launch

SIZES = {"u8": 1, "bf16": 2, "fp16": 2, "fp32": 4}


def budget(plan: Plan, dtype: str, masked: bool) -> int:
    """Registers of each of 256 threads.  Two blocks fit in float32.  One block of 16 bit has all of
    a multiprocessor's, of which 15 a thread are left to Triton 3.6 (it needs 243); but for what
    holds a mask, too, or a head of 160 and the operands of its dots: there all 255 are meant,
    and what cannot be had is stack."""
    if dtype == "fp32":
        return 128
    return 255 if OLD or masked or (plan.d1 == 128 and plan.d2 and plan.rows == 64) else 240


def launch(width: int, dtype: str, mask: str | None, capability: int) -> Launch:
    """mask: "*u8" for booleans, "*bf16" and so on for what is added."""
    plan = launch_plan(width, 4 if dtype == "fp32" else 2, capability, mask is not None)
    types: dict[str, object] = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(INTEGERS, "i32") | {"scale": "fp32"}
    constants: dict[str, object] = plan.constants() | {"D": width, "mask_ptr": None}
    if mask:
        types["mask_ptr"] = mask
        del constants["mask_ptr"]
    options = OPTIONS | {n: constants.pop(n) for n in ("num_warps", "num_stages")}
    # A mask is read element by element; the second piece of k and v, 16 or 32 columns of 16 or 32
    # keys, has less than 16 bytes for each of 256 threads.
    widths = {128, 64, 32} if plan.d2 else {128}
    widths |= {8 * SIZES[mask[1:]]} if mask else set()
    limits = options | {"registers": budget(plan, dtype, mask is not None)}
    limits["widths"] = tuple(sorted(widths))  # sets of constants differ in order once cached
    name = f"attention {width} {dtype} {mask and mask[1:]}"
    key = (plan, dtype == "fp32", mask is not None)
    return Launch(name, key, attention_kernel, types, constants, limits, dtype != "fp32")


def launches(capability: int) -> Iterator[Launch]:
    for width in sorted(WIDTHS, reverse=True):  # the widest of a plan has the most to hold
        for dtype in ("bf16", "fp16", "fp32"):
            for mask in (None, "*u8", f"*{dtype}"):
                if mask is None or width <= 160:
                    yield launch(width, dtype, mask, capability)
