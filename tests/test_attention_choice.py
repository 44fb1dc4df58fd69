"""attention() chooses by a table of measurements and says why; how that table is made."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

import fastdiff
from benchmarks import attention_table as maker
from fastdiff import backends
from fastdiff.ops import _attention_table as table
from fastdiff.ops import attention as module
from fastdiff.ops._attention import sdpa
from fastdiff.ops._attention_table import Choice, find, length_class, read
from fastdiff.ops.attention import attention, attention_choice

DEVICE = "Some GPU"
TIMES = {"torch": 9.0, "flash": 9.1, "cudnn": 12.0, "cross_attention": 5.0}
FACTS = {"device": DEVICE, "driver": "1", "torch": "2", "triton": "3", "date": "2026-01-02"}
ROW = {"dtype": "float16", "width": 40, "queries": "4096", "keys": "77", "masked": False}
ROW |= {"fastest": "cross_attention", "microseconds": TIMES}


def data(**changes):
    return {"schema": 1, "devices": [FACTS | {"rows": [copy.deepcopy(ROW) | changes]}]}


def test_the_shipped_table_is_read():
    found = table.shipped()
    assert found is table.shipped(), "read once"
    text = table.PATH.read_text()
    assert text == maker.text(json.loads(text)), "as it is written"


def test_classes_of_lengths():
    assert [length_class(n) for n in (0, 1, 64, 65, 77, 128, 129, 4096, 4097)] == (
        ["64", "64", "64", "128", "128", "128", "256", "4096", "8192"]
    )
    assert [length_class(n, keys=True) for n in (64, 65, 77, 78, 154)] == (
        ["64", "77", "77", "128", "256"]
    )


def test_what_was_measured_is_chosen_and_nothing_else():
    rows = read(data(), "a test")
    like = {"width": 40, "queries": 4000, "keys": 77, "masked": False}
    found = find(rows, DEVICE, "float16", **like)
    assert found.name == "cross_attention"
    assert "5.0 µs where PyTorch's own choice takes 9.0 µs" in found.why
    assert "Some GPU, torch 2, 2026-01-02" in found.why
    assert find(rows, "Other GPU", "float16", **like) == Choice(
        "torch", "nothing was measured on Other GPU: PyTorch's own choice"
    )
    for change in ({"width": 64}, {"queries": 2048}, {"keys": 78}, {"masked": True}):
        name, why = find(rows, DEVICE, "float16", **like | change)
        assert name == "torch"
        assert why.startswith("not measured on Some GPU: float16")
    assert find(rows, DEVICE, "bfloat16", **like).name == "torch"


def test_a_tie_is_no_win():
    assert table.fastest({"torch": 9.0, "triton": 8.9}) == "torch"
    assert table.fastest({"torch": 9.0, "triton": 8.0}) == "triton"
    assert table.fastest({"torch": 9.0, "flash": 8.0, "triton": 7.9}) == "flash"
    assert table.fastest({"torch": 9.0, "flash": 8.95}) == "torch"
    assert table.fastest({"torch": 9.0}) == "torch"
    times = {"fastest": "torch", "microseconds": {"torch": 9.0, "triton": 8.9}}
    (found,) = read(data(**times), "a test").values()
    assert "PyTorch's own choice, 9.0 µs, is not beaten by triton, 8.9 µs" in found.why


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "int8"}, "dtype must be among"),
        ({"width": 0}, "width must be positive"),
        ({"masked": 1}, "masked must be"),
        ({"queries": "77"}, "queries must be a class"),
        ({"keys": 77}, "keys must be a class"),
        ({"fastest": "flash"}, "fastest is 'cross_attention'"),
        ({"microseconds": {"flash": 1.0}}, "must have those of torch"),
        ({"microseconds": TIMES | {"magic": 1.0}}, "microseconds must be of"),
        ({"microseconds": TIMES | {"flash": 0.0}}, "must be positive"),
        ({"more": 1}, "a row must have"),
    ],
)
def test_a_wrong_row_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"there: .*{words}"):
        read(data(**changes), "there")


def test_a_wrong_table_is_refused():
    twice = data()
    twice["devices"] *= 2
    without = data()
    del without["devices"][0]["driver"]
    wrong = [([], "object"), ({"schema": 2}, "schema must be 1, got 2"), ({"schema": 1}, "a list")]
    for bad, words in [*wrong, (twice, "there twice"), (without, r"lacks \['driver'\]")]:
        with pytest.raises(ValueError, match=words):
            read(bad, "there")


def fake(n=4096, m=77, width=40, dtype=torch.float16):
    """What stands for a tensor on a GPU: q and k."""
    device = torch.device("cuda", 0)
    whole = {"dtype": dtype, "device": device, "is_cuda": True, "element_size": lambda: 2}
    shapes = ((2, n, 8, width), (2, m, 8, width))
    return [SimpleNamespace(shape=torch.Size(s), **whole) for s in shapes]


@pytest.fixture
def measured(monkeypatch):
    """A GPU whose only row is ROW, where every kernel of ours runs."""
    monkeypatch.setattr(table, "device_name", lambda index: DEVICE)
    monkeypatch.setattr(table, "shipped", lambda: read(data(), "a test"))
    monkeypatch.setattr(module.cross_attention, "why_not", lambda q, k: None)


def test_a_choice_on_a_gpu(measured, monkeypatch):
    assert module._choice(*fake(), None).name == "cross_attention"
    assert module._choice(*fake(m=128), None).name == "torch"
    assert module._choice(*fake(), torch.ones(1, 77)).name == "torch"
    monkeypatch.setattr(module.cross_attention, "why_not", lambda q, k: "it is raining")
    name, why = module._choice(*fake(), None)
    assert name == "torch"
    assert why == "cross_attention was measured to be fastest, but it is raining"


def test_an_unknown_gpu_takes_what_torch_takes(monkeypatch):
    monkeypatch.setattr(table, "device_name", lambda index: "NVIDIA Unheard Of")
    name, why = module._choice(*fake(), None)
    assert (name, "nothing was measured on NVIDIA Unheard Of" in why) == ("torch", True)


def test_what_a_kernel_does_not_take():
    say = module._cannot
    assert say("cross_attention", *fake(), torch.ones(1)) == "it has no mask"
    assert "1 to 512 keys" in say("cross_attention", *fake(m=513), None)
    assert "heads a multiple of 8" in say("cross_attention", *fake(width=36), None)
    assert module.active_flash() == "FA2"
    assert say("fa3", *fake(), None) == "PyTorch's flash attention is FA2 in this process, not FA3"
    assert say("torch", *fake(), None) is None


def test_what_the_general_kernel_does_not_take(monkeypatch):
    monkeypatch.setattr(backends, "why_not", lambda op, backend, key: None)
    say = module._cannot
    for width in (8, 40, 160, 256, 512):
        assert say("triton", *fake(width=width), None) is None
    assert "8, 16, .. 160, 256 or 512 wide; these are 36" in say("triton", *fake(width=36), None)
    assert "no registers for a mask" in say("triton", *fake(width=512), torch.ones(1))
    assert say("triton", *fake(width=160), torch.ones(1)) is None


def test_a_forced_backend_is_obeyed_or_raises(monkeypatch):
    q = torch.randn(1, 3, 2, 24)
    with fastdiff.use_backend("reference"):
        assert attention_choice(q, q, q).why == "use_backend asked for the reference"
    monkeypatch.setattr(module, "is_forced", lambda: True)
    monkeypatch.setattr(backends, "chosen", lambda op, key: "triton")
    monkeypatch.setattr(module, "why_not", lambda q, mask: "heads must be")
    with pytest.raises(backends.BackendError, match=r"cannot run this fastdiff::attention: heads"):
        attention(q, q, q)
    monkeypatch.setattr(module, "why_not", lambda q, mask: None)
    assert attention_choice(q, q, q).name == "triton"


def test_without_a_gpu_it_is_torch():
    q = torch.randn(1, 3, 2, 24)
    name, why = attention_choice(q, q, q)
    assert (name, why) == ("torch", "there is no kernel of ours for cpu")
    assert attention_choice(*[q.double()] * 3) == Choice(
        "torch", "there is no kernel for torch.float64"
    )
    assert attention_choice(*[q.requires_grad_()] * 3) == Choice("torch", "a gradient is wanted")


def run_as(monkeypatch, name):
    """What attention() calls, where `name` is chosen: [(op, arguments)]."""
    log = []
    monkeypatch.setattr(module, "_choice", lambda q, k, mask: Choice(name, ""))
    monkeypatch.setattr(
        backends, "resolve", lambda op, key: lambda *a: (log.append((op, a)), a[-1].fill_(7))
    )
    return log


@pytest.mark.parametrize("name", ["triton", "cross_attention"])
def test_what_is_chosen_runs(monkeypatch, name):
    log = run_as(monkeypatch, name)
    q, mask = torch.randn(2, 3, 4, 8), torch.ones(3, 3, dtype=torch.bool)
    out = attention(q, q, q, mask=None if name == "cross_attention" else mask, scale=0.5)
    assert (out == 7).all()
    ((op, args),) = log
    assert op == {"triton": "attention"}.get(name, name)
    assert args[-2] == 0.5
    if name == "triton":
        assert args[3].shape == (2, 4, 3, 3)
        assert not attention(q, q[:, :0], q[:, :0]).any()
        assert attention(q[:0], q[:0], q[:0]).shape == (0, 3, 4, 8)
        assert len(log) == 1


def test_a_backend_of_torch_runs(monkeypatch):
    run_as(monkeypatch, "math")
    q = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(attention(q, q, q), sdpa(q, q, q))


def record(benchmark="cross_attention", n=4096, m=77, repeats=20, backend="triton", **times):
    shape = {"B": 2, "H": 8, "N": n, "M": m, "D": 40}
    found = {who.replace("_", " "): {"median": t * repeats} for who, t in times.items()}
    case = {"where": "x", "dtype": "float16", "backend": backend}
    row = {"benchmark": benchmark, "case": case, "shape": shape, "repeats": repeats}
    return row | {"status": "measured", "times": found}


def report(*rows, schema=2):
    facts = {"gpus": [DEVICE], "torch": "2", "triton": "3", "driver": 1}
    facts["date"] = "2026-01-02T03:04:05"
    if schema == 1:
        return {"schema": 1, "provenance": facts, "cases": list(rows)}
    return {"schema": 2, "provenance": facts, "stages": {"a": {"rows": list(rows)}}}


@pytest.mark.parametrize("schema", [1, 2])
def test_a_table_is_made_of_results(tmp_path, schema, capsys):
    rows = [record(fastdiff=5.0, sdpa=9.0, sdpa_flash=9.1)]
    rows += [record("attention", 64, 64, fastdiff=3.0, fastdiff_triton=2.0, sdpa=3.0)]
    rows += [{"benchmark": "geglu"}]
    path, out = tmp_path / "results.json", tmp_path / "table.json"
    path.write_text(json.dumps(report(*rows, schema=schema)))
    for _ in range(2):  # the second time it replaces the device
        assert maker.main([str(path), "--out", str(out)]) == 0
    made = json.loads(out.read_text())
    (entry,) = made["devices"]
    assert {k: entry[k] for k in FACTS} == FACTS
    names = [(row["queries"], row["fastest"]) for row in entry["rows"]]
    assert names == [("4096", "cross_attention"), ("64", "triton")]
    assert entry["rows"][0]["microseconds"] == {"cross_attention": 5.0, "flash": 9.1, "torch": 9.0}
    assert read(made, "made")
    assert "Some GPU: float16 40 4096 x 77: cross_attention" in capsys.readouterr().out


def test_who_lost_once_in_a_class_is_not_chosen():
    wins = record(fastdiff=5.0, sdpa=9.0, sdpa_math=50.0)
    loses = record(n=4000, fastdiff=10.0, sdpa=9.0, sdpa_flash=1.0)
    (row,) = maker.device(report(wins, loses))["rows"]
    assert (row["fastest"], row["microseconds"]) == ("torch", {"torch": 18.0})
    (row,) = maker.device(report(wins, wins))["rows"]
    assert (row["fastest"], row["microseconds"]["torch"]) == ("cross_attention", 18.0)


def test_what_ran_as_the_reference_is_no_kernel():
    (row,) = maker.device(report(record(backend="reference", fastdiff=5.0, sdpa=9.0)))["rows"]
    assert row["microseconds"] == {"torch": 9.0}


def test_results_of_a_cpu_make_no_table():
    with pytest.raises(ValueError, match="not of a GPU"):
        maker.device({"provenance": {"gpus": []}, "cases": []})
