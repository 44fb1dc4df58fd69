"""A step inside a transform of PyTorch: derivatives of functions, fake tensors, recording.

What is made in there is made of that transform's tensors.  Nothing of it may be kept: a later run
of the same schedule, by anybody, must find real rows.
"""

import contextlib

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from .classes import DDIM, DPM, NAMES, UNIPC, base, both, ours, unused
from .loops import SHAPE, answer, latents, loop, same, scaled


def stepper(s, sigma=3.0):
    """x -> next sample, of the first step."""
    s.set_timesteps(6)
    t = s.timesteps[0]
    scaled(s, latents(s), t)
    more = {} if s.step.__code__.co_varnames.count("generator") == 0 else {"generator": None}

    def step(x):
        torch.manual_seed(4)
        if getattr(s, "_step_index", None) is not None:
            s._step_index = 0
        return s.step(torch.tanh(x / sigma), t, x, **more)[0]

    return step


def grad(step, x):
    return torch.func.grad(lambda x: step(x).square().sum())(x)


def jvp(step, x):
    return torch.func.jvp(step, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("transform", [grad, jvp])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_functions(name, transform):
    config = unused(name)
    mine, theirs = both(name, **config)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    same(transform(stepper(mine), x), transform(stepper(theirs), x))
    again = stepper(ours(name)(**config))
    same(again(x), stepper(theirs)(x))  # rows made inside are no wrapped tensors outside


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_leave_nothing_behind(name):
    config = unused(name)
    expected = loop(both(name, **config)[1])
    s = ours(name)(**config)

    def edit(i, s, x):
        if i == 2:  # a copy of it looks ahead at shapes
            ahead = ours(name)(**config)
            ahead.set_timesteps(8)
            if hasattr(ahead, "set_begin_index"):
                ahead.set_begin_index(2)
            t = s.timesteps[2].item()
            if "Euler" in name:
                t = float(t)
            ahead.scale_model_input(x, ahead.timesteps[2])
            # it may fail, as diffusers does for several; what it made must not stay
            with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(RuntimeError):
                y = torch.empty(SHAPE)
                ahead.step(answer(y, 2), t, y)

    for a, b in zip(loop(s, edit), expected, strict=True):
        same(a, b)


@pytest.mark.parametrize("name", [DPM, DDIM, UNIPC])
def test_a_compiled_step_is_not_compiled_again_for_every_row(name):
    """Rows are made outside of what is traced; the last step, to a level of its own, may differ."""
    torch._dynamo.reset()
    counters.clear()
    config = unused(name)
    s = ours(name)(**config)
    step, frames, x, seen = torch.compile(s.step, backend="eager"), [], latents(s), []
    s.set_timesteps(8)
    if hasattr(s, "set_begin_index"):
        s.set_begin_index(0)
    for i, t in enumerate(s.timesteps):
        x = step(answer(x, i), t, x, return_dict=False)[0]
        frames.append(counters["frames"]["total"])
        seen.append(x)
    assert frames[0] > 0
    assert len(set(frames[3:7])) == 1, frames
    torch._dynamo.reset()
    for a, b in zip(seen, loop(ours(name)(**config)), strict=True):
        same(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors(name):
    s = ours(name)(**unused(name))
    s.set_timesteps(4)
    x = torch.empty(SHAPE, device="meta")
    s.scale_model_input(x, s.timesteps[0])
    out = s.step(x, s.timesteps[0], x)[0]
    assert (out.shape, out.device.type) == (SHAPE, "meta")
    expected = loop(both(name, **base(name))[1])
    for a, b in zip(loop(ours(name)(**base(name))), expected, strict=True):
        same(a, b)
