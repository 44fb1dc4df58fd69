"""How users run a network that is accelerated: train, autocast, compile, other attention, layouts,
other activations.  Kernels run, however small the tensors (`kernels`)."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

import fastdiff
from fastdiff.accelerate import attention, choice

from .accelerate_checks import calls, close, every_kernel, rows, shape_of, wrap
from .tiny_pipelines import UNET, drawn, run, sd15, sdxl, vae


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    every_kernel(monkeypatch)


pytestmark = pytest.mark.usefixtures("no_gradients")


class TestLastNorm:
    """conv_norm_out and conv_act: one pass while they are a pair, and themselves when not."""

    def both(self, change):
        networks = fastdiff.accelerate(sd15()), sd15()
        run(networks[0])
        assert choice.tally(networks[0].conv_norm_out).paired
        for one in networks:
            change(one)
        return [run(one) for one in networks]

    def test_another_activation(self):
        assert close(*self.both(lambda n: setattr(n, "conv_act", nn.GELU())))

    def test_another_norm(self):
        assert close(*self.both(lambda n: setattr(n, "conv_norm_out", nn.GroupNorm(2, 16))))

    def test_none(self):
        assert close(*self.both(lambda n: setattr(n, "conv_norm_out", None)))

    @pytest.mark.parametrize("part", ["conv_norm_out", "conv_act"])
    def test_a_hook_that_removes_itself(self, part):
        seen = []

        def watch(network):
            def once(module, args, output):
                seen.append(output.clone())
                handle.remove()

            handle = getattr(network, part).register_forward_hook(once)

        assert close(*self.both(watch))
        assert close(*seen)
        again = fastdiff.accelerate(sd15())
        assert close(run(again), run(sd15()))

    def test_float64(self):
        network, stock = fastdiff.accelerate(sd15()), sd15().to(memory_format=torch.channels_last)
        assert torch.equal(run(network.double()), run(stock.double()))


def test_gradients_are_those_of_diffusers():
    network, stock = fastdiff.accelerate(sd15()), sd15()
    stock.to(memory_format=torch.channels_last)
    with torch.enable_grad():
        for one in (network, stock):
            one.train()
            one.enable_gradient_checkpointing()
            run(one).square().mean().backward()
    for (name, a), b in zip(network.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for row in fastdiff.report(network):
        assert row.calls.keys() <= {"stock: a gradient is wanted", "torch: no kernel"}


def test_training_a_lora_through_fast_paths():
    """The base is frozen, as in LoRA training: blocks before the first LoRA take kernels, and
    gradients flow through those after it."""
    networks = fastdiff.accelerate(sd15()), sd15()
    for one in networks:
        one.requires_grad_(False)
        wrap(one, ("to_q", "conv1"))
        with torch.enable_grad():
            run(one).square().mean().backward()
    pairs = zip(networks[0].named_parameters(), networks[1].parameters(), strict=True)
    found = [(name, a.grad, b.grad) for (name, a), b in pairs if a.requires_grad]
    assert found
    for name, a, b in found:
        assert (a - b).norm() <= 1e-3 * b.norm(), name
    assert calls(networks[0], "ResnetBlock2D").get("fused")


def test_autocast_is_left_to_diffusers():
    network, stock = fastdiff.accelerate(sd15()), sd15().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(network), run(stock))
    assert any("autocast" in what for what in calls(network, "ResnetBlock2D"))


@pytest.mark.parametrize("make", [sd15, vae])
def test_compiled_in_one_graph(make):
    network, seen = fastdiff.accelerate(make()), []
    first = run(network)

    def backend(graph, example):
        seen.append({node.target for node in graph.graph.nodes})
        return graph.forward

    torch._dynamo.reset()
    part = network.decoder if make is vae else network
    part.forward = torch.compile(part.forward, backend=backend, fullgraph=True, dynamic=False)
    before = calls(network, "ResnetBlock2D")["fused"]
    for _ in range(2):
        assert close(run(network), first)
    assert len(seen) == 1  # no second compilation
    assert torch.ops.fastdiff.group_norm.default in seen[0]
    if make is sd15:
        assert calls(network, "ResnetBlock2D")["fused"] == before  # traced calls are not counted


def test_freeu_and_chunks_work():
    network, stock = fastdiff.accelerate(sd15()), sd15()
    for one in (network, stock):
        one.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        for module in one.modules():
            if isinstance(module, BasicTransformerBlock):
                module.set_chunk_feed_forward(2, 1)
    assert close(run(network), run(stock))


class Own:
    """Somebody's attention processor."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)


