"""Flow matching: its grid is diffusers' whatever shifts it, and SD3 and Flux draw the same."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

from . import flow_pipelines
from .classes import FLOW_EULER, FLOW_HEUN, FLOW_LCM, FLOWS, both, counted, ours, stock, takes
from .loops import SHAPE, answer, latents, same, seeded

SHIFTED = tuple(name for name in FLOWS if takes(name, "use_dynamic_shifting"))
SIGMAS = [1.0, 0.8, 0.55, 0.3, 0.05]
GRIDS = [
    ({}, {}),
    ({"shift": 3.0}, {}),
    ({"shift": 3.0}, {"mu": 0.9}),  # without use_dynamic_shifting it has no effect
    ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.5}),
    ({"shift_terminal": 0.1, "shift": 2.0}, {}),
    ({"use_karras_sigmas": True}, {}),
    ({"use_exponential_sigmas": True}, {}),
    ({"use_beta_sigmas": True}, {}),
    ({"invert_sigmas": True}, {}),
]


@pytest.mark.parametrize("kind", ["steps", "sigmas", "timesteps", "both"])
@pytest.mark.parametrize(("config", "more"), GRIDS, ids=str)
@pytest.mark.parametrize("name", SHIFTED)
def test_the_grid_is_that_of_diffusers(name, config, more, kind):
    given = {
        "steps": {"num_inference_steps": 5},
        "sigmas": {"sigmas": SIGMAS},
        "timesteps": {"timesteps": [1000 * s for s in SIGMAS]},
        "both": {"sigmas": SIGMAS, "timesteps": [1000.0, 900.0, 700.0, 400.0, 200.0]},
    }[kind]
    mine, theirs = both(name, **config)
    for s in (mine, theirs):
        s.set_timesteps(**given, **more)
    assert torch.equal(mine.sigmas, theirs.sigmas)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    assert mine.num_inference_steps == theirs.num_inference_steps == 5
    xs = []
    for s in (mine, theirs):
        x = latents(s)
        for i, t in enumerate(s.timesteps):
            x = s.step(answer(x, i), t, x, **seeded(s, i)).prev_sample
        xs.append(x)
    same(*xs)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda k: k.__name__)
@pytest.mark.parametrize("name", SHIFTED)
def test_custom_levels_in_any_container(name, kind):
    mine, theirs = both(name, shift=3.0)
    for argument in ("sigmas", "timesteps"):
        mine.set_timesteps(**{argument: kind(SIGMAS)})
        theirs.set_timesteps(**{argument: SIGMAS})
        assert torch.equal(mine.sigmas, theirs.sigmas)
        assert torch.equal(mine.timesteps, theirs.timesteps)


@pytest.mark.parametrize("name", SHIFTED)
def test_set_shift_acts_as_in_diffusers(name):
    mine, theirs = both(name)
    for s in (mine, theirs):
        s.set_shift(2.5)
        s.set_timesteps(6)
    assert mine.shift == 2.5
    assert torch.equal(mine.sigmas, theirs.sigmas)


@pytest.mark.parametrize("name", FLOWS)
def test_sigmas_lie_where_diffusers_has_them(name):
    for s in both(name):
        s.set_timesteps(4, device="meta")
        assert s.sigmas.device.type == s.timesteps.device.type == "meta"


@pytest.mark.parametrize("name", FLOWS)
def test_a_run_ends_at_the_prediction(name):
    """With the exact velocity to one point, from pure noise, on levels of the caller's."""
    s, point = ours(name)(), 0.5
    s.set_timesteps(sigmas=SIGMAS)
    x = latents(s)
    for i, t in enumerate(s.timesteps):
        x = s.step((x - point) / s.sigmas[i], t, x, **seeded(s, i)).prev_sample
    assert (x - point).abs().max() <= 1e-6


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize(("given", "length"), [({}, 7), ({"sigmas": SIGMAS}, 5)], ids=str)
def test_retrieve_timesteps_of_pipelines(name, given, length):
    """Flux passes mu whether the config asks for it or not."""
    for dynamic in (False, True):
        s = ours(name)(use_dynamic_shifting=dynamic)
        timesteps, count = retrieve_timesteps(s, None if given else 7, "cpu", mu=0.8, **given)
        assert len(timesteps) == count == length
        assert timesteps is s.timesteps


@pytest.mark.parametrize("name", FLOWS)
def test_what_pipelines_for_any_scheduler_ask_for(name):
    """Bria scales the input of whatever is not exactly diffusers' class, a subclass too."""
    s = ours(name)()
    s.set_timesteps(4)
    x = latents(s)
    assert s.scale_model_input(x, s.timesteps[0]) is x
    assert s.init_noise_sigma == 1.0


@pytest.mark.parametrize("moment", ["no begin index", "told", "after a step"])
@pytest.mark.parametrize("name", FLOWS)
def test_scale_noise(name, moment):
    results = []
    for s in both(name, shift=3.0):
        g = torch.Generator().manual_seed(0)
        x, z = (torch.randn(SHAPE, generator=g) for _ in range(2))
        s.set_timesteps(8)
        if moment != "no begin index":
            s.set_begin_index(3)
        if moment == "after a step":
            s.step(z, s.timesteps[3], x, **seeded(s))
        # Heun's takes one timestep, and begins the run with it
        t = s.timesteps[4:5] if name == FLOW_HEUN else s.timesteps[[3, 5]]
        noisy = s.scale_noise(x, t, z)
        results.append((noisy, s.step(z, s.timesteps[3], noisy, **seeded(s, 1)).prev_sample))
    for a, b in zip(*results, strict=True):
        same(a, b)


