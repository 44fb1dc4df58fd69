"""Guidance that a pipeline writes and the step's kernel computes: the same bits, or not at all."""

import copy
from collections import Counter

import diffusers
import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.accelerate import choice, guidance
from fastdiff.schedulers.guidance import Answer, Deferred
from tests import tiny_pipelines

from . import flow_pipelines
from .classes import DPM, EULER, NAMES, base, ours, stock
from .loops import answer, latents, scaled

G = 7.3


def plain(u, c):
    return u + G * (c - u)


def from_cond(u, c):
    return c + G * (c - u)


def halves(u, c):
    """The two outputs as a network of an accelerated pipeline returns them, and the counts."""
    calls = Counter()
    return (*Deferred((Answer(calls),), torch.cat([u, c])).chunk(2), calls)


def run(s, form, deferred, steps=4, dtype=torch.float32, cast=None):
    s.set_timesteps(steps)
    x, seen = latents(s).to(dtype), []
    for i, t in enumerate(s.timesteps):
        entry = scaled(s, x, t)
        u, c = answer(entry, i), answer(0.9 * entry, i + 1)
        u[0, 0, 0], c[0, 0, 0] = 0.0, torch.tensor([-0.0, 0.0, 1e-42])[:, None].repeat(1, 2).ravel()
        if cast is not None:
            u, c = u.to(cast), c.to(cast)
        if deferred:
            u, c, _ = halves(u, c)
        torch.manual_seed(i)
        out = s.step(form(u, c), t, x)
        x = out.prev_sample
        seen += [value for value in out.values() if value is not None]
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_makes_the_same_bits(name):
    for form in (plain, from_cond):
        mine = ours(name)(**base(name))
        for one, other in zip(
            run(mine, form, True), run(ours(name)(**base(name)), form, False), strict=True
        ):
            assert torch.equal(one.view(torch.int32), other.view(torch.int32))
        row = fastdiff.report(mine).rows[0]
        assert row.calls["guidance in the step"] == row.calls["fused"] > 3


def test_in_float64_on_the_reference():
    config = base(DPM)
    mine = ours(DPM)(**config)
    made = run(mine, plain, True, dtype=torch.float64)
    for one, other in zip(
        made, run(ours(DPM)(**config), plain, False, dtype=torch.float64), strict=True
    ):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)
    assert fastdiff.report(mine).rows[0].calls["guidance in the step"] == 4


def test_in_16_bits_the_kernel_rounds_guidance_to_float32():
    """What guidance="fused" computes: the step of u + g (c - u) in float32."""
    half, same = ours(EULER)(), ours(EULER)()
    for s in (half, same):
        s.set_timesteps(4)
    x = latents(half).to(torch.bfloat16)
    u, c = answer(x, 0), answer(x, 1)
    first, second, _ = halves(u, c)
    fused = half.step(plain(first, second), half.timesteps[0], x).prev_sample
    wide = same.step(plain(u.float(), c.float()), same.timesteps[0], x).prev_sample
    assert fused.dtype == torch.bfloat16
    assert torch.equal(fused, wide.to(torch.bfloat16))


def test_dynamic_thresholding_gets_a_tensor():
    config = {"thresholding": True, "sample_max_value": 3.0}
    mine = ours(DPM)(**base(DPM) | config)
    made = run(mine, plain, True)
    for one, other in zip(made, run(ours(DPM)(**base(DPM) | config), plain, False), strict=True):
        assert torch.equal(one, other)
    assert "guidance in the step" not in fastdiff.report(mine).rows[0].calls


# ---- in pipelines ------------------------------------------------------------------------


def told(pipe):
    """{component: what was counted of guidance there}."""
    counts = {}
    for row in fastdiff.report(pipe):
        calls = {k.split("guidance ")[1]: n for k, n in row.calls.items() if "guidance" in k}
        counts |= {row.name: calls} if calls else {}
    return counts


def unet_pipeline(kind="sd15", scheduler=EULER):
    pipe = tiny_pipelines.pipeline(kind)
    pipe.scheduler = stock(scheduler)(**base(scheduler))
    return pipe


