"""Custom timesteps and sigmas of `set_timesteps`: a list, array or tensor, checked in one place;
and the timesteps of "exact" numerics."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def vector(name: str, values: Any) -> NDArray[np.float64]:
    """The values as float64, (N,); ValueError names the argument."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        out = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in a list, array or tensor; {error}") from error
    if out.ndim != 1 or not len(out) or not np.isfinite(out).all():
        raise ValueError(
            f"{name} must be one-dimensional, finite and at least one long; got shape {out.shape}"
        )
    return out


def whole_steps(steps: Any) -> None:
    """Raise unless num_inference_steps is None or a whole number of at least 1."""
    if steps is None:
        return
    try:
        fine = not isinstance(steps, bool) and operator.index(steps) >= 1
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(
            f"num_inference_steps must be a whole number of at least 1; got {steps!r}. Custom "
            "steps are timesteps=[..] or sigmas=[..]"
        )


def without_shift(scheduler: object, mu: float | None) -> None:
    """Raise if a pipeline passes the shift of a flow schedule to a class that has none."""
    if mu is not None:
        raise ValueError(
            f"mu must be None: {type(scheduler).__name__} has no flow schedule to shift; got {mu}. "
            "DPMSolverMultistepScheduler and UniPCMultistepScheduler with use_flow_sigmas and "
            "use_dynamic_shifting have one"
        )


def descending(name: str, values: NDArray[np.float64]) -> None:
    """Raise unless the values go down (equal neighbours are allowed) and do not cross 0."""
    if (np.diff(values) > 0).any() or values[-1] < 0:
        raise ValueError(
            f"{name} must go down, from noisy to clean, and not below 0; got {values.tolist()}"
        )


def exact_timesteps(scheduler: Any) -> Tensor:
    """The timesteps of a run whose sigmas diffusers has set, where it cuts a model time to a whole
    number: kept (flow) or rounded (spacings between trained levels)."""
    config, sigmas = scheduler.config, scheduler.sigmas[:-1].double().numpy()
    timesteps: Tensor = scheduler.timesteps
    if config.use_flow_sigmas:
        timesteps = torch.from_numpy(sigmas * config.num_train_timesteps).float()
    elif config.use_exponential_sigmas or config.use_beta_sigmas:
        cumulative = scheduler.alphas_cumprod
        levels = np.asarray(((1 - cumulative) / cumulative) ** 0.5)
        times = scheduler._sigma_to_t(sigmas, np.log(levels.astype(np.float64)))
        timesteps = torch.from_numpy(times.round().astype(np.int64))
    return timesteps
