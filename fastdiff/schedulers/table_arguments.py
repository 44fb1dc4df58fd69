"""What a caller hands a TableScheduler, checked: names, what was got, what would do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.plan import Plan

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_steps(given: object, steps: int) -> None:
    """Raise unless num_inference_steps is None or the number of the table's rows."""
    whole = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
    if given is not None and not (whole and given == steps):
        raise ValueError(
            f"num_inference_steps must be {steps}, the rows of the table, or None; got {given!r}"
        )


def check_generator(generator: object) -> None:
    """Raise unless noise can be drawn with it."""
    listed = isinstance(generator, list)
    for one in generator if isinstance(generator, list) else (generator,):
        if not isinstance(one, torch.Generator) and (listed or one is not None):
            raise TypeError(
                "generator must be a torch.Generator, a list of one per sample, or None; got "
                f"{'a list with ' if listed else ''}{type(one).__name__}. Make one with "
                "torch.Generator().manual_seed(..)"
            )


def check_noise(original_samples: object, noise: object, timesteps: Any) -> Tensor:
    """timesteps (B,) or (1,) of add_noise, where its arguments go together; else raise."""
    for name, value in (("original_samples", original_samples), ("noise", noise)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor (B, *shape); got {type(value).__name__}")
        if value.dtype not in FLOATS or value.ndim < 1:
            raise TypeError(
                f"{name} must be a float tensor (B, *shape) of 16 bits or more; got {value.dtype} "
                f"{tuple(value.shape)}"
            )
    assert isinstance(original_samples, Tensor)
    assert isinstance(noise, Tensor)
    own, other = original_samples.shape, noise.shape
    if own[1:] != other[1:] or (own[0] != other[0] and 1 not in (own[0], other[0])):
        raise ValueError(
            f"noise must have the shape of original_samples, {tuple(own)}; got {tuple(other)}"
        )
    if noise.device != original_samples.device:
        raise ValueError(
            f"noise must be on the device of original_samples, {original_samples.device}; got "
            f"{noise.device}"
        )
    try:
        given = torch.as_tensor(timesteps).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "timesteps must be a tensor (B,) of scheduler.timesteps; got "
            f"{type(timesteps).__name__}"
        ) from error
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"timesteps must be numbers of scheduler.timesteps; got {given.dtype}")
    batch = max(own[0], other[0])
    if len(given) not in (1, batch):
        raise ValueError(
            f"timesteps must be one, or one for each of the {batch} samples; got {len(given)}"
        )
    return given


def plan_of(table: object) -> Plan:
    """The plan that a table is or holds, if a scheduler can run it."""
    nothing = isinstance(table, str) and not table
    if nothing or not isinstance(table, (str, os.PathLike, Mapping, Plan)):
        raise ValueError(
            "table must be a fastdiff.Plan, the path of a file that Plan.save wrote, or its JSON "
            f"as a dict; got {repr(table) if nothing else type(table).__name__}"
        )
    if isinstance(table, Mapping):
        try:
            text = json.dumps(dict(table))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                "table must be a plan's JSON, a dict of numbers, strings, lists and None; got "
                f"{error}"
            ) from error
        plan = Plan.from_json(text)
    else:
        plan = table if isinstance(table, Plan) else Plan.load(os.fspath(table))
    if plan.guided:
        raise ValueError(
            "guided of the table must be false: a pipeline guides by itself, and hands step one "
            "output; got true. Make the plan without guidance"
        )
    if plan.rows.shape[1] != 1:
        raise ValueError(
            "rows of the table must have shape (N, 1, K), the same for every sample; got "
            f"{plan.rows.shape}"
        )
    return plan
