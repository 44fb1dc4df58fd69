"""Launches of kernels/group_norm.py: plans, layouts, operands, dtypes, addresses."""

from collections.abc import Iterator
from itertools import product

from fastdiff.kernels import group_norm
from fastdiff.kernels._group_norm_plan import Plan, Tile, cut, launch_plan
from fastdiff.kernels.group_norm import FINISH, INTEGERS, OPTIONS
from tests.gates import Launch

# What a launch may leave out: an absent tensor is None.
ABSENT = {
    "plain": ("x2_ptr", "addend_ptr", "residual_ptr", "total_ptr"),
    "addend": ("x2_ptr", "residual_ptr", "total_ptr"),
    "x2": ("addend_ptr", "residual_ptr", "total_ptr"),
    "residual": ("x2_ptr",),
    "all": (),
}
LIMIT = {  # registers a thread of what has one operand, and of what has more
    "small": (128, 128),  # 512 threads of 128 fill the 65,536 of a multiprocessor
    "stats": (80, 128),  # six and four blocks of 128 threads
    "apply": (72, 96),  # seven and five
    "finish": (80, 80),  # three of 256
}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
CHANNELS = [(c, 0) for c in (8, 30, 33, 64, 128, 320, 512, 640, 960, 1280, 1920, 2560)]
CHANNELS += [(320, 320), (640, 320), (1280, 640), (36, 28)]
LENGTHS = (1, 7, 16, 60, 64, 256, 1000, 1024, 4096, 9216, 1 << 14, 1 << 20)


def plans() -> list[tuple[int, bool, bool, Plan]]:
    """(element size, channels last, tokens of what is not, plan), all that launch_plan can choose
    as far as the kernels are compiled for it."""
    found = {}
    for (c1, c2), length, size in product(CHANNELS, LENGTHS, (2, 4)):
        for groups, last, tokens in product((1, 2, 32), (True, False), (True, False)):
            if (c1 + c2) % groups == 0:
                p = launch_plan(c1, c2, length, groups, size, last, tokens)
                key = (size, last, tokens and not last, p.small, p.cv, p.rv, p.tile, p.store)
                found.setdefault(key, (size, last, tokens and not last, p))
    return list(found.values())


PLANS = plans()


def tile_of(
    kernel: str, way: tuple[int, bool, bool, Plan], flags: str, aligned: bool = True
) -> Tile:
    """That of the launch."""
    size, _, _, plan = way
    x2, residual = "x2_ptr" not in ABSENT[flags], "residual_ptr" not in ABSENT[flags]
    return cut(kernel, plan, x2, residual, size, aligned)[0]


