"""The levels of a rectified flow, for classes that run on those of a beta schedule as well.

A pipeline of a flow hands a scheduler sigmas that nobody has shifted, and mu.  From them
diffusers' FlowMatchEulerDiscreteScheduler makes, in this order,

    r s / (1 + (r - 1) s)             r = shift, or with use_dynamic_shifting exp(mu), or mu itself
                                      where time_shift_type is "linear"; arXiv:2403.03206, eq. 23
    1 - (1 - s) (1 - e) / (1 - s_N)   stretched so that the last level is e = shift_terminal
    karras, exponential, beta         between the last level and the first one

and so do the classes here, whose models in diffusers refuse sigmas or know a part of this.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.schedulers.timestep import by_value
from fastdiff.schedules.spacing import BY_LEVEL

RESPACED = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}

COMPLEX = (torch.complex32, torch.complex64, torch.complex128, np.complex64, np.complex128)
MOST = 700.0  # of the logarithm of a shift, either way: beyond 709 float64 has none


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a flow matching class: with `shift`, which no class with a beta
    schedule has, and without flow_shift, which all of those have that know flows."""
    return "shift" in config and "flow_shift" not in config


def shiftable(mu: Any, kind: str) -> float:
    """mu as a float; ValueError unless it is a number that the shift can take."""
    found = math.nan
    truth = isinstance(mu, bool) or getattr(mu, "dtype", None) in (torch.bool, np.bool_)
    if not truth and not isinstance(mu, (str, bytes, bytearray)):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            found = float(mu.detach() if isinstance(mu, Tensor) else mu)  # of one element
    linear = kind == "linear"
    if not math.isfinite(found) or (linear and found <= 0):
        above = " above 0, with time_shift_type='linear'" if linear else ""
        raise ValueError(f"mu must be a finite number{above}; got {mu!r}")
    if abs(math.log(found) if linear else found) > MOST:
        bounds = f"e^-{MOST:g} .. e^{MOST:g}" if linear else f"-{MOST:g} .. {MOST:g}"
        raise ValueError(f"mu must be of {bounds}, a shift that float64 holds; got {mu!r}")
    return found


def check_mu(config: Any, mu: Any) -> float | None:
    """mu as a float; ValueError where it is no number, or there is no flow that it could shift."""
    if mu is None:
        return None
    if not config.use_flow_sigmas and not config.use_dynamic_shifting:
        raise ValueError(
            "mu must be None unless the config has use_flow_sigmas=True (or "
            f"use_dynamic_shifting=True); got {mu}"
        )
    return shiftable(mu, config.time_shift_type)


def shift_of(config: Any, mu: float | None) -> float:
    """r above.  Without use_dynamic_shifting mu has no effect, as in diffusers' flow classes."""
    if not config.use_dynamic_shifting:
        return float(config.flow_shift)
    if mu is None:
        raise ValueError(
            "mu must be a number, since the config has use_dynamic_shifting=True; got None. "
            "Pipelines make it from the size of the picture; 0.0 shifts nothing"
            if config.time_shift_type == "exponential"
            else "mu must be a number above 0, since the config has use_dynamic_shifting=True; "
            "got None. 1.0 shifts nothing"
        )
    return float(mu) if config.time_shift_type == "linear" else math.exp(mu)


def upright(config: Any) -> None:
    """Raise for a flow whose levels go up."""
    if config.get("invert_sigmas"):
        raise ValueError(
            "invert_sigmas of the config must be False: the levels here go down, from noise to "
            "data; got True. FlowMatchEulerDiscreteScheduler can run that model"
        )


def respaced(config: Any) -> str | None:
    """The spacing between the first and the last level that the config asks for, if any."""
    return next((name for flag, name in RESPACED.items() if config.get(flag)), None)


