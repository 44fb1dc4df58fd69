"""What goes around every set_timesteps: the device must be one that is here, before anything has
changed; and a spacing that diffusers has no config for, levels that set_timesteps(N) takes from a
table.

`spacing` is an attribute of the instance, as numerics is, and never part of the saved config, which
diffusers could not read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np

from fastdiff.schedulers.custom import reachable, whole_steps
from fastdiff.schedules.noise import NoiseSchedule
from fastdiff.schedules.spacing import AYS, ays, levels

CONSISTENT = ("LCMScheduler", "TCDScheduler")  # whose networks know the times they were trained at


def fits(class_name: str, options: set[str]) -> bool:
    """Whether a class samples the models that the tables were optimised for."""
    return "beta_start" in options and class_name not in CONSISTENT


def levels_for(scheduler: Any, spacing: str, steps: int) -> list[float]:
    """Sigmas for set_timesteps(sigmas=..): `steps` of them, and the final one where it wants it.

    Raises ValueError where the table is not for this model.
    """
    config = scheduler.config
    if spacing not in AYS or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"spacing of {type(scheduler).__name__} must be None"
            + (f" or one of {', '.join(AYS)}" if hasattr(scheduler, "alphas_cumprod") else "")
            + f"; got {spacing!r}. Others are options of its config"
        )
    if config.get("use_flow_sigmas"):
        raise ValueError(
            f"spacing must be none of {', '.join(AYS)} with use_flow_sigmas=True, for they were "
            f"optimised for models that are no flows; got {spacing!r}"
        )
    bar = np.asarray(scheduler.alphas_cumprod.detach().cpu().double().numpy())
    if spacing == "ays_svd" and config.get("timestep_type") == "continuous":
        found = ays(spacing, steps)  # its times are 0.25 log(sigma): no trained level bounds them
    else:
        found = levels(NoiseSchedule("vp", len(bar), np.clip(bar, 1e-30, None)), spacing, steps)
    given: list[float] = found.tolist()
    if "solver_order" in config:  # these put the final level there themselves
        return given
    last = config.get("final_sigmas_type") == "sigma_min"
    return [*given, float(np.sqrt((1 - bar[0]) / bar[0])) if last else 0.0]


def spaced(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    """A class's set_timesteps, which heeds the attribute `spacing`, and which a device that is not
    there leaves as it was."""
    parameters = signature(set_timesteps)
    at = [*parameters.parameters].index("device") - 1  # without self

    @functools.wraps(set_timesteps)
    def heeding(self: Any, *args: Any, **kwargs: Any) -> None:
        reachable(args[at] if len(args) > at else kwargs.get("device"))
        spacing = self.__dict__.get("spacing")
        if spacing is not None:
            given = parameters.bind(self, *args, **kwargs)
            if _steps_alone(given.arguments):
                steps = given.arguments["num_inference_steps"]
                whole_steps(steps)
                given.arguments["sigmas"] = levels_for(self, spacing, int(steps))
                given.arguments["num_inference_steps"] = None
            return set_timesteps(*given.args, **given.kwargs)
        return set_timesteps(self, *args, **kwargs)

    return heeding


def _steps_alone(given: Mapping[str, Any]) -> bool:
    """Whether a number of steps is given and nothing that says where they lie."""
    own = any(given.get(name) is not None for name in ("timesteps", "sigmas"))
    return given.get("num_inference_steps") is not None and not own
