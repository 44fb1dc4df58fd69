"""What code written for diffusers' classes relies on: the class, its signatures, its config."""

import inspect
import json
import pickle
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps as flux_timesteps
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from .classes import (
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EDM,
    EDM_DPM,
    EDM_EULER,
    EULER,
    EULER_A,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    HEUN,
    KDPM2,
    KDPM2_A,
    LCM,
    LMS,
    NAMES,
    PNDM,
    SA,
    SD,
    SINGLE,
    TCD,
    UNIPC,
    WITH_BETAS,
    WITH_SIGMAS,
    base,
    both,
    calls,
    ours,
    stock,
    takes,
    whole,
)
from .loops import SHAPE, compare
from .runs import called_at


def plain(name):
    """A config that is not the default in all it says."""
    if name in EDM:
        return {"sigma_max": 60.0}
    if not takes(name, "beta_start"):
        return {"shift": 3.0}
    more = {"steps_offset": 1} if takes(name, "steps_offset") else {"lambda_min_clipped": -5.1}
    return SD | more


def parameters(function):
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", NAMES)
class TestTheClass:
    def test_is_a_subclass_with_no_constructor_of_its_own(self, name):
        cls = ours(name)
        assert issubclass(cls, stock(name))
        assert cls.__init__ is stock(name).__init__
        between = cls.__mro__[: cls.__mro__.index(stock(name))]
        assert not any("__init__" in vars(base) or "__new__" in vars(base) for base in between)

    def test_has_the_name_and_a_home_that_can_be_saved(self, name):
        cls = ours(name)
        assert (cls.__name__, cls.__qualname__, cls.__module__) == (name, name, "fastdiff")
        assert pickle.loads(pickle.dumps(cls)) is cls

    def test_passes_the_checks_of_pipelines(self, name):
        s = ours(name)()
        assert isinstance(s, (stock(name), diffusers.SchedulerMixin, diffusers.ConfigMixin))
        assert s.order == stock(name).order
        assert len(s) == len(stock(name)())
        assert {c.__name__ for c in s.compatibles} == {
            c.__name__ for c in stock(name)().compatibles
        }

    def test_step_has_the_parameters_of_diffusers(self, name):
        mine, theirs = parameters(ours(name).step), parameters(stock(name).step)
        assert [(p.name, p.kind, p.default) for p in mine] == [
            (p.name, p.kind, p.default) for p in theirs
        ]

    def test_set_timesteps_keeps_the_positional_order(self, name):
        mine, theirs = parameters(ours(name).set_timesteps), parameters(stock(name).set_timesteps)
        assert [(p.name, p.kind) for p in mine[: len(theirs)]] == [(p.name, p.kind) for p in theirs]
        more = mine[len(theirs) :]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in more)
        assert {"timesteps", "sigmas", "mu"} <= {p.name for p in mine}

    def test_other_public_methods_are_called_as_in_diffusers(self, name):
        for key, theirs in inspect.getmembers(stock(name), inspect.isfunction):
            if not key.startswith("__") and key != "set_timesteps":
                mine = parameters(getattr(ours(name), key))
                assert [p.name for p in mine] == [p.name for p in parameters(theirs)], key

    def test_config_is_that_of_diffusers_and_numerics_is_not_in_it(self, name):
        s = ours(name)(**base(name))
        s.numerics = "exact"
        assert {k: v for k, v in s.config.items() if k[0] != "_"} == {
            k: v for k, v in stock(name)(**base(name)).config.items() if k[0] != "_"
        }
        assert "numerics" not in s.to_json_string()

    def test_from_config_goes_both_ways(self, name):
        theirs = stock(name)(**plain(name))
        mine = ours(name).from_config(theirs.config)
        back = stock(name).from_config(mine.config)
        for s in (mine, back):
            assert {k: v for k, v in s.config.items() if k[0] != "_"} == {
                k: v for k, v in theirs.config.items() if k[0] != "_"
            }

    def test_default_numerics_is_faithful(self, name):
        assert ours(name)().numerics == "faithful"
        s = ours(name)()
        s.numerics = "fast"
        s.set_timesteps(4)
        with pytest.raises(ValueError, match=r"numerics.*faithful.*exact.*'fast'"):
            s.step(torch.zeros(SHAPE), s.timesteps[0], torch.zeros(SHAPE))


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_from_config_of_every_other_class(name, source):
    """As users change the sampler of a saved pipeline: options of the one class mean something else
    to the other, or nothing; what was a default there is written out."""
    config = json.loads(getattr(diffusers, source)(**plain(source)).to_json_string())
    try:
        theirs = stock(name).from_config(config)
    except (TypeError, ValueError) as error:
        # DPM-Solver with DEIS's algorithm_type and its own last level; EDM with sigma_min=None
        with pytest.raises(type(error), match=re.escape(str(error))):
            ours(name).from_config(config)
        return
    except NotImplementedError:  # as algorithm_type is of SA-Solver and others; it names the class
        with pytest.raises(NotImplementedError, match="is not implemented for"):
            ours(name).from_config(config)
        return
    mine = ours(name).from_config(config)
    compare(mine, theirs, steps=5)
    assert mine.config.keys() == theirs.config.keys()


