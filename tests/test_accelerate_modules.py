"""Numbers: accelerated networks against float64, their modules against diffusers' own, option by
option.

The rule: RMS of the error over 8 seeds at most twice that of PyTorch in the same dtype, the worse
of its two layouts, plus eps/4 of the RMS of the result.  All networks here are small, where
PyTorch's operators are faster than a kernel: `kernels` lowers that limit; `reference` takes every
fast path there is, also those whose kernels a CPU lacks.
"""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

import fastdiff
from fastdiff.accelerate import choice, upsampling
from fastdiff.accelerate.swap import swap
from fastdiff.cli.model import built_in

from .accelerate_checks import every_kernel
from .tiny_pipelines import NETWORKS, drawn, run, sd15

SEEDS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def kernels(monkeypatch):
    """Every kernel there is runs, whatever the size of a tensor."""
    every_kernel(monkeypatch)
    return "kernels"


@pytest.fixture
def reference():
    """Every fast path is taken."""
    with fastdiff.use_backend("reference"):
        yield "reference"


@pytest.fixture(params=["kernels", "reference"])
def fast(request):
    return request.getfixturevalue(request.param)


def rms(x):
    return x.double().square().mean().sqrt().item()


@torch.no_grad()
def assert_within_the_rule(network, dtype, call, check):
    exact = network.to(dtype)
    truth = call(copy.deepcopy(exact).double())
    size = rms(truth)
    assert 0.01 < size < 100  # neither silent nor exploding
    last = copy.deepcopy(exact).to(memory_format=torch.channels_last)
    theirs = max(rms(call(one).double() - truth) for one in (exact, last))
    ours = fastdiff.accelerate(copy.deepcopy(exact))
    mine = rms(call(ours).double() - truth)
    check(ours)
    assert mine <= 2 * theirs + torch.finfo(dtype).eps / 4 * size


def taken(network, backend):
    """Every module that has a kernel, or needs none, ran its fast path and nothing else."""
    rows = [row for row in fastdiff.report(network) if row.calls]
    assert rows
    for row in rows:
        missing = row.calls.get("torch: no kernel")
        assert row.calls.get("fused") or (backend == "kernels" and missing), row
        assert not [reason for reason in row.calls if reason.startswith("stock")], row


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_error_of_small_networks(name, dtype, kernels):
    network = NETWORKS[name]()
    assert_within_the_rule(network, dtype, lambda n: run(n, SEEDS), lambda n: taken(n, kernels))


@pytest.mark.parametrize("name", NETWORKS)
def test_error_of_small_networks_on_every_fast_path(name, reference):
    network, call = NETWORKS[name](), lambda n: run(n, SEEDS)
    assert_within_the_rule(network, torch.float32, call, lambda n: taken(n, reference))


@pytest.fixture(scope="module")
def model():
    folder = built_in()
    how = {"low_cpu_mem_usage": False}
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **how).eval(),
        "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae", **how).eval(),
    }


def text_to(network, rows):
    """The built-in U-Net on random latents, of a quarter of what it draws."""
    dtype = next(network.parameters()).dtype
    generators = [torch.Generator().manual_seed(j) for j in range(rows)]
    x = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    text = torch.stack([torch.randn(16, 128, generator=g) for g in generators])
    x, text = (values.to(torch.bfloat16).to(dtype) for values in (x, text))
    return network(x, torch.full((rows,), 500), text).sample


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_error_of_the_built_in_model(model, part, dtype, kernels):
    call = text_to if part == "unet" else run
    network = copy.deepcopy(model[part])
    assert_within_the_rule(network, dtype, lambda n: call(n, SEEDS), lambda n: taken(n, kernels))


@torch.no_grad()
def assert_same_block(block, *inputs, least=1, **call):
    """A module alone against itself in float64, by the rule, over 8 seeds in float32."""
    fast_one = copy.deepcopy(block)
    swap(fast_one)
    wide = copy.deepcopy(block).double()
    double = [x if x is None else x.double() for x in inputs]
    truth = wide(*double, **{k: v if v is None else v.double() for k, v in call.items()})
    theirs = rms(block(*inputs, **call).double() - truth)
    mine = rms(fast_one(*inputs, **call).double() - truth)
    assert choice.tally(fast_one).calls["fused"] == least, choice.tally(fast_one).calls
    assert mine <= 2 * theirs + torch.finfo(torch.float32).eps / 4 * rms(truth)
    assert fast_one(*inputs, **call).shape == truth.shape


