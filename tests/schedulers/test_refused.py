"""What set_timesteps and scale_noise refuse, in words and before anything has changed; mu as any
kind of number."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastdiff

from .classes import (
    DEIS,
    DPM,
    EDM_DPM,
    EDM_EULER,
    EULER,
    FLOW_EULER,
    SA,
    SD,
    SINGLE,
    UNIPC,
    base,
    both,
    ours,
)
from .classes import NAMES as ALL

NAMES = (DPM, SINGLE, UNIPC, DEIS)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DYNAMIC = {"use_dynamic_shifting": True}
EPS = float(torch.finfo(torch.float32).eps)
SMALL = 1.3700000000000002e-10
BOOLEAN, PAIR = torch.tensor(True), torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("mu", [1e10, -701.0, True, BOOLEAN, PAIR, "1.0", 1j], ids=str)
@pytest.mark.parametrize("given", [{"num_inference_steps": 4}, {"sigmas": [1.0, 0.5]}], ids=str)
@pytest.mark.parametrize("name", [*NAMES, FLOW_EULER])
def test_a_mu_that_is_no_shift_changes_nothing(name, given, mu):
    config = DYNAMIC if name == FLOW_EULER else FLOW | DYNAMIC
    s = ours(name)(**config)
    s.set_timesteps(3, mu=0.5)
    times, config = s.timesteps.clone(), dict(s.config)
    with pytest.raises(ValueError, match=r"^mu must be .*; got " + re.escape(repr(mu))):
        s.set_timesteps(**given, mu=mu)
    assert torch.equal(s.timesteps, times)
    assert dict(s.config) == config


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, np.array, lambda x: torch.tensor([x])])
@pytest.mark.parametrize("shape", ["exponential", "linear"])
@pytest.mark.parametrize("name", [*NAMES, FLOW_EULER])
def test_mu_of_another_type_is_that_number(name, shape, kind):
    """Also where diffusers keeps it in its config."""
    config = DYNAMIC | {"time_shift_type": shape} | ({} if name == FLOW_EULER else FLOW)
    a, b = (ours(name)(**config) for _ in range(2))
    a.set_timesteps(4, mu=kind(0.5))
    b.set_timesteps(4, mu=0.5)
    assert torch.equal(a.sigmas, b.sigmas)
    assert dict(a.config) == dict(b.config)


@pytest.mark.parametrize("name", [DPM, DEIS])
def test_a_tiny_shift_does_not_round_above_the_noise(name):
    """In float64 1 + (r - 1) is below r, so that 1 would become 1 + 5e-8 or more."""
    s = ours(name)(**FLOW, flow_shift=SMALL)
    s.set_timesteps(sigmas=[1.0, 0.5])
    assert 1 + (SMALL - 1) < SMALL * (1 - EPS)
    assert s.sigmas[0] == 1


@pytest.mark.parametrize("device", ["foo", float("nan"), "cuda:99", object()], ids=type)
@pytest.mark.parametrize("name", [*ALL, "SCMScheduler", "a table"])
def test_a_device_that_is_not_there_changes_nothing(name, device):
    table = name == "a table"
    s = (
        fastdiff.TableScheduler(fastdiff.plan("ddim", steps=3))
        if table
        else ours(name)(**base(name))
    )
    s.set_timesteps(3, **({"intermediate_timesteps": None} if name == "SCMScheduler" else {}))
    s._step_index = 1  # in the middle of a run
    before = dict(s.__dict__)
    with pytest.raises(ValueError, match=f"^device must be .*; got {re.escape(repr(device))}"):
        s.set_timesteps(3 if table else 2, device=device)
    assert s.__dict__.keys() == before.keys()
    assert all(s.__dict__[key] is value for key, value in before.items())


@pytest.mark.parametrize(
    "values",
    [
        [1e39, 1.0],
        ["0.9", "0.5"],
        [True, False],
        torch.tensor([True, False]),
        torch.tensor([0.9j, 0.5]),
        np.array([0.9j, 0.5]),
        [0.9, None],
        torch.empty(2, device="meta"),
    ],
    ids=str,
)
@pytest.mark.parametrize("argument", ["sigmas", "timesteps"])
@pytest.mark.parametrize("name", [DPM, UNIPC, DEIS, EULER])
def test_what_are_no_numbers_are_no_levels(name, argument, values):
    s = ours(name)(**base(name))
    s.set_timesteps(3)
    before = s.sigmas
    with pytest.raises(ValueError, match=f"^{argument} must be (numbers in|finite in|one-d)"):
        s.set_timesteps(**{argument: values})
    assert s.sigmas is before


@pytest.mark.parametrize(
    "kind",
    [
        np.float32,
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: [torch.tensor(v) for v in x],
        lambda x: [Fraction(v) for v in x],
        tuple,
    ],
)
def test_numbers_in_any_container_are_levels(kind):
    s = ours(DPM)(**base(DPM))
    s.set_timesteps(sigmas=kind([8.0, 2.5]))
    assert s.sigmas[:2].tolist() == [8.0, 2.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timesteps": [1, 2]}, "timesteps must go down, from noisy to clean, and not below 0; go"),
        ({"timesteps": [500, -1]}, "timesteps must go down, from noisy to clean, and not below 0"),
        ({"timesteps": [1500, 1]}, "timesteps must be below num_train_timesteps, 1000; got "),
        (
            {"num_inference_steps": 3, "timesteps": [900, 500]},
            "num_inference_steps must be None or 2, the number of timesteps; got 3",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_that_no_run_has(name, given, message):
    s = ours(name)(**base(name))
    s.set_timesteps(4)
    before = s.timesteps, s.sigmas
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        s.set_timesteps(**given)
    assert (s.timesteps, s.sigmas) == before


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_and_their_number(name, steps):
    s = ours(name)(**base(name))
    s.set_timesteps(steps, timesteps=[999, 500, 0])
    assert s.timesteps.tolist() == [999, 500, 0]
    assert len(s.sigmas) == 4


def test_a_fraction_of_the_last_timestep_is_cut_off_as_in_diffusers():
    for s in both(DPM, **base(DPM)):
        s.set_timesteps(timesteps=[999.5, 10])
        assert s.timesteps.tolist() == [999, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sample": torch.zeros(2, 1, 2, 2), "noise": torch.zeros(2, 3, 2, 2)},
            "noise must have the shape of sample, (2, 1, 2, 2); got (2, 3, 2, 2). One",
        ),
        (
            {"sample": torch.zeros(3, 3, 2, 2), "noise": torch.zeros(2, 3, 2, 2)},
            "noise must have the shape of sample, (3, 3, 2, 2); got (2, 3, 2, 2). One",
        ),
        ({"timestep": 1j}, "timestep must be real, of scheduler.timesteps; got 1j"),
        ({"timestep": torch.tensor([1j])}, "timestep must be real, of scheduler.timesteps; got te"),
        (
            {"sample": torch.zeros(2, 3, 2, 2).to_sparse()},
            "sample must be a dense tensor that has values; got one torch.sparse_coo",
        ),
        (
            {"noise": torch.zeros(2, 3, 2, 2, device="meta")},
            "noise must be a dense tensor that has values; got one on the device 'meta'",
        ),
    ],
    ids=["channels", "batches", "complex", "complex tensor", "sparse", "meta"],
)
@pytest.mark.parametrize("name", [*NAMES, FLOW_EULER])
def test_what_scale_noise_cannot_take(name, given, message):
    s = ours(name)(**({} if name == FLOW_EULER else FLOW))
    s.set_timesteps(4)
    x = torch.zeros(2, 3, 2, 2)
    good = {"sample": x, "timestep": s.timesteps[:1], "noise": x}
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
        s.scale_noise(**good | given)
    assert s.scale_noise(**good | {"noise": x[:1]}).shape == x.shape
    assert s.scale_noise(**good | {"sample": x[:1]}).shape == x.shape


@pytest.mark.parametrize("numerics", ["faithful", "exact"])
def test_dynamic_shifting_wants_a_mu(numerics):
    s = ours(UNIPC)(**FLOW | DYNAMIC)
    s.numerics = numerics
    before = dict(s.__dict__)
    with pytest.raises(ValueError, match=r"^mu must be a number, since the config .*; got None\."):
        s.set_timesteps(4)
    assert all(s.__dict__[key] is value for key, value in before.items())


@pytest.mark.parametrize("name", [DPM, DEIS])
def test_where_diffusers_runs_without_mu_so_do_we(name):
    mine, theirs = both(name, **FLOW | DYNAMIC, flow_shift=3.0)
    for s in (mine, theirs):
        s.set_timesteps(4)
    assert torch.equal(mine.sigmas, theirs.sigmas)


def test_places_of_edm_are_no_levels():
    s = ours(EDM_EULER)()
    for places in ([80.0, 20.0, 1.0], [0.0, 0.7, 0.3], [-0.1, 0.5]):
        with pytest.raises(ValueError, match=r"sigmas must be places on .*timesteps=\[log"):
            s.set_timesteps(sigmas=places)


def test_a_run_does_not_end_noisier_than_its_sigmas():
    s = ours(DPM)(**SD, final_sigmas_type="sigma_min")
    s.set_timesteps(sigmas=[9.0, 0.01])
    assert s.sigmas.tolist() == pytest.approx([9.0, 0.01, 0.01])
    s = ours(EDM_DPM)(final_sigmas_type="sigma_min")
    s.set_timesteps(sigmas=[1.0, 0.001])
    assert s.sigmas.tolist() == pytest.approx([1.0, 0.001, 0.001])


def test_flows_of_sa_solver():
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    s = ours(SA)(**flow)
    with pytest.raises(ValueError, match=r"sigmas must be at most 1 .*got \[1.5, 0.5\]"):
        s.set_timesteps(sigmas=[1.5, 0.5])
    s.set_timesteps(timesteps=[1000, 500])
    assert s.sigmas.tolist() == [1.0, 0.5, 0.0]
    s.numerics = "exact"
    s.set_timesteps(sigmas=[0.9, 0.5])
    assert s.timesteps.dtype == torch.float32
    with pytest.raises(ValueError, match="use_karras_sigmas of the config must be False"):
        ours(SA)(**flow, use_karras_sigmas=True).set_timesteps(4)
