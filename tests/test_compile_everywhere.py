"""Every Triton kernel compiles for every GPU we name, without one, and the machine code is what was
meant: no float64, no spills, 16-byte loads and stores, few registers, products rounded before they
are added where that is promised.

Kernels that are not GATED_HERE have their gates among their own tests, tests/test_<kernel>*.py.
"""

import re
from itertools import product
from pathlib import Path

import pytest

from tests import compile_gates
from tests.compile_gates import CAPABILITIES, at_once, check

pytestmark = compile_gates.compiles

KERNELS = Path(__file__).parents[1] / "kernels"
GATED_HERE = {"affine_step", "group_norm"}


@pytest.mark.parametrize(
    ("dtype", "keeps", "depth", "ring", "drawn"),
    [("*fp32", 1, 2, True, False), ("*bf16", 3, 5, False, False), ("*bf16", 1, 2, False, True)],
)
def test_affine_step(dtype, keeps, depth, ring, drawn):
    """Every operand there; sizes are multiples of 16, as those of latents are."""
    from fastdiff.kernels import affine_step

    constants = {"P": keeps, "R": depth, "RING": ring}
    constants["BLOCK"] = affine_step.block_size(4 if dtype == "*fp32" else 2)
    types = {"rows_ptr": "*fp32", "step_ptr": "*i32", "samples": "i32", "numel": "i32:16"}
    types |= {"noise_step": "i32"} | ({"seeds_ptr": "*i64"} if drawn else {})
    constants |= {"noise_ptr": None} if drawn else {"seeds_ptr": None}
    types |= {"history": (dtype,) * depth, "kept": (dtype,) * keeps}
    for name in affine_step.affine_step_kernel.arg_names:
        if name not in constants:
            types.setdefault(name, dtype)
    codes = check(
        affine_step.affine_step_kernel,
        types,
        constants,
        registers=168,  # three blocks of 128 threads fit the 65,536 of a multiprocessor
        widths=(32, 64, 128) if drawn else (32, 128),  # a seed has 64 bits
        num_warps=affine_step.NUM_WARPS,
        **affine_step.OPTIONS,
    )
    operands, results = 4 + depth - drawn, 3 + keeps
    for code in codes:
        assert not re.search(r"\bfma", code.ptx), "a product was fused into a sum"
        assert code.count("LDG.E.128") == operands
        assert code.count("STG.E.128") == results + (keeps * depth if ring else 0)


# group_norm.  What a launch may leave out: an absent tensor is None.
ABSENT = {
    "plain": ("x2_ptr", "addend_ptr", "residual_ptr", "total_ptr"),
    "addend": ("x2_ptr", "residual_ptr", "total_ptr"),
    "x2": ("addend_ptr", "residual_ptr", "total_ptr"),
    "residual": ("x2_ptr",),
    "all": (),
}
LIMIT = {  # registers a thread of what has one operand, and of what has more
    "small": (128, 128),  # 512 threads of 128 fill the 65,536 of a multiprocessor
    "stats": (80, 128),
    "apply": (72, 96),
}


def plans():
    """Every way to compile that launch_plan can choose: (element size, layout, tokens, plan)."""
    from fastdiff.kernels.group_norm import launch_plan

    channels = [(c, 0) for c in (8, 30, 33, 64, 128, 320, 512, 640, 960, 1280, 1920, 2560)]
    channels += [(320, 320), (640, 320), (1280, 640), (36, 28)]
    lengths = (1, 7, 16, 60, 64, 256, 1000, 1024, 4096, 9216, 1 << 14, 1 << 20)
    found = {}
    for (c1, c2), length, size in product(channels, lengths, (2, 4)):
        for groups, last, tokens in product((1, 2, 32), (True, False), (True, False)):
            if (c1 + c2) % groups == 0:
                p = launch_plan(c1, c2, length, groups, size, last, tokens)
                key = (size, last, tokens and not last, p.small, p.cv, p.rv, p.tile, p.store)
                found[key] = (size, last, tokens and not last, p)
    return list(found.values())


def important(size, last, plan):
    """Channels last in 16 bit, aligned: what the kernels are for."""
    return size == 2 and last and plan.cv > 1


def variants(size, last, turned, plan):
    """(kernel, dtype, flags, SiLU) that are compiled of a plan: all where it matters, else the one
    with the most operands."""
    dtype, every = "fp32" if size == 4 else "bf16", important(size, last, plan)
    if plan.small:
        every &= plan.tile.channels == 64 and plan.tile.warps > 4
        return [("small", dtype, flags, True) for flags in (ABSENT if every else ["all"])]
    if every:
        stats = [("stats", dtype, f, None) for f in ("plain", "x2", "residual", "all")]
        return stats + [
            ("apply", dtype, f, silu) for f in ("plain", "x2") for silu in (False, True)
        ]
    return [("stats", dtype, "all", None), ("apply", dtype, "x2", True)]


