"""The recursions of flow matching in float64, as double_precision.py's.

x = (1 - s) x_0 + s n; the network returns v = n - x_0, the velocity dx/ds, arXiv:2210.02747.
"""

import math
from typing import Any

from torch import Tensor

from . import double_precision as double


def euler(
    s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0, **unused: float
):
    """Euler steps along dx/ds = v; with stochastic_sampling the prediction of x_0 gets fresh noise
    of the next level.  unused: numbers of step that have no effect in diffusers either."""
    levels, fresh = s.sigmas.double().tolist(), s.config.stochastic_sampling
    for i in range(begin, len(levels) - 1):
        now, then, v = levels[i], levels[i + 1], model(x, i)
        x0 = x - now * v
        x = (1 - then) * x0 + then * draw() if fresh else x + (then - now) * v
        yield x, x0


def lcm(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """To the prediction of x_0, then fresh noise of the next level."""
    levels = s.sigmas.double().tolist()
    for i in range(begin, len(levels) - 1):
        x0 = x - levels[i] * model(x, i)
        x = (1 - levels[i + 1]) * x0 + levels[i + 1] * draw()
        yield x, x0


def heun(
    s: Any,
    model: double.Model,
    x: Tensor,
    draw: double.Draw,
    *,
    begin: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
):
    """arXiv:2206.00364, algorithm 2, on a flow: churned x, Euler to the next level, then the mean
    of both slopes from where it began.  As in diffusers the network sees what is not yet churned,
    and noise that the second call does not use is drawn there, too."""
    levels = s.sigmas.double().tolist()
    begun: Any = None
    for i in range(begin, len(levels) - 1):
        now = levels[i - 1 if begun else i]
        churned = s_churn > 0 and s_tmin <= now <= s_tmax
        hat = now * (1 + (min(s_churn / (len(levels) - 1), math.sqrt(2) - 1) if churned else 0))
        v = model(x, i)
        noise = s_noise * math.sqrt(hat**2 - now**2) * draw() if churned else 0.0
        if begun is None:
            start, slope, step = x + noise, v * now / hat, levels[i + 1] - hat
            x, begun = start + step * slope, (start, slope, step)
        else:
            start, slope, step = begun
            x, begun = start + step * (slope + v) / 2, None
        yield x, None


RECURSION = {
    "FlowMatchEulerDiscreteScheduler": euler,
    "FlowMatchLCMScheduler": lcm,
    "FlowMatchHeunDiscreteScheduler": heun,
}
