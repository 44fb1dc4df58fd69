"""DPM-Solver++ 2M and UniPC-2 on the levels of a flow, by hand: float64, textbook form, no table.

A FlowMatchEulerDiscreteScheduler whose grid, and what it tells the network, is diffusers' own, and
whose step is not Euler's.  With lambda = log((1 - s) / s), h = lambda' - lambda and m the
prediction of x_0, m_1 the one before, h_1 the step before:

    x' = (s'/s) x - (1 - s') expm1(-h) (m + (h / h_1) (m - m_1) / 2)          arXiv:2211.01095

At s = 1, lambda = -inf: exp(-h) = 0 and h / h_1 = 0 are the limits, and NumPy's.
UniPC-2 (bh2, arXiv:2302.04867) takes the same as its predictor; where the step began, x_1, is
corrected with the m found at its end.
"""

from inspect import signature
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput

FEW = 15  # below so many steps the last one is of first order


def lam(s: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log1p(-np.float64(s)) - np.log(np.float64(s)))


class ByHand(FlowMatchEulerDiscreteScheduler):
    solver = "dpmpp"  # or "unipc"

    def set_timesteps(
        self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if self.solver == "unipc":  # as diffusers' UniPC: not quite 1, and whole timesteps
            self.sigmas[0] = min(float(self.sigmas[0]), float(np.float32(1 - 1e-6)))
            times = self.sigmas[:-1].double() * 1000
            self.timesteps = (times + 2e-4).floor()  # 749.99996 is 750 before rounding to float32
        self.past: list[Any] = []  # (level, prediction of x_0) of the steps before
        self.start: Any = None  # where the last step began, corrected

    def step(self, model_output, timestep, sample, return_dict=True, **_):
        if self.step_index is None:
            self._init_step_index(timestep)
        i, levels = self.step_index, self.sigmas.double().tolist()
        s, s1 = levels[i], levels[i + 1]
        x = sample.double()
        m = x - s * model_output.double()
        if self.solver == "unipc" and self.start is not None:
            x = self.corrected(levels, i, m)
        low = s1 == 0 or (i == len(levels) - 2 and len(levels) - 1 < FEW)
        order = 1 if low or not self.past else 2
        made = predicted(s, s1, x, m, self.past[-1] if order == 2 else None)
        self.start, self.order_done = x, order
        self.past = [*self.past, (s, m)][-2:]
        self._step_index += 1
        return (made.to(sample.dtype),)

    def corrected(self, levels: list[float], i: int, m: torch.Tensor) -> torch.Tensor:
        """x_c = (s/s_1) x_1 - (1 - s) expm1(-h) (m_1 + sum rho D), D = m - m_1, and of order 2 also
        (m_2 - m_1) / r."""
        s_1, s = levels[i - 1], levels[i]
        h = lam(s) - lam(s_1)
        (_, m_1), gain = self.past[-1], -(1 - s) * np.expm1(-h)
        places, slopes = [1.0], [m - m_1]
        if self.order_done == 2:
            s_2, m_2 = self.past[-2]
            r = (lam(s_2) - lam(s_1)) / h
            if np.isfinite(r):  # from no signal there is no slope
                places, slopes = [r, 1.0], [(m_2 - m_1) / r, m - m_1]
        if self.order_done == 1:
            rho = [0.5]
        else:
            b, phi, factorial = [], np.expm1(-h) / -h - 1, 1.0
            for k in range(1, len(places) + 1):
                b.append(phi * factorial / np.expm1(-h))
                factorial *= k + 1
                phi = phi / -h - 1 / factorial
            rho = np.linalg.solve(np.vander(places, increasing=True).T, b).tolist()
        total = sum(w * d for w, d in zip(rho, slopes, strict=True))
        return s / s_1 * self.start + gain * (m_1 + total)


def predicted(s: float, s1: float, x: Any, m: Any, before: Any) -> Any:
    """x' above; before: (s_1, m_1), or None for first order."""
    h = np.inf if s1 == 0 else lam(s1) - lam(s)
    slope = 0.0
    if before is not None:
        slope = (m - before[1]) * (h / (lam(s) - lam(before[0]))) / 2
    return s1 / s * x - (1 - s1) * np.expm1(-h) * (m + slope)


def wide(cls: Any) -> Any:
    """diffusers' class, its levels and its step in float64: what it loses in float32 is the
    difference."""

    class Wide(cls):  # type: ignore[misc]
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas = self.sigmas.double()

        def step(self, model_output, timestep, sample, return_dict=True, **more):
            out, x = model_output.double(), sample.double()
            done = super().step(out, timestep, x, return_dict=False, **more)
            prev = done[0].to(sample.dtype)
            return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)

        step.__signature__ = signature(cls.step)  # pipelines look for a generator there

    return Wide


__all__ = ["ByHand", "wide"]
