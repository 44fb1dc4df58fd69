"""The benchmarks have every shape of SD1.5, SDXL and the VAE, as diffusers' networks ask for them.

The networks run on the meta device, which computes no number, and every module says what it saw.
"""

import functools
from collections import defaultdict

import pytest
import torch

from benchmarks import (
    bench_add_layer_norm,
    bench_attention,
    bench_bias_residual,
    bench_cross_attention,
    bench_geglu,
    bench_group_norm,
    bench_upsample_conv,
)
from benchmarks.campaign import models
from benchmarks.campaign.model_configs import MODELS

MEASURED = {
    "group_norm": set(bench_group_norm.ON_CUDA),
    "geglu": set(bench_geglu.SHAPES.values()),
    "add_layer_norm": set(bench_add_layer_norm.SHAPES.values()),
    "bias_residual": set(bench_bias_residual.SHAPES.values()),
    "upsample_conv": set(bench_upsample_conv.SHAPES.values()),
    "attention": set(bench_attention.SHAPES.values()),
    "cross_attention": set(bench_cross_attention.SHAPES.values()),
}


def rows(x):
    return (x.shape[:-1].numel(), x.shape[-1])


def attention(module, hidden, encoder_hidden_states=None, **_):
    """(B, H, N, M, D)"""
    if hidden.dim() == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    keys = hidden if encoder_hidden_states is None else encoder_hidden_states
    width = module.to_q.out_features // module.heads
    shape = (hidden.shape[0], module.heads, hidden.shape[1], keys.shape[1], width)
    return ("attention" if encoder_hidden_states is None else "cross_attention"), shape


def group_norm(module, x):
    shape = tuple(x.shape)
    if len(shape) == 3:  # of an attention, in front of which the picture was flattened
        side = round(shape[2] ** 0.5)
        shape = (*shape[:2], side, side)
    return "group_norm", shape


def spied(module):
    """What a module's input says of a shape; None for one that no op of ours stands for."""
    return {
        "Attention": attention,
        "GroupNorm": group_norm,
        "LayerNorm": lambda module, x: ("add_layer_norm", rows(x)),
        "GEGLU": lambda module, x: ("geglu", (rows(x)[0], module.proj.out_features)),
        "ResnetBlock2D": lambda module, x, *_, **__: (
            "bias_residual",
            (x.shape[0], module.out_channels, *x.shape[2:]),
        ),
        "Upsample2D": lambda module, x, *_, **__: ("upsample_conv", tuple(x.shape)),
    }.get(type(module).__name__)


@functools.cache
def shapes_of(name, side):
    """{op: shapes} that one call of the network asks for."""
    diffusers = pytest.importorskip("diffusers")
    model = MODELS[name]._replace(side=side)
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    found = defaultdict(set)

    def say(read, module, args, kwargs):
        op, shape = read(module, *args, **kwargs)
        found[op].add(shape)

    with torch.device("meta"), torch.no_grad():
        network = kinds[model.kind](**model.config).eval()
        for module in network.modules():
            if read := spied(module):
                hook = functools.partial(say, read)
                module.register_forward_pre_hook(hook, with_kwargs=True)
        inputs = {"sample": torch.empty(model.batch, 4, side, side)}
        if model.kind == "unet":
            inputs["timestep"] = torch.tensor(501)
            inputs["encoder_hidden_states"] = torch.empty(model.batch, model.tokens, model.width)
        if model.pooled:
            inputs["text_embeds"] = torch.empty(model.batch, model.pooled)
            inputs["time_ids"] = torch.empty(model.batch, 6)
        models.call(model, network, inputs)
    return found


@pytest.mark.parametrize(("name", "side"), [("sd15", 64), ("sdxl", 128), ("vae", 128), ("vae", 64)])
def test_every_shape_of_a_model_is_measured(name, side):
    found = shapes_of(name, side)
    ops = set(MEASURED) if name != "vae" else {"group_norm", "bias_residual", "upsample_conv"}
    assert set(found) >= ops
    missing = {op: shapes - MEASURED[op] for op, shapes in found.items()}
    assert not {op: shapes for op, shapes in missing.items() if shapes}


def test_a_missing_shape_would_be_seen():
    """The shapes that are there are read, not assumed: as published, of two samples."""
    found = shapes_of("sd15", 64)
    assert (2, 8, 64, 77, 160) in found["cross_attention"]
    assert (128, 10240) in found["geglu"]
    assert (128, 1280) in found["add_layer_norm"]
    assert (2, 1280, 8, 8) in found["upsample_conv"]
    assert found["bias_residual"] == {
        (2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 1280, 8, 8)
    }  # fmt: skip