def launch(
    kernel: str,
    way: tuple[int, bool, bool, Plan],
    dtype: str,
    flags: str,
    silu: bool,
    parameters: str = "fp32",
    aligned: bool = True,
) -> Launch:
    """way: of PLANS; parameters: the dtype of weight and bias, None where there are none."""
    size, last, turned, plan = way
    function = getattr(group_norm, f"{kernel}_kernel")
    tile = tile_of(kernel, way, flags, aligned)
    options = OPTIONS | {"num_warps": tile.warps}
    constants = {k: v for k, v in tile.constants().items() if k != "num_warps"}
    constants |= {"CV": plan.cv, "RV": plan.rv, "LAST": last, "SILU": silu}
    constants |= {"OUT_LAST": last or turned} | dict.fromkeys(ABSENT[flags])
    constants |= dict.fromkeys(("weight_ptr", "bias_ptr")) if parameters == "none" else {}
    if kernel == "finish":
        constants["BLOCK"], options["num_warps"] = FINISH["BLOCK"], FINISH["num_warps"]
    constants = {k: v for k, v in constants.items() if k in function.arg_names}
    types = dict.fromkeys(("addend_ptr", "work_ptr"), "*fp32")
    types |= dict.fromkeys(("weight_ptr", "bias_ptr"), f"*{parameters}")
    types |= dict.fromkeys(("x_ptr", "x2_ptr", "residual_ptr", "total_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(INTEGERS, "i32") | {"eps": "fp32"}
    types = {k: types[k] for k in function.arg_names if k not in constants}
    if kernel == "finish":
        widths = {16, 32, 64, 128}
    else:
        widths = {32, 128} if aligned and max(plan.cv, plan.rv) > 1 else {16, 32}
        # Parameters of 16 bit: as many as a thread has channels.
        widths |= {16, 64} if kernel == "small" and parameters in ("bf16", "fp16") else set()
    # What is read in one layout and written in another is held twice.
    several = kernel != "finish" and (flags != "plain" or turned)
    limits = options | {"registers": LIMIT[kernel][several]}
    limits |= {"widths": tuple(sorted(widths)), "aligned": aligned}
    name = f"group_norm {kernel} {dtype} {flags}{' silu' * silu} parameters {parameters}"
    if kernel == "finish":
        name = f"group_norm finish {flags} parameters {parameters}"
    else:
        name += f" {'last' if last else 'first'}{' turned' * turned} {plan.cv} {plan.rv} "
        name += "x".join(map(str, tile))
    name += " odd address" * (not aligned)
    whole = plan.store if kernel == "apply" else plan.tile
    key = (kernel, size, last, turned, plan.cv, plan.rv, whole) if kernel != "finish" else kernel
    wide = sum(vectors(kernel, way, flags)) if aligned and 128 in widths else 0
    wide *= kernel != "finish"
    return Launch(name, key, function, types, constants, limits, wide=wide)


def vectors(kernel: str, way: tuple[int, bool, bool, Plan], flags: str) -> tuple[int, int]:
    """Loads and stores of 16 bytes by a thread of what is as large as x."""
    size = way[0]
    tile = tile_of(kernel, way, flags)
    each = tile.rows * tile.channels * tile.unroll * size // (16 * 32 * tile.warps)
    present = {"x2_ptr", "residual_ptr"} - set(ABSENT[flags])
    kept = "residual_ptr" in present and kernel != "apply"  # total is written, and read by small
    read = 1 + len(present)
    if kernel == "small":
        read += 1 if kept else read
    written = {"small": 1 + kept, "stats": kept, "apply": 1, "finish": 0}[kernel]
    return read * each, written * each


def launches(capability: int) -> Iterator[Launch]:
    found = {}
    for way in PLANS:
        for one in _of(way):
            found.setdefault(one.name, one)
    yield from found.values()


def _of(way: tuple[int, bool, bool, Plan]) -> Iterator[Launch]:
    """The first of each kernel has the most operands."""
    size, _, _, plan = way
    dtype = "fp32" if size == 4 else "bf16"
    if plan.small:
        for flags in reversed(ABSENT):
            yield launch("small", way, dtype, flags, True)
        yield launch("small", way, dtype, "all", False)
        yield launch("small", way, dtype, "all", True, dtype if size == 2 else "bf16")
        for flags in ("all", "residual", "x2"):
            yield launch("small", way, dtype, flags, True, aligned=False)
        yield launch("small", way, dtype, "plain", True, "none")
        if size == 2:
            yield launch("small", way, "fp16", "all", True, "fp16")
        return
    for flags in ("all", "residual", "x2", "plain"):  # without a residual it reads no addend
        yield launch("stats", way, dtype, flags, False)
    for flags, silu in product(("x2", "plain"), (True, False)):
        yield launch("apply", way, dtype, flags, silu)
    yield launch("stats", way, dtype, "all", False, aligned=False)
    yield launch("apply", way, dtype, "x2", True, aligned=False)
    if size == 2:
        yield launch("stats", way, "fp16", "all", False)
        yield launch("apply", way, "fp16", "x2", True)
    for parameters, flags in product((dtype, "fp16", "none"), ("addend", "plain")):
        yield launch("finish", way, dtype, flags, False, parameters)
