"""Every Triton kernel compiles for every GPU we name, without one, and the machine code is what was
meant: no float64, no spills, 16-byte loads and stores, few registers, products rounded before they
are added where that is promised.

Of each kernel every plan that its launcher can choose was compiled for all capabilities when the
kernel was changed last: tests/gates/record.json, which must be of this kernel's source.  Here every
kernel is compiled for every capability, each time for another plan, and must be what the record
says; by another Triton than the record's, every plan for one capability.  The two kernels
that every denoising network has are disassembled for all capabilities here, the others by their
own tests, tests/test_<kernel>*.py.  All launches on all capabilities: python -m tests.gates.
"""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests import compile_gates, compile_record
from tests.compile_gates import CAPABILITIES, JITFunction, at_once, triton

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
    (100, "attention 48 bf16 None"),
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
    """Sound, and what the record says: the same source in the same terms becomes, by the same
    Triton, the same.  Where that is not the record's every plan is compiled, for one capability."""
    from tests.gates import in_turn, judge, sample

    entry = compile_record.load()["kernels"][stem]
    same = entry["triton"] == triton.__version__
    ways = list(sample(stem) if same else in_turn(stem))
    assert {capability for capability, _ in ways} == set(CAPABILITIES)
    codes = at_once(lambda way: judge(way[1], way[0]), ways)
    if not same:
        return  # another compiler needs other registers
    for (capability, launch), code in zip(ways, codes, strict=True):
        name = f"{launch.name} on sm_{capability}"
        assert [code.registers, code.shared] == entry["launches"][name][1:], name


@pytest.mark.parametrize("stem", sorted(KERNELS))
def test_the_record_is_of_these_kernels(stem):
    """All plans on all capabilities, of this source and within these limits."""
    from tests.gates import SHARED, firsts

    again = f"python -m tests.gates {stem} --plans --record"
    entry = compile_record.load()["kernels"].get(stem)
    assert entry, f"{stem} was never compiled for all capabilities: {again}"
    assert entry["source"] == compile_record.source(stem), f"kernels/{stem}.py changed: {again}"
    ways = [(capability, it) for capability in CAPABILITIES for it in firsts(stem, capability)]
    names = {f"{launch.name} on sm_{capability}" for capability, launch in ways}
    assert names == entry["launches"].keys(), f"the plans changed: {again}"
    for capability, launch in ways:
        name = f"{launch.name} on sm_{capability}"
        terms, registers, shared = entry["launches"][name]
        assert terms == compile_record.terms(launch), f"{name} changed: {again}"
        assert 16 <= registers <= launch.limits["registers"], name
        assert 0 <= shared <= SHARED[capability] * 1024, name


@pytest.mark.parametrize("stem", sorted(KERNELS))
def test_a_kernel_is_its_source(stem):
    """It reads no constant of its module, which the record's digest of the source would not see."""
    found = compile_record.functions(stem)
    assert found
    for function in found.values():
        read = inspect.getclosurevars(function.fn)
        assert not read.nonlocals, function
        others = [v for v in read.globals.values() if not isinstance(v, JITFunction | ModuleType)]
        assert not others, f"{function} reads {others}: pass them as tl.constexpr arguments"


def test_the_sample_has_every_kernel_on_every_capability_that_takes_turns():
    from tests.gates import in_turn, sample

    for stem in KERNELS:
        every = {(id(launch.kernel), capability) for capability, launch in in_turn(stem)}
        chosen = [(id(launch.kernel), capability) for capability, launch in sample(stem)]
        assert sorted(every) == sorted(chosen)


def test_the_record_sees_a_change(monkeypatch):
    from fastdiff.kernels import affine_step, geglu, philox_normal
    from tests.gates import geglu as gates

    launch = gates.launch("bf16", "")
    terms = compile_record.terms(launch)
    assert terms == compile_record.terms(gates.launch("bf16", ""))
    for name in ("types", "constants", "limits"):
        changed = launch._replace(**{name: getattr(launch, name) | {"BLOCK": "other"}})
        assert compile_record.terms(changed) != terms, name
    for name in ("products", "fused", "wide"):
        assert compile_record.terms(launch._replace(**{name: 7})) != terms, name
    before = {stem: compile_record.source(stem) for stem in ("geglu", "affine_step")}
    monkeypatch.setattr(geglu, "gelu", philox_normal.philox)
    assert compile_record.source("geglu") != before["geglu"]
    # What affine_step calls of another file, and what that calls there.
    monkeypatch.setattr(philox_normal, "_radius", affine_step._where)
    assert compile_record.source("affine_step") != before["affine_step"]


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