def in_a_flow(
    name: str, levels: NDArray[np.float64], got: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The levels, unless they are none of a flow; they came as the argument of that name."""
    if levels[0] > 1:
        most = "1" if got is levels else f"{got[0] / levels[0]:g}, num_train_timesteps,"
        raise ValueError(
            f"{name} must be at most {most} with use_flow_sigmas=True; got {got.tolist()}"
        )
    return levels


def flow_levels(config: Any, sigmas: NDArray[np.float64], mu: float | None) -> NDArray[np.float64]:
    """The levels (N,) of a run, from sigmas (N,) that nobody has shifted; the formula above."""
    in_a_flow("sigmas", sigmas, sigmas)
    shift = shift_of(config, mu)
    levels = shift * sigmas / (1 + (shift - 1) * sigmas)
    terminal = config.get("shift_terminal")
    if terminal:
        if levels[-1] == 1:
            raise ValueError(
                "sigmas must end below 1 where the config has shift_terminal="
                f"{terminal:g}; got {sigmas.tolist()}"
            )
        levels = 1 - (1 - levels) * (1 - terminal) / (1 - levels[-1])
    name = respaced(config)
    if name is not None:
        levels = BY_LEVEL[name](float(levels[-1]), float(levels[0]), len(levels))
    return np.asarray(np.minimum(levels, 1.0))  # no rounding above the noise itself


class FlowLevels:
    """Mixed into a diffusers scheduler class that has use_flow_sigmas and flow_shift."""

    config: Any
    num_inference_steps: int | None

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler from a config, as diffusers; with use_flow_sigmas=True and the config of a
        flow matching class the `shift` there is flow_shift, where diffusers forgets it."""
        if isinstance(config, Mapping) and is_flow(config) and kwargs.get("use_flow_sigmas"):
            kwargs.setdefault("flow_shift", config["shift"])
        base: Any = super()
        return base.from_config(config, return_unused_kwargs, **kwargs)

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """alpha x_0 + sigma n, (B, *shape), as FlowMatchEulerDiscreteScheduler's: the noisy sample
        that image to image starts from.

        timestep  (B,), (1,) or a number, of scheduler.timesteps; once set_begin_index was called
                  the level is that of the next step
        """
        noisy(self, sample, timestep, noise)
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        made: Tensor = self.add_noise(sample, noise, times)  # type: ignore[attr-defined]
        return made


def noisy(scheduler: Any, sample: object, timestep: Any, noise: object) -> None:
    """Raise unless `scale_noise` can take these."""
    for name, value in (("sample", sample), ("noise", noise)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{name} must be a float tensor (B, *shape); got {got}. The order is "
                "scale_noise(sample, timestep, noise)"
            )
    assert isinstance(sample, Tensor)
    assert isinstance(noise, Tensor)
    for name, value in (("sample", sample), ("noise", noise)):
        if value.layout is not torch.strided or value.is_meta:
            what = "on the device 'meta'" if value.is_meta else str(value.layout)
            raise TypeError(f"{name} must be a dense tensor that has values; got one {what}")
    sizes = list(zip(noise.shape, sample.shape, strict=False))
    alike = noise.dim() == sample.dim() and noise.shape[1:] == sample.shape[1:]
    if not alike or (sizes and sizes[0][0] != sizes[0][1] and 1 not in sizes[0]):
        raise ValueError(
            f"noise must have the shape of sample, {tuple(sample.shape)}; got {tuple(noise.shape)}."
            " One of them may be a single one for all"
        )
    if isinstance(timestep, complex) or getattr(timestep, "dtype", None) in COMPLEX:
        raise TypeError(f"timestep must be real, of scheduler.timesteps; got {timestep!r}")
    try:
        times = torch.as_tensor(timestep).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "timestep must be a number or a tensor (B,), of scheduler.timesteps; got "
            f"{type(timestep).__name__}"
        ) from error
    samples = max(sizes[0]) if sizes else 1
    if len(times) not in (1, samples):
        raise ValueError(
            f"timestep must be one, or one for each of the {samples} samples; got {len(times)}"
        )
    if "num_inference_steps" in scheduler.__dict__ and scheduler.num_inference_steps is None:
        raise ValueError("scale_noise needs the levels of a run; call set_timesteps first")
    if scheduler.begin_index is None:
        known = scheduler._timestep_values()
        wrong = [t for t in times.double().tolist() if by_value(known, t) is None]
        if wrong:
            raise ValueError(
                f"timestep must be of scheduler.timesteps, {known[0]:g} .. {known[-1]:g}; got "
                f"{wrong[0]:g}. Pass an element of them, or call set_begin_index first"
            )


__all__ = [
    "FlowLevels",
    "check_mu",
    "flow_levels",
    "in_a_flow",
    "is_flow",
    "noisy",
    "respaced",
    "shift_of",
    "shiftable",
    "upright",
]
