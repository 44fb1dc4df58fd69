"""A run: one configuration of a scheduler, a model whose answers depend on everything, seeds.

The model is the posterior mean of smooth data, bent by tanh and coupled between neighbours, so that
its predictions change along the trajectory (a wrong weight of history shows), leave [-1, 1] (so
does clipping) and pull neighbouring trajectories together (an error is neither lost nor blown up).
It is computed in float64 and rounded to the dtype asked for: differences between two runs come from
the schedulers alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from . import (
    double_precision,
    double_precision_consistency,
    double_precision_edm,
    double_precision_exponential,
    double_precision_flow,
    double_precision_linear,
    double_precision_singlestep,
    double_precision_two_calls,
)
from .classes import EDM, FLOW_EULER, FLOW_LCM, ONE_RESULT, WITH_BETAS, ours, stock
from .loops import scaled

RECURSION = (
    double_precision.RECURSION
    | double_precision_exponential.RECURSION
    | double_precision_consistency.RECURSION
    | double_precision_edm.RECURSION
    | double_precision_flow.RECURSION
    | double_precision_two_calls.RECURSION
    | double_precision_linear.RECURSION
    | double_precision_singlestep.RECURSION
)
SPREAD, REACH = 0.8, 2.5  # standard deviation of the data; largest prediction


@dataclass(frozen=True)
class Case:
    """What to run.  begin: (index, set_begin_index called); rng: "one", "list" or "global"."""

    name: str
    config: dict[str, Any]
    steps: int
    call: dict[str, Any] = field(default_factory=dict)  # for step
    grid: dict[str, Any] = field(default_factory=dict)  # for set_timesteps
    begin: tuple[int, bool] = (0, True)
    rng: str = "one"
    seed: int = 0
    dtype: torch.dtype = torch.float32

    @cached_property
    def levels(self) -> Any:
        """diffusers' scheduler for this case: to read noise levels from, never to step."""
        return prepare(stock(self.name), self)


def made(cls: Any, config: dict[str, Any]) -> Any:
    """A scheduler before its first set_timesteps.  Some constructors call that with every trained
    step, which takes a second of KDPM2; here with 8, as nothing of it is left after the next."""
    real = cls.set_timesteps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "set_timesteps", lambda self, steps, *rest: real(self, 8, *rest))
        return cls(**config)


def prepare(cls: type, case: Case) -> Any:
    scheduler = made(cls, case.config)
    scheduler.numerics = "faithful"
    scheduler.set_timesteps(case.steps, **case.grid)
    return scheduler


def called_at(s: Any, i: int) -> float:
    """sigma / alpha where the network is called on step i, of a class that has sigmas."""
    if i % 2 and hasattr(s, "sigmas_interpol"):  # in the middle of a whole step
        return float(s.sigmas_interpol[i - 1 if hasattr(s, "sigmas_up") else i])
    return float(s.sigmas[i])


def level(s: Any, i: int) -> tuple[float, float, float]:
    """(alpha, sigma, scale of the latents) where the network is called on step i."""
    if "sigma_data" in s.config:
        alpha = 1 / math.sqrt(1 + float(s.sigmas[i]) ** 2)
        return alpha, float(s.sigmas[i]) * alpha, 1 / alpha
    if not hasattr(s, "alphas_cumprod"):  # flow matching; inverted: sigmas of 1 are clean
        sigma = float(s.sigmas[i])
        return (sigma, 1 - sigma, 1.0) if s.config.get("invert_sigmas") else (1 - sigma, sigma, 1.0)
    if s.order == 2 or hasattr(s, "lambda_t") or hasattr(s, "is_scale_input_called"):
        ratio = called_at(s, i)
        if s.config.get("use_flow_sigmas"):
            return 1 - ratio, ratio, 1.0
        alpha = 1 / math.sqrt(1 + ratio**2)
        return alpha, ratio * alpha, 1.0 if hasattr(s, "lambda_t") else 1 / alpha
    p = float(s.alphas_cumprod[int(s.timesteps[i])])
    return math.sqrt(p), math.sqrt(1 - p), 1.0


def channels(case: Case) -> tuple[int, bool]:
    """(channels of the latents, does the network also predict a variance)."""
    learned = case.config.get("variance_type") in ("learned", "learned_range")
    if case.name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        learned = learned and case.config.get("prediction_type", "epsilon") == "epsilon"
    return (3, True) if learned else (4, False)


def shape(case: Case) -> tuple[int, ...]:
    return (2, channels(case)[0], 6, 6)


