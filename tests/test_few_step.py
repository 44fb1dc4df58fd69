"""fastdiff.few_step: what the cards of the checkpoints say, run in small random pipelines.

The oracle is diffusers' own class, configured and called as the model's card does; ours starts from
a scheduler whose every option that matters is wrong.  Flux and Sana-Sprint are in tests/schedulers.
"""

import inspect
import json
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

import fastdiff
from fastdiff import doctor
from fastdiff.recipes import RECIPES
from fastdiff.schedulers import CLASSES
from tests import tiny_pipelines as tiny
from tests.schedulers.test_few_step_flow import CARDS as FLOWS

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENT = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # SD's own config
TRAILING = {"timestep_spacing": "trailing"}
OFF, QUARTERS, LCM_QUARTERS = {"guidance_scale": 0}, [999, 749, 499, 249], [999, 759, 499, 259]

CARDS: list[tuple[str, str, int, str, dict[str, Any], dict[str, Any], list[int]]] = [
    ("lcm", "sd15", 4, "LCMScheduler", {}, {"guidance_scale": 1.0}, LCM_QUARTERS),
    ("lcm-lora", "sdxl", 4, "LCMScheduler", {}, {"guidance_scale": 1.0}, LCM_QUARTERS),
    ("tcd", "sd15", 4, "TCDScheduler", {}, OFF | {"eta": 0.3}, LCM_QUARTERS),
    ("sdxl-turbo", "sdxl", 2, "EulerAncestralDiscreteScheduler", TRAILING, OFF, [999, 499]),
    ("sd-turbo", "sd15", 1, "EulerDiscreteScheduler", TRAILING, OFF, [999]),
    ("sdxl-lightning", "sdxl", 4, "EulerDiscreteScheduler", TRAILING, OFF, QUARTERS),
    (
        *("sdxl-lightning", "sdxl", 1, "EulerDiscreteScheduler"),
        *(TRAILING | {"prediction_type": "sample"}, OFF, [999]),
    ),
    ("hyper-sd", "sd15", 2, "DDIMScheduler", TRAILING, OFF, [999, 499]),
    ("hyper-sd-1step", "sdxl", 1, "LCMScheduler", {}, OFF | {"timesteps": [800]}, [800]),
    ("dmd2", "sdxl", 4, "LCMScheduler", {}, OFF | {"timesteps": QUARTERS}, QUARTERS),
    ("dmd2-1step", "sdxl", 1, "LCMScheduler", {}, OFF | {"timesteps": [399]}, [399]),
    ("pcm", "sd15", 4, "DDIMScheduler", TRAILING, OFF, QUARTERS),
]


@pytest.fixture(scope="module")
def parts():
    """The networks of each kind of pipeline, made once."""
    return {kind: (unet, tiny.vae()) for kind, unet in (("sd15", tiny.sd15), ("sdxl", tiny.sdxl))
            for unet in [unet()]}  # fmt: skip


def wrong(name: str = "DPMSolverMultistepScheduler", **config: Any) -> Any:
    """A scheduler after which every inherited option is another than a recipe's."""
    made = getattr(diffusers, name)(**BETAS, timestep_spacing="leading", steps_offset=1, **config)
    made.register_to_config(
        clip_sample=True, set_alpha_to_one=True, thresholding=False, final_sigmas_type="sigma_min",
        use_karras_sigmas=True, original_inference_steps=7,
    )  # fmt: skip
    return made


def pipeline(parts: Any, kind: str, scheduler: Any) -> Any:
    unet, vae = parts[kind]
    nothing: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    given = {"unet": unet, "vae": vae, "scheduler": scheduler}
    if kind == "sdxl":
        nothing |= {"text_encoder_2": None, "tokenizer_2": None}
        pipe = diffusers.StableDiffusionXLPipeline(**given, **nothing)
    else:
        nothing |= {"safety_checker": None, "feature_extractor": None}
        pipe = diffusers.StableDiffusionPipeline(**given, **nothing, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, **call: Any) -> tuple[torch.Tensor, list[int]]:
    """What comes out before the VAE, and the timesteps of the run."""
    g = torch.Generator().manual_seed(0)
    given = {"prompt_embeds": torch.randn(1, tiny.TOKENS, tiny.WIDTH, generator=g)}
    if isinstance(pipe, diffusers.StableDiffusionXLPipeline):
        given["pooled_prompt_embeds"] = torch.randn(1, tiny.POOLED, generator=g)
    side = {"height": 2 * tiny.SIDE, "width": 2 * tiny.SIDE}
    made = pipe(**given, **call, **side, generator=g, output_type="latent").images
    return made, [int(t) for t in pipe.scheduler.timesteps]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card[0]}-{card[2]}")
