"""Custom timesteps and sigmas of `set_timesteps`: a list, array or tensor, checked in one place;
and the timesteps of "exact" numerics."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def vector(name: str, values: Any) -> NDArray[np.float64]:
    """The values as float64, (N,); ValueError names the argument.

    Numbers alone, no strings, truths or complex numbers, and none beyond float32, which keeps them.
    """
    wants = f"{name} must be numbers in a list, array or tensor; "
    if isinstance(values, Tensor):
        if values.is_meta or values.dtype is torch.bool or values.is_complex():
            raise ValueError(f"{wants}got one of {values.dtype} on {values.device}")
        values = values.detach().cpu().double().numpy()
    try:
        out = np.asarray(values)
        if out.dtype.kind == "O":  # of tensors, say
            out = out.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wants}{error}") from error
    if out.dtype.kind not in "iuf":
        raise ValueError(f"{wants}got {values!r}")
    out = out.astype(np.float64)
    if out.ndim != 1 or not len(out) or not np.isfinite(out).all():
        raise ValueError(
            f"{name} must be one-dimensional, finite and at least one long; got shape {out.shape}"
            + (f", {out.tolist()}" if out.ndim == 1 and len(out) else "")
        )
    if np.abs(out).max() > float(np.finfo(np.float32).max):
        raise ValueError(f"{name} must be finite in float32; got {out.tolist()}")
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


def one_run(steps: Any, timesteps: object, sigmas: object) -> None:
    """Raise unless a run is described, and once."""
    whole_steps(steps)
    if timesteps is not None and sigmas is not None:
        raise ValueError("pass timesteps or sigmas, not both; got both")
    if steps is None and timesteps is None and sigmas is None:
        raise ValueError("pass one of num_inference_steps, timesteps or sigmas; got none")


def as_many(steps: int | None, name: str, count: int, ends: bool = False) -> None:
    """Raise unless num_inference_steps is None or this number; ends: the last one is no step's."""
    if steps not in (None, count):
        raise ValueError(
            f"num_inference_steps must be None or {count}, the number of {name}"
            f"{' before the last one, where the run ends' if ends else ''}; got {steps}"
        )


def run_ends(sigmas: NDArray[np.float64], steps: int | None) -> bool:
    """Whether the last of descending sigmas, (N,) or (N + 1,) for N steps, is where the run ends: a
    0, or one more than the steps.  Raises where there is no step, or another number of them."""
    if sigmas[0] == 0:
        raise ValueError(f"sigmas must begin above 0; got {sigmas.tolist()}")
    ends = len(sigmas) > 1 and bool(len(sigmas) - 1 == steps or sigmas[-1] == 0)
    as_many(steps, "sigmas", len(sigmas) - int(ends), ends)
    return ends


def reachable(device: Any) -> None:
    """Raise unless device is None or one that tensors can be moved to here."""
    if device is None:
        return
    try:
        found = torch.device(device)
        if found.type not in ("cpu", "meta"):
            torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, AssertionError, OverflowError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            "device must be None or one that PyTorch has here, such as 'cpu' or 'cuda:0'; got "
            f"{device!r} ({reason})"
        ) from error


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


def times_to_run(
    values: ArrayLike | Tensor, steps: int | None, alphas_cumprod: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(sigmas (N + 1,), timesteps (N,)) of custom timesteps (N,); the last level is 0."""
    times = vector("timesteps", values)
    descending("timesteps", times)
    as_many(steps, "timesteps", len(times))
    known = np.asarray(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    body = np.interp(times, np.arange(len(known)), known)
    return np.append(body, 0.0).astype(np.float32), times.astype(np.float32)


def sigmas_to_run(
    values: ArrayLike | Tensor, steps: int | None, alphas_cumprod: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(sigmas (N + 1,), timesteps (N,)) of custom sigmas / alphas, (N + 1,) or (N,)."""
    sigmas = vector("sigmas", values)
    descending("sigmas", sigmas)
    if not run_ends(sigmas, steps):
        sigmas = np.append(sigmas, 0.0)
    levels = np.asarray(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    times = np.interp(np.log(sigmas[:-1]), np.log(levels), np.arange(len(levels)))
    return sigmas.astype(np.float32), times.astype(np.float32)