def network(case: Case) -> Callable[[Tensor, int], Tensor]:
    """model(x, i) in float64, x as the scheduler holds it (diffusers' sigma scaling included)."""
    usual = "epsilon" if case.name in (*WITH_BETAS, *EDM) else "flow_prediction"
    kind, extra = case.config.get("prediction_type", usual), channels(case)[1]
    sign = -1 if case.config.get("invert_sigmas") else 1  # the velocity of a level that goes up

    def model(x: Tensor, i: int) -> Tensor:
        alpha, sigma, scale = level(case.levels, i)
        x = x.double() / scale
        slope = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        x0 = REACH * torch.tanh(slope * x / REACH) + 0.3 * alpha * torch.sin(2 * x.roll(1, -1))
        if case.name in EDM:  # which is told to be x_0 = c_skip x + c_out F
            data, ratio = case.config.get("sigma_data", 0.5), sigma / alpha
            skip, out = data**2 / (ratio**2 + data**2), ratio * data / math.hypot(ratio, data)
            return (-1 if kind == "v_prediction" else 1) * (x0 - skip * x * scale) / out
        noise = (x - alpha * x0) / sigma
        out = {
            "epsilon": noise,
            "sample": x0,
            "original_sample": x0,
            "v_prediction": alpha * noise - sigma * x0,
            "flow_prediction": sign * (noise - x0),
        }[kind]
        if extra:
            wave = torch.sin(3 * x)
            log = case.config["variance_type"] == "learned_range"
            out = torch.cat([out, wave if log else 0.01 * (1.1 + wave)], dim=1)
        return out

    return model


class Source:
    """The random numbers of a run, from what a user may pass as `generator`."""

    def __init__(self, case: Case) -> None:
        if case.rng == "list":
            self.generator: Any = [torch.Generator().manual_seed(case.seed + j) for j in range(2)]
        elif case.rng == "one":
            self.generator = torch.Generator().manual_seed(case.seed)
        else:
            self.generator = None
            torch.manual_seed(case.seed)

    def draw(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return randn_tensor(size, generator=self.generator, dtype=dtype)

    def state(self) -> list[Tensor]:
        if self.generator is None:
            return [torch.get_rng_state()]
        many = self.generator if isinstance(self.generator, list) else [self.generator]
        return [g.get_state() for g in many]


def start(case: Case, s: Any) -> Tensor:
    g = torch.Generator().manual_seed(1000 + case.seed)
    return torch.randn(shape(case), generator=g) * getattr(s, "init_noise_sigma", 1.0)


def arguments(case: Case, source: Source) -> dict[str, Any]:
    """Keyword arguments of step.  variance_noise=True stands for numbers drawn here."""
    call = dict(case.call)
    if call.pop("variance_noise", False):
        call["variance_noise"] = source.draw(shape(case), case.dtype)
    elif case.rng != "global" and "generator" in signature(stock(case.name).step).parameters:
        call["generator"] = source.generator
    return call


def run(cls: type, case: Case, s: Any = None) -> tuple[list[Tensor], list[Tensor]]:
    """(every sample and prediction of x_0 that `step` returned, final state of the generators)."""
    s = s or prepare(cls, case)
    model, source = network(case), Source(case)
    x = start(case, s).to(case.dtype)
    first, told = case.begin
    if told and hasattr(s, "set_begin_index"):
        s.set_begin_index(first)
    seen: list[Tensor] = []
    for i, t in enumerate(s.timesteps[first:], first):
        scaled(s, x, t)
        out = model(x, i).to(case.dtype)
        got = s.step(out, t, x, **arguments(case, source), return_dict=False)
        x = got[0]
        seen += [part.double() for part in got]
    return seen, source.state()


def reference(case: Case, **deviations: Any) -> list[Tensor]:
    """The same run in float64, all the way."""
    s = case.levels
    source, call = Source(case), dict(case.call)
    given = call.pop("variance_noise", False)
    wide = case.name == "DPMSolverMultistepScheduler" and not given
    wide = wide or case.name == FLOW_EULER  # like the sample, brought to float32
    draw = torch.float32 if wide else case.dtype
    if case.name == FLOW_LCM:  # like its prediction of x_0
        draw = torch.promote_types(torch.float32, draw)
    x = start(case, s).to(case.dtype).double()
    steps = RECURSION[case.name](
        s,
        network(case),
        x,
        lambda: source.draw(shape(case), draw).double(),
        begin=case.begin[0],
        **call,
        **deviations,
    )
    two = case.name not in ONE_RESULT
    return [part for pair in steps for part in (pair if two else pair[:1])]


def gaps(a: list[Tensor], b: list[Tensor], norm: str = "max") -> list[float]:
    """Difference of two runs, tensor by tensor, relative to b there.  norm: "max" or "rms".

    What is not a number counts as infinitely far from everything.
    """
    if len(a) != len(b):
        raise AssertionError(f"{len(a)} tensors against {len(b)}")

    def size(x: Tensor) -> float:
        number = float(x.abs().max() if norm == "max" else x.square().mean().sqrt())
        return number if number == number else math.inf

    return [size(p - q) / max(size(q), 1e-30) for p, q in zip(a, b, strict=True)]


def finite(run: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in run)


def mine(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    return run(ours(case.name), case)


def theirs(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    return run(stock(case.name), case)