@pytest.mark.parametrize(
    ("config", "mu", "message"),
    [
        ({"use_dynamic_shifting": True}, None, "mu"),
        ({"use_dynamic_shifting": True}, "large", "mu must be a finite number; got 'large'"),
        ({"use_dynamic_shifting": True}, float("nan"), "mu must be a finite number; got nan"),
        ({"time_shift_type": "linear"}, -1.0, "mu must be a finite number above 0, with time_sh"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SHIFTED)
def test_a_shift_that_is_none_is_named(name, config, mu, message):
    with pytest.raises(ValueError, match=message):
        ours(name)(**config).set_timesteps(4, mu=mu)


class TestPerToken:
    """LTX: every token has a timestep of its own."""

    def run(self, s):
        s.set_timesteps(6)
        x, seen = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), []
        for i, t in enumerate(s.timesteps):
            own = torch.minimum(t, torch.tensor([1000.0, 700.0, 400.0, 90.0, 1.0])).repeat(2, 1)
            x = s.step(answer(x, i), t, x, per_token_timesteps=own).prev_sample
            seen.append(x)
        return seen

    def test_runs_diffusers_own_step_and_is_counted(self):
        mine, theirs = both(FLOW_EULER, shift=3.0)
        for a, b in zip(self.run(mine), self.run(theirs), strict=True):
            assert torch.equal(a, b)
        assert mine.step_index == theirs.step_index == 6
        reason = "reference: per_token_timesteps are a tensor's numbers"
        assert counted(mine) == (0, {reason: 6}, 0)

    def test_strict_refuses_it(self):
        s = ours(FLOW_EULER)()
        s.strict = True
        with pytest.raises(RuntimeError, match="per_token_timesteps"):
            self.run(s)


class TestScaleFactors:
    """Scale-wise distillation: the sample grows from step to step."""

    def run(self, s):
        s.set_timesteps(4)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(5)
        for i, t in enumerate(s.timesteps):
            x = s.step(answer(x, i), t, x, generator=generator).prev_sample
        return x

    @pytest.mark.parametrize("how", ["config", "set_scale_factors"])
    def test_runs_diffusers_own_step_and_is_counted(self, how):
        given = {"scale_factors": [1.0, 1.5, 2.0], "upscale_mode": "nearest"}
        mine, theirs = both(FLOW_LCM, **(given if how == "config" else {}))
        if how != "config":
            for s in (mine, theirs):
                s.set_scale_factors(**given)
        a, b = self.run(mine), self.run(theirs)
        assert a.shape == (2, 4, 16, 16)
        assert torch.equal(a, b)
        reason = "reference: scale_factors change the size of the sample"
        assert counted(mine) == (0, {reason: 4}, 0)
        assert mine._init_size == theirs._init_size

    def test_without_them_the_size_is_noted_as_in_diffusers(self):
        mine, theirs = both(FLOW_LCM)
        same(self.run(mine), self.run(theirs))
        assert mine._init_size == theirs._init_size == (8, 8)


@pytest.fixture(scope="module")
def parts():
    return {kind: flow_pipelines.networks(kind) for kind in flow_pipelines.KINDS}


@pytest.mark.parametrize(
    ("kind", "name"),
    # diffusers' Heun takes no sigmas, which Flux passes
    [(k, n) for k in flow_pipelines.KINDS for n in FLOWS if "flux" not in k or n != FLOW_HEUN],
)
def test_the_pictures_are_those_of_diffusers(parts, kind, name):
    config = {"use_dynamic_shifting": True} if "flux" in kind else {"shift": 3.0}
    pictures, schedulers = [], both(name, **config)
    for s in schedulers:
        torch.manual_seed(4)  # these pipelines hand no generator to step
        pipe = flow_pipelines.pipeline(kind, s, parts[kind])
        pictures.append(pipe(**flow_pipelines.inputs(kind)).images)
    assert np.isfinite(pictures[1]).all()
    assert pictures[1].std() > 0.02  # there is something to see
    assert np.abs(pictures[0] - pictures[1]).max() < 2e-5
    calls = {1: 8, 2: 15}[schedulers[0].order]  # of the network
    skipped = schedulers[0].begin_index or 0
    assert (skipped > 0) == ("img2img" in kind)
    assert counted(schedulers[0]) == (calls - skipped, {}, 0)


def test_a_wrong_grid_would_be_seen(parts):
    pictures = [
        flow_pipelines.pipeline("sd3", stock(FLOW_EULER)(shift=shift), parts["sd3"])(
            **flow_pipelines.inputs("sd3")
        ).images
        for shift in (3.0, 2.0)
    ]
    assert (np.abs(pictures[0] - pictures[1]) > 2 / 255).mean() > 0.2


def test_noise_is_drawn_with_the_digits_of_float32():
    """Like the sample, which diffusers brings to float32 first, not like a 16-bit output."""
    runs = []
    for s in both(FLOW_EULER, stochastic_sampling=True):
        s.set_timesteps(4)
        x = latents(s).bfloat16()
        g = torch.Generator().manual_seed(0)
        runs.append(s.step(answer(x, 0), s.timesteps[0], x, generator=g).prev_sample)
    same(*runs, torch.finfo(torch.bfloat16).eps)