def flow_pipeline(kind):
    return flow_pipelines.pipeline(
        kind, stock("FlowMatchEulerDiscreteScheduler")(), flow_pipelines.networks(kind)
    )


def flow_pictures(pipe, kind):
    given = flow_pipelines.inputs(kind, steps=3)
    if kind == "flux":
        given |= {
            "negative_prompt_embeds": -given["prompt_embeds"],
            "negative_pooled_prompt_embeds": -given["pooled_prompt_embeds"],
            "true_cfg_scale": G,
        }
    return pipe(**given).images


def test_pictures_have_the_same_bits():
    for kind in ("sd15", "sdxl", "controlnet"):
        pipe = fastdiff.accelerate(unet_pipeline(kind), guidance="off")
        without = tiny_pipelines.pictures(pipe)
        assert told(pipe) == {}
        fastdiff.accelerate(pipe)
        assert np.array_equal(tiny_pipelines.pictures(pipe), without)
        assert told(pipe) == {"scheduler": {"in the step": 2}}


@pytest.mark.parametrize("prompts", [1, 2])
def test_perturbed_attention_is_counted(prompts):
    """Of three outputs, whether or not their number is even."""
    plain = unet_pipeline()
    parts = plain.components | {"image_encoder": None}
    pipe = diffusers.StableDiffusionPAGPipeline(
        **parts, pag_applied_layers=["down"], requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    fastdiff.accelerate(pipe)
    text = torch.randn(prompts, tiny_pipelines.TOKENS, tiny_pipelines.WIDTH)
    given = {"prompt_embeds": text, "negative_prompt_embeds": -text, "pag_scale": 3.0}
    made = call(pipe, **given)
    assert told(pipe) == {"unet": {"before the step: chunk": 2}}
    fastdiff.accelerate(pipe, guidance="off")
    assert torch.equal(call(pipe, **given), made)


def test_three_prompts_without_guidance():
    pipe = fastdiff.accelerate(unet_pipeline())
    text = torch.randn(3, tiny_pipelines.TOKENS, tiny_pipelines.WIDTH)
    given = {"prompt_embeds": text, "negative_prompt_embeds": None, "guidance_scale": 1.0}
    made = call(pipe, **given)
    assert told(pipe) == {}
    fastdiff.accelerate(pipe, guidance="off")
    assert torch.equal(call(pipe, **given), made)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_transformers_too(kind):
    pipe = flow_pipeline(kind)
    stock_class = type(pipe.transformer)
    off = fastdiff.accelerate(copy.deepcopy(pipe), guidance="off")
    without = flow_pictures(off, kind)
    fastdiff.accelerate(pipe)
    assert np.array_equal(flow_pictures(pipe, kind), without)
    assert told(pipe) == {"scheduler": {"in the step": 3}}
    assert "guidance exact" in str(fastdiff.report(pipe))
    fastdiff.restore(pipe)
    assert type(pipe.transformer) is stock_class
    assert choice.NAME not in vars(pipe.transformer)


def call(pipe, **more):
    g = torch.Generator().manual_seed(5)
    text = torch.randn(1, tiny_pipelines.TOKENS, tiny_pipelines.WIDTH, generator=g)
    given = {"prompt_embeds": text, "negative_prompt_embeds": -text, "num_inference_steps": 2}
    side = {"height": 16, "width": 16, "output_type": "latent", "generator": g}
    return pipe(**given | side | more).images


def test_what_is_computed_before_the_step_is_counted():
    pipe = fastdiff.accelerate(unet_pipeline())
    rescaled = call(pipe, guidance_rescale=0.7)
    assert told(pipe) == {"unet": {"before the step: std": 2}}
    call(pipe, guidance_scale=1.0)  # none
    assert told(pipe) == {"unet": {"before the step: std": 2}}
    fastdiff.accelerate(pipe, guidance="off")
    assert torch.equal(call(pipe, guidance_rescale=0.7), rescaled)

    fastdiff.accelerate(pipe)
    ready = pipe.scheduler
    pipe.scheduler = diffusers.DDIMScheduler(**base("DDIMScheduler"))  # not ours
    one = call(pipe)
    assert sum(told(pipe)["unet"].values()) == 4
    pipe.scheduler = ready
    fastdiff.restore(pipe)
    pipe.scheduler = diffusers.DDIMScheduler(**base("DDIMScheduler"))
    assert torch.allclose(call(pipe), one, rtol=1e-4, atol=1e-4)  # other kernels in the U-Net


def test_in_16_bits_only_if_asked():
    pipe = fastdiff.accelerate(unet_pipeline().to(torch.bfloat16))
    text = {"prompt_embeds": torch.ones(1, 3, 24).bfloat16()}
    text |= {"negative_prompt_embeds": -text["prompt_embeds"]}
    exact = call(pipe, **text)
    rounded = {"unet": {"before the step: bfloat16 rounds it otherwise": 2}}
    assert told(pipe) == rounded
    fastdiff.accelerate(pipe, guidance="off")
    assert torch.equal(call(pipe, **text), exact)
    fastdiff.accelerate(pipe, guidance="fused")
    call(pipe, **text)
    assert told(pipe) == rounded | {"scheduler": {"in the step": 2}}


def test_both_kinds_of_output_and_a_network_alone():
    pipe = fastdiff.accelerate(unet_pipeline())
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 24)
    with torch.no_grad():
        listed, named = pipe.unet(x, 5, text, return_dict=False), pipe.unet(x, 5, text)
        odd = pipe.unet(x[:1], 5, text[:1], return_dict=False)
    assert isinstance(listed, tuple)
    assert type(listed[0]) is type(named.sample) is type(named["sample"]) is Deferred
    assert torch.equal(listed[0], named.sample)
    assert type(odd[0]) is torch.Tensor
    assert type(pipe.unet(x, 5, text).sample) is torch.Tensor  # a gradient is wanted
    fastdiff.restore(pipe)
    alone = fastdiff.accelerate(pipe.unet)
    with torch.no_grad():
        assert type(alone(x, 5, text).sample) is torch.Tensor


