"""Flow levels of DPM-Solver, UniPC and DEIS: those of FlowMatchEulerDiscreteScheduler for what a
pipeline passes; scale_noise; pure noise; and errors that name the argument."""

import json
import re

import diffusers
import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.registry import SOLVERS

from .by_hand import ByHand
from .classes import DEIS, DPM, FLOW_EULER, FLOW_LCM, SD, SINGLE, UNIPC, both, counted, ours, stock
from .loops import SHAPE, latents

NAMES = (DPM, SINGLE, UNIPC, DEIS)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DYNAMIC = {"use_dynamic_shifting": True}
SIGMAS = np.linspace(1, 1 / 6, 6)
EPS = float(torch.finfo(torch.float32).eps)
GRIDS = [
    ({}, {}),
    ({"shift": 3.0}, {}),
    ({"shift": 3.0}, {"mu": 0.9}),  # without use_dynamic_shifting it has no effect
    (DYNAMIC, {"mu": 0.9}),
    (DYNAMIC | {"time_shift_type": "linear"}, {"mu": 2.5}),
    ({"shift_terminal": 0.1, "shift": 2.0}, {}),
    ({"use_karras_sigmas": True, "shift": 3.0}, {}),
    ({"use_exponential_sigmas": True}, {}),
    ({"use_beta_sigmas": True}, {}),
]


def flow_match(**config):
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


@pytest.mark.parametrize("made", ["from_config", "sampler"])
@pytest.mark.parametrize(("config", "more"), GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_levels_are_those_of_flow_match(name, config, more, made):
    """diffusers rounds each of at most eight operations on numbers up to 1 to float32.  UniPC, as
    diffusers', begins at 1 - 1e-6 and tells the network whole timesteps."""
    theirs = flow_match(**config)
    if made == "sampler":
        solver = {DPM: "dpmpp_2m", SINGLE: "dpmpp_2s", UNIPC: "unipc_2", DEIS: "deis_2"}[name]
        s = fastdiff.sampler(solver, **theirs.config)
    else:
        s = ours(name).from_config(theirs.config, **FLOW)
    for one in (s, theirs):
        one.set_timesteps(sigmas=SIGMAS, **more)
    gaps = (s.sigmas - theirs.sigmas).abs()
    assert s.sigmas.dtype == theirs.sigmas.dtype
    assert gaps[1:].max() <= 8 * EPS
    assert gaps[0] <= (1e-6 if name == UNIPC else 0) + EPS
    assert (s.timesteps - theirs.timesteps).abs().max() <= 8000 * EPS + (name == UNIPC)
    assert s.num_inference_steps == len(SIGMAS)
    x = latents(s)
    for t in s.timesteps:
        x = s.step(torch.tanh(x) + t / 1000, t, x).prev_sample
    assert torch.isfinite(x).all()
    assert counted(s) == (len(SIGMAS), {}, 0)


@pytest.mark.parametrize(("name", "solver"), [(DPM, "dpmpp"), (UNIPC, "unipc")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_from_pure_noise_in_float64(name, solver, shift):
    """Rows in float64 against the textbook's recursion: alpha = 0 at the first level, whose limit
    is NumPy's.  Levels are float32 numbers, the same in both."""
    hand, s = ByHand(shift=shift), ours(name)(**FLOW, flow_shift=shift)
    hand.solver = solver
    for one in (hand, s):
        one.set_timesteps(sigmas=SIGMAS)
    s.sigmas = hand.sigmas.clone()
    if solver == "dpmpp":
        assert float(s.sigmas[0]) == 1
    x = y = latents(s).double()
    for i, t in enumerate(s.timesteps):
        x = s.step(torch.sin(3 * x) + 0.1 * i, t, x).prev_sample
        y = hand.step(torch.sin(3 * y) + 0.1 * i, hand.timesteps[i], y)[0]
        # six steps of a network whose slope is 3; weights up to 2 from a sum of ten float64 terms
        assert (x - y).abs().max() <= 1e-11


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [DEIS, DPM, UNIPC])
def test_the_first_step_from_pure_noise_is_eulers(name, order):
    """Of first order all are x + (s' - s) v; the second has no slope yet, from lambda = -inf."""
    s, euler = ours(name)(**FLOW, solver_order=order), flow_match()
    for one in (s, euler):
        one.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.2])
        one.sigmas[0] = 1.0
    x = latents(s).double()
    v = torch.tanh(x)
    a = s.step(v, s.timesteps[0], x).prev_sample
    want = x + (float(euler.sigmas[1]) - 1) * v
    torch.testing.assert_close(a, want, rtol=0, atol=1e-13)


