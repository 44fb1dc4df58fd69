"""The runner itself, on a suite of two files: it substitutes, counts, and sees what never fused."""

import pytest

from .__main__ import NEEDED, main

BASE = """
class SchedulerCommonTest:
    scheduler_classes = ()

    def check(self):
        assert all(cls.__module__ == "fastdiff" for cls in self.scheduler_classes)
"""
TEST = """
import torch
import diffusers
from diffusers import NAME
from .test_schedulers import SchedulerCommonTest

class TestIt(SchedulerCommonTest):
    scheduler_classes = (NAME,)

    def test_is_ours(self):
        self.check()
        assert NAME is self.scheduler_classes[0]
        assert diffusers.NAME.__module__ != "fastdiff"

    def test_step(self):
        s = NAME()
        if STEPS:
            s.set_timesteps(4)
            s.step(torch.zeros(1, 1, 2, 2), s.timesteps[0], torch.zeros(1, 1, 2, 2))
"""


def test_substitutes_counts_and_fails_where_nothing_fused(tmp_path, capfd):
    schedulers = tmp_path / "tests" / "schedulers"
    schedulers.mkdir(parents=True)
    (tmp_path / "tests" / "others").mkdir()
    for name in (*NEEDED, "tests/schedulers/__init__.py"):
        if name.endswith(".py"):
            (tmp_path / name).write_text("")
    (schedulers / "test_schedulers.py").write_text(BASE)
    for file, name, steps in (("a", "DDIMScheduler", True), ("b", "DDPMScheduler", False)):
        text = TEST.replace("NAME", name).replace("STEPS", str(steps))
        (schedulers / f"test_{file}.py").write_text(text)
    assert main([str(schedulers), "test_a.py", "test_b.py"]) == 1
    out = capfd.readouterr().out
    assert "4 passed" in out
    assert "DDIMScheduler: 1 fused steps" in out
    assert "no step of DDPMScheduler was fused" in out


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "huggingface/diffusers" in capfd.readouterr().err
