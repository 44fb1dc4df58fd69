"""A plan run on a batch, and run again after a change: the rows before the change are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastdiff.ops.affine_step import affine_step
from fastdiff.plan import Plan, on_device
from fastdiff.tune.subject import Network


@dataclass
class Trace:
    """What a run saw: before row i the sample and the ring, at row i the network's output."""

    plan: Plan
    samples: list[Tensor] = field(default_factory=list)
    rings: list[list[Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    calls: int = 0

    @property
    def end(self) -> Tensor:
        return self.samples[-1]


@torch.no_grad()
def rollout(network: Network, noise: Tensor, plan: Plan, base: Trace | None = None) -> Trace:
    """The run of a plan without noise of its own or guidance; the end is that of fastdiff.sample.

    base  a run on the same noise with the same network: what comes before the first row that
          differs is taken from it, and so is the output of that row where the network is asked
          the same.
    """
    if plan.guided or plan.draw.any() or plan.rows.shape[1] != 1:
        raise ValueError(
            "plan must be one without guidance and without noise, the same for every sample; got "
            f"guided {plan.guided}, noise on {int(plan.draw.sum())} rows, {plan.rows.shape[1]} "
            "rows a step"
        )
    first, same = _shared(plan, base)
    trace = Trace(plan)
    if base is None or (first == 0 and not same):
        x, ring = noise * float(plan.noise_scale), [noise] * plan.history
    else:
        trace.samples, trace.rings = base.samples[:first], base.rings[:first]
        trace.outputs = base.outputs[:first]
        x, ring = base.samples[first], base.rings[first]
    table = on_device(plan, str(noise.device), noise.dtype)
    scales = (float(plan.c_in), *plan.rows[:, 0, -1 - plan.keeps].tolist())
    for i in range(first, plan.steps):
        trace.samples.append(x)
        trace.rings.append(ring)
        if base is not None and i == first and same:
            out = base.outputs[i]
        else:
            entry = x if scales[i] == 1 else x * scales[i]
            out = network(entry, torch.tensor(plan.timesteps[i], dtype=torch.float32))
            trace.calls += 1
        trace.outputs.append(out)
        x, _, kept = affine_step(x, out, table[i : i + 1], history=ring, keeps=plan.keeps)
        ring = list(ring)
        for slot, vector in zip(
            plan.rows[i, 0, len(table[i, 0]) - plan.keeps :], kept, strict=True
        ):
            if slot >= 0:
                ring[int(slot)] = vector
    trace.samples.append(x)
    return trace


def _shared(plan: Plan, base: Trace | None) -> tuple[int, bool]:
    """(first row that must be run, whether the network's output there is known)."""
    if base is None or (plan.depths, plan.steps) != (base.plan.depths, base.plan.steps):
        return 0, False
    if (plan.noise_scale, plan.c_in) != (base.plan.noise_scale, base.plan.c_in):
        return 0, False
    other = base.plan
    for i in range(plan.steps):
        if plan.timesteps[i] != other.timesteps[i]:
            # its sample is that of base, but not what the network is asked
            return i, False
        if not np.array_equal(plan.rows[i], other.rows[i]):
            return i, True
    return plan.steps - 1, True
