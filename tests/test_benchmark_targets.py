"""Targets of scheduler.step: each has a case, and what no run has measured yet is said to be so."""

import pytest

from benchmarks import bench_scheduler_step, results, table
from benchmarks.side_by_side import OURS

MEASURED = {
    "benchmark": "scheduler_step",
    "case": {"sampler": "dpmpp_2m", "shape": "1x4x64x64", "dtype": "float32"},
    "times": {
        name: {"median": time, "fastest_quartile": time, "calls": 1}
        for name, time in ((OURS, 10.0), ("diffusers", 125.0))
    },
}


def test_what_the_newest_run_does_not_know_is_shown_as_not_measured():
    lines = table.targets({"cases": [MEASURED]}).splitlines()[2:]
    assert len(lines) == len(results.TARGETS)
    known = [line.split(" | ")[-2:] for line in lines if table.MISSING not in line]
    assert known == [["at least 12x", "12.50x |"]]


def test_every_sampler_has_a_title():
    assert table.TITLES.keys() == bench_scheduler_step.SAMPLERS.keys()


@pytest.mark.parametrize("target", results.TARGETS, ids=lambda t: f"{t.case} {t.peer}")
def test_every_target_has_a_case(target):
    benchmark, sampler, shape, dtype = target.case.split()
    assert benchmark == "scheduler_step"
    assert sampler in bench_scheduler_step.SAMPLERS
    assert shape in bench_scheduler_step.SHAPES
    assert dtype in bench_scheduler_step.DTYPES
