"""The types every solver shares: a grid of noise levels, and one row of a table.

A solver is one pure float64 function

    row(grid, i, k, **options) -> Row

that says how the sample moves from grid point i to i + 1, x_i = alpha_i x_0 + sigma_i n, when k
rows were already done in this run (k = 0 is a cold start; a solver caps it).  It writes weights for

    x   the sample at grid point i
    d   the prediction of x_0 made there (clipped where the configuration clips)
    n   the prediction of the noise made there (from the raw output)
    z   fresh unit normal noise
    h   vectors kept by earlier rows, by age: all ages of the first kept vector, then of the second

and nothing else: no tensors, no state, no names of predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Noise levels from noisy to clean, x_i = alpha_i x_0 + sigma_i n; alpha, sigma (N + 1,).

    alpha is 1 throughout for solvers that work on x / alpha ("variance exploding").
    inner: (N + 1,) sigma / alpha of the levels that a solver looks at beside the grid, if any.
    """

    alpha: Floats
    sigma: Floats
    inner: Floats | None = None

    def __post_init__(self) -> None:
        if self.alpha.shape != self.sigma.shape or self.alpha.ndim != 1 or len(self.alpha) < 2:
            raise ValueError(
                "alpha and sigma must be one-dimensional and of one length >= 2 (steps + 1 noise "
                f"levels); got {self.alpha.shape} and {self.sigma.shape}"
            )

    @property
    def steps(self) -> int:
        return len(self.alpha) - 1

    def ratio(self, i: int) -> float:
        """sigma_i / alpha_i, the noise level in units of the data."""
        a, s = self._level(i)
        return s / a if a > 0 else math.inf

    def lam(self, i: int) -> float:
        """lambda_i = log(alpha_i / sigma_i); inf where the noise is gone, -inf without signal."""
        a, s = self._level(i)
        if s == 0:
            return math.inf
        return math.log(a) - math.log(s) if a > 0 else -math.inf

    def span(self, i: int, j: int) -> float:
        """lambda_j - lambda_i to a few ulps however close the levels are.

        lam(j) - lam(i) has the rounding error of two logarithms: at a difference of 1e-6 nine
        digits are left.  exp(h) - 1 = (a_j s_i - a_i s_j) / (a_i s_j), numerator without rounding.
        """
        (a, s), (b, t) = self._level(i), self._level(j)
        if a == b and s == t:
            return 0.0
        if a == 0 or t == 0:
            return math.inf
        if b == 0 or s == 0:
            return -math.inf
        if b * s < a * t:
            return -self.span(j, i)
        return math.log1p(self.cross(i, j) / (a * t))

    def cross(self, i: int, j: int) -> float:
        """alpha_j sigma_i - alpha_i sigma_j, rounded once: alpha_i alpha_j (ratio_i - ratio_j)."""
        (a, s), (b, t) = self._level(i), self._level(j)
        first = [p * q for p in _halves(b) for q in _halves(s)]
        return math.fsum(first + [-p * q for p in _halves(a) for q in _halves(t)])

    def _level(self, i: int) -> tuple[float, float]:
        return float(self.alpha[i]), float(self.sigma[i])


def _halves(v: float) -> tuple[float, float]:
    """v as a sum of two numbers of at most 26 bits, whose products are exact (Veltkamp)."""
    shifted = v * (2.0**27 + 1)
    high = shifted - (shifted - v)
    return high, v - high


@dataclass(frozen=True)
class Weights:
    """One linear combination of x, d, n, z and the kept vectors h."""

    x: float = 0.0
    d: float = 0.0
    n: float = 0.0
    z: float = 0.0
    h: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """How one call of the network moves the sample, and what is kept for later rows.

    churn = (nu, sigma_hat): the sample was moved to noise level sigma_hat by adding nu * z to it
    *after* the network saw it (Karras et al. 2022, algorithm 2, as deployed); x then is x + nu z.
    """

    next: Weights
    keep: tuple[Weights, ...] = ()
    churn: tuple[float, float] | None = None


DATA = Weights(d=1.0)  # keep the prediction of x_0
NOISE = Weights(n=1.0)  # keep the prediction of the noise
