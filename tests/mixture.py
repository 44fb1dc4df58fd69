"""A problem solved on paper: data from a one-dimensional Gaussian mixture.

    x_0 ~ sum_j w_j N(mu_j, sd_j^2),   x = alpha x_0 + sigma n ~ sum_j w_j N(alpha mu_j, v_j),
    v_j = alpha^2 sd_j^2 + sigma^2

Its perfect network is known, and so is the map of the probability flow: in one dimension the ODE
keeps the order of points, so it is the monotone rearrangement x' = F'^{-1}(F(x)) of one level's
distribution into another's.  The error of a solver then is a number, without a network and
without a reference run.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from fastdiff.predictions import perfect


@dataclass(frozen=True)
class Mixture:
    """Weights, means and standard deviations of the data, (J,)."""

    weights: np.ndarray = field(default_factory=lambda: np.array([0.3, 0.5, 0.2]))
    means: np.ndarray = field(default_factory=lambda: np.array([-1.2, 0.4, 1.5]))
    stds: np.ndarray = field(default_factory=lambda: np.array([0.25, 0.35, 0.2]))

    def _standard(self, x, alpha, sigma):
        """(x - mean) / std of every component, (*x.shape, J), and the stds, (J,)."""
        spread = np.sqrt((alpha * self.stds) ** 2 + sigma**2)
        return (np.asarray(x)[..., None] - alpha * self.means) / spread, spread

    def cdf(self, x, alpha, sigma):
        """P(alpha x_0 + sigma n <= x)."""
        z, _ = self._standard(x, alpha, sigma)
        return (self.weights * ndtr(z)).sum(-1)

    def noise(self, x, alpha, sigma):
        """E[n | x] = -sigma times the score."""
        z, spread = self._standard(x, alpha, sigma)
        logs = np.log(self.weights / spread) - z * z / 2
        p = np.exp(logs - logs.max(-1, keepdims=True))
        return sigma * (p / p.sum(-1, keepdims=True) * z / spread).sum(-1)

    def output(self, prediction, x, alpha, sigma):
        """What a perfect network returns for a sample x = alpha x_0 + sigma n.

        x, alpha, sigma of unit variance (alpha^2 + sigma^2 = 1) or of a flow (alpha + sigma = 1).
        """
        n = self.noise(x, alpha, sigma)
        data, noise = perfect(prediction, alpha, sigma)
        return data * (x - sigma * n) / alpha + noise * n if data else noise * n

    def flow(self, x, start, end):
        """The exact ODE map from level start = (alpha, sigma) to level end, x (n,)."""
        wanted = self.cdf(x, *start)
        low, high = np.full(x.shape, -20.0), np.full(x.shape, 20.0)
        for _ in range(70):  # 40 / 2^70: to the last bit
            middle = (low + high) / 2
            below = self.cdf(middle, *end) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def network(self, plan, prediction):
        """denoise(x, t) for a run of this plan, NumPy or torch in and out; one object, one run."""
        calls = iter(zip(plan.alpha[:-1], plan.sigma[:-1], strict=True))

        def denoise(x, t, *_):
            alpha, sigma = next(calls)
            if plan.c_in != 1:  # the sampler works on x / alpha, the network sees unit variance
                alpha, sigma = np.array([alpha, sigma]) / np.hypot(alpha, sigma)
            values = x if isinstance(x, np.ndarray) else x.detach().double().numpy()
            out = self.output(prediction, values, alpha, sigma)
            return out if isinstance(x, np.ndarray) else x.new_tensor(out)

        return denoise
