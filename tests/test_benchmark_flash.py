"""FA3 and FA4 as peers of attention: activated for their own times only, or a reason why not."""

import json

import pytest
import torch
from torch.nn.attention import _registry

from benchmarks import attention_table, flash, sdpa
from benchmarks.campaign import show
from benchmarks.side_by_side import OURS
from fastdiff.ops import _attention_table as table
from tests.test_benchmarks import Few
from tests.test_campaign import report_of

pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn.attention, "current_flash_attention_impl"),
    reason="this PyTorch activates no other flash attention",
)
SHAPE = (1, 1, 16, 16, 8)
MISSING = {"FA3": "No module named 'flash_attn_interface'", "FA4": "No module named 'flash_attn'"}


class Handle:
    def remove(self):
        pass


@pytest.fixture
def log(monkeypatch):
    """(backend, which flash attention was active) of every call of a backend of PyTorch."""
    seen, on = [], sdpa.on

    def spy(kind, *args):
        seen.append((kind.name, flash.active_flash()))
        return on(kind, *args)

    monkeypatch.setattr(sdpa, "on", spy)
    yield seen
    torch.nn.attention.restore_flash_attention_impl()


def can_be_activated(monkeypatch, name, handle=Handle):
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, name, handle)


def cannot(monkeypatch, name):
    def register():
        raise ModuleNotFoundError(MISSING[name])

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, name, register)


def row(op="attention"):
    benchmark = Few()
    case = {"where": "a test", "dtype": "float32", "backend": "torch"}
    with torch.no_grad():
        sdpa.compare(benchmark, False, op, case, {OURS: sdpa.sdpa}, SHAPE, "float32")
    return {"benchmark": op, "status": "measured", "id": "x", **benchmark.extra_info}


def test_what_can_be_activated_is_timed_as_itself_and_put_back(monkeypatch, log):
    can_be_activated(monkeypatch, "FA3")
    cannot(monkeypatch, "FA4")
    found = row()
    assert "sdpa fa3" in found["times"]
    assert "sdpa flash" in found["times"]
    assert found["not run"]["sdpa fa4"] == (
        "PyTorch cannot activate FA4: ModuleNotFoundError: No module named 'flash_attn'"
    )
    assert "sdpa fa4" not in found["times"]
    assert {("FLASH_ATTENTION", "FA3"), ("FLASH_ATTENTION", "FA2")} <= set(log)
    assert {active for kind, active in log if kind != "FLASH_ATTENTION"} == {"FA2"}
    assert found["flash"] == flash.active_flash() == "FA2"
    assert found["check"]["largest difference from float64"]["sdpa fa3"] <= found["check"]["bound"]
    text = show.text(report_of(found))
    assert "sdpa fa4" in text
    assert "not run: PyTorch cannot activate FA4" in text


def test_where_nothing_can_be_activated_the_row_says_why(monkeypatch, log):
    for name in flash.NAMES.values():
        cannot(monkeypatch, name)
    found = row()
    for name, there in flash.NAMES.items():
        assert f"sdpa {name}" not in found["times"]
        assert MISSING[there] in found["not run"][f"sdpa {name}"]
    assert {active for _, active in log} == {"FA2"}


def test_a_pytorch_without_the_switch_says_so(monkeypatch):
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    assert "this PyTorch has no torch.nn.attention.activate" in flash.why_not("FA3")


def test_an_activation_that_does_nothing_is_not_believed(monkeypatch, log):
    can_be_activated(monkeypatch, "FA3", lambda: None)  # no handle: PyTorch keeps what it had
    cannot(monkeypatch, "FA4")
    assert "was told to activate FA3 and has FA2" in row()["not run"]["sdpa fa3"]


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, NotImplementedError])
def test_a_kernel_that_refuses_the_tensors_is_not_run(monkeypatch, log, error):
    can_be_activated(monkeypatch, "FA3")
    cannot(monkeypatch, "FA4")
    on = sdpa.on

    def refuses(kind, *args):
        if flash.active_flash() == "FA3":
            raise error("FA3 does not take float32")
        return on(kind, *args)

    monkeypatch.setattr(sdpa, "on", refuses)
    found = row()
    assert found["not run"]["sdpa fa3"] == "FA3 does not take float32"
    assert "sdpa fa3" not in found["times"]
    assert flash.active_flash() == "FA2"


def test_what_cannot_be_put_back_makes_the_row_red(monkeypatch, log):
    can_be_activated(monkeypatch, "FA3")
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: None)
        with pytest.raises(flash.NotPutBack, match="was FA2 and cannot be put back from FA3"):
            row()


def test_a_wrong_one_has_no_number_and_is_put_back(monkeypatch, log):
    can_be_activated(monkeypatch, "FA3")
    cannot(monkeypatch, "FA4")
    on = sdpa.on

    def wrong(kind, *args):
        return on(kind, *args) * (1.001 if flash.active_flash() == "FA3" else 1)

    monkeypatch.setattr(sdpa, "on", wrong)
    with pytest.raises(AssertionError, match="sdpa fa3"):
        row()
    assert flash.active_flash() == "FA2"


def test_what_was_active_before_is_active_after(monkeypatch, log):
    """And then PyTorch's flash attention is not called FA2."""
    for name in ("FA3", "FA4"):
        can_be_activated(monkeypatch, name)
    torch.nn.attention.activate_flash_attention_impl("FA4")
    with flash.activated("FA3"):
        assert flash.active_flash() == "FA3"
        with flash.activated("FA3"):
            pass
        assert flash.active_flash() == "FA3"
    assert flash.active_flash() == "FA4"
    found = row()
    assert found["flash"] == "FA4"
    assert found["not run"]["sdpa flash"] == "PyTorch's flash attention is FA4 in this process"
    assert {"sdpa fa3", "sdpa fa4"} <= set(found["times"])
    assert flash.active_flash() == "FA4"


def test_the_table_has_rows_of_fa3_and_fa4(monkeypatch, log, tmp_path):
    for name in ("FA3", "FA4"):
        can_be_activated(monkeypatch, name)
    found = row()
    for name, time in (("sdpa", 9.0), ("sdpa flash", 9.0), ("sdpa fa3", 5.0), ("sdpa fa4", 6.0)):
        found["times"][name]["median"] = time
    for name in found["times"].keys() - {"sdpa", "sdpa flash", "sdpa fa3", "sdpa fa4"}:
        found["times"][name]["median"] = 9.0
    report = report_of(found)
    path, out = tmp_path / "results.json", tmp_path / "table.json"
    path.write_text(json.dumps(report))
    assert attention_table.main([str(path), "--out", str(out)]) == 0
    (entry,) = json.loads(out.read_text())["devices"]
    (made,) = entry["rows"]
    assert made["fastest"] == "fa3"
    assert made["microseconds"]["fa4"] == 6.0
    read = table.read(json.loads(out.read_text()), "a test")
    like = {"width": 8, "queries": 16, "keys": 16, "masked": False}
    assert table.find(read, "NVIDIA H200", "float32", **like).name == "fa3"
