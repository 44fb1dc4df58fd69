"""A problem solved on paper: data from a one-dimensional Gaussian mixture.

    x_0 ~ sum_j w_j N(mu_j, sd_j^2),   x = alpha x_0 + sigma n ~ sum_j w_j N(alpha mu_j, v_j),
    v_j = alpha^2 sd_j^2 + sigma^2

Its perfect network is known, and so is the map of the probability flow: in one dimension the ODE
keeps the order of points, so it is the monotone rearrangement x' = F'^{-1}(F(x)) of one level's
distribution into another's.  The error of a solver then is a number, without a network and
without a reference run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdiff.plan import Plan
from fastdiff.predictions import perfect

Floats = NDArray[np.float64]
Level = tuple[float, float] | Floats  # (alpha, sigma)


@dataclass(frozen=True)
class Mixture:
    """Weights, means and standard deviations of the data, (J,); or (M, 1, J), M mixtures at once,
    for samples (M, n).
    """

    weights: Floats = field(default_factory=lambda: np.array([0.3, 0.5, 0.2]))
    means: Floats = field(default_factory=lambda: np.array([-1.2, 0.4, 1.5]))
    stds: Floats = field(default_factory=lambda: np.array([0.25, 0.35, 0.2]))

    def _by_component(self, ndim: int) -> tuple[Floats, Floats, Floats]:
        """weights, means, stds with the components first, to go with samples of ndim axes.

        A sum over a first axis is several times faster than one over a last axis of three.
        """
        first = [np.moveaxis(v, -1, 0) for v in (self.weights, self.means, self.stds)]
        w, m, s = (v.reshape(v.shape + (1,) * (ndim + 1 - v.ndim)) for v in first)
        return w, m, s

    def cdf(self, x: Any, alpha: float, sigma: float) -> Floats:
        """P(alpha x_0 + sigma n <= x)."""
        weights, means, stds = self._by_component(np.ndim(x))
        z = (x - alpha * means) / np.sqrt((alpha * stds) ** 2 + sigma**2)
        # as erfc, which keeps its digits in the lower tail
        below = torch.special.erfc(torch.from_numpy(-z / math.sqrt(2))).numpy() / 2
        return np.asarray((weights * below).sum(0))

    def posterior(self, x: Any, alpha: float, sigma: float) -> tuple[Floats, Floats]:
        """(E[x_0 | x], E[n | x]), n being -sigma times the score; also where alpha = 0."""
        weights, means, stds = self._by_component(np.ndim(x))
        spread = np.sqrt((alpha * stds) ** 2 + sigma**2)
        z = (x - alpha * means) / spread
        logs = np.log(weights / spread) - z * z / 2
        p = np.exp(logs - logs.max(0))
        p /= p.sum(0)
        data = (p * (means + alpha * stds**2 / spread * z)).sum(0)
        return np.asarray(data), np.asarray(sigma * (p * z / spread).sum(0))

    def noise(self, x: Any, alpha: float, sigma: float) -> Floats:
        """E[n | x]."""
        return self.posterior(x, alpha, sigma)[1]

    def output(self, prediction: str, x: Any, alpha: float, sigma: float) -> Floats:
        """What a perfect network returns for a sample x = alpha x_0 + sigma n.

        x, alpha, sigma of unit variance (alpha^2 + sigma^2 = 1) or of a flow (alpha + sigma = 1).
        """
        data, noise = perfect(prediction, alpha, sigma)
        x0, n = self.posterior(x, alpha, sigma)
        return np.asarray(data * x0 + noise * n)

    def flow(self, x: Floats, start: Level, end: Level) -> Floats:
        """The exact ODE map from level start = (alpha, sigma) to level end, x (n,)."""
        return self.quantile(self.cdf(x, *start), end)

    def quantile(self, wanted: Floats, level: Level) -> Floats:
        """The points of a level with these probabilities below them, (n,)."""
        low, high = np.full(wanted.shape, -20.0), np.full(wanted.shape, 20.0)
        for _ in range(70):  # 40 / 2^70: to the last bit
            middle = (low + high) / 2
            below = self.cdf(middle, *level) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2)

    def network(self, plan: Plan, prediction: str) -> Callable[..., Any]:
        """denoise(x, t) for a run of this plan, NumPy or torch in and out; one object, one run."""
        calls = iter(zip(plan.alpha[:-1], plan.sigma[:-1], strict=True))

        def denoise(x: Any, t: Any, *_: Any) -> Any:
            alpha, sigma = next(calls)
            if plan.c_in != 1:  # the sampler works on x / alpha, the network sees unit variance
                alpha, sigma = np.array([alpha, sigma]) / np.hypot(alpha, sigma)
            values = x if isinstance(x, np.ndarray) else x.detach().double().numpy()
            out = self.output(prediction, values, alpha, sigma)
            return out if isinstance(x, np.ndarray) else x.new_tensor(out)

        return denoise
