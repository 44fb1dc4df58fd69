"""What a GPU would see of a whole run: one latent-sized kernel a step, no wait, one upload.

Counted on a device that is not there (tests/fake_device.py).  The same fake shows diffusers' own
numbers, known from its code: per step DDIM waits 6 times for the device and DDPM 13 times (they
index host tables by a timestep on the device), DPM-Solver++ 2M launches 10 kernels.
"""

import importlib
import itertools
import re

import pytest
import torch

from tests.fake_device import FakeDevice

from .classes import HOME, NAMES, SD, WITH_INDEX, WITH_SIGMAS, calls, ours, stock, unused
from .loops import scaled
from .options import ramp

SHAPE = (1, 4, 64, 64)
LATENT = 4 * 64 * 64
STEPS = 20


def named(value):
    """The id of a case, without the address of a function: processes must agree on ids."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


CASES = {
    "DPMSolverMultistepScheduler": [
        {"use_karras_sigmas": True},
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        {"prediction_type": "v_prediction", "solver_order": 1},
    ],
    "DPMSolverSinglestepScheduler": [
        {"use_karras_sigmas": True},
        {"solver_order": 3, "solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ],
    "EDMEulerScheduler": [{}, {"call": {"s_churn": 30.0}}],
    "EDMDPMSolverMultistepScheduler": [{}, {"algorithm_type": "sde-dpmsolver++"}],
    "UniPCMultistepScheduler": [
        {},
        {"solver_order": 3, "use_karras_sigmas": True},
        {"prediction_type": "v_prediction", "disable_corrector": [0, 7]},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    ],
    "DEISMultistepScheduler": [{}, {"solver_order": 3, "use_karras_sigmas": True}],
    "LCMScheduler": [{}, {"prediction_type": "v_prediction"}],
    "HeunDiscreteScheduler": [{}, {"prediction_type": "v_prediction", "clip_sample": True}],
    "KDPM2DiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "KDPM2AncestralDiscreteScheduler": [{}],
    "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "SASolverScheduler": [
        {},
        {"predictor_order": 3, "corrector_order": 3, "tau_func": ramp},
        {"algorithm_type": "noise_prediction", "prediction_type": "v_prediction"},
    ],
    "PNDMScheduler": [{}, {"skip_prk_steps": False, "prediction_type": "v_prediction"}],
    "TCDScheduler": [{}, {"call": {"eta": 0.0}}, {"prediction_type": "sample"}],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True, "invert_sigmas": True},
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"call": {"s_churn": 2.0}}],
    "FlowMatchLCMScheduler": [{}, {"shift_terminal": 0.1}],
    "DDIMScheduler": [{"clip_sample": False}, {}, {"call": {"eta": 1.0}}],
    "EulerDiscreteScheduler": [{}, {"call": {"s_churn": 30.0}}],
    "EulerAncestralDiscreteScheduler": [{}],
    "DDPMScheduler": [{"clip_sample": False}, {"variance_type": "fixed_large"}],
}


@pytest.fixture
def _subclasses_reach_the_op(monkeypatch):
    """A GPU's tensors are plain and go to the kernel.  These are a subclass inside a dispatch mode,
    for which fastdiff takes the reference: here that one call is the registered op, seen as one."""
    if HOME.startswith("fastdiff"):
        module = importlib.import_module("fastdiff.ops.affine_step")
        op = torch.ops.fastdiff.affine_step.default
        monkeypatch.setattr(module, "affine_step_ref", lambda *args: op(*args))


class Seen:
    """Counts of `step`, of everything else in the loop (scale_model_input), and of step 6 alone."""

    def __init__(self, cls, config, told, device):
        config = dict(config)
        call = config.pop("call", {})
        scheduler = cls(**config)
        scheduler.set_timesteps(STEPS, device=device.name)
        x = torch.randn(SHAPE, device=device.name)
        e = torch.randn(SHAPE, device=device.name)
        if told and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        self.scheduler, self.steps, self.rest = scheduler, [], []
        for t in scheduler.timesteps:
            device.clear()
            scaled(scheduler, x, t)
            self.rest.append(list(device.events))
            device.clear()
            x = scheduler.step(e, t, x, return_dict=False, **call)[0]
            self.steps.append(list(device.events))
        device.clear()

    def of(self, kind, steps=None):
        events = itertools.chain(*(self.steps if steps is None else steps))
        return [event for event in events if event.kind == kind]


@pytest.mark.usefixtures("_subclasses_reach_the_op")
@pytest.mark.parametrize("told", [True, False], ids=["begin index", "no begin index"])
@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name in NAMES for config in CASES[name]], ids=named
)
def test_one_kernel_a_step_no_sync_one_upload(name, config, told):
    with FakeDevice() as device:
        seen = Seen(ours(name), unused(name) | config, told, device)
        for i, events in enumerate(seen.steps):
            kernels = [event for event in events if event.kind == "kernel"]
            updates = [event.op for event in kernels if event.op != "randn"]
            assert updates == ["affine_step"], f"step {i}: {kernels}"
            assert len(kernels) <= 2, f"step {i}: {kernels}"
        everything = seen.steps + seen.rest
        assert seen.of("sync", everything) == []
        assert seen.of("blocking upload", everything) == []
        assert len(seen.of("upload", everything)) <= 1
        assert seen.of("upload", everything)[0].numel < LATENT  # the table, not a latent
        assert all(len(events) <= 1 for events in seen.rest if name not in WITH_INDEX)


@pytest.mark.usefixtures("_subclasses_reach_the_op")
@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_of_the_same_schedule_uploads_nothing(name):
    config = unused(name) | CASES[name][0]
    with FakeDevice() as device:
        assert len(Seen(ours(name), config, True, device).of("upload")) == 1
        assert Seen(ours(name), config, True, device).of("upload") == []


@pytest.mark.usefixtures("_subclasses_reach_the_op")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_starts_in_the_middle_has_the_same_budget(name):
    """Image to image: a slice of the timesteps, the first index not known otherwise."""
    with FakeDevice() as device:
        scheduler = ours(name)(**unused(name))
        scheduler.set_timesteps(STEPS, device=device.name)
        x = torch.randn(SHAPE, device=device.name)
        device.clear()
        for t in scheduler.timesteps[8:]:
            scaled(scheduler, x, t)
            scheduler.step(x, t, x)
        assert device.syncs == []
        assert device.blocking_uploads == []
        assert len(device.uploads) <= 1
    if name in WITH_INDEX:
        assert scheduler.step_index == calls(name, STEPS)


@pytest.mark.usefixtures("_subclasses_reach_the_op")
@pytest.mark.parametrize("name", WITH_SIGMAS)
def test_sigmas_that_somebody_moved_to_the_device_are_read_back_at_the_start(name):
    with FakeDevice() as device:
        scheduler = ours(name)(**unused(name))
        scheduler.set_timesteps(STEPS, device=device.name)
        scheduler.sigmas = scheduler.sigmas.to(device.name).clone()
        scheduler.set_begin_index(0)
        x = torch.randn(SHAPE, device=device.name)
        device.clear()
        x = scheduler.step(x, scheduler.timesteps[0], x)[0]
        assert 1 <= len(device.syncs) <= 2
        device.clear()
        for t in scheduler.timesteps[1:]:
            x = scheduler.step(x, t, x)[0]
        assert device.syncs == []


# The fake itself: it must show what is known of diffusers.


@pytest.mark.parametrize(
    ("name", "config", "kernels", "latent", "syncs", "host"),
    [
        ("DPMSolverMultistepScheduler", {}, 10, 10, 0, 48),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, 19, 19, 0, 75),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 13, 13, 0, 56),
        ("DDIMScheduler", {"clip_sample": False}, 9, 6, 6, 16),
        ("DDIMScheduler", {"clip_sample": False, "call": {"eta": 1.0}}, 12, 9, 6, 16),
        ("DDPMScheduler", {"clip_sample": False}, 20, 9, 13, 24),
        ("EulerDiscreteScheduler", {}, 6, 6, 0, 6),
        ("EulerAncestralDiscreteScheduler", {}, 9, 9, 0, 13),
    ],
    ids=named,
)
def test_the_fake_shows_what_diffusers_is_known_to_do(name, config, kernels, latent, syncs, host):
    with FakeDevice() as device:
        seen = Seen(stock(name), SD | config, True, device)
    sixth = [seen.steps[6]]
    assert len(seen.of("kernel", sixth)) == kernels
    assert sum(event.numel >= LATENT for event in seen.of("kernel", sixth)) == latent
    assert len(seen.of("sync", sixth)) == syncs
    assert abs(len(seen.of("host", sixth)) - host) <= 2  # scalar arithmetic, varies with torch
    assert seen.of("blocking upload") == []


def test_the_fake_sees_the_look_up_of_the_first_index():
    with FakeDevice() as device:
        seen = Seen(stock("DPMSolverMultistepScheduler"), SD, False, device)
    assert [event.op for event in seen.of("sync", seen.steps[:1])] == [
        "nonzero",
        "_local_scalar_dense",
    ]
    assert seen.of("sync", seen.steps[1:]) == []


def test_the_fake_tells_copies_apart():
    host = torch.ones(8)
    with FakeDevice() as device:
        x = host.to(device.name)
        y = host.to(device.name, non_blocking=True)
        assert (len(device.blocking_uploads), len(device.uploads)) == (1, 1)
        assert [event.numel for event in device.uploads] == [8]
        y.to(torch.float16)
        assert [event.op for event in device.kernels] == ["_to_copy"]
        x.cpu(), (x + 1).sum().item(), bool(x[0] > 0), x.nonzero()
        assert len(device.syncs) == 4
        assert (x[2:] + torch.tensor(1.0)).value.sum() == 12  # a 0-d host tensor is a number
        with pytest.raises(RuntimeError, match="same device"):
            x + host
