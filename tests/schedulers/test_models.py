"""fastdiff.sampler with a pipeline's config: a scheduler of that model, or an error; and what a
network may predict."""

import diffusers
import pytest
import torch

import fastdiff
from fastdiff.registry import SOLVERS, find

from .classes import DDIM, DDPM, EULER, EULER_A, HEUN, KDPM2, KDPM2_A, LCM, LMS, SD, TCD, base, both
from .loops import SHAPE

UNIPC = diffusers.UniPCMultistepScheduler
CONFIGS = {
    "wan": UNIPC(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).config,
    "flux": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config,
    "edm": diffusers.EDMDPMSolverMultistepScheduler().config,
    "sana sprint": diffusers.SCMScheduler().config,
    "sd": diffusers.PNDMScheduler(**SD).config,
}
FLOWS = {n for n in SOLVERS if n.startswith(("dpm", "unipc", "deis", "flow_"))}
FITS = {
    "wan": FLOWS | {"sa_solver", "sa_solver_3"},
    "flux": FLOWS,
    "edm": {"euler"}
    | {n for n in SOLVERS if n.startswith("dpmpp") and not n[6:].startswith(("2s", "3s"))},
    "sana sprint": {"scm"},
    "sd": {*SOLVERS} - {"flow_euler", "flow_heun", "flow_lcm", "scm", "ipndm"},
}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("model", CONFIGS)
def test_a_name_runs_the_model_or_is_refused(model):
    config = CONFIGS[model]
    for name in SOLVERS:
        if name not in FITS[model]:
            with pytest.raises(ValueError, match="name must be of a solver with the le") as caught:
                fastdiff.sampler(name, **config)
            said = str(caught.value)
            assert said.endswith(f"got {name!r}")
            assert set(said.split(": ")[1].split(";")[0].split(", ")) == FITS[model]
            continue
        made = fastdiff.sampler(name, **config)
        assert type(made).__name__.startswith("EDM") == (model == "edm")
        shift = made.config.get("flow_shift", made.config.get("shift"))
        assert model not in ("wan", "flux") or shift == 3.0


@pytest.mark.parametrize(
    "name", sorted(FITS["edm"] - {"dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_1"})
)
def test_an_edm_model_ends_at_its_data(name):
    """Data N(0, sigma_data^2): the perfect network's output is 0."""
    s = fastdiff.sampler(name, **CONFIGS["edm"])
    s.set_timesteps(20)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 32, 32, generator=g) * s.init_noise_sigma
    for t in s.timesteps:
        x = s.step(torch.zeros_like(s.scale_model_input(x, t)), t, x, return_dict=False)[0]
    # 4096 draws have 1 % of scatter; steps of first order lose 14 % over these 20
    assert x.std() == pytest.approx(0.5, rel=0.16 if SOLVERS[name].order == 1 else 0.05)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_spacings_of_an_edm_model(spacing):
    s = fastdiff.sampler("dpmpp_2m", spacing=spacing, **CONFIGS["edm"])
    assert s.config.sigma_schedule == spacing
    with pytest.raises(ValueError, match="spacing of 'dpmpp_2m' must be one of karras, exp"):
        fastdiff.sampler("dpmpp_2m", spacing="beta", **CONFIGS["edm"])


@pytest.mark.parametrize("name", [DDIM, DDPM, EULER, EULER_A, HEUN, KDPM2, KDPM2_A, LCM, LMS, TCD])
def test_levels_of_betas_are_not_those_of_a_velocity(name):
    for s, message in zip(
        both(name, **base(name), prediction_type="flow_prediction"),
        ("prediction_type must be one of epsilon, sample, v_prediction here", "prediction_type"),
        strict=True,
    ):
        s.set_timesteps(4)
        x = torch.ones(SHAPE)
        s.scale_model_input(x, s.timesteps[0])
        with pytest.raises(ValueError, match=message):
            s.step(x, s.timesteps[0], x)


def test_classes_of_diffusers_are_names():
    for solver in SOLVERS.values():
        for name, _ in (solver.scheduler, *solver.also):
            made = fastdiff.sampler(name)
            assert type(made).__name__ == name
            default = getattr(diffusers, name)().config
            options = find(name).scheduler[1].keys() - {"skip_prk_steps"}
            assert {k: made.config[k] for k in options} == {k: default[k] for k in options}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DPM++ 2M Karras", "Did you mean 'dpmpp_2m' with spacing='karras'?"),
        ("euler_a exponential", "Did you mean 'euler_a' with spacing='exponential'?"),
        ("sampel karras", None),
    ],
)
def test_a_name_with_its_spacing(name, hint):
    with pytest.raises(ValueError, match="name must be one of") as caught:
        fastdiff.sampler(name)
    assert hint is None or str(caught.value).endswith(hint)
    assert ("with spacing=" in str(caught.value)) == (hint is not None)
