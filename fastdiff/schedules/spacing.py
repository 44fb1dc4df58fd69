"""Spacings: where the steps of a run lie between the noisiest and the cleanest level.

Every function returns n noise levels "sigma", descending, without the final one: sigma / alpha for
variance preserving models, sigma itself for flow.  low and high are the cleanest and the noisiest
level that the model was trained at.

    karras       (high^{1/7} + u (low^{1/7} - high^{1/7}))^7, u = 0 .. 1; arXiv:2206.00364, eq. 5
    exponential  uniform in log sigma, that is in lambda (also "lu": arXiv:2206.00927, section 3.4)
    beta         quantiles of Beta(0.6, 0.6); arXiv:2407.12173
    linspace     model times 0 .. T - 1 in n equal parts, the last one (t = 0) left out
    leading      model times 0, r, 2r, .. with whole r = T // n, as DDIM, DDPM, Euler, Heun, .. of
                 diffusers have it; r, 2r, .. with r = T // (n + 1), no call at time 0, as its
                 DPM-Solver, UniPC and DEIS classes have it, and so a plan of theirs
    trailing     model times T - 1, T - 1 - T/n, ..; arXiv:2305.08891, table 2
    ays_sd, ays_sdxl, ays_svd
                 ten levels that were optimised for Stable Diffusion 1.5, SDXL and Stable Video
                 Diffusion, Sabour et al. 2024, arXiv:2404.14507 (the numbers are AysSchedules of
                 diffusers and the authors' last level before 0); any other n as the authors have
                 it: linear in log sigma over the table's place
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


def _leading_above_zero(train_steps: int, n: int) -> Floats:
    return (np.arange(1, n + 1) * (train_steps // (n + 1)))[::-1].astype(np.float64)


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
AYS: dict[str, tuple[float, ...]] = {  # the last number is where a run of ten steps leaves for 0
    "ays_sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
# A table begins at the noisiest trained level (rounded to three decimals), or is for another model:
# one that was trained far beyond it starts from more noise.
BEYOND, BELOW = 1.001, 1.1
SPACINGS = (*BY_LEVEL, *BY_TIME, *AYS)


def ays(spacing: str, n: int) -> Floats:
    """n descending levels of a table of AYS, (n,)."""
    table = np.array(AYS[spacing])
    place, wanted = np.linspace(0, 1, len(table)), np.linspace(0, 1, n + 1)
    sigmas = np.exp(np.interp(wanted, place, np.log(table)))
    if n == len(table) - 1:
        sigmas = table  # to the last digit
    sigmas[0] = table[0]
    return np.asarray(sigmas[:-1])


def levels(noise: NoiseSchedule, spacing: str, n: int, *, at_zero: bool = True) -> Floats:
    """n descending noise levels of a named spacing, (n,).  at_zero: leading has a call at t = 0."""
    if spacing not in SPACINGS:
        raise ValueError(
            f"spacing must be one of {', '.join(SPACINGS)}, or an array of sigmas (float) or "
            f"timesteps (int); got {spacing!r}"
        )
    if spacing in AYS:
        return _optimised(noise, spacing, n)
    if noise.kind == "flow":
        low, high = 1.0 / noise.train_steps, 1.0 - 1.0 / noise.train_steps
        if spacing in BY_LEVEL:
            sigmas = _between(spacing, low, high, n)
        else:  # sigma is the time: all three are one ramp that stops short of 0
            sigmas = np.linspace(high, 0, n + 1)[:-1]
        return np.asarray(noise.shift * sigmas / (1 + (noise.shift - 1) * sigmas))
    above = spacing == "leading" and not at_zero
    if n > noise.train_steps - above and spacing in BY_TIME:
        less = " less 1, for this solver has no call at time 0," if above else ""
        raise ValueError(
            f"steps must be at most the {noise.train_steps} training steps{less} for spacing "
            f"{spacing!r}; got {n}. Try spacing='karras'"
        )
    if spacing in BY_LEVEL:
        ratios = noise.ratios
        return _between(spacing, float(ratios[0]), float(ratios[-1]), n)
    times = _leading_above_zero if above else BY_TIME[spacing]
    return noise.ratio_at(times(noise.train_steps, n))


def _optimised(noise: NoiseSchedule, spacing: str, n: int) -> Floats:
    """Levels of a table of AYS, for models that it can be for."""
    if noise.kind == "flow":
        raise ValueError(
            f"spacing must be none of {', '.join(AYS)} for a flow, for they were optimised for "
            f"models that are none; got {spacing!r}. Try spacing='karras'"
        )
    top, trained = AYS[spacing][0], float(noise.ratios[-1])
    if not trained / BELOW <= top <= BEYOND * trained:
        raise ValueError(
            f"spacing {spacing!r} begins at sigma = {top:g}, but this noise schedule was trained "
            f"up to {trained:.4g}; it is for another model. ays_sd and ays_sdxl go with "
            "'scaled_linear', ays_svd with levels up to 700"
        )
    return ays(spacing, n)


def _between(spacing: str, low: float, high: float, n: int) -> Floats:
    """The ends without rounding: a last level equal to a final sigma_min is then no step at all."""
    sigmas = BY_LEVEL[spacing](low, high, n)
    sigmas[0] = high
    if n > 1:
        sigmas[-1] = low
    return sigmas
