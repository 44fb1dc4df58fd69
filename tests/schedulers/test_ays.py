"""The optimised spacings, in plans, in fastdiff.sampler, and where they make no sense."""

import copy
import pickle

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules

import fastdiff
from fastdiff import k_diffusion
from fastdiff.registry import SOLVERS, find
from fastdiff.schedulers import CLASSES
from fastdiff.schedulers.spaced import fits
from fastdiff.schedules import NoiseSchedule, levels
from fastdiff.schedules.spacing import AYS, ays

from .loops import answer, latents, same, scaled, seeded
from .pipelines import inputs, networks, pipeline

THEIRS = {
    "ays_sd": AysSchedules["StableDiffusionSigmas"],
    "ays_sdxl": AysSchedules["StableDiffusionXLSigmas"],
    "ays_svd": AysSchedules["StableDiffusionVideoSigmas"],
}
TIMES = {
    "ays_sd": AysSchedules["StableDiffusionTimesteps"],
    "ays_sdxl": AysSchedules["StableDiffusionXLTimesteps"],
}
SD = NoiseSchedule.vp()
NAMED = [s.name for s in SOLVERS.values() if s.name in ("ddim", "ddpm", "euler", "euler_a", "heun")]
NAMED += ["kdpm2", "kdpm2_a", "lms", "dpmpp_2m", "dpmpp_3m_sde", "dpmsolver_2m", "unipc_2", "deis"]


@pytest.mark.parametrize("spacing", AYS)
def test_ten_steps_have_the_numbers_of_diffusers(spacing):
    assert [*ays(spacing, 10), 0.0] == THEIRS[spacing]
    if spacing in TIMES:
        # the published times are rounded, the levels have three decimals
        ours = SD.time_of(levels(SD, spacing, 10))
        assert np.abs(ours - TIMES[spacing]).max() < 5


@pytest.mark.parametrize("n", [1, 2, 5, 9, 11, 20, 50])
@pytest.mark.parametrize("spacing", AYS)
def test_other_numbers_of_steps_are_linear_in_log_sigma(spacing, n):
    """As the authors' code has it: over the table's place, from the first level to the last."""
    found, table = [*ays(spacing, n), AYS[spacing][-1]], np.log(AYS[spacing])
    assert found[0] == AYS[spacing][0]
    assert (np.diff(found) < 0).all()
    for j, sigma in enumerate(found):
        low, rest = divmod(10 * j, n)
        high = min(low + 1, 10)
        want = table[low] + (table[high] - table[low]) * rest / n
        assert np.log(sigma) == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_the_level_that_a_run_leaves_for_zero():
    """The cleanest one of the model, as the table has it: diffusers' list goes on with 0."""
    for spacing in TIMES:
        assert AYS[spacing][-1] == round(SD.ratios[0], 3)
    assert AYS["ays_svd"][-1] == 0.002  # sigma_min of Stable Video Diffusion's scheduler


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize(("final", "want"), [("zero", 0.0), ("sigma_min", SD.ratios[0])])
def test_the_final_level_is_that_of_the_config(name, final, want):
    s = fastdiff.sampler(name, spacing="ays_sd", final_sigmas_type=final)
    s.set_timesteps(5)
    assert len(s.sigmas) == 6
    # a ratio near 0.03 of alphas_cumprod in float32: 6e-8 of 1 is 7e-5 of 1 - alphas_cumprod
    assert float(s.sigmas[-1]) == pytest.approx(want, rel=7e-5, abs=0)


@pytest.mark.parametrize("spacing", TIMES)
def test_a_plan_has_them(spacing):
    plan = fastdiff.plan("dpmpp_2m", steps=10, spacing=spacing)
    np.testing.assert_allclose((plan.sigma / plan.alpha)[:-1], THEIRS[spacing][:-1], rtol=1e-14)
    assert plan.sigma[-1] == 0
    assert plan.about["spacing"] == spacing
    got = k_diffusion.get_sigmas(spacing, 10, torch.from_numpy(SD.ratios))
    torch.testing.assert_close(got, torch.tensor(THEIRS[spacing]))


def run(s, steps):
    """From the first level, as `set_timesteps` has left them; the rows of a given seed."""
    x = latents(s)
    for i, t in enumerate(s.timesteps[:steps]):
        x = s.step(answer(scaled(s, x, t), i), t, x, **seeded(s, i)).prev_sample
    return x


