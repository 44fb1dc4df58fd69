"""Spacings: where the steps of a run lie between the noisiest and the cleanest level.

Every function returns n noise levels "sigma", descending, without the final one: sigma / alpha for
variance preserving models, sigma itself for flow.  low and high are the cleanest and the noisiest
level that the model was trained at.

    karras       (high^{1/7} + u (low^{1/7} - high^{1/7}))^7, u = 0 .. 1; arXiv:2206.00364, eq. 5
    exponential  uniform in log sigma, that is in lambda (also "lu": arXiv:2206.00927, section 3.4)
    beta         quantiles of Beta(0.6, 0.6); arXiv:2407.12173
    linspace     model times 0 .. T - 1 in n equal parts, the last one (t = 0) left out
    leading      model times 0, r, 2r, .. with whole r = T // n
    trailing     model times T - 1, T - 1 - T/n, ..; arXiv:2305.08891, table 2
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastdiff.schedules.noise import NoiseSchedule

Floats = NDArray[np.float64]
RHO = 7.0
BETA_A = BETA_B = 0.6


def _karras(low: float, high: float, n: int) -> Floats:
    u = np.linspace(0, 1, n)
    return np.asarray((high ** (1 / RHO) + u * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO)


def _exponential(low: float, high: float, n: int) -> Floats:
    return np.exp(np.linspace(np.log(high), np.log(low), n))


def _beta(low: float, high: float, n: int) -> Floats:
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError("spacing 'beta' needs SciPy: pip install scipy") from error
    u = 1 - np.linspace(0, 1, n)
    return np.asarray(low + (high - low) * betaincinv(BETA_A, BETA_B, u))


def _linspace(train_steps: int, n: int) -> Floats:
    return np.linspace(0, train_steps - 1, n + 1)[:0:-1]


def _leading(train_steps: int, n: int) -> Floats:
    return (np.arange(n) * (train_steps // n))[::-1].astype(np.float64)


def _trailing(train_steps: int, n: int) -> Floats:
    return np.asarray(train_steps - 1 - np.arange(n) * (train_steps / n), dtype=np.float64)


BY_LEVEL: dict[str, Callable[[float, float, int], Floats]] = {
    "karras": _karras,
    "exponential": _exponential,
    "lu": _exponential,
    "beta": _beta,
}
BY_TIME: dict[str, Callable[[int, int], Floats]] = {
    "linspace": _linspace,
    "leading": _leading,
    "trailing": _trailing,
}
SPACINGS = (*BY_LEVEL, *BY_TIME)


def levels(noise: NoiseSchedule, spacing: str, n: int) -> Floats:
    """n descending noise levels of a named spacing, (n,)."""
    if spacing not in SPACINGS:
        raise ValueError(
            f"spacing must be one of {', '.join(SPACINGS)}, or an array of sigmas (float) or "
            f"timesteps (int); got {spacing!r}"
        )
    if noise.kind == "flow":
        low, high = 1.0 / noise.train_steps, 1.0 - 1.0 / noise.train_steps
        if spacing in BY_LEVEL:
            sigmas = _between(spacing, low, high, n)
        else:  # sigma is the time: all three are one ramp that stops short of 0
            sigmas = np.linspace(high, 0, n + 1)[:-1]
        return np.asarray(noise.shift * sigmas / (1 + (noise.shift - 1) * sigmas))
    if n > noise.train_steps and spacing in BY_TIME:
        raise ValueError(
            f"steps must be at most the {noise.train_steps} training steps for spacing "
            f"{spacing!r}; got {n}. Try spacing='karras'"
        )
    if spacing in BY_LEVEL:
        ratios = noise.ratios
        return _between(spacing, float(ratios[0]), float(ratios[-1]), n)
    return noise.ratio_at(BY_TIME[spacing](noise.train_steps, n))


def _between(spacing: str, low: float, high: float, n: int) -> Floats:
    """The ends without rounding: a last level equal to a final sigma_min is then no step at all."""
    sigmas = BY_LEVEL[spacing](low, high, n)
    sigmas[0] = high
    if n > 1:
        sigmas[-1] = low
    return sigmas
