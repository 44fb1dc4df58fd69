"""Launches of kernels/philox_normal.py: dtypes, with and without a step, sizes."""

from collections.abc import Iterator

from fastdiff.kernels.philox_normal import BLOCK, OPTIONS, REGISTERS, philox_normal_kernel
from tests.gates import Launch, also


def launch(dtype: str, step: bool, odd: bool) -> Launch:
    types = {"seeds_ptr": "*i64", "step_ptr": "*i32", "out_ptr": f"*{dtype}", "first": "i32"}
    types |= {"noise_step": "i32", "stream": "i32", "numel": "i32" if odd else "i32:16"}
    constants: dict[str, object] = {"BLOCK": BLOCK}
    if not step:
        del types["step_ptr"]
        constants["step_ptr"] = None
    # The step, the seed, the noise.
    widths = (16, 32, 64, 128)
    limits = OPTIONS | {"registers": REGISTERS, "widths": widths, "aligned": not odd}
    name = f"philox_normal {dtype}{' step' * step}{' odd' * odd}"
    wide = 0 if odd else 2 if dtype == "fp32" else 1
    return Launch(
        name,
        dtype == "fp32",
        philox_normal_kernel,
        types,
        constants,
        limits,
        fused=False,
        wide=wide,
    )


def launches(capability: int) -> Iterator[Launch]:
    for dtype in ("fp32", "bf16", "fp16"):
        for step in (True, False):
            for odd in (False, True):
                yield launch(dtype, step, odd)
            yield also(launch(dtype, step, False), "long", numel="i64:16")
