"""Every Triton kernel compiles for every GPU we name, without one, and the machine code is what was
meant: no float64, no spills, 16-byte loads and stores, few registers, products rounded before they
are added where that is promised.

Of each kernel every plan that its launcher can choose is compiled for sm_90, if it is chosen there,
and for one more capability, in turn (tests/gates); the two kernels of every denoising network are
disassembled for all capabilities here, the others among their own tests, tests/test_<kernel>*.py.
All launches on all capabilities: python -m tests.gates.
"""

import re
from pathlib import Path

import pytest

from tests import compile_gates
from tests.compile_gates import CAPABILITIES, at_once

pytestmark = compile_gates.compiles

KERNELS = {path.stem for path in (Path(__file__).parents[1] / "kernels").glob("[!_]*.py")}
# Launches that were wrong once: more than 255 registers, or more than were meant.
WRONG_ONCE = [
    (80, "attention 160 bf16 u8"),
    (80, "attention 136 bf16 u8"),
    (120, "attention 160 fp16 u8"),
    (120, "attention 160 bf16 bf16"),
    (100, "attention 512 fp32 None"),
    (86, "attention 64 fp32 u8"),
    (90, "group_norm small fp32 all silu parameters fp32 first 1 4 16x128x2x16 odd address"),
    (120, "group_norm apply fp32 x2 silu parameters fp32 first 1 4 128x4x2x4"),
    (120, "group_norm small fp32 all silu parameters fp32 first 1 4 4x128x2x4"),
    (80, "group_norm small bf16 residual silu parameters fp32 first 1 8 64x64x1x16 odd address"),
    (90, "affine_step 3 9 bf16 bf16 kept,model_input,noise,step,uncond,x0 ring"),
]


ELSEWHERE = {"attention", "cross_attention"}  # test_compile_attention.py: they take minutes


@pytest.mark.parametrize("stem", sorted(KERNELS - ELSEWHERE))
def test_every_plan(stem):
    every_plan(stem)


def every_plan(stem):
    """Of each plan one launch on sm_90 and on one more capability."""
    from tests.gates import in_turn, judge

    ways = list(in_turn(stem))
    assert {capability for capability, _ in ways} == set(CAPABILITIES)
    at_once(lambda way: judge(way[1], way[0]), ways)


def test_what_was_wrong_once():
    from tests.gates import judge, launches

    def one(way):
        capability, name = way
        (launch,) = (it for it in launches(name.split()[0], capability) if it.name == name)
        judge(launch, capability)

    at_once(one, WRONG_ONCE)


def test_a_limit_that_does_not_hold_is_seen():
    from tests.gates import geglu, judge

    launch = geglu.launch("bf16", "")
    judge(launch, 90)
    worse = launch.limits | {"registers": 16}
    with pytest.raises(AssertionError, match="registers"):
        judge(launch._replace(limits=worse), 90)
    for change, words in (
        ({"wide": 7}, "of 128 bits"),
        ({"products": True}, "no wgmma"),
        ({"fused": False}, "was fused"),
    ):
        with pytest.raises(AssertionError, match=words):
            judge(launch._replace(**change), 90)
    with pytest.raises(AssertionError, match="accesses not of"):
        judge(geglu.launch("bf16", "", aligned=False)._replace(limits=launch.limits
              | {"aligned": False, "registers": 255}), 90)  # fmt: skip


def test_every_kernel_has_launches_and_a_look_at_its_instructions():
    from tests.gates import STEMS

    assert set(STEMS) == KERNELS
    for stem in KERNELS - {"affine_step", "group_norm"}:
        texts = [path.read_text() for path in Path(__file__).parent.glob(f"test_{stem}*.py")]
        assert any("compile_gates.check(" in text for text in texts), f"{stem} has no gates"


@pytest.mark.parametrize(
    ("state", "network", "drawn"),
    [("fp32", "fp32", False), ("bf16", "bf16", False), ("bf16", "bf16", True)],
)
def test_affine_step(state, network, drawn):
    """Every operand there; sizes are multiples of 16, as those of latents are."""
    from tests.gates import affine_step, judge

    keeps, depth = 1, 2
    launch = affine_step.launch(
        keeps, depth, state, network, affine_step.DRAWN if drawn else affine_step.ALL
    )
    codes = at_once(lambda c: judge(launch, c, machine=True), CAPABILITIES)
    operands, results = 4 + depth - drawn, 3 + keeps
    for code in codes:
        assert not re.search(r"\bfma", code.ptx), "a product was fused into a sum"
        assert code.count("LDG.E.128") == operands
        assert code.count("STG.E.128") == results + keeps * depth


def test_group_norm_plans_are_these():
    from tests.gates.group_norm import PLANS

    assert len([p for *_, p in PLANS if p.small]) == 16
    assert len([p for *_, p in PLANS if not p.small]) == 12


def main_plan(kernel):
    """Channels last in 16 bit, aligned: what the kernels are for."""
    from tests.gates.group_norm import PLANS

    ways = [way for way in PLANS if way[:2] == (2, True) and way[3].cv == 8]
    if kernel == "small":
        (way,) = (way for way in ways if way[3].small and way[3].tile[1:] == (64, 4, 16))
    else:
        (way,) = (way for way in ways if not way[3].small)
    return way


@pytest.mark.parametrize(
    ("kernel", "flags"),
    [
        ("stats", "residual"),
        ("stats", "plain"),
        ("apply", "x2"),
        ("apply", "plain"),
        ("small", "x2"),
    ],
)
def test_group_norm(kernel, flags):
    """Where a sample begins is computed in 64 bits: that of x, of x2 and of the result."""
    from tests.gates import judge
    from tests.gates.group_norm import launch, vectors

    way = main_plan(kernel)
    one = launch(kernel, way, "bf16", flags, True)
    everywhere = CAPABILITIES if flags != "plain" else (90,)
    read, written = vectors(kernel, way, flags)
    for code in at_once(lambda c: judge(one, c, machine=True), everywhere):
        # Of the channels, too: scale, centre and shift, or weight, bias and addend.
        assert read <= code.count("LDG.E.128") <= read + 6
        assert code.count("STG.E.128") - written in ((0, 1, 2) if kernel == "stats" else (0,))
        if flags != "plain":
            assert len(re.findall(r"\bm(?:ul|ad)\.lo\.s64", code.ptx)) >= 3
        else:
            # 64 bytes in flight a thread; 25 kB on a multiprocessor hide the latency of 4.3 TB/s.
            assert code.blocks() >= 8


def test_group_norm_finish():
    """With the parameters of the model in bfloat16, and without any (on sm_90)."""
    from tests.gates import judge
    from tests.gates.group_norm import launch

    way = main_plan("stats")
    one = launch("finish", way, "bf16", "addend", False, "bf16")
    at_once(lambda c: judge(one, c, machine=True), CAPABILITIES)
    judge(launch("finish", way, "bf16", "plain", False, "none"), 90)


@pytest.mark.parametrize("kernel", ["stats", "apply", "small"])
def test_group_norm_of_tensors_at_odd_addresses(kernel):
    """Views whose memory does not begin at a multiple of 16 bytes: narrow, but no worse."""
    from tests.gates import judge
    from tests.gates.group_norm import launch

    judge(launch(kernel, main_plan(kernel), "bf16", "plain", True, aligned=False), 90)
