"""Model families: what noise level a network's time stands for.

    x_t = alpha(t) x_0 + sigma(t) n
    vp    alpha^2 = alphas_cumprod[t] = prod(1 - beta), sigma^2 = 1 - alpha^2     t = 0 .. T - 1
    flow  alpha = 1 - sigma, sigma = t / T                                        t = 0 .. T

Between the T training levels of a variance preserving model, log(sigma / alpha) is interpolated
linearly in t.  Ho et al. 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal 2021, arXiv:2102.09672
(squaredcos_cap_v2); Lin et al. 2023, arXiv:2305.08891 (rescale_betas_zero_snr).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# beta_start, beta_end: "linear" as DDPM was trained, "scaled_linear" as Stable Diffusion was
DEFAULT_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
ZERO_SNR_FLOOR = 2.0**-24  # in place of alphas_cumprod = 0, so that sigma / alpha stays finite


def betas(
    schedule: str,
    steps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> Floats:
    """The T = steps training betas, (T,)."""
    if schedule == "squaredcos_cap_v2":
        t = np.arange(steps + 1) / steps
        bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.minimum(1 - bar[1:] / bar[:-1], 0.999))
    if schedule not in DEFAULT_BETAS:
        raise ValueError(
            f"noise schedule must be one of {', '.join(BETA_SCHEDULES)}, flow; got {schedule!r}"
        )
    low, high = DEFAULT_BETAS[schedule]
    low = low if beta_start is None else beta_start
    high = high if beta_end is None else beta_end
    if schedule == "linear":
        return np.linspace(low, high, steps)
    return np.asarray(np.linspace(math.sqrt(low), math.sqrt(high), steps) ** 2)


def rescale_zero_terminal_snr(values: ArrayLike) -> Floats:
    """Betas whose last level has no signal, the first one unchanged (arXiv:2305.08891, alg. 1)."""
    bar = np.sqrt(np.cumprod(1 - np.asarray(values, dtype=np.float64)))
    first, last = bar[0], bar[-1]
    bar = (bar - last) * first / (first - last)
    squares = bar**2
    return 1 - np.concatenate([squares[:1], squares[1:] / squares[:-1]])


@dataclass(frozen=True)
class NoiseSchedule:
    """A model family.  Make one with `vp`, `from_betas` or `flow`; a name is enough for `plan`.

    kind            "vp" or "flow"
    train_steps     T
    alphas_cumprod  (T,) float64 for "vp", empty for "flow"
    shift           flow only: sigma -> shift sigma / (1 + (shift - 1) sigma)
    origin          how it was made, for the plan's JSON
    """

    kind: str
    train_steps: int
    alphas_cumprod: Floats = field(default_factory=lambda: np.empty(0))
    shift: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def vp(
        schedule: str = "scaled_linear",
        train_steps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        rescale_betas_zero_snr: bool = False,
    ) -> NoiseSchedule:
        """A named variance preserving schedule."""
        made = NoiseSchedule.from_betas(
            betas(schedule, train_steps, beta_start, beta_end), rescale_betas_zero_snr
        )
        origin = {
            "schedule": schedule,
            "train_steps": train_steps,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
        }
        return NoiseSchedule("vp", train_steps, made.alphas_cumprod, 1.0, origin)

    @staticmethod
    def from_betas(trained_betas: ArrayLike, rescale_betas_zero_snr: bool = False) -> NoiseSchedule:
        """A variance preserving schedule from the betas a model was trained with, (T,)."""
        values = np.asarray(trained_betas, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2 or not ((values > 0) & (values < 1)).all():
            raise ValueError(
                "trained_betas must be one-dimensional, at least two numbers in (0, 1); got shape "
                f"{values.shape} in [{values.min(initial=1)}, {values.max(initial=0)}]"
            )
        if rescale_betas_zero_snr:
            values = rescale_zero_terminal_snr(values)
        cumulative = np.asarray(np.cumprod(1 - values), dtype=np.float64)
        if rescale_betas_zero_snr:
            cumulative[-1] = ZERO_SNR_FLOOR
        origin = {"schedule": "trained_betas", "rescale_betas_zero_snr": rescale_betas_zero_snr}
        return NoiseSchedule("vp", len(values), cumulative, 1.0, origin)

    @staticmethod
    def flow(shift: float = 1.0, train_steps: int = 1000) -> NoiseSchedule:
        """Rectified flow: x = (1 - sigma) x_0 + sigma n."""
        if not shift > 0:
            raise ValueError(f"shift must be above 0 (1 leaves the grid as it is); got {shift}")
        origin = {"schedule": "flow", "shift": shift, "train_steps": train_steps}
        return NoiseSchedule("flow", train_steps, np.empty(0), shift, origin)

    @staticmethod
    def named(name: str) -> NoiseSchedule:
        """The schedule that a name stands for: a beta schedule's, or "flow"."""
        return NoiseSchedule.flow() if name == "flow" else NoiseSchedule.vp(name)

    @property
    def ratios(self) -> Floats:
        """sigma / alpha of the training levels, (T,), from clean to noisy; vp only."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def time_of(self, ratio: ArrayLike) -> Floats:
        """Model time of noise levels given as sigmas: sigma / alpha for vp, sigma for flow.

        Levels outside the trained ones get the nearest trained time.
        """
        wanted = np.asarray(ratio, dtype=np.float64)
        if self.kind == "flow":
            return wanted * self.train_steps
        known = np.log(self.ratios)
        times = np.arange(self.train_steps, dtype=np.float64)
        return np.interp(np.log(np.maximum(wanted, 1e-10)), known, times)

    def ratio_at(self, time: ArrayLike) -> Floats:
        """Sigmas of model times: the inverse of time_of."""
        wanted = np.asarray(time, dtype=np.float64)
        if self.kind == "flow":
            return wanted / self.train_steps
        times = np.arange(self.train_steps, dtype=np.float64)
        return np.exp(np.interp(wanted, times, np.log(self.ratios)))

    def alpha_sigma(self, ratio: ArrayLike) -> tuple[Floats, Floats]:
        """(alpha, sigma) of sigmas; a sigma of 0 gives (1, 0)."""
        values = np.asarray(ratio, dtype=np.float64)
        if self.kind == "flow":
            return 1 - values, values.copy()
        alpha = 1 / np.sqrt(1 + values**2)
        return alpha, values * alpha