@pytest.mark.parametrize("steps", [10, 7])
@pytest.mark.parametrize("name", NAMED)
def test_a_sampler_has_them_and_runs_as_diffusers_on_the_same_levels(name, steps):
    mine = fastdiff.sampler(name, spacing="ays_sd")
    cls, config = SOLVERS_OF[name]
    theirs = getattr(diffusers, cls)(**config, **dict(betas(cls)))
    mine.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert mine.num_inference_steps in (steps, None)
    assert len(mine.timesteps) == steps * mine.order - (mine.order - 1)
    if hasattr(mine, "sigmas"):
        whole = torch.cat([mine.sigmas[:1], mine.sigmas[1 :: mine.order]])[:steps]
        torch.testing.assert_close(whole.double(), torch.from_numpy(ays("ays_sd", steps)))
        for key in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "log_sigmas"):
            if hasattr(theirs, key):
                setattr(theirs, key, getattr(mine, key).clone())
    else:
        assert np.abs(mine.timesteps.numpy() - SD.time_of(ays("ays_sd", steps))).max() <= 0.5 + 1e-3
        if name == "ddim":  # goes from t to t - T // n there, whatever the next one is
            return
    theirs.timesteps = mine.timesteps.clone()
    if name == "ddpm":
        theirs.set_timesteps(timesteps=mine.timesteps.tolist())
    same(run(mine, len(mine.timesteps)), run(theirs, len(mine.timesteps)))


def betas(cls):
    given = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return given | ({"clip_sample": False} if cls in ("DDIMScheduler", "DDPMScheduler") else {})


SOLVERS_OF = {name: find(name).scheduler for name in NAMED}


def test_ddim_goes_through_the_published_times_in_exact_numerics():
    """From one of them to the next, as in a plan of these times."""
    s = fastdiff.sampler("ddim", spacing="ays_sd")
    s.numerics = "exact"
    s.set_timesteps(10)
    plan = fastdiff.plan("ddim", steps=10, spacing=s.timesteps.numpy())
    x, calls = latents(s), iter(range(10))
    want = fastdiff.sample(lambda x, t: answer(x, next(calls)), x, plan)
    got = x
    for i, t in enumerate(s.timesteps[:9]):
        got = s.step(answer(got, i), t, got).prev_sample
    assert not torch.equal(got, want)  # the last step is another: final_alpha_cumprod
    t = s.timesteps[-1]
    s.final_alpha_cumprod = torch.tensor(1.0)
    same(s.step(answer(got, 9), t, got).prev_sample, want)


def test_stable_video_diffusion():
    """Its scheduler's times are 0.25 log sigma."""
    config = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    mine = fastdiff.sampler("euler", spacing="ays_svd", sigma_min=0.002, sigma_max=700.0, **config)
    theirs = diffusers.EulerDiscreteScheduler(**betas(""), **config)
    mine.set_timesteps(10)
    theirs.set_timesteps(sigmas=THEIRS["ays_svd"])
    assert torch.equal(mine.sigmas, theirs.sigmas)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    same(run(mine, 10), run(theirs, 10))


