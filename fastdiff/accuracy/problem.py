"""The problem that every contestant gets: one start, one network, one exact answer.

    network  out(x, t), perfect for the level of time t, whatever the solver believes its level is
    start    unit normal noise z at the noisiest level: x = z (flow, sigma = 1), or z with
             alpha^2 + sigma^2 = 1 at the noisiest trained level
    answer   the exact probability flow from there to the data, F_0^{-1}(F_T(z))

Deterministic solvers start from quantiles of the normal distribution and are judged by the RMS
distance to the answer; solvers that draw noise start from random z and are judged by the distance
W1 = mean |x_(i) - q_i| between their sorted results and the quantiles of the data.  A grid that
starts elsewhere, or stops before the data, pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.accuracy.mixture import Mixture
from fastdiff.schedules import NoiseSchedule

Floats = NDArray[np.float64]
FAMILIES = {"vp": ("scaled_linear", "epsilon"), "flow": ("flow", "flow_prediction")}
# weights, means, standard deviations; both of mean near 0 and variance near 1
MIXTURES: dict[str, tuple[list[float], list[float], list[float]]] = {
    "broad": ([0.3, 0.5, 0.2], [-1.2, 0.4, 1.5], [0.25, 0.35, 0.2]),
    "narrow": ([0.25, 0.45, 0.3], [-1.4, 0.1, 1.25], [0.15, 0.1, 0.12]),
}
POINTS, SAMPLES, SEED, FLOORS = 512, 8192, 0, 16


@dataclass(frozen=True)
class Problem:
    """One model family with all mixtures at once, (M, n).

    points   quantiles that a deterministic solver starts from
    samples  random starts of a solver that draws noise
    seed     of those starts and of the solver's noise
    """

    family: str
    points: int = POINTS
    samples: int = SAMPLES
    seed: int = SEED

    @cached_property
    def data(self) -> Mixture:
        """All mixtures, arrays (M, 1, J)."""
        return Mixture(*np.array(list(MIXTURES.values())).transpose(1, 0, 2)[:, :, None, :])

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """What noise level a time stands for; a shift of the flow moves steps, not levels."""
        return NoiseSchedule.named(FAMILIES[self.family][0])

    @property
    def prediction(self) -> str:
        return FAMILIES[self.family][1]

    def level(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at a model time."""
        alpha, sigma = self.schedule.alpha_sigma(self.schedule.ratio_at(t))
        return float(alpha), float(sigma)

    @cached_property
    def top(self) -> tuple[float, float]:
        """(alpha, sigma) of the start."""
        return self.level(self.schedule.train_steps - (self.schedule.kind == "vp"))

    def network(self, seen: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
        """out(x, t), x (M, n) of unit variance or of the flow; notes the times it was called at."""

        def call(x: Tensor, t: Tensor) -> Tensor:
            seen.append(float(t))
            values = x.detach().double().numpy()
            return torch.from_numpy(
                self.data.output(self.prediction, values, *self.level(seen[-1]))
            )

        return call

    def start(self, noise: bool) -> Tensor:
        """z, (M, n) float64; the same for every mixture."""
        if noise:
            g = torch.Generator().manual_seed(self.seed)
            z = torch.randn(self.samples, generator=g, dtype=torch.float64)
        else:
            z = torch.special.ndtri(_middles(self.points))
        return z.repeat(len(MIXTURES), 1)

    @cached_property
    def answer(self) -> Floats:
        """The exact data of the quantile start, (M, points)."""
        return self.data.flow(self.start(False).numpy(), self.top, (1.0, 0.0))

    @cached_property
    def quantiles(self) -> Floats:
        """Quantiles of the data at (i + 1/2) / samples, (M, samples)."""
        u = _middles(self.samples).repeat(len(MIXTURES), 1).numpy()
        return self.data.quantile(u, (1.0, 0.0))

    def errors(self, got: Tensor, noise: bool) -> dict[str, float]:
        """RMS, or W1 of a solver that draws noise, for every mixture."""
        x = got.double().numpy()
        if noise:
            found = np.abs(np.sort(x, axis=-1) - self.quantiles).mean(-1)
        else:
            found = np.sqrt(((x - self.answer) ** 2).mean(-1))
        return dict(zip(MIXTURES, map(float, found), strict=True))

    def floors(self) -> dict[str, float]:
        """W1 of exact samples, as many, against the same quantiles: the mean of some draws."""
        g = np.random.default_rng(self.seed)
        size, found = (len(MIXTURES), self.samples), []
        for _ in range(FLOORS):
            exact = self.data.quantile(g.uniform(size=size), (1.0, 0.0))
            found.append(list(self.errors(torch.from_numpy(exact), True).values()))
        return dict(zip(MIXTURES, np.mean(found, axis=0).tolist(), strict=True))


def _middles(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n
