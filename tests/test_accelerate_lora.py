"""LoRA as peft makes it, through diffusers' own calls: loaded before accelerate and after, weighed,
fused, unfused, unloaded; the pictures follow, and restore gives back the network."""

import pytest
import torch

from .accelerate_checks import calls, close, every_kernel, shape_of
from .tiny_pipelines import pictures, pipeline, run, sd15

peft = pytest.importorskip("peft", reason="peft is not installed")

import fastdiff  # noqa: E402

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "conv2", "time_emb_proj"]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    every_kernel(monkeypatch)


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LoRA file as diffusers writes it: rank 2, drawn, on attention, GEGLU and convolutions."""
    from diffusers import StableDiffusionPipeline

    network = sd15()
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=LAYERS))
    generator = torch.Generator().manual_seed(5)
    for name, weight in network.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    layers = peft.get_peft_model_state_dict(network)
    assert {name.split(".lora_")[0].split(".")[-1] for name in layers} >= {"to_q", "conv1", "conv2"}
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def both(change):
    """An accelerated and a stock pipeline after the same calls: their networks' outputs."""
    pipes = fastdiff.accelerate(pipeline("sd15")), pipeline("sd15")
    for pipe in pipes:
        change(pipe)
    return pipes, [run(pipe.unet) for pipe in pipes]


def plain():
    return run(sd15())


def test_loaded_after_accelerate(folder):
    (pipe, stock), (mine, theirs) = both(lambda p: p.load_lora_weights(folder, adapter_name="a"))
    assert close(mine, theirs)
    assert not close(mine, plain()), "the LoRA does something"
    difference = abs(pictures(pipe) - pictures(stock)).max()
    assert difference <= 1e-4 < abs(pictures(stock) - pictures(pipeline("sd15"))).max()
    assert calls(pipe.unet, "Attention")["fused"]


def test_loaded_before_accelerate(folder):
    pipe, stock = pipeline("sd15"), pipeline("sd15")
    for one in (pipe, stock):
        one.load_lora_weights(folder, adapter_name="a")
    theirs = run(stock.unet)
    fastdiff.accelerate(pipe)
    assert close(run(pipe.unet), theirs)
    fastdiff.restore(pipe)
    assert torch.equal(run(pipe.unet), theirs)


def test_weighed_and_disabled(folder):
    def change(pipe):
        pipe.load_lora_weights(folder, adapter_name="a")
        run(pipe.unet)
        pipe.set_adapters(["a"], adapter_weights=[0.5])

    (pipe, _), (half, theirs) = both(change)
    assert close(half, theirs)
    pipe.set_adapters(["a"], adapter_weights=[1.0])
    assert not close(run(pipe.unet), half)
    pipe.disable_lora()
    assert close(run(pipe.unet), plain())


def test_fused_and_unfused(folder):
    """Fusing writes into the weights that the fast paths use."""

    def change(pipe):
        run(pipe.unet)
        pipe.load_lora_weights(folder, adapter_name="a")
        pipe.fuse_lora(lora_scale=0.7)

    (pipe, stock), (mine, theirs) = both(change)
    assert close(mine, theirs)
    assert not close(mine, plain())
    for one in (pipe, stock):
        one.unload_lora_weights()
    assert close(run(pipe.unet), run(stock.unet))
    (pipe, stock), _ = both(change)
    for one in (pipe, stock):
        one.unfuse_lora()  # the layers of LoRA are at work again
    assert close(run(pipe.unet), run(stock.unet))
    pipe.unload_lora_weights()
    assert close(run(pipe.unet), plain())


def test_unloaded_and_restored(folder):
    pipe = fastdiff.accelerate(pipeline("sd15"))
    first = run(pipe.unet)
    pipe.load_lora_weights(folder)
    run(pipe.unet)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe.unet), first)
    fastdiff.restore(pipe)
    assert torch.equal(run(pipe.unet), plain())
    assert shape_of(pipe.unet)[0].keys() == shape_of(sd15())[0].keys()
    assert shape_of(pipe.unet)[2] == shape_of(sd15())[2]


def test_strict_runs_with_lora(folder):
    """These layers are called, not folded: nothing has to leave its fast path."""
    pipe, stock = fastdiff.accelerate(pipeline("sd15"), strict=True), pipeline("sd15")
    for one in (pipe, stock):
        one.load_lora_weights(folder)
    assert close(run(pipe.unet), run(stock.unet))
    assert not [what for what in calls(pipe.unet, "ResnetBlock2D") if what.startswith("stock")]
