"""The recursions of the consistency samplers in float64, as double_precision.py's."""

import math
from typing import Any

from torch import Tensor

from . import double_precision as double


def lcm(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """Multistep latent consistency sampling, arXiv:2310.04378, algorithm 4, with the boundary
    condition of its equation 4: yields the sample and what is denoised."""
    c, abar, times = s.config, s.alphas_cumprod.double().tolist(), s.timesteps.tolist()
    for i in range(begin, len(times)):
        t, then = times[i], times[i + 1] if i + 1 < len(times) else times[i]
        p, p1 = abar[t], abar[then] if then >= 0 else float(s.final_alpha_cumprod)
        x0, _ = double._x0_and_noise(
            c.prediction_type, x, model(x, i), math.sqrt(p), math.sqrt(1 - p)
        )
        scaled = t * c.timestep_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        denoised = skip * x + out * double._limit(x0, c)
        x = denoised
        if i < len(times) - 1:
            x = math.sqrt(p1) * denoised + double.root(1 - p1) * draw()
        yield x, denoised


def tcd(
    s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0, eta: float = 0.3
):
    """Trajectory consistency sampling, arXiv:2402.19159, algorithm 4: along the trajectory to s,
    then noise up to the next level: yields the sample and that at s."""
    abar, times = s.alphas_cumprod.double().tolist(), s.timesteps.tolist()
    for i in range(begin, len(times)):
        t, then = times[i], times[i + 1] if i + 1 < len(times) else 0
        p, p1, between = abar[t], abar[then], abar[math.floor((1 - eta) * then + 1e-4)]
        x0, noise = double._x0_and_noise(
            s.config.prediction_type, x, model(x, i), math.sqrt(p), math.sqrt(1 - p)
        )
        noised = math.sqrt(between) * x0 + math.sqrt(1 - between) * noise
        x = noised
        if eta > 0 and i < len(times) - 1:
            x = math.sqrt(p1 / between) * noised + double.root(1 - p1 / between) * draw()
        yield x, noised


RECURSION = {"LCMScheduler": lcm, "TCDScheduler": tcd}
