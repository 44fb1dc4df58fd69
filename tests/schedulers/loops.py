"""One loop, with our class and with diffusers', and something done to the scheduler on the way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .classes import base, both, ours

REL = 1e-5
SHAPE = (2, 4, 6, 6)


def same(ours: Tensor, theirs: Tensor, rel: float = REL) -> None:
    """Equal shape and dtype, and values within rel of the largest."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    gap, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert gap <= rel * size, f"differs by {gap / size:.1e} of the largest value"


def latents(s: Any, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g) * torch.as_tensor(getattr(s, "init_noise_sigma", 1.0))


def answer(x: Tensor, i: int) -> Tensor:
    """A network's output that depends on the sample and changes from step to step."""
    return torch.tanh(x / (1 + x.abs().max()) + 0.1 * i) + 0.3 * torch.cos(2.0 * x + i)


def scaled(s: Any, x: Tensor, t: Any) -> Tensor:
    """The network's input; diffusers' flow matching classes do not scale it."""
    return s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else x


def seeded(s: Any, seed: int = 0) -> dict[str, Any]:
    """The argument `generator` of step, where it has one."""
    if "generator" not in s.step.__code__.co_varnames:
        return {}
    return {"generator": torch.Generator().manual_seed(seed)}


Edit = Callable[[int, Any, Tensor], Tensor | None]


def loop(
    s: Any,
    edit: Edit | None = None,
    *,
    steps: int = 8,
    begin: int = 0,
    told: bool = True,
    call: dict[str, Any] | None = None,
    ready: Callable[[Any], None] | None = None,
) -> list[Tensor]:
    """All samples of a run.  ready(s) comes after set_timesteps, edit(i, s, x) before step i; what
    edit returns replaces the sample."""
    s.set_timesteps(steps)
    if ready is not None:
        ready(s)
    if told and hasattr(s, "set_begin_index"):
        s.set_begin_index(begin)
    x, seen = latents(s), []
    generator = torch.Generator().manual_seed(3)
    call = dict(call or {})
    if given := call.get("generator"):  # each of two runs to compare starts from its state
        many = [g.clone_state() for g in (given if isinstance(given, list) else [given])]
        call["generator"] = many if isinstance(given, list) else many[0]
    if "generator" in s.step.__code__.co_varnames and "variance_noise" not in call:
        call.setdefault("generator", generator)
    for i, t in enumerate(s.timesteps[begin:], begin):
        if edit is not None:
            edited = edit(i, s, x)
            x = x if edited is None else edited
        e = answer(scaled(s, x, t), i)
        x = s.step(e, t, x, **call).prev_sample
        seen.append(x)
    return seen


def compare(mine: Any, theirs: Any, edit: Edit | None = None, **options: Any) -> None:
    """Assert that the loop gives the same samples with both schedulers."""
    pairs = zip(loop(mine, edit, **options), loop(theirs, edit, **options), strict=True)
    for result, reference in pairs:
        same(result, reference)


def follow(name: str, edit: Edit | None = None, config: dict | None = None, **options: Any) -> Any:
    """Assert that the loop gives diffusers' samples; returns our scheduler."""
    mine, theirs = both(name, **base(name) | (config or {}))
    compare(mine, theirs, edit, **options)
    return mine


def first_step(name: str, **config: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Our scheduler before its first step: (scheduler, timestep, output, sample)."""
    s = ours(name)(**base(name) | config)
    s.set_timesteps(8)
    x, t = latents(s), s.timesteps[0]
    return s, t, answer(scaled(s, x, t), 0), x
