"""A check that turns red after an op was timed: its numbers go out of every table."""

import pytest

from benchmarks import attention_table
from benchmarks.campaign import checks, pages, record, sanitizer, show, targets
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS
from tests.test_campaign import report_of, row

BF16 = {"dtype": "bfloat16"}
PLACES = {  # op: a row of each benchmark that has times of it
    "geglu": [row("geglu", {"where": "x", **BF16}, fastdiff=123456.0, **{COMPILED: 1.0})],
    "group_norm": [
        row("group_norm_large", {"where": "x", **BF16}, fastdiff=123456.0, eager=1.0),
        row("group_norm_set", {"set": "sdxl", "inputs": "own"}, fastdiff=123456.0, eager=1.0),
    ],
    "affine_step": [
        row("affine_step_graph", {"shape": "2x4x128x128", **BF16}, fastdiff=123456.0),
        row("affine_step_scheduler", {"shape": "2x4x128x128", **BF16}, fastdiff=123456.0),
    ],
    "philox_normal": [row("affine_step_graph", {"shape": "2x4x128x128"}, fastdiff=123456.0)],
    "attention": [
        row("attention", {"where": "sd15 self 4096", **BF16}, fastdiff=123456.0, sdpa=1.0)
        | {"shape": {"B": 2, "H": 8, "N": 4096, "M": 4096, "D": 40}}
    ],
    "upsample_conv": [
        row("model", {"model": "sd15", "batch": 2, **BF16, "contestant": who}, fastdiff=123456.0)
        | {"floor_ms": 1.6, "cold_start_s": 2.0, "peak_bytes": 3 * 10**9}
        for who in (OURS, f"{OURS}, graph")
    ],
}
OTHERS = [
    row("bias_residual", {"where": "x", **BF16}, fastdiff=77.0, eager=1.0) | {"bytes": 10**8},
    row("model", {"model": "sd15", "batch": 2, **BF16, "contestant": "eager"}, eager=77000.0)
    | {"floor_ms": 1.6, "cold_start_s": 2.0},
]
CASE = {"backend": "cuda", "dtype": "bfloat16"}


def red_check(stage, op):
    """As each stage writes it down, and as whoever waits for a process that died of it does."""
    died = {"status": "failed", "why": "the process died of it, status -11: "}
    return {
        "correctness": row("check", {"op": op, **CASE}, status="failed"),
        "correctness, died": {
            "id": f"tests/test_on_device.py::test_on_device[{op}-numbers-cuda-float32]",
            **died,
        },
        "sanitizer": row("sanitizer", {"tool": "memcheck", "op": op}, status="failed"),
        "sanitizer, died": {"id": f"racecheck {op}", **died},
        "tests": row("check", {"op": op, "dtype": "any"}, status="failed"),
        "tests, died": {"id": f"tests/test_{op}_triton.py::test_kernel_bits[1]", **died},
        "tests, collecting": {
            "id": f"collecting tests/test_{op}_triton.py",
            "benchmark": f"test_{op}_triton",
            "status": "failed",
            "why": "ImportError",
        },
    }[stage]


STAGES = ["correctness", "correctness, died", "sanitizer", "sanitizer, died"]
STAGES += ["tests", "tests, died", "tests, collecting"]


def report_with(stage, checked, *rows):
    report = report_of(*rows)
    report["stages"][stage] = report["stages"]["all"] | {"rows": [checked]}
    record.check(report)
    return report


def shown(report):
    """All that anyone is shown of a report."""
    made = [make(report) for make in pages.TABLES.values()]
    made += [pages.short_table(report, ""), show.text(report), *show.summary(report)]
    made += [line for name in report["stages"] for line in show.stage_lines(report, name)]
    return "\n".join([*made, *targets.losses(report), *map(str, targets.verdicts(report))])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("op", PLACES)
def test_numbers_of_an_op_go_when_its_check_turns_red(op, stage):
    rows = [*PLACES[op], *OTHERS]
    if op == "upsample_conv":
        rows = [*rows, row("upsample_conv", {"where": "x", **BF16}, fastdiff=123456.0)]
    before = shown(report_of(*rows))
    assert "123456" in before or "123" in pages.models(report_of(*rows))
    red = red_check(stage, op)
    report = report_with(stage.partition(",")[0], red, *rows)
    assert checks.red(report) == {op: f"1 of 1 fail, first {red['id']}"}
    after = shown(report)
    assert "123456" not in after
    assert "| 123 |" not in after
    assert f"no number, for its check on this device is red: {op}: 1 of 1 fail" in after
    assert "77.0" in after, "what others have stays"
    for benchmark in {one["benchmark"] for one in PLACES[op]} - {"model"}:
        assert f"{benchmark} " not in "\n".join(targets.losses(report))
        assert f"| {benchmark} |" not in pages.ops(report)
    assert report["stages"]["all"]["rows"] == rows, "the file keeps them"


def test_targets_of_a_red_op_are_not_measured():
    rows = PLACES["group_norm"]
    assert {v.verdict for v in targets.verdicts(report_of(*rows))} == {"missed", "not measured"}
    report = report_with("tests", red_check("tests", "group_norm"), *rows)
    assert {v.verdict for v in targets.verdicts(report)} == {"not measured"}


def test_the_table_of_attention_has_no_times_of_a_red_op():
    (timed,) = PLACES["attention"]
    facts = {"date": "2026-11-21", "gpus": ["NVIDIA H200"]}
    made = attention_table.device(report_of(timed) | {"provenance": facts})
    assert [found["microseconds"] for found in made["rows"]] == [{"torch": 1.0}]
    for stage in STAGES:
        report = report_with(stage.partition(",")[0], red_check(stage, "attention"), timed)
        assert list(attention_table.records(report)) == []
        report = report_with(stage.partition(",")[0], red_check(stage, "cross_attention"), timed)
        assert list(attention_table.records(report)) == [timed]


def test_a_red_check_that_names_no_op_stands_against_all():
    gone = {"id": "collecting tests/test_on_device.py", "status": "failed", "why": "ImportError"}
    report = report_with("correctness", gone, *OTHERS)
    assert set(checks.red(report)) == set(checks.op_names())
    assert targets.losses(report) == []


def test_a_tool_that_sees_nothing_stands_against_no_op():
    blind = row("sanitizer", {"tool": "memcheck", "op": sanitizer.PLANTED}, status="failed")
    died = {"id": f"memcheck {sanitizer.PLANTED}", "status": "failed", "why": "it died"}
    for checked in (blind, died):
        assert checks.red(report_with("sanitizer", checked)) == {}


def test_a_check_that_is_green_again_brings_the_numbers_back():
    rows = PLACES["geglu"]
    report = report_with("correctness", red_check("correctness", "geglu"), *rows)
    assert checks.believed(report)["stages"]["all"]["rows"][0]["status"] == "failed"
    report["stages"]["correctness"]["rows"] = [row("check", {"op": "geglu", **CASE})]
    assert checks.believed(report) == report
    assert "123456" in shown(report)


def test_every_benchmark_says_of_which_op_it_is():
    """By its name, or in checks.TIMED."""
    from benchmarks.campaign.stages import stages

    names = {name for name, stage in stages().items() if "each shape of" in stage.about}
    assert names <= set(checks.TIMED) | set(checks.op_names())
    assert {op for ops in checks.TIMED.values() for op in ops} <= set(checks.op_names())
