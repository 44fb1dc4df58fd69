"""DPM-Solver++, UniPC, DEIS and tables in SD3 and Flux, text to image and image to image.

Pictures in 0 .. 1 of networks in float32 agree to 2e-5, as in test_flow_match.py.
"""

import diffusers
import numpy as np
import pytest

import fastdiff

from . import flow_pipelines
from .by_hand import ByHand, wide
from .classes import DEIS, DPM, FLOW_EULER, UNIPC, counted, ours, stock

STEPS = 8
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
TRAINED = {  # what the repositories of SD3, Flux dev and Flux schnell say
    "sd3": {"shift": 3.0},
    "sd3 img2img": {"shift": 3.0},
    "flux": {"use_dynamic_shifting": True},
    "flux schnell": {"shift": 1.0},
    "flux img2img": {"use_dynamic_shifting": True, "base_shift": 0.6, "max_shift": 1.3},
}


@pytest.fixture(scope="module")
def parts():
    made = {"sd3": flow_pipelines.networks("sd3"), "flux": flow_pipelines.networks("flux")}
    return lambda kind: made[kind.split()[0]]


def picture(parts, kind, scheduler, **more):
    pipe = flow_pipelines.pipeline(kind.removesuffix(" schnell"), scheduler, parts(kind))
    return pipe(**flow_pipelines.inputs(pipe_kind(kind), STEPS) | more).images


def pipe_kind(kind):
    return kind.removesuffix(" schnell")


def assert_same(a, b):
    assert np.isfinite(b).all()
    assert b.std() > 0.02  # there is something to see
    assert np.abs(a - b).max() < 2e-5


def calls(kind):
    return STEPS - 2 if "img2img" in kind else STEPS  # strength 0.75


def of_the_pipeline(cls, kind, **more):
    """As a user makes it: from the config of the pipeline's own scheduler."""
    own = diffusers.FlowMatchEulerDiscreteScheduler(**TRAINED[kind])
    return cls.from_config(own.config, **FLOW, **more)


class WithScaleNoise:
    """What diffusers' own lacks: scale_noise, an add_noise with its arguments in another order, and
    patience with a mu that nobody asked for."""

    def set_timesteps(self, steps=None, device=None, mu=None):
        shifts = {"mu": mu} if self.config.use_dynamic_shifting else {}
        super().set_timesteps(steps, device, **shifts)

    def scale_noise(self, sample, timestep, noise):
        return self.add_noise(sample, noise, timestep)


@pytest.mark.parametrize("kind", ["sd3", "sd3 img2img", "flux", "flux schnell"])
@pytest.mark.parametrize("name", [DPM, UNIPC, DEIS])
def test_the_pictures_are_those_of_diffusers(parts, kind, name):
    """On the levels that its class makes of a number of steps."""
    mine = of_the_pipeline(ours(name), kind)
    shift = {"flow_shift": TRAINED[kind].get("shift", 1.0)}  # which diffusers forgets
    theirs = of_the_pipeline(type(name, (WithScaleNoise, stock(name)), {}), kind, **shift)
    made, want = picture(parts, kind, mine), picture(parts, kind, theirs)
    if name == DEIS:  # it divides by alpha = 3e-4: twice what diffusers loses is allowed
        exact = of_the_pipeline(wide(type(theirs)), kind, **shift)
        lost = np.abs(want - picture(parts, kind, exact)).max()
        assert lost < 1e-3
        assert np.abs(made - want).max() <= max(2e-5, 2 * lost)
    else:
        assert_same(made, want)
    assert counted(mine) == (calls(kind), {}, 0)
    raises = (AttributeError, AssertionError)
    if kind == "sd3 img2img" or (kind == "flux schnell" and name != UNIPC):
        with pytest.raises(raises):
            picture(parts, kind, of_the_pipeline(stock(name), kind))


@pytest.mark.parametrize(("sampler", "solver"), [("dpmpp_2m", "dpmpp"), ("unipc", "unipc")])
@pytest.mark.parametrize("kind", ["sd3", "sd3 img2img", "flux img2img"])
def test_levels_of_the_pipeline_are_those_of_flow_match(parts, kind, sampler, solver):
    """Custom sigmas, of Flux its own from pure noise on: against a loop in float64 on diffusers'
    own levels, where diffusers' DPM-Solver raises."""
    hand = ByHand(**TRAINED[kind])
    hand.solver = solver
    mine = fastdiff.sampler(sampler, **hand.config)
    more = {} if "flux" in kind else {"sigmas": np.linspace(1, 1 / STEPS, STEPS).tolist()}
    assert_same(picture(parts, kind, mine, **more), picture(parts, kind, hand, **more))
    assert counted(mine) == (calls(kind), {}, 0)
    assert np.abs(mine.sigmas - hand.sigmas).max() < 1e-6
    if sampler == "dpmpp_2m":
        with pytest.raises(ValueError, match="does not support custom"):
            picture(parts, kind, of_the_pipeline(stock(DPM), kind), **more)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_table_runs(parts, kind):
    """The levels that FlowMatchEuler has there, as a table; Flux asks whether it is a flow's."""
    hand = ByHand(**TRAINED[kind])
    want = picture(parts, kind, hand)
    plan = fastdiff.plan(
        "dpmpp_2m",
        steps=STEPS,
        noise="flow",
        prediction="flow_prediction",
        spacing=hand.sigmas.double().numpy(),
    )
    table = fastdiff.TableScheduler(plan)
    assert_same(picture(parts, kind, table), want)
    assert counted(table) == (STEPS, {}, 0)


@pytest.mark.parametrize("kind", ["sd3 img2img", "flux img2img"])
def test_a_table_runs_from_image_to_image(parts, kind):
    """Flux passes levels that mu, in the table already, has yet to shift."""
    shifted = {k: v for k, v in TRAINED[kind].items() if k not in ("base_shift", "max_shift")}
    theirs = stock(FLOW_EULER)(**shifted)
    want = picture(parts, kind, theirs)
    plan = fastdiff.plan(
        "flow_euler",
        steps=STEPS,
        noise="flow",
        prediction="flow_prediction",
        spacing=theirs.sigmas.double().numpy(),
    )
    table = fastdiff.TableScheduler(plan)
    assert_same(picture(parts, kind, table), want)
    assert counted(table) == (calls(kind), {}, 0)
    if "flux" in kind:  # as they are, as a user passes them
        again = picture(parts, kind, table, sigmas=plan.sigma[:-1].tolist())
        assert np.array_equal(again, picture(parts, kind, table))


def test_a_table_of_other_levels_is_refused(parts):
    plan = fastdiff.plan("flow_euler", steps=STEPS, noise="flow", prediction="flow_prediction")
    with pytest.raises(ValueError, match=r"^sigmas must be the levels of the table \(sigma\)"):
        picture(parts, "flux img2img", fastdiff.TableScheduler(plan))
