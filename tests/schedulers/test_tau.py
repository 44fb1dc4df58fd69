"""tau_func of SA-Solver: a function of a timestep, in the config, asked where diffusers asks."""

import copy
import pickle

import pytest
import torch

import fastdiff
from tests.fake_device import FakeDevice

from .classes import SA, SD, both, counted, ours, stock
from .loops import compare, latents, loop, same
from .options import none, ramp


@pytest.mark.parametrize("tau", [none, ramp, lambda t: t >= 500, lambda t: torch.tensor(0.4)])
@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
def test_any_function_of_a_timestep(tau, algorithm):
    compare(*both(SA, **SD, tau_func=tau, algorithm_type=algorithm))


def test_replaced_in_the_middle():
    """The correction of a step asks again, so it gets the new one."""

    def edit(i, s, x):
        if i == 4:
            s.tau_func = lambda t: 0.3

    compare(*both(SA, **SD, tau_func=ramp), edit)


def test_it_gets_timesteps_as_in_diffusers():
    seen = []
    for s in both(SA, **SD):
        asked = []
        s.tau_func = lambda t, asked=asked: asked.append(t) or 1
        loop(s)
        seen.append(asked)
    assert [type(t) for t in seen[0]] == [type(t) for t in seen[1]]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("given", [None, "a", [1.0, 2.0], float("nan"), float("inf")])
def test_what_is_no_number_is_named(given):
    s = ours(SA)(**SD, tau_func=lambda t: given)
    s.set_timesteps(6)
    x = latents(s)
    with pytest.raises(ValueError, match=r"tau_func must return a (finite )?number; got"):
        s.step(x, s.timesteps[0], x)
    s.tau_func = none
    clean = ours(SA)(**SD, tau_func=none)
    clean.set_timesteps(6)
    assert torch.equal(*(one.step(x, one.timesteps[0], x).prev_sample for one in (s, clean)))


def test_in_the_config_and_in_files():
    """A function is no JSON, so a config that holds one cannot be saved, in diffusers either; the
    default is none in the config, and is there again after loading."""
    for cls in (ours(SA), stock(SA)):
        s = cls(**SD, tau_func=ramp)
        assert cls.from_config(s.config).tau_func is ramp
        with pytest.raises(TypeError, match="not JSON serializable"):
            s.to_json_string()


def test_of_copies_and_pickles():
    """The default is a lambda of diffusers' constructor, which pickle cannot find by its name."""
    s, own = ours(SA)(**SD), ours(SA)(**SD, tau_func=ramp)
    with pytest.raises(AttributeError, match="pickle"):
        pickle.dumps(stock(SA)(**SD))
    for twin in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), copy.copy(s)):
        for t in (199, 200, 800, 801, torch.tensor(500), torch.tensor(900)):
            assert float(twin.tau_func(t)) == float(s.tau_func(t))
    assert pickle.loads(pickle.dumps(own)).tau_func is ramp
    own.tau_func = none  # its own, though the config says ramp
    assert copy.deepcopy(own).tau_func is none
    theirs = fastdiff.accelerate(stock(SA)(**SD))
    assert type(pickle.loads(pickle.dumps(theirs))) is type(theirs)
    fastdiff.restore(theirs)
    assert theirs.tau_func.__qualname__.startswith("SASolverScheduler.__init__")


def test_on_a_device_it_gets_the_value_from_the_host():
    asked = []
    with FakeDevice() as device:
        s = ours(SA)(**SD, tau_func=lambda t: asked.append(t) or 1)
        s.set_timesteps(5, device=device.name)
        x = torch.randn(1, 4, 8, 8, device=device.name)
        device.clear()
        for t in s.timesteps:
            x = s.step(x, t, x).prev_sample
        assert device.syncs == []
    assert {t.device.type for t in asked} == {"cpu"}
    plain = ours(SA)(**SD)
    plain.set_timesteps(5)
    assert {int(t) for t in asked} == {int(t) for t in plain.timesteps}


@pytest.mark.parametrize("orders", [(4, 4), (4, 2), (1, 4)])
@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
def test_order_four(orders, algorithm):
    """Which diffusers takes, too; its weights, from polynomials in lambda itself, lose three digits
    of seven, so the steps are few and long."""
    config = dict(zip(("predictor_order", "corrector_order"), orders, strict=True))
    mine, theirs = both(SA, **SD, **config, algorithm_type=algorithm, tau_func=ramp)
    pairs = zip(*(loop(s, steps=8) for s in (mine, theirs)), strict=True)
    for a, b in pairs:
        same(a, b, 1e-3)
    assert counted(mine).fused == 8