def test_custom_levels_and_copies():
    s = fastdiff.sampler("dpmpp_2m", spacing="ays_sdxl")
    s.set_timesteps(timesteps=[900, 500, 100])
    assert s.timesteps.tolist() == [900, 500, 100]
    for twin in (copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        twin.set_timesteps(10)
        torch.testing.assert_close(twin.sigmas, torch.tensor(THEIRS["ays_sdxl"]))
    assert "spacing" not in s.to_json_string().replace("timestep_spacing", "")
    s.spacing = None
    s.set_timesteps(10)
    assert s.sigmas[1] != THEIRS["ays_sdxl"][1]
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number"):
        fastdiff.sampler("euler", spacing="ays_sd").set_timesteps(2.5)


def named(name, spacing):
    s = fastdiff.sampler(name)
    s.spacing = spacing
    return s


def test_a_pipeline_runs_on_them():
    """Its set_timesteps is called with a number of steps and a device."""
    parts, pictures = networks(), []
    for call in ({"steps": 10}, {"steps": None, "sigmas": THEIRS["ays_sd"]}):
        source = diffusers.PNDMScheduler(**betas(""), steps_offset=1)
        spacing = "ays_sd" if call["steps"] else None
        s = fastdiff.sampler("dpmpp_2m", spacing=spacing, **source.config)
        pictures.append(pipeline(s, parts=parts)(**inputs("txt2img", **call)).images)
        assert len(s.timesteps) == 10
    assert np.array_equal(*pictures)


def test_an_accelerated_scheduler_takes_them_and_gives_the_attribute_back():
    s = fastdiff.accelerate(diffusers.UniPCMultistepScheduler(**betas("")))
    s.spacing = "ays_sdxl"
    s.set_timesteps(10)
    torch.testing.assert_close(s.sigmas, torch.tensor(THEIRS["ays_sdxl"]))
    fastdiff.restore(s)
    assert "spacing" not in s.__dict__
    s.set_timesteps(10)
    assert s.sigmas[1] != THEIRS["ays_sdxl"][1]


def test_the_sigmas_of_a_model_of_videos():
    trained = torch.from_numpy(np.geomspace(0.002, 700.0, 1000))
    got = k_diffusion.get_sigmas("ays_svd", 10, trained)
    torch.testing.assert_close(got, torch.tensor(THEIRS["ays_svd"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: levels(NoiseSchedule.flow(), "ays_sd", 5), "spacing must be none of ays_sd, .*fl"),
        (
            lambda: fastdiff.plan("euler", steps=5, spacing="ays_svd"),
            r"spacing 'ays_svd' begins at sigma = 700, .* trained up to 14\.61",
        ),
        (
            lambda: fastdiff.plan(
                "ddim", steps=5, noise="flow", prediction="flow_prediction", spacing="ays_sdxl"
            ),
            r"spacing must be none of ays_sd, .* got 'ays_sdxl'",
        ),
        (
            lambda: fastdiff.plan(
                "euler", steps=5, spacing="ays_sd", noise=NoiseSchedule.vp("linear")
            ),
            r"spacing 'ays_sd' begins at sigma = 14\.615, .* trained up to 157\.4",
        ),
        (
            lambda: fastdiff.sampler("ddim", spacing="ays_sd", rescale_betas_zero_snr=True),
            r"spacing 'ays_sd' begins at sigma = 14\.615, .* trained up to ",
        ),
        (
            lambda: fastdiff.sampler("flow_euler", spacing="ays_sd"),
            "spacing of 'flow_euler' must be one of karras, exponential, beta; got 'ays_sd'",
        ),
        (
            lambda: fastdiff.sampler("lcm", spacing="ays_sd"),
            "spacing of 'lcm' must be one of linspace, leading, trailing; got 'ays_sd'",
        ),
        (
            lambda: fastdiff.sampler("scm", spacing="ays_sd"),
            "spacing of 'scm' must be None: its levels are its own; got 'ays_sd'",
        ),
        (
            lambda: fastdiff.sampler(
                "unipc", spacing="ays_sd", use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
            "spacing must be none of ays_sd, .* use_flow_sigmas=True",
        ),
        (
            lambda: fastdiff.sampler("dpmpp_2m", spacing="ays_svd"),
            "spacing 'ays_svd' begins at sigma = 700",
        ),
        (
            lambda: named("dpmpp_2m", "karras").set_timesteps(5),
            "spacing of DPMSolverMultistepScheduler must be None or one of ays_sd, .*'karras'. Oth",
        ),
        (
            lambda: named("flow_euler", "ays_sd").set_timesteps(5),
            "spacing of FlowMatchEulerDiscreteScheduler must be None; got 'ays_sd'",
        ),
        (
            lambda: fastdiff.sampler("dpmpp_2m", spacing="ays_sd", use_karras_sigmas=True),
            "use_karras_sigmas must be False beside spacing='ays_sd'; got True",
        ),
    ],
)
def test_where_it_makes_no_sense_it_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_class_with_betas_that_is_no_consistency_model_takes_them():
    for cls in CLASSES:
        options = set(cls._get_init_keys(cls))
        wanted = "beta_start" in options and cls.__name__ not in ("LCMScheduler", "TCDScheduler")
        assert fits(cls.__name__, options) == wanted
        assert cls().spacing is None
