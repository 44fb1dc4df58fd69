"""Attention inside accelerated networks runs what the table of measurements says, and the report
says whom it took and why.  A table for a device that is not here stands in for the shipped one; the
kernel it names is played by the reference."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn.attention import SDPBackend

import fastdiff
from fastdiff import backends
from fastdiff.accelerate import attention
from fastdiff.ops import _attention_table as table
from fastdiff.ops import attention as module

from .accelerate_checks import calls, close, rows, wrap
from .tiny_pipelines import TOKENS, WIDTH, run, sd15

FACTS = {"device": "Some GPU", "driver": "1", "torch": "2", "triton": "3", "date": "2026-01-02"}
ROW = {"dtype": "float32", "width": 8, "queries": "256", "masked": False}
SELF = ROW | {"keys": "256", "fastest": "math", "microseconds": {"torch": 9.0, "math": 6.0}}
TIMES = {"torch": 8.0, "efficient": 7.0, "cross_attention": 5.0}
CROSS = ROW | {"keys": "64", "fastest": "cross_attention", "microseconds": TIMES}
TABLE = {"schema": 1, "devices": [FACTS | {"rows": [SELF, CROSS]}]}


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def ran(monkeypatch):
    """Some GPU; what ran there: "SDPBackend.MATH", or the op whose kernel was launched."""
    log = []
    found = table.read(TABLE, "a test")
    monkeypatch.setattr(table, "shipped", lambda: found)
    monkeypatch.setattr(table, "device_name", lambda index: "Some GPU")
    monkeypatch.setattr(module, "why_no_kernel", lambda device: None)
    monkeypatch.setattr(module.cross_attention, "why_not", lambda q, k: None)
    real, limited = backends.resolve, module.sdpa_kernel

    def resolve(op, key):
        def launch(q, k, v, scale, out):
            log.append(op)
            out.copy_(module.sdpa(q, k, v, None, scale))

        return launch if op == "cross_attention" else real(op, key)

    monkeypatch.setattr(backends, "resolve", resolve)
    monkeypatch.setattr(module, "sdpa_kernel", lambda kind: (log.append(kind), limited(kind))[1])
    return log


def large(network, masked=False):
    """A call with 16x16 latents: 256 queries of 2 heads, 8 wide, at the first level, 64 in the
    middle."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, TOKENS, WIDTH, generator=generator)
    mask = torch.arange(TOKENS)[None].expand(2, -1) < 5 if masked else None
    return network(x, torch.tensor(7), text, encoder_attention_mask=mask).sample


def by_kind(network):
    """{"self" or "cross": {(backend, reason)}} of the first level."""
    found = {"self": set(), "cross": set()}
    for row in rows(network, "Attention"):
        if "mid_block" not in row.name:
            kind = "self" if row.name.endswith("attn1") else "cross"
            found[kind].add((row.backend, row.why))
    return found


def test_the_measured_table_decides_in_a_network(ran):
    network, stock = fastdiff.accelerate(sd15()), sd15()
    assert close(large(network), large(stock))
    assert {name for name in ran if name != SDPBackend.MATH} == {"cross_attention"}
    found = by_kind(network)
    ((name, why),) = found["self"]
    assert name == "math"
    assert "6.0 µs where PyTorch's own choice takes 9.0 µs (measured on Some GPU" in why
    ((name, why),) = found["cross"]
    assert name == "cross_attention"
    assert "5.0 µs where PyTorch's own choice takes 8.0 µs" in why
    middle = [row for row in rows(network, "Attention") if "mid_block" in row.name]
    assert {row.backend for row in middle} == {"torch"}
    assert all("not measured on Some GPU: float32, width 16" in row.why for row in middle)
    total, each = calls(network, "Attention"), len(rows(network, "Attention")) - len(middle)
    assert total["attention by math"] == ran.count(SDPBackend.MATH) == each // 2
    assert total["attention by cross_attention"] == ran.count("cross_attention") == each // 2
    assert total["attention by torch"] == len(middle)
    assert total["fused"] == each + len(middle)
    assert "attention by cross_attention" in str(fastdiff.report(network))


def test_a_mask_is_asked_for_too(ran):
    network, stock = fastdiff.accelerate(sd15()), sd15()
    assert close(large(network, masked=True), large(stock, masked=True))
    ((name, why),) = by_kind(network)["cross"]
    assert name == "torch"
    assert "not measured on Some GPU: float32, width 8, 256 queries, 7 keys, masked" in why
    assert "cross_attention" not in ran


def test_a_kernel_that_cannot_run_is_not_taken(ran, monkeypatch):
    monkeypatch.setattr(module.cross_attention, "why_not", lambda q, k: "it is raining")
    network = fastdiff.accelerate(sd15())
    large(network)
    ((name, why),) = by_kind(network)["cross"]
    assert name == "torch"
    assert "cross_attention was measured to be fastest, but it is raining" in why


def test_before_a_call_nobody_is_chosen():
    where = SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda")))
    stand_in = SimpleNamespace(processor=AttnProcessor2_0(), to_q=where, WHAT="in place")
    assert attention.describe(stand_in) == (
        "chosen",
        "by the table of measurements, once it has run; in place",
    )


def test_layers_that_wrap_another_still_count(ran):
    network, stock = fastdiff.accelerate(sd15()), sd15()
    for one in (network, stock):
        wrap(one)
    assert close(large(network), large(stock))
    assert ran.count("cross_attention")
    assert by_kind(network)["cross"].pop()[0] == "cross_attention"


def test_on_a_cpu_it_is_torch_and_says_why():
    network = fastdiff.accelerate(sd15())
    before = {(row.backend, row.why) for row in rows(network, "Attention")}
    run(network)
    assert {(row.backend, row.why) for row in rows(network, "Attention")} == before
    ((name, why),) = before
    assert name == "torch"
    assert why.startswith("there is no kernel of ours for cpu")
    assert set(calls(network, "Attention")) == {"fused", "attention by torch"}


def test_a_backend_that_was_asked_for_runs_or_raises():
    network = fastdiff.accelerate(sd15())
    with fastdiff.use_backend("reference"):
        run(network)
    assert {row.why.partition(";")[0] for row in rows(network, "Attention")} == {
        "use_backend asked for the reference"
    }
    block = network.mid_block.attentions[0].transformer_blocks[0].attn1
    with (
        fastdiff.use_backend("cpu"),
        pytest.raises(backends.BackendError, match=r"(?s)fastdiff::attention.*not written yet"),
    ):
        block(torch.randn(2, 4, 32))


def test_a_report_where_a_backend_cannot_run():
    """use_backend("cpu"): no kernel of upsample_conv is for it, and the report says so."""
    network = fastdiff.accelerate(sd15())
    with fastdiff.use_backend("cpu"):
        found = {row.kind: row for row in fastdiff.report(network)}
    row = found["module Upsample2D"]
    assert row.backend == "none"
    assert "no backend can run fastdiff::upsample_conv" in row.why
    assert found["module ResnetBlock2D"].backend == "cpu"
