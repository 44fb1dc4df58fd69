"""fastdiff.few_step in Flux and Stable Diffusion 3: the cards' own calls, in small pipelines.

Ours starts from a scheduler that is wrong for the recipe.  Pictures in 0 .. 1 of networks in
float32 agree to 2e-5, as in test_flow_match.py.
"""

import diffusers
import numpy as np
import pytest
import torch

import fastdiff

from . import flow_pipelines

EULER = diffusers.FlowMatchEulerDiscreteScheduler
DEV = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}


class Phased(EULER):
    """PCM of Stable Diffusion 3 as its authors sample it, in float64.

    1000 levels j / 1000, shifted; of every 20th of them, from the largest down, those at
    floor(50 k / n); the last step ends at 0.  x_0 = x - s v; the next sample is
    x + (s' - s) v, or (1 - s') x_0 + s' z.
    """

    stochastic = False

    def set_timesteps(self, num_inference_steps=None, device=None, **_):
        j, shift = np.arange(20, 1001, 20)[::-1] / 1000, self.config.shift
        chosen = [50 * k // num_inference_steps for k in range(num_inference_steps)]
        levels = (shift * j / (1 + (shift - 1) * j))[chosen]
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
        self.timesteps = (self.sigmas[:-1] * 1000).float()

    def step(self, model_output, timestep, sample, **_):
        i = self.timesteps.tolist().index(float(timestep))
        s, s1 = self.sigmas[i : i + 2].tolist()
        x, v = sample.double(), model_output.double()
        if self.stochastic:
            made = (1 - s1) * (x - s * v) + s1 * torch.randn_like(sample)
        else:
            made = x + (s1 - s) * v
        return (made.to(sample.dtype),)


class Stochastic(Phased):
    stochastic = True


# recipe, pipeline, steps, class and options of the card's scheduler, guidance of the card
CARDS = [
    ("flux-schnell", "flux", 1, EULER, {"shift": 1.0}, 0.0),
    ("flux-schnell", "flux", 4, EULER, {"shift": 1.0}, 0.0),
    ("hyper-flux", "flux", 8, EULER, DEV, 3.5),
    ("hyper-sd3", "sd3", 4, EULER, {"shift": 3.0}, 3.0),
    ("hyper-sd3", "sd3", 8, EULER, {"shift": 3.0}, 5.0),
    ("hyper-sd3", "sd3", 16, EULER, {"shift": 3.0}, 7.0),
    ("pcm-sd3", "sd3", 2, Phased, {"shift": 1.0}, 1.2),
    ("pcm-sd3", "sd3", 4, Phased, {"shift": 1.0}, 1.2),
    ("pcm-sd3-shift3", "sd3", 4, Phased, {"shift": 3.0}, 1.2),
    ("pcm-sd3-stochastic", "sd3", 4, Stochastic, {"shift": 3.0}, 1.2),
]


@pytest.fixture(scope="module")
def parts():
    made = {
        "sd3": flow_pipelines.networks("sd3"),
        "flux": flow_pipelines.networks("flux"),
        "schnell": flow_pipelines.networks("flux", guidance_embeds=False),
    }
    return lambda name: made[name]


def picture(pipe, kind, call):
    torch.manual_seed(0)  # these pipelines hand no generator to the step
    return pipe(**flow_pipelines.inputs(kind) | call).images


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card[0]}-{card[2]}")
def test_a_recipe_is_what_its_card_says(parts, card):
    name, kind, steps, cls, options, guidance = card
    networks = parts("schnell" if name == "flux-schnell" else kind)
    wrong = EULER(
        shift=2.0, use_dynamic_shifting=name != "hyper-flux", base_shift=0.1, max_shift=9.0,
        stochastic_sampling="stochastic" not in name, use_karras_sigmas=True, shift_terminal=0.1,
    )  # fmt: skip
    pipe = flow_pipelines.pipeline(kind, wrong, networks)
    call = fastdiff.few_step(pipe, name, steps)
    assert type(pipe.scheduler) is fastdiff.FlowMatchEulerDiscreteScheduler
    given = {"num_inference_steps": steps, "guidance_scale": guidance}
    if name == "flux-schnell":
        given["max_sequence_length"] = 256
    assert {key: call[key] for key in call if key != "sigmas"} == given
    theirs = picture(flow_pipelines.pipeline(kind, cls(**options), networks), kind, given)
    ours = picture(pipe, kind, call)
    assert theirs.std() > 0.02  # there is something to see
    assert np.abs(ours - theirs).max() < 2e-5


@pytest.mark.parametrize(
    ("kind", "recipe", "steps", "more", "message"),
    [
        ("flux", "flux-schnell", 4, {},
         r"of FLUX.1-schnell .*guidance_embeds False in its config; got True. Rec.*hyper-flux$"),
        ("sd3", "flux-schnell", 4, {},
         "must be a FluxTransformer2DModel, of FLUX.1-schnell, .*got a SD3Transformer2DModel. "
         "Recipes for this one: hyper-sd3, pcm-sd3, pcm-sd3-shift3, pcm-sd3-stochastic$"),
        ("schnell", "hyper-flux", 8, {}, "got False. Recipes for this one: flux-schnell$"),
        ("flux", "hyper-sd", 8, {}, "is for a model with betas.*recipe must be one of hyper-flux$"),
        ("sd3", "pcm", 4, {}, "has a flow.* must be one of hyper-sd3, pcm-sd3, pcm-sd3-shift3, "),
        ("flux", "hyper-flux", 4, {}, "checkpoints for, 8, 16; got 4"),
        ("flux", "hyper-flux", 8, {"guidance": 0}, "guidance .* must be 1 up; got 0"),
        ("sd3", "hyper-sd3", 8, {"guidance": 0}, "guidance .* must be 3 to 7; got 0. .* for 5"),
        ("sd3", "hyper-sd3", 8, {"checkpoint_steps": 4}, "steps must be 4, .*got 8"),
        ("sd3", "pcm-sd3", 8, {}, "checkpoints for, 2, 4; got 8"),
        ("sd3", "pcm-sd3-shift3", 2, {}, "made for, 4; got 2"),
        ("sd3", "pcm-sd3", 4, {"guidance": 5.0}, "guidance .* must be 1.2; got 5.0"),
    ],
)  # fmt: skip
def test_another_flow_is_refused(parts, kind, recipe, steps, more, message):
    scheduler = EULER()
    pipe = flow_pipelines.pipeline(kind.replace("schnell", "flux"), scheduler, parts(kind))
    with pytest.raises(ValueError, match=message):
        fastdiff.few_step(pipe, recipe, steps, **more)
    assert pipe.scheduler is scheduler


def test_3_5_is_another_model():
    """Its transformer is of the same class."""
    networks = flow_pipelines.networks("sd3")
    made = networks["transformer"]
    networks["transformer"] = type(made).from_config(made.config, qk_norm="rms_norm")
    pipe = flow_pipelines.pipeline("sd3", EULER(), networks)
    with pytest.raises(ValueError, match=r"qk_norm None in its .* got 'rms_norm'. No recipe"):
        fastdiff.few_step(pipe, "hyper-sd3", 4)