def test_epsilon_says_nothing_of_pure_noise():
    s = ours(DPM)(use_flow_sigmas=True, prediction_type="epsilon")
    s.set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(
        ValueError, match=r"'epsilon' says nothing of x_0 at a level with no signal"
    ):
        s.step(torch.zeros(SHAPE), s.timesteps[0], torch.zeros(SHAPE))


class TestConfig:
    """That of a flow matching class, whose shift is called `shift`."""

    @pytest.mark.parametrize("saved", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_its_shift_is_the_flow_shift(self, name, saved):
        config = flow_match(shift=3.0, max_shift=1.3).config
        if saved:
            config = json.loads(flow_match(shift=3.0, max_shift=1.3).to_json_string())
        s = ours(name).from_config(config, **FLOW)
        assert (s.config.flow_shift, s.config.max_shift) == (3.0, 1.3)
        given = ours(name).from_config(config, **FLOW, flow_shift=5.0)
        assert given.config.flow_shift == 5.0
        assert ours(name).from_config(s.config).config.flow_shift == 3.0
        # as diffusers, whose own picture must not change
        assert ours(name).from_config(config).config.flow_shift == 1.0
        theirs = stock(name).from_config(config, **FLOW)
        assert ours(name).from_config(theirs.config).config.flow_shift == 1.0

    @pytest.mark.parametrize("name", NAMES)
    def test_a_number_of_steps_has_the_levels_of_diffusers(self, name):
        s = ours(name).from_config(flow_match(shift=3.0).config, **FLOW)
        theirs = stock(name)(**FLOW, flow_shift=3.0)
        for one in (s, theirs):
            one.set_timesteps(7)
        assert torch.equal(s.sigmas, theirs.sigmas)
        assert torch.equal(s.timesteps, theirs.timesteps)

    def test_a_sampler_of_a_flow_in_a_line(self):
        config = flow_match(shift=3.0, max_shift=1.3).config
        s = fastdiff.sampler("dpmpp_2m_sde", spacing="karras", **config)
        assert type(s) is ours(DPM)
        assert s.config.items() >= (FLOW | {"flow_shift": 3.0, "use_karras_sigmas": True}).items()
        assert s.config.max_shift == 1.3  # pipelines ask for it
        assert fastdiff.sampler("flow_lcm", **config).config.shift == 3.0
        assert fastdiff.sampler("unipc", use_flow_sigmas=False, **config).config.flow_shift == 1.0

    @pytest.mark.parametrize("name", ["euler", "ddim", "heun", "lcm"])
    def test_a_sampler_without_flows_is_refused(self, name):
        with pytest.raises(ValueError, match=r"^name must be of a solver with the levels of ") as e:
            fastdiff.sampler(name, **flow_match(shift=3.0).config)
        fits = str(e.value).partition("of one: ")[2].partition(";")[0].split(", ")
        assert {"dpmpp_2m", "unipc_2", "deis_2", "flow_euler"} <= set(fits) <= set(SOLVERS)


@pytest.mark.parametrize("numerics", ["faithful", "exact"])
@pytest.mark.parametrize("spacing", ["karras_sigmas", "exponential_sigmas", "beta_sigmas"])
@pytest.mark.parametrize("name", NAMES)
def test_spacings_stay_in_the_flow(name, spacing, numerics):
    """diffusers' go between the levels of the betas: negative alpha, NaN (UniPC's Karras excepted,
    s / (1 + s) of them)."""
    s, theirs = (cls(name)(**FLOW, **{f"use_{spacing}": True}) for cls in (ours, stock))
    s.numerics = numerics
    for one in (s, theirs):
        one.set_timesteps(6)
    if theirs.sigmas[0] < 1:
        assert torch.equal(s.sigmas, theirs.sigmas)
        return
    x = latents(s)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
    assert not torch.isfinite(x).all()
    levels = s.sigmas.double()
    assert 0.99 < levels[0] <= 1
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    tolerance = 1e-4 if s.timesteps.is_floating_point() else 0.5 + 1e-4
    assert (s.timesteps - 1000 * levels[:-1]).abs().max() <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_of_a_flow(name):
    s = ours(name)(**FLOW, flow_shift=3.0)
    s.set_timesteps(timesteps=[1000, 750, 250])
    assert s.timesteps.tolist() == [1000, 750, 250]
    assert s.sigmas.tolist() == [1.0, 0.75, 0.25, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_levels_with_their_end_are_not_shifted(name):
    s = ours(name)(**FLOW, flow_shift=3.0)
    for given in (
        {"sigmas": [0.9, 0.5, 0.0]},
        {"sigmas": [0.9, 0.5, 0.2], "num_inference_steps": 2},
    ):
        s.set_timesteps(**given)
        assert s.sigmas.tolist() == pytest.approx(given["sigmas"])


def test_a_flow_may_end_at_its_least_trained_level():
    for levels, last in ((SIGMAS, 0.001), ([0.5, 1e-4], 1e-4)):
        s = ours(DPM)(**FLOW, final_sigmas_type="sigma_min")
        s.set_timesteps(sigmas=levels)
        assert float(s.sigmas[-1]) == pytest.approx(last)


class TestScaleNoise:
    """FlowMatchEuler's, argument order included."""

    def pair(self, name, moment):
        theirs = flow_match(shift=3.0)
        s = ours(name).from_config(theirs.config, **FLOW)
        for one in (s, theirs):
            one.set_timesteps(sigmas=SIGMAS[1:])
            if moment != "no begin index":
                one.set_begin_index(2)
            if moment == "after a step":
                one.step(torch.zeros(SHAPE), one.timesteps[2], torch.zeros(SHAPE))
        return s, theirs

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("moment", ["no begin index", "told", "after a step"])
    @pytest.mark.parametrize("name", NAMES)
    def test_same_bits(self, name, moment, dtype):
        s, theirs = self.pair(name, moment)
        s.sigmas = theirs.sigmas.clone()
        x, z = (torch.randn(SHAPE, dtype=dtype) for _ in range(2))
        for at in ([3, 1], [1]):
            a, b = (one.scale_noise(x, one.timesteps[at], z) for one in (s, theirs))
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
        a, b = (one.scale_noise(x[:1], one.timesteps[[3, 1]], z) for one in (s, theirs))
        assert torch.equal(a, b)  # one sample, two noises
        number = s.timesteps[1].item()
        assert torch.equal(s.scale_noise(x, number, z), s.scale_noise(x, s.timesteps[1:2], z))

    @pytest.mark.parametrize("name", NAMES)
    def test_of_a_beta_schedule_it_is_add_noise(self, name):
        s = ours(name)(**SD)
        s.set_timesteps(6)
        x, z = torch.randn(SHAPE), torch.randn(SHAPE)
        t = s.timesteps[[2, 4]]
        assert torch.equal(s.scale_noise(x, t, z), s.add_noise(x, z, t))

    @pytest.mark.parametrize("name", [*NAMES, FLOW_EULER, FLOW_LCM])
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (
                {"noise": None},
                "noise must be a float tensor (B, *shape); got NoneType. The order is",
            ),
            ({"sample": [1.0]}, "sample must be a float tensor (B, *shape); got list"),
            (
                {"sample": torch.zeros(SHAPE, dtype=torch.int64)},
                "sample must be a float tensor (B, *shape); got torch.int64",
            ),
            (
                {"noise": torch.zeros(2, 4, 6, 5)},
                "noise must have the shape of sample, (2, 4, 6, 6); got (2, 4, 6, 5)",
            ),
            ({"timestep": None}, "timestep must be a number or a tensor (B,), of scheduler.times"),
            (
                {"timestep": torch.ones(3)},
                "timestep must be one, or one for each of the 2 samples; got 3",
            ),
            ({"timestep": torch.tensor([3.25])}, "timestep must be of scheduler.timesteps, "),
        ],
        ids=str,
    )
    def test_errors_name_the_argument(self, name, wrong, message):
        s = ours(name)() if name in (FLOW_EULER, FLOW_LCM) else ours(name)(**FLOW)
        s.set_timesteps(4)
        given = {
            "sample": torch.zeros(SHAPE),
            "timestep": s.timesteps[:1],
            "noise": torch.zeros(SHAPE),
        }
        with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
            s.scale_noise(**given | wrong)

    @pytest.mark.parametrize("name", NAMES)
    def test_before_set_timesteps_there_are_no_levels(self, name):
        x = torch.zeros(SHAPE)
        with pytest.raises(ValueError, match=r"^scale_noise needs .* call set_timesteps first"):
            ours(name)(**FLOW).scale_noise(x, 999.0, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FLOW, {"sigmas": [1.5, 0.5]}, "sigmas must be at most 1 with use_flow_sigmas=True; got"),
        (FLOW, {"sigmas": [1.5, 0.0]}, "sigmas must be at most 1 with use_flow_sigmas=True; got"),
        (FLOW, {"sigmas": [0.0]}, "sigmas must begin above 0; got [0.0]"),
        (FLOW, {"sigmas": [0.2, 0.5]}, "sigmas must go down, from noisy to clean, and not below 0"),
        (FLOW, {"timesteps": [1001, 5]}, "timesteps must be at most "),
        (
            FLOW,
            {"timesteps": [900], "num_inference_steps": 2},
            "num_inference_steps must be None or",
        ),
        (
            FLOW,
            {"timesteps": [9, 3], "sigmas": [1.0]},
            "pass timesteps or sigmas, not both; got both",
        ),
        (FLOW, {}, "pass one of num_inference_steps, timesteps or sigmas; got none"),
        (FLOW, {"num_inference_steps": 4, "mu": "x"}, "mu must be a finite number; got 'x'"),
        (FLOW, {"sigmas": [1.0, 0.5], "mu": float("inf")}, "mu must be a finite number; got inf"),
        (
            FLOW | DYNAMIC | {"time_shift_type": "linear"},
            {"sigmas": [1.0, 0.5], "mu": -1.0},
            "mu must be a finite number above 0, with time_shift_type='linear'; got -1.0",
        ),
        (
            FLOW | DYNAMIC,
            {"sigmas": [1.0, 0.5]},
            "mu must be a number, since the config has use_dynamic_shifting=True; got None",
        ),
        (
            {},
            {"num_inference_steps": 4, "mu": 0.5},
            "mu must be None unless the config has use_flow",
        ),
        (
            FLOW | {"shift_terminal": 0.1},
            {"sigmas": [1.0]},
            "sigmas must end below 1 where the config has shift_terminal=0.1; got [1.0]",
        ),
    ],
    ids=str,
)
def test_set_timesteps_names_what_is_wrong(name, config, given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ours(name).from_config(config).set_timesteps(**given)


@pytest.mark.parametrize("given", [{"num_inference_steps": 4}, {"sigmas": [1.0, 0.5]}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_flow_that_goes_up_is_refused(name, given):
    """Mochi's, whose levels are inverted."""
    s = ours(name).from_config(flow_match(invert_sigmas=True).config, **FLOW)
    with pytest.raises(ValueError, match=r"^invert_sigmas of the config must be False: .*got True"):
        s.set_timesteps(**given)


@pytest.mark.parametrize("name", [DPM, SINGLE, DEIS])
def test_linear_mu_of_a_number_of_steps(name):
    """diffusers asserts that it is exponential; the same shift by another name.  It is for one run:
    there is nothing to follow."""
    linear = ours(name)(**FLOW, **DYNAMIC, time_shift_type="linear")
    plain = ours(name)(**FLOW, flow_shift=2.5)
    linear.set_timesteps(5, mu=2.5)
    plain.set_timesteps(5)
    assert torch.equal(linear.sigmas, plain.sigmas)
    assert linear.config.flow_shift == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_mu_without_dynamic_shifting_has_no_effect(name):
    """Flux passes it to whatever there is."""
    s, plain = both(name, **FLOW, flow_shift=3.0)
    s.set_timesteps(5, mu=0.9)
    plain.set_timesteps(5)
    assert torch.equal(s.sigmas, plain.sigmas)
