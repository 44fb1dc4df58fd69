"""A small Sana-Sprint pipeline with random weights, no text encoder: pictures as diffusers'."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
)

import fastdiff

from .classes import counted, ours, stock
from .pipelines import picture

SCM, SIDE, TOKENS, WIDTH = "SCMScheduler", 32, 5, 8
CALLS = [
    {"num_inference_steps": 2},
    {"num_inference_steps": 1, "intermediate_timesteps": None},
    {"num_inference_steps": 4, "intermediate_timesteps": None},
]


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    blocks = ("ResBlock", "EfficientViTBlock")
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=32,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    with torch.no_grad():
        transformer.proj_out.weight.mul_(3.0)
    return {"transformer": transformer.eval(), "vae": vae.eval()}


def pipeline(scheduler, parts, cls=SanaSprintPipeline):
    pipe = cls(scheduler=scheduler, text_encoder=None, tokenizer=None, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe, **call):
    g = torch.Generator().manual_seed(9)
    return pipe(
        prompt_embeds=torch.randn(2, TOKENS, WIDTH, generator=g),
        prompt_attention_mask=torch.ones(2, TOKENS),
        generator=[torch.Generator().manual_seed(j) for j in range(2)],
        height=SIDE,
        width=SIDE,
        use_resolution_binning=False,
        output_type="np",
        **call,
    ).images


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_pictures_are_those_of_diffusers(parts, call):
    mine, theirs = ours(SCM)(), stock(SCM)()
    a, b = (pictures(pipeline(s, parts), **call) for s in (mine, theirs))
    assert a.shape == b.shape == (2, SIDE, SIDE, 3)
    assert b.std() > 0.02  # there is something to see
    assert np.abs(a - b).max() < 2e-5
    assert counted(mine) == (call["num_inference_steps"], {}, 0)


@pytest.mark.parametrize(("steps", "strength", "calls"), [(4, 0.5, 2), (5, 0.8, 4)])
def test_from_an_image_as_in_diffusers(parts, steps, strength, calls):
    mine, theirs = ours(SCM)(), stock(SCM)()
    given = {"num_inference_steps": steps, "intermediate_timesteps": None, "strength": strength}
    a, b = (
        pictures(pipeline(s, parts, SanaSprintImg2ImgPipeline), image=picture(1, SIDE), **given)
        for s in (mine, theirs)
    )
    assert np.abs(a - b).max() < 2e-5
    assert counted(mine) == (calls, {}, 0)


def test_custom_timesteps_run_where_diffusers_class_lacks_a_default(parts):
    """Its set_timesteps wants a number of steps, which the pipeline does not pass beside them."""
    angles = torch.linspace(1.5708, 0.0, 4).tolist()
    own = {"timesteps": angles, "max_timesteps": None, "intermediate_timesteps": None}
    with pytest.raises(TypeError, match="num_inference_steps"):
        pictures(pipeline(stock(SCM)(), parts), num_inference_steps=3, **own)
    a, b = (
        pictures(pipeline(ours(SCM)(), parts), num_inference_steps=3, **call)
        for call in (own, {"intermediate_timesteps": None})
    )
    assert np.array_equal(a, b)


def test_a_wrong_angle_would_be_seen(parts):
    a, b = (
        pictures(pipeline(stock(SCM)(), parts), num_inference_steps=2, intermediate_timesteps=t)
        for t in (1.3, 1.1)
    )
    assert (np.abs(a - b) > 2 / 255).mean() > 0.2


def test_an_accelerated_pipeline_draws_the_same_and_goes_back(parts):
    pipe = pipeline(stock(SCM)(), parts)
    before = pictures(pipe)
    scheduler = fastdiff.accelerate(pipe.scheduler)
    assert isinstance(scheduler, ours(SCM))
    assert np.abs(pictures(pipe) - before).max() < 2e-5
    assert counted(scheduler).fused == 2
    fastdiff.restore(scheduler)
    assert np.array_equal(pictures(pipe), before)


def test_saved_and_loaded(parts, tmp_path):
    pipe = pipeline(ours(SCM)(), parts)
    pipe.save_pretrained(tmp_path)
    again = SanaSprintPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is ours(SCM)
    assert np.array_equal(pictures(again), pictures(pipe))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_step_is_the_pipelines_own_call(parts, steps):
    """From a scheduler with another sigma_data; guidance as the pipeline has it."""
    pipe = pipeline(ours(SCM)(sigma_data=0.9), parts)
    call = fastdiff.few_step(pipe, "sana-sprint", steps)
    assert pipe.scheduler.config.sigma_data == 0.5
    assert call["guidance_scale"] == 4.5
    own = next(c for c in CALLS if c["num_inference_steps"] == steps)
    a, b = pictures(pipe, **call), pictures(pipeline(stock(SCM)(), parts), **own)
    assert np.abs(a - b).max() < 2e-5
    for other in (0, 3.9, 5.1):  # it was trained at 4, 4.5 and 5
        with pytest.raises(ValueError, match=rf"guidance .* must be 4 to 5; got {other}"):
            fastdiff.few_step(pipe, "sana-sprint", steps, guidance=other)
    with pytest.raises(ValueError, match=r"is for a model with betas.*has trigflow.*sana-sprint"):
        fastdiff.few_step(pipe, "lcm", steps)