NEW = {
    DPM: {"prediction_type": "v_prediction", "algorithm_type": "sde-dpmsolver++"},
    SINGLE: {"prediction_type": "v_prediction", "algorithm_type": "sde-dpmsolver++"},
    DDIM: {"clip_sample": False, "prediction_type": "v_prediction"},
    EULER: {"prediction_type": "v_prediction"},
    EULER_A: {"prediction_type": "v_prediction"},
    DDPM: {"clip_sample_range": 0.4, "prediction_type": "sample"},
    UNIPC: {"prediction_type": "v_prediction", "lower_order_final": False, "solver_type": "bh1"},
    DEIS: {"prediction_type": "v_prediction", "lower_order_final": False},
    LCM: {"prediction_type": "v_prediction", "timestep_scaling": 3.0},
    TCD: {"prediction_type": "v_prediction"},
    FLOW_EULER: {"stochastic_sampling": True},
    FLOW_HEUN: {"num_train_timesteps": 500},
    FLOW_LCM: {"num_train_timesteps": 500},
    HEUN: {"prediction_type": "v_prediction", "clip_sample": True},
    KDPM2: {"prediction_type": "v_prediction"},
    KDPM2_A: {"prediction_type": "v_prediction"},
    LMS: {"prediction_type": "v_prediction"},
    EDM_EULER: {"prediction_type": "v_prediction", "sigma_data": 0.8},
    EDM_DPM: {"prediction_type": "v_prediction", "algorithm_type": "sde-dpmsolver++"},
    PNDM: {"prediction_type": "v_prediction"},
    SA: {"prediction_type": "v_prediction", "lower_order_final": False},
}


@pytest.mark.parametrize("when", ["before set_timesteps", "before step 0", "before step 4"])
@pytest.mark.parametrize("how", ["_internal_dict", "register_to_config", "attribute"])
@pytest.mark.parametrize("name", NAMES)
def test_a_config_replaced_after_construction_counts(name, how, when):
    """Stable Diffusion's constructor replaces it to switch clipping off, Cosmos2's registers,
    Stable Cascade writes an attribute in the middle of a run."""

    def change(s):
        if how == "register_to_config":
            s.register_to_config(**NEW[name])
        elif how == "attribute":
            for key, value in NEW[name].items():
                setattr(s.config, key, value)
        else:
            s._internal_dict = FrozenDict(dict(s.config) | NEW[name])

    def edit(i, s, x):
        if when == f"before step {i}":
            change(s)

    mine, theirs = both(name, **base(name))
    if when == "before set_timesteps":
        change(mine), change(theirs)
    compare(mine, theirs, edit)