class TestAttention:
    def test_other_processors_are_left_alone_and_reported(self):
        network, stock = fastdiff.accelerate(sd15()), sd15()
        for one in (network, stock):
            one.set_attn_processor(Own())
        assert close(run(network), run(stock))
        for row in rows(network, "Attention"):
            assert row.backend == "stock"
            assert "Own" in row.why
            assert set(row.calls) == {"stock: its processor is Own"}
        network.set_attn_processor(AttnProcessor2_0())
        run(network)
        assert calls(network, "Attention")["fused"]

    def test_set_attention_backend_reaches_them(self, monkeypatch, caplog):
        network = fastdiff.accelerate(sd15())
        first, asked = run(network), []
        real = attention.dispatch_attention_fn
        monkeypatch.setattr(
            attention,
            "dispatch_attention_fn",
            lambda *args, **kwargs: asked.append(kwargs["backend"].value) or real(*args, **kwargs),
        )
        network.set_attention_backend("_native_math")
        assert close(run(network), first)
        assert len(asked) == len(rows(network, "Attention"))
        assert set(asked) == {"_native_math"}
        assert {row.backend for row in rows(network, "Attention")} == {"diffusers"}
        assert "_native_math" in str(fastdiff.report(network))
        network.reset_attention_backend()
        asked.clear()
        assert torch.equal(run(network), first)
        assert not asked

        network.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Own())
        with caplog.at_level("WARNING", logger="fastdiff"):
            network.set_attention_backend("native")
        assert "Own" in caplog.text
        network.reset_attention_backend()

    def test_processors_set_later_hear_it_too(self):
        network = fastdiff.accelerate(sd15())
        network.set_default_attn_processor()  # AttnProcessor, written out
        network.set_attention_backend("native")
        run(network)
        assert {row.backend for row in rows(network, "Attention")} == {"diffusers"}
        network.reset_attention_backend()
        fastdiff.restore(network)
        assert all(not vars(p) for p in network.attn_processors.values())

    def test_arguments_that_only_diffusers_knows(self):
        network = fastdiff.accelerate(sd15())
        block = network.mid_block.attentions[0].transformer_blocks[0].attn1
        x = torch.randn(2, 4, 32)
        assert close(block(x, unknown=1), block(x))
        assert any("unknown" in what for what in choice.tally(block).calls)


def test_layout_follows_the_device_and_the_dtype():
    network = fastdiff.accelerate(sd15())
    weight = network.mid_block.resnets[0].conv1.weight
    last = torch.channels_last
    assert weight.is_contiguous(memory_format=last)
    network.load_state_dict(sd15().state_dict(), assign=True)
    assert not network.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=last)
    network.to(torch.bfloat16)
    assert network.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=last)
    fastdiff.restore(network)
    assert shape_of(network)[2] == shape_of(sd15())[2]


def test_a_layer_that_was_replaced_keeps_its_weights():
    """As a text-to-image U-Net becomes one for inpainting: other channels go in."""
    network = fastdiff.accelerate(sd15())
    network.conv_in = nn.Conv2d(9, 16, 3, padding=1)
    before = network.conv_in.weight.clone()
    fastdiff.restore(network)
    assert torch.equal(network.conv_in.weight, before)
    assert network.conv_in.weight.is_contiguous()


def test_channels_stay_last_through_a_network():
    network, seen = fastdiff.accelerate(sdxl()), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    run(network)
    inner = [x for x in seen[1:] if x.shape[1] > 1 and x.shape[2] > 1]
    assert inner
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inner)


def test_unet_of_a_subclass_keeps_its_own_forward():
    from diffusers import UNet2DConditionModel

    class OwnUNet(UNet2DConditionModel):
        pass

    network = drawn(OwnUNet(**UNET | {"attention_head_dim": 2}))
    first = run(network)
    fastdiff.accelerate(network)
    assert type(network) is OwnUNet
    assert close(run(network), first)
    top, *_ = fastdiff.report(network)
    assert top.backend == "stock"
    assert "OwnUNet is a subclass" in top.why
    assert calls(network, "ResnetBlock2D")["fused"]
    assert torch.equal(run(fastdiff.restore(network)), first)