def group_norm_code(
    kernel, dtype, flags, silu, last, turned, plan, capabilities=(90,), aligned=True
):
    """The gates on one kernel of group_norm; parameters in float32, so that no access is narrow."""
    from fastdiff.kernels import group_norm

    function = getattr(group_norm, f"{kernel}_kernel")
    tile = (plan.store if kernel == "apply" else plan.tile).constants()
    constants = tile | {"CV": plan.cv, "RV": plan.rv, "LAST": last, "SILU": bool(silu)}
    constants |= {"OUT_LAST": last or turned} | dict.fromkeys(ABSENT[flags])
    options = group_norm.OPTIONS | {"num_warps": constants.pop("num_warps")}
    constants = {k: v for k, v in constants.items() if k in function.arg_names}
    types = dict.fromkeys(("weight_ptr", "bias_ptr", "addend_ptr", "work_ptr"), "*fp32")
    types |= dict.fromkeys(("x_ptr", "x2_ptr", "residual_ptr", "total_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(group_norm.INTEGERS, "i32") | {"eps": "fp32"}
    types = {k: types[k] for k in function.arg_names if k not in constants}
    wide, size = aligned and max(plan.cv, plan.rv) > 1, 4 if dtype == "fp32" else 2
    return check(
        function,
        types,
        constants,
        registers=LIMIT[kernel][flags != "plain"] if aligned else 168,
        widths=(32, 128) if wide else (16, 32),
        capabilities=capabilities,
        aligned=aligned,
        machine=important(size, last, plan),
        **options,
    )


PLANS = plans()


def test_plans_are_these():
    assert len([p for *_, p in PLANS if p.small]) == 16
    assert len([p for *_, p in PLANS if not p.small]) == 12


@pytest.mark.parametrize("way", PLANS, ids=[f"{i}-{w[3].tile}" for i, w in enumerate(PLANS)])
def test_group_norm(way):
    """Every plan on sm_90, with 16-byte accesses to all that is as large as x."""
    size, last, turned, plan = way

    def judge(variant):
        kernel, dtype, flags, silu = variant
        (code,) = group_norm_code(kernel, dtype, flags, silu, last, turned, plan)
        tile = plan.store if kernel == "apply" else plan.tile
        vectors = tile.rows * tile.channels * tile.unroll * size // (16 * 32 * tile.warps)
        present = {"x2_ptr", "residual_ptr"} - set(ABSENT[flags])
        kept = "residual_ptr" in present  # then total is written, and read by small
        written = {"small": 1 + kept, "stats": kept, "apply": 1}[kernel]
        read = 1 + len(present)
        if kernel == "small":
            read += 1 if kept else read
        if max(plan.cv, plan.rv) > 1:
            wide = code.widths(important(size, last, plan))[128]
            assert wide >= (read + written) * vectors
            assert wide <= (read + written) * vectors + 6, "more than the vectors of the channels"
            if important(size, last, plan):
                assert code.count("STG.E.128") == written * vectors

    at_once(judge, variants(*way))


MAIN = [p for size, last, _, p in PLANS if last and size == 2 and p.cv == 8]
(LARGE,) = (p for p in MAIN if not p.small)
(SMALL,) = (p for p in MAIN if p.small and p.tile[1:] == (64, 4, 16))


@pytest.mark.parametrize(("kernel", "flags"), [("stats", "all"), ("apply", "x2"), ("small", "all")])
def test_group_norm_everywhere(kernel, flags):
    """Where a sample begins is computed in 64 bits: that of x, of x2 and of the result."""
    plan = SMALL if kernel == "small" else LARGE
    for code in group_norm_code(kernel, "bf16", flags, True, True, False, plan, CAPABILITIES):
        assert code.count("LDG.E.128") >= 8
        assert len(re.findall(r"\bm(?:ul|ad)\.lo\.s64", code.ptx)) >= 3
    group_norm_code(kernel, "fp16", flags, True, True, False, plan)


def test_group_norm_finish():
    """With the parameters of the model in bfloat16, and without any (on sm_90)."""
    from fastdiff.kernels.group_norm import FINISH, INTEGERS, OPTIONS, finish_kernel

    constants, options = {"BLOCK": FINISH["BLOCK"]}, OPTIONS | {"num_warps": FINISH["num_warps"]}
    types = {"work_ptr": "*fp32", "addend_ptr": "*fp32", "weight_ptr": "*bf16", "bias_ptr": "*bf16"}
    types |= dict.fromkeys(set(INTEGERS) & set(finish_kernel.arg_names), "i32") | {"eps": "fp32"}
    limits = {"registers": 80, "widths": (16, 32, 128)} | options
    check(finish_kernel, types, constants, **limits)
    absent = ("addend_ptr", "weight_ptr", "bias_ptr")
    types = {k: v for k, v in types.items() if k not in absent}
    check(finish_kernel, types, constants | dict.fromkeys(absent), capabilities=[90], **limits)


@pytest.mark.parametrize("kernel", ["stats", "apply", "small"])
def test_group_norm_of_tensors_at_odd_addresses(kernel):
    """Views whose memory does not begin at a multiple of 16 bytes: narrow, but no worse."""
    plan = SMALL if kernel == "small" else LARGE
    group_norm_code(kernel, "bf16", "plain", True, True, False, plan, aligned=False)


def test_group_norm_leaves_room_for_other_blocks():
    """64 bytes in flight a thread; 25 kB on a multiprocessor hide the latency of 4.3 TB/s."""
    for kernel, blocks in (("stats", 8), ("apply", 8)):
        (code,) = group_norm_code(kernel, "bf16", "plain", True, True, False, LARGE)
        assert code.blocks() >= blocks


def test_every_kernel_is_compiled():
    stems = {path.stem for path in KERNELS.glob("[!_]*.py")}
    assert stems >= GATED_HERE
    for stem in stems - GATED_HERE:
        texts = [path.read_text() for path in Path(__file__).parent.glob(f"test_{stem}*.py")]
        assert any("compile_gates.check(" in text for text in texts), f"{stem} has no gates"