KINDS = [list, np.array, torch.tensor, tuple]
TIMES = [981, 700, 333, 100, 1]
C_NOISE = [1.0, 0.75, 0.25, -0.5, -1.25]
SIGMAS = [12.0, 5.5, 2.0, 0.8, 0.1, 0.0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_custom_timesteps_in_any_container(name, kind):
    s = ours(name)(**base(name))
    times = C_NOISE if name in EDM else TIMES
    s.set_timesteps(timesteps=kind(times))
    assert whole(name, s.timesteps).tolist() == times
    if "timesteps" in inspect.signature(stock(name).set_timesteps).parameters:
        theirs = stock(name)(**base(name))
        theirs.set_timesteps(timesteps=TIMES)
        assert s.timesteps.dtype == theirs.timesteps.dtype
        if name in WITH_SIGMAS:
            assert torch.equal(s.sigmas, theirs.sigmas)
    else:
        plain = stock(name)(**base(name))
        plain.set_timesteps(5)
        assert s.timesteps.dtype == plain.timesteps.dtype
    assert s.num_inference_steps in (len(TIMES), None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", WITH_BETAS)
def test_custom_sigmas_in_any_container(name, kind):
    s = ours(name)(**base(name))
    s.set_timesteps(sigmas=kind(SIGMAS))
    assert len(s.timesteps) == calls(name, 5)
    # the network is told the time at which it was trained on this level, between two times if it
    # takes fractions
    levels = (((1 - s.alphas_cumprod) / s.alphas_cumprod) ** 0.5).double().log().numpy()
    exact = np.interp(np.log(SIGMAS[:-1]), levels, np.arange(len(levels)))
    fraction = 1e-3 if s.timesteps.is_floating_point() else 0.5
    assert np.abs(whole(name, s.timesteps).numpy() - exact).max() <= fraction + 1e-3
    if name in WITH_SIGMAS:
        levels = torch.cat([s.sigmas[:1], s.sigmas[1 :: s.order]])[: len(SIGMAS)]
        torch.testing.assert_close(levels, torch.tensor(SIGMAS))
    if name == EULER:
        theirs = stock(name)(**base(name))
        theirs.set_timesteps(sigmas=SIGMAS)
        assert torch.equal(s.timesteps, theirs.timesteps)


@pytest.mark.parametrize("name", WITH_BETAS)
def test_a_run_on_custom_sigmas_ends_at_the_prediction(name):
    """From pure noise to sigma 0 with the exact denoiser of one point: it arrives there.  TCD and
    PNDM end at the least trained level."""
    s = ours(name)(**base(name), **({"clip_sample": False} if takes(name, "clip_sample") else {}))
    s.set_timesteps(sigmas=SIGMAS)
    x = torch.randn(SHAPE) * s.init_noise_sigma
    for i, t in enumerate(s.timesteps):
        if name in WITH_SIGMAS:
            sigma = called_at(s, i)
            a = 1 / (1 + sigma**2) ** 0.5 if hasattr(s, "lambda_t") else 1.0
        else:
            a = s.alphas_cumprod[t] ** 0.5
            sigma = (1 - a**2) ** 0.5 / a
        s.scale_model_input(x, t)
        x = s.step((x - a * 0.5) / (a * sigma), t, x).prev_sample
    rest = (1 - s.alphas_cumprod[0]) ** 0.5 if name in (TCD, PNDM) else 0.0  # of the noise
    assert (x - 0.5).abs().max() < 1e-3 + 5 * rest


@pytest.mark.parametrize("name", WITH_BETAS)
@pytest.mark.parametrize("helper", [retrieve_timesteps, flux_timesteps], ids=["sd", "flux"])
def test_retrieve_timesteps_of_pipelines(name, helper):
    for given, length in (({}, 7), ({"timesteps": TIMES}, 5), ({"sigmas": SIGMAS}, 5)):
        s = ours(name)(**base(name))
        steps = None if given else 7
        timesteps, count = helper(s, steps, "cpu", **given)
        assert len(timesteps) == calls(name, length)
        assert count == (len(timesteps) if given else length)
        assert timesteps is s.timesteps


def test_sigmas_and_mu_of_flow_pipelines():
    """What Flux passes, to a DPM-Solver set up for flow matching: diffusers' own flow shift."""
    config = {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "use_dynamic_shifting": True,
        "time_shift_type": "exponential",
    }
    s, mu, n = ours(DPM)(**config), 0.9, 6
    timesteps, count = flux_timesteps(s, n, "cpu", sigmas=np.linspace(1.0, 1 / n, n), mu=mu)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    euler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=mu)
    assert count == len(timesteps) == n
    torch.testing.assert_close(s.sigmas[1:], euler.sigmas[1:])
    # the first level is 1 in flow matching: no signal, where DPM-Solver divides by alpha
    assert 0.99 < s.sigmas[0] <= 1
    x = torch.randn(SHAPE)
    for t in timesteps:
        x = s.step(torch.tanh(x), t, x).prev_sample
    assert torch.isfinite(x).all()


def test_mu_shifts_as_in_diffusers():
    config = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "sample"}
    mine, theirs = both(DPM, **config)
    for s in (mine, theirs):
        s.set_timesteps(6, mu=0.7)
    assert torch.equal(mine.sigmas, theirs.sigmas)
    assert torch.equal(mine.timesteps, theirs.timesteps)