def test_a_recipe_is_what_its_card_says(parts, card):
    name, kind, steps, cls, config, call, timesteps = card
    scheduler = wrong()
    if name == "lcm":  # which leaves this as it was distilled
        scheduler.register_to_config(original_inference_steps=50)
    pipe = pipeline(parts, kind, scheduler)
    given = fastdiff.few_step(pipe, name, steps)
    assert type(pipe.scheduler) is getattr(fastdiff, cls)
    got, visited = latents(pipe, **given)
    assert visited == timesteps

    theirs = getattr(diffusers, cls)
    known = {k: v for k, v in LATENT.items() if k in inspect.signature(theirs).parameters}
    expected, _ = latents(
        pipeline(parts, kind, theirs(**BETAS | known | config)), num_inference_steps=steps, **call
    )
    # float32: the drop-in classes agree with diffusers to 1e-5 a run (tests/schedulers)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_recipe_is_run():
    elsewhere = {"sana-sprint", *(card[0] for card in FLOWS)}  # tests/schedulers
    assert {card[0] for card in CARDS} | elsewhere == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_the_data_fits_the_classes(recipe):
    cls = next(c for c in CLASSES if c.__name__ == recipe.scheduler)
    for steps in recipe.steps:
        assert recipe.options(steps).keys() <= cls._get_init_keys(cls)
        takes = recipe.guided(steps)
        assert takes.takes(takes.default)
    assert set(recipe.by_steps) <= set(recipe.steps)
    assert list(recipe.steps) == sorted(set(recipe.steps))
    assert recipe.known
    assert recipe.sources
    assert all(source.startswith(("https://", "arXiv:")) for source in recipe.sources)
    if recipe.embedded is not None:
        assert recipe.embedded.takes(recipe.embedded.default)


def test_what_is_asked_for_is_handed_on(parts):
    pipe = pipeline(parts, "sdxl", wrong())
    assert fastdiff.few_step(pipe, "hyper-sd", 12)["guidance_scale"] == 5.0
    assert fastdiff.few_step(pipe, "hyper-sd", 8, guidance=6)["guidance_scale"] == 6.0
    assert fastdiff.few_step(pipe, "TCD", 8, eta=1)["eta"] == 1.0
    assert fastdiff.few_step(pipe, "lcm_lora", 4, guidance=1.5)["guidance_scale"] == 1.5
    # one recipe after the other: nothing of the one before is left
    assert fastdiff.few_step(pipe, "sdxl-lightning", 1)
    assert pipe.scheduler.config.prediction_type == "sample"
    assert fastdiff.few_step(pipe, "sdxl-lightning", 8)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert fastdiff.few_step(pipe, "dmd2", 4)
    assert fastdiff.few_step(pipe, "lcm-lora", 8)
    assert latents(pipe, **fastdiff.few_step(pipe, "tcd", 4))[1] == LCM_QUARTERS


def test_a_guidance_embedding_is_an_input():
    """A full LCM: the scale goes into the U-Net, and such a U-Net is no place for a LoRA."""
    unet = tiny.sd15(time_cond_proj_dim=16)
    pipe = pipeline({"sd15": (unet, tiny.vae())}, "sd15", wrong())
    call = fastdiff.few_step(pipe, "lcm", 4)
    assert call == {"num_inference_steps": 4, "guidance_scale": 8.0}
    low, high = (latents(pipe, **call | {"guidance_scale": g})[0] for g in (3.0, 8.0))
    assert not torch.equal(low, high)
    with pytest.raises(
        ValueError, match="guidance of 'lcm' at 4 steps must be 1 or 3 to 13; got 0"
    ):
        fastdiff.few_step(pipe, "lcm", 4, guidance=0)
    with pytest.raises(
        ValueError, match=r"time_cond_proj_dim None.*got 16. Recipes for this one: lcm"
    ):
        fastdiff.few_step(pipe, "lcm-lora", 4)


def named(pipe: Any, patch: Any) -> None:
    config = {**pipe.unet.config, "_name_or_path": "somewhere/sdxl_lightning_8step_unet"}
    patch.setattr(pipe.unet, "_internal_dict", FrozenDict(config))


def adapted(pipe: Any, patch: Any) -> None:
    names = {"Hyper-SDXL-8steps-lora": None, "style_1500_steps": None}  # the second: of a training
    patch.setattr(pipe.unet, "peft_config", names, raising=False)


def flow(pipe: Any, patch: Any) -> None:
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()


REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({"recipe": "sdxl-lightening"}, None, r"recipe must be one of lcm, .*Did you mean 'sdxl-light"),
    ({"recipe": 3}, None, "recipe must be one of lcm, .*got 3"),
    ({"steps": 3}, None, "steps of 'sdxl-lightning' must be .*checkpoints for, 1, 2, 4, 8; got 3"),
    ({"steps": True}, None, "steps of 'sdxl-lightning' must be .* got True"),
    ({"recipe": "lcm-lora", "steps": 1}, None, "made for, 2 to 8; got 1"),
    ({"recipe": "lcm-lora", "checkpoint_steps": 8}, None, "checkpoint_steps must be None .*got 8"),
    ({"steps": 2, "checkpoint_steps": 8}, None, "steps must be 8, .*checkpoint_steps; got 2. Load"),
    ({"steps": 2, "checkpoint_steps": 3}, None, "checkpoint_steps of .* 1, 2, 4, 8; got 3"),
    ({"steps": 2}, named, "steps must be 8, .*its name; got 2.*checkpoint_steps=2"),
    ({"recipe": "hyper-sd", "steps": 2}, adapted, "steps must be 8, .*its name; got 2"),
    ({"guidance": 5.0}, None, r"guidance .* must be 0 to 1 .*guidance-free.*got 5.0"),
    ({"guidance": float("nan")}, None, "guidance .* must be 0 to 1 .*got nan"),
    ({"recipe": "hyper-sd", "guidance": 3.0}, None, "at 4 steps must be 0 to 1 .*got 3.0"),
    ({"recipe": "hyper-sd", "steps": 8, "guidance": 9.0}, None, "must be 0 to 1 or 5 to 8; got 9"),
    ({"eta": 0.5}, None, "eta must be None for the recipe .*option of tcd"),
    ({"recipe": "tcd", "eta": 2.0}, None, "eta must be a number in 0 .. 1; got 2.0"),
    ({}, flow, "is for a model with betas.*has a flow.*no recipe is for it.* of Sta.*XL, with"),
    ({"recipe": "flux-schnell"}, None, "is for a flow.*has a model with betas.*one of lcm, "),
    ({"recipe": "sana-sprint", "steps": 2}, None, "is for trigflow"),
    ({"recipe": "sd-turbo"}, None, "unet must be of Stable Diffusion 1 and 2 .*'text_time'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "change", "message"), REFUSED)
def test_a_wrong_combination_is_refused_and_changes_nothing(
    parts, given, change, message, monkeypatch
):
    pipe = pipeline(parts, "sdxl", wrong())
    if change is not None:
        change(pipe, monkeypatch)
    before, config = pipe.scheduler, dict(pipe.scheduler.config)
    with pytest.raises(ValueError, match=message):
        fastdiff.few_step(pipe, **{"recipe": "sdxl-lightning", "steps": 4} | given)
    assert pipe.scheduler is before
    assert dict(before.config) == config
    if change in (named, adapted):  # who says which checkpoint it is, is believed
        own = {"recipe": "sdxl-lightning", "steps": 2, "checkpoint_steps": 2} | given
        assert fastdiff.few_step(pipe, **own)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (None, "pipe must be a pipeline with a scheduler .*NoneType"),
        (wrong(prediction_type="v_prediction"), "prediction_type .*epsilon .*got 'v_prediction'"),
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler pipe has neither .*no recipe is for it"),
        (wrong(num_train_timesteps=500), "num_train_timesteps .* above 999, .*got 500"),
    ],
)  # fmt: skip
def test_another_scheduler_is_refused(parts, scheduler, message):
    pipe = pipeline(parts, "sdxl", scheduler)
    with pytest.raises(ValueError, match=message):
        fastdiff.few_step(pipe, "dmd2", 4)
    assert pipe.scheduler is scheduler


def test_a_call_without_the_arguments_is_refused(parts):
    """Of a pipeline that takes no timesteps; one without eta runs TCD's own 0.3, and no other."""

    class Bare:
        unet, scheduler = parts["sdxl"][0], wrong()

        def __call__(self, num_inference_steps: int, guidance_scale: float) -> None: ...

    pipe = Bare()
    with pytest.raises(
        ValueError, match=r"call takes timesteps, .*'dmd2' needs; Bare takes num_inf"
    ):
        fastdiff.few_step(pipe, "dmd2", 4)
    with pytest.raises(ValueError, match="call takes eta"):
        fastdiff.few_step(pipe, "tcd", 4, eta=0.5)
    assert fastdiff.few_step(pipe, "tcd", 4) == {"num_inference_steps": 4, "guidance_scale": 0.0}
    with pytest.raises(ValueError, match=r"pipe must be a pipeline.*got a SimpleNamespace"):
        fastdiff.few_step(SimpleNamespace(scheduler=wrong()), "tcd", 4)
    pipe.unet = None
    with pytest.raises(ValueError, match="pipe must have a unet, of Stable Diffusion XL"):
        fastdiff.few_step(pipe, "dmd2", 4)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card[0]}-{card[2]}")
def test_the_doctor_finds_no_more_than_notes_afterwards(parts, card, tmp_path):
    """What few_step leaves, saved: nothing of the recipe is amiss; what no option of the class is
    stays as it was inherited."""
    pipe = pipeline(parts, card[1], wrong())
    fastdiff.few_step(pipe, card[0], card[2])
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "unet").mkdir()
    pipe.unet.save_config(tmp_path / "unet")
    index = {"scheduler": ["fastdiff", type(pipe.scheduler).__name__],
             "unet": ["diffusers", "UNet2DConditionModel"]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = doctor.examine(doctor.read(tmp_path, RECIPES[card[0]]))
    assert [f.name for f in found if f.severity != "note"] == []
    assert "scheduler-module" in [f.name for f in found]