def test_copies_saving_and_the_way_back(tmp_path):
    pipe = fastdiff.accelerate(unet_pipeline())
    twin = copy.deepcopy(pipe)
    ours_, theirs = call(pipe), call(twin)
    assert torch.equal(ours_, theirs)
    assert told(twin) == {"scheduler": {"in the step": 2}}
    pipe.save_pretrained(tmp_path)
    assert '"diffusers"' in (tmp_path / "model_index.json").read_text()
    fastdiff.restore(pipe)
    assert told(pipe) == {}
    assert type(pipe.unet) is diffusers.UNet2DConditionModel
    with torch.no_grad():
        out = pipe.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 24)).sample
    assert type(out) is torch.Tensor


def test_callbacks_hooks_and_interrupts():
    pipe = fastdiff.accelerate(unet_pipeline())
    seen, kinds = [], set()
    pipe.unet.register_forward_hook(lambda *args: kinds.add(type(args[2][0])))

    def stop(pipe, i, t, given):
        seen.append(given["latents"].dtype)
        pipe._interrupt = i == 1
        return given

    call(pipe, callback_on_step_end=stop, num_inference_steps=4)
    assert told(pipe) == {"scheduler": {"in the step": 2}}
    assert seen[0] == torch.float32
    assert kinds == {torch.Tensor}


class Small(guidance.Guided):
    """A network of which the call alone is ours."""

    def __init__(self):
        super().__init__()
        self.__dict__[choice.NAME] = choice.Tally(guidance="exact")

    def forward(self, x):
        return (torch.tanh(x),)


def test_compiled_networks():
    """network.compile() compiles what is inside the call; torch.compile(network) the call itself,
    which then returns tensors."""
    x, inner = torch.randn(2, 3), Small()
    inner.compile(backend="eager", fullgraph=True)
    assert type(inner(x)[0]) is Deferred
    assert torch.equal(inner(x)[0], torch.tanh(x))
    whole = torch.compile(Small(), backend="eager", fullgraph=True)
    assert type(whole(x)[0]) is torch.Tensor


def test_the_argument_is_checked():
    with pytest.raises(ValueError, match="guidance must be one of exact, fused, off; got 'on'"):
        fastdiff.accelerate(unet_pipeline(), guidance="on")
