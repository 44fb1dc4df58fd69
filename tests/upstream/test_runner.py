"""The runner itself, on a suite of one file: it substitutes, counts, and fails where nothing fused."""

import textwrap

import pytest

from .__main__ import NEEDED, main

BASE = """
from diffusers import DDIMScheduler

class SchedulerCommonTest:
    scheduler_classes = ()

    def check(self):
        for cls in self.scheduler_classes:
            assert cls is DDIMScheduler and cls.__module__ == "fastdiff"
"""
TEST = """
import torch
import diffusers
from diffusers import DDIMScheduler
from .test_schedulers import SchedulerCommonTest

class TestDDIM(SchedulerCommonTest):
    scheduler_classes = (DDIMScheduler,)

    def test_is_ours(self):
        self.check()
        assert diffusers.DDIMScheduler.__module__ != "fastdiff"

    def test_step(self):
        s = DDIMScheduler()
        if {steps}:
            s.set_timesteps(4)
            s.step(torch.zeros(1, 1, 2, 2), s.timesteps[0], torch.zeros(1, 1, 2, 2))
"""


def suite(folder, steps):
    schedulers = folder / "tests" / "schedulers"
    schedulers.mkdir(parents=True)
    for name in (*NEEDED, "tests/schedulers/__init__.py"):
        if name.endswith(".py"):
            (folder / name).write_text("")
        else:
            (folder / name).mkdir()
    (schedulers / "test_schedulers.py").write_text(textwrap.dedent(BASE))
    (schedulers / "test_one.py").write_text(TEST.replace("{steps}", str(steps)))
    return folder


@pytest.mark.parametrize(
    ("steps", "status", "said"),
    [(True, 0, "DDIMScheduler: 1 fused steps"), (False, 1, "no step of DDIMScheduler was fused")],
)
def test_substitutes_counts_and_fails_where_nothing_fused(tmp_path, capfd, steps, status, said):
    assert main([str(suite(tmp_path, steps)), "test_one.py"]) == status
    out = capfd.readouterr().out
    assert "2 passed" in out
    assert said in out


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "huggingface/diffusers" in capfd.readouterr().err
