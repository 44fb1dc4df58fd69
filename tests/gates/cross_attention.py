"""Launches of kernels/cross_attention.py: widths x lengths of k x dtypes, as memory allows."""

from collections.abc import Iterator

from fastdiff.kernels.cross_attention import INTEGERS, OPTIONS, cross_attention_kernel
from fastdiff.ops._cross_attention_plan import Plan, launch_plan
from tests.gates import SHARED, Launch

WIDTHS = range(8, 161, 8)


def launch(plan: Plan, width: int, dtype: str) -> Launch:
    types: dict[str, object] = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(INTEGERS, "i32") | {"scale": "fp32"}
    constants = plan.constants() | {"D": width}
    options = OPTIONS | {"num_warps": constants.pop("num_warps")}
    limits = options | {"registers": 255, "widths": (128,)}
    name = f"cross_attention {width} {dtype} {plan.tiles} x {plan.keys}"
    key = (plan, dtype == "fp32")
    return Launch(name, key, cross_attention_kernel, types, constants, limits, dtype != "fp32")


def launches(capability: int) -> Iterator[Launch]:
    memory = SHARED[capability] * 1024
    for dtype in ("bf16", "fp16", "fp32"):
        for width in reversed(WIDTHS):  # the widest of a plan has the most to hold
            every = (launch_plan(width, m, 4 if dtype == "fp32" else 2, memory)
                     for m in range(1, 513))  # fmt: skip
            for plan in dict.fromkeys(plan for plan in every if isinstance(plan, Plan)):
                yield launch(plan, width, dtype)