RESNETS = {
    "plain": {},
    "wider": {"out_channels": 24},
    "shortcut without bias": {"out_channels": 24, "conv_shortcut_bias": False},
    "scale_shift": {"time_embedding_norm": "scale_shift"},
    "norm_type of a VAE": {"time_embedding_norm": "default", "temb_channels": None},
    "skip_time_act": {"skip_time_act": True},
    "up": {"up": True},
    "down": {"down": True},
    "fir up": {"up": True, "kernel": "fir"},
    "sde_vp down": {"down": True, "kernel": "sde_vp"},
    "scaled": {"output_scale_factor": 2**0.5},
    "mish": {"non_linearity": "mish"},
    "groups_out": {"groups_out": 2, "out_channels": 24},
    "conv_2d_out_channels": {"conv_2d_out_channels": 24},
    "dropout": {"dropout": 0.5},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("options", RESNETS.values(), ids=RESNETS)
def test_every_option_of_a_resnet_block(options, layout, fast):
    made = {"in_channels": 16, "temb_channels": 12, "groups": 4, "eps": 1e-5} | options
    block = drawn(ResnetBlock2D(**made)).to(memory_format=layout)
    x = torch.randn(SEEDS, 16, 8, 8).to(memory_format=layout)
    temb = None if made["temb_channels"] is None else torch.randn(SEEDS, 12)
    assert_same_block(block, 3 * x + 1, temb)


def test_a_block_that_ignores_its_time_embedding(fast):
    """As a VAE's decoder makes them: time_embedding_norm is the name of its norm."""
    block = drawn(ResnetBlock2D(in_channels=16, temb_channels=None, groups=4))
    block.time_embedding_norm = "group"
    assert_same_block(block, torch.randn(SEEDS, 16, 8, 8), None)


ATTENTION = {
    "self": {},
    "no scale": {"scale_qk": False},
    "bias": {"bias": True, "upcast_softmax": True},
    "cross": {"cross_attention_dim": 20},
    "cross, normed": {"cross_attention_dim": 20, "cross_attention_norm": "layer_norm"},
    "cross, group norm": {
        "cross_attention_dim": 20,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 4,
    },
    "picture": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.5},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("processor", [AttnProcessor2_0, AttnProcessor])
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
def test_attention_is_that_of_the_plain_processors(options, processor, masked, fast):
    block = drawn(Attention(query_dim=24, heads=3, dim_head=8, **options))
    block.set_processor(processor())
    cross = options.get("cross_attention_dim")
    text = None if cross is None else torch.randn(SEEDS, 11, cross)
    x = torch.randn(SEEDS, 24, 5, 4) if "norm_num_groups" in options else torch.randn(SEEDS, 20, 24)
    keys = 20 if text is None else 11
    mask = torch.where(torch.rand(SEEDS, 1, keys) < 0.3, -1e4, 0.0) if masked else None
    assert_same_block(block, x, encoder_hidden_states=text, attention_mask=mask)


def test_tokens_through_a_norm_of_attention(fast):
    """(B, L, C), as some callers pass it, where the norm wants (B, C, L)."""
    block = drawn(Attention(query_dim=24, heads=3, dim_head=8, norm_num_groups=4))
    assert_same_block(block, torch.randn(SEEDS, 20, 24))


UPSAMPLERS = {
    "plain": {},
    "wider": {"out_channels": 24},
    "without bias": {"bias": False},
    "of another name": {"name": "Conv2d_0"},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("options", UPSAMPLERS.values(), ids=UPSAMPLERS)
def test_upsampling_and_its_convolution(options, layout, fast):
    block = drawn(Upsample2D(16, use_conv=True, **options)).to(memory_format=layout)
    assert_same_block(block, torch.randn(SEEDS, 16, 7, 5).to(memory_format=layout))


@torch.no_grad()
def test_upsampling_to_a_size(fast):
    """Twice the size is what upsample_conv does; other sizes are for diffusers."""
    block = drawn(Upsample2D(16, use_conv=True))
    x, stock = torch.randn(2, 16, 6, 4), "stock: output_size is not twice the size"
    for size, what in (((12, 8), "fused"), ((11, 8), stock)):
        ours = copy.deepcopy(block)
        swap(ours)
        got, theirs = ours(x, output_size=size), block(x, output_size=size)
        assert choice.tally(ours).calls == {what: 1}
        assert got.shape == theirs.shape
        assert torch.equal(got, theirs) == (what == stock)


OTHER_UPSAMPLERS = {
    "transposed": {"use_conv_transpose": True},
    "normed": {"use_conv": True, "norm_type": "rms_norm", "eps": 1e-6, "elementwise_affine": True},
    "5x5": {"use_conv": True, "kernel_size": 5, "padding": 2},
    "without zeros around": {"use_conv": True, "padding": 0},
    "not interpolated": {"use_conv": True, "interpolate": False},
}


@torch.no_grad()
@pytest.mark.parametrize("options", OTHER_UPSAMPLERS.values(), ids=OTHER_UPSAMPLERS)
def test_other_upsamplers_are_diffusers_own(options, fast):
    block = drawn(Upsample2D(16, **options))
    ours, x = copy.deepcopy(block), torch.randn(2, 16, 6, 4)
    swap(ours)
    assert torch.equal(ours(x), block(x))
    assert choice.tally(ours).calls == {f"stock: {upsampling.why_left(ours)}": 1}


@torch.no_grad()
def test_a_convolution_that_is_patched_to_tile(fast):
    """Pictures without seams are made by this patch of every convolution."""
    block = drawn(Upsample2D(16, use_conv=True))

    def around(conv, x, weight, bias):
        x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
        return torch.nn.functional.conv2d(x, weight, bias)

    ours, x = copy.deepcopy(block), torch.randn(2, 16, 6, 4)
    swap(ours)
    for one in (block, ours):
        one.conv._conv_forward = around.__get__(one.conv)
    assert torch.equal(ours(x), block(x))
    assert choice.tally(ours).calls == {"stock: its convolution is hooked or replaced": 1}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_upsampler_of_a_size_where_upsample_conv_is_faster(layout):
    """Without the fixture."""
    block = drawn(Upsample2D(128, use_conv=True)).to(memory_format=layout)
    assert_same_block(block, torch.randn(1, 128, 32, 32).to(memory_format=layout))


@torch.no_grad()
def test_an_upsampler_that_is_not_in_float32_is_left_to_pytorch():
    """Where upsample_conv was not measured to be faster; the report says so."""
    network = fastdiff.accelerate(sd15(block_out_channels=(16, 128)).bfloat16())
    run(network)
    (row,) = [r for r in fastdiff.report(network) if r.kind == "module Upsample2D"]
    assert (row.backend, len(row.calls)) == ("torch", 1)
    assert "measured in float32 only" in row.why
    assert "torch: measured in float32 only" in next(iter(row.calls))


@pytest.mark.parametrize(
    "options",
    [
        {"only_cross_attention": True},
        {"resnet_time_scale_shift": "scale_shift"},
        {"resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4},
        {"act_fn": "gelu"},
        {"use_linear_projection": True, "upcast_attention": True},
        {"dual_cross_attention": False, "class_embed_type": "timestep", "layers_per_block": 2},
        {"mid_block_type": None},
        {"dropout": 0.3},
    ],
    ids=lambda options: next(iter(options)),
)
@torch.no_grad()
def test_options_of_a_network(options, reference):
    network = sd15(**options)
    labels = {"class_labels": torch.arange(SEEDS)} if "class_embed_type" in options else {}

    def call(one):
        dtype = next(one.parameters()).dtype
        generator = torch.Generator().manual_seed(1)
        x, text = (torch.randn(SEEDS, *s, generator=generator) for s in ((4, 8, 8), (7, 24)))
        return one(x.to(dtype), torch.full((SEEDS,), 300), text.to(dtype), **labels).sample

    assert_within_the_rule(network, torch.float32, call, lambda n: None)


@torch.no_grad()
def test_small_tensors_are_left_to_pytorch():
    """Without the fixture: at this size a kernel would be slower, and the report says so."""
    network = fastdiff.accelerate(sd15())
    run(network)
    for row in fastdiff.report(network):
        if "ResnetBlock2D" in row.kind:
            assert set(row.calls) == {"torch: too small for the kernel"}
        if "Attention" in row.kind:
            assert set(row.calls) == {"fused", "attention by torch"}
        if "BasicTransformerBlock" in row.kind:
            assert set(row.calls) == {"torch: too small for the kernel"}
        if "Upsample2D" in row.kind:
            (what,) = row.calls
            assert what.startswith("torch: making the weights costs what it saves")
            assert row.backend == "torch"
            assert "below 128 channels" in row.why


@torch.no_grad()
def test_an_upsampler_that_was_too_small_so_far_is_said_to_be_torch():
    block = drawn(Upsample2D(1024, use_conv=True, name="conv"))
    network = fastdiff.accelerate(sd15())
    network.up_blocks[0].upsamplers[0] = block
    fastdiff.accelerate(network)
    (row,) = (row for row in fastdiff.report(network) if "Upsample2D" in row.kind)
    assert row.backend == "reference"
    block(torch.randn(1, 1024, 2, 2))
    (row,) = (row for row in fastdiff.report(network) if "Upsample2D" in row.kind)
    assert row.backend == "torch"
    assert f"torch: {row.why.partition(': ')[2]}" in row.calls
