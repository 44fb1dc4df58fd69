"""What is done with guidance that is not computed yet, besides guidance: PyTorch's own answer."""

import copy
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from fastdiff.schedulers.guidance import Answer, Deferred

from .classes import EULER, ours
from .test_guidance import G, halves, plain


def slope(e):
    e.requires_grad = True
    assert e.requires_grad
    (e**2).sum().backward()
    return e.grad


def lifted(e):
    e.unsqueeze_(0)
    return torch.zeros(e.shape)


def replaced(e):
    e.data = torch.ones(3)
    return e + 1


def other_uses():
    std = lambda u, c: plain(u, c) * (c.std(dim=(1, 2, 3), keepdim=True) + 1)  # noqa: E731
    return {
        "*": std,
        "-": lambda u, c: plain(u, c) - u,
        "+": lambda u, c: G * (c - u) + u,
        "mul": lambda u, c: torch.mul(G, c - u) + u,
        "lerp": lambda u, c: torch.lerp(u, c, G),
        "cat": lambda u, c: torch.cat([u[:1], c[1:]]),
        "tensor scale": lambda u, c: u + torch.tensor(G) * (c - u),
        "another base": lambda u, c: u.clone() + G * (c - u),
        "twice": lambda u, c: plain(u, c) + (c - u) * 2,
        "numpy": lambda u, c: u + np.float32(G) * (c - u),
        "negative": lambda u, c: -plain(u, c),
        "divided": lambda u, c: 1 / (2 + plain(u, c) ** 2),
        "one of three": lambda u, c: u + G * (c.chunk(3)[0][:2] - u),
        "compared": lambda u, c: torch.where(u < c, u, c),
        "rounded": lambda u, c: plain(u.to(torch.bfloat16), c.to(torch.bfloat16)).float(),
        "converted": lambda u, c: torch.from_numpy(np.asarray(plain(u, c))),
        "pickled": lambda u, c: pickle.loads(pickle.dumps(plain(u, c))),
        "copied": lambda u, c: copy.deepcopy(plain(u, c)),
        "a third base": lambda u, c: c.chunk(2)[0] + G * (u.chunk(2)[1] - u.chunk(2)[0]),
        "channels": lambda u, c: plain(*u.chunk(2, dim=1)),
        "too large": lambda u, c: u + 1e39 * (c - u),
        "not whole in float32": lambda u, c: u + (2**24 + 1) * (c - u),
        "NumPy's copy": lambda u, c: torch.from_numpy(np.array(plain(u, c))),
        "NumPy's function": lambda u, c: torch.as_tensor(np.add(plain(u, c), 1)),
        "NumPy's on the left": lambda u, c: np.float64(2) * plain(u, c),
        "compiled": lambda u, c: torch.compile(torch.sin, backend="eager")(plain(u, c)),
        "a gradient of it": lambda u, c: slope(plain(u, c)),
        "another shape in place": lambda u, c: lifted(plain(u, c)),
        "other values in place": lambda u, c: replaced(plain(u, c)),
    }


@pytest.mark.parametrize("use", sorted(other_uses()))
def test_anything_else_is_what_pytorch_makes_of_it(use):
    u, c = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(j)) for j in range(2))
    form = other_uses()[use]
    *deferred, calls = halves(u, c)
    made = form(*deferred)
    assert type(made) is torch.Tensor
    assert torch.equal(made, form(u, c))
    assert sum(calls.values()) == 1  # one answer of the network, one cause


def test_what_it_is_known_by():
    u, c = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    first, second, calls = halves(u, c)
    e = plain(first, second)
    assert type(e) is Deferred
    assert (e.shape, e.dtype, e.device, e.ndim) == (u.shape, u.dtype, u.device, 4)
    assert e.size(1) == e.dim() == 4
    assert e.numel() == 72
    assert not e.requires_grad
    assert not calls
    assert len(e) == 2
    assert calls == {"guidance before the step: len": 1}
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'sampel'"):
        e.sampel  # noqa: B018


def test_a_tensor_that_is_written_to_later_does_not_change_what_was_recorded():
    u, c = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    for write in ("mul_", "__imul__", "__setitem__"):
        first, second, _ = halves(u, c)
        e, difference = plain(first, second), second - first
        getattr(second, write)(*((0, 5.0) if write == "__setitem__" else (3.0,)))
        assert torch.equal(e.cpu(), plain(u, c))
        assert torch.equal(difference.cpu(), c - u)
        after = c.clone()
        getattr(after, write)(*((0, 5.0) if write == "__setitem__" else (3.0,)))
        assert torch.equal(plain(first, second), plain(u, after))  # at once, from now on


def test_what_cannot_be_recorded_fails_as_with_tensors():
    u, c = torch.randn(2, 4, 3, 3), torch.randn(1, 4, 3, 2)
    first = Deferred((Answer(Counter()),), u)
    with pytest.raises(RuntimeError, match="must match the size"):
        first - Deferred((Answer(Counter()),), c)
    with pytest.raises(TypeError):
        first + "7"
    s = ours(EULER)()
    s.set_timesteps(4)
    with pytest.raises(ValueError, match="model_output must have the shape of sample"):
        s.step(plain(*halves(u, u)[:2]), s.timesteps[0], torch.randn(2, 4, 3, 5))
