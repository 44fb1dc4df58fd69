"""The recursions of the schedulers with two calls a step in float64, as double_precision.py's.

Written as the papers' algorithms, a whole step at a time: both calls of the network, then both
results, the one in between first.
"""

import math
from typing import Any

from torch import Tensor

from . import double_precision as double


def _data(c: Any, x: Tensor, out: Tensor, now: float) -> Tensor:
    """The prediction of x_0 at level sigma / alpha = now, x = x_0 + now n."""
    if c.prediction_type == "epsilon":
        x0 = x - now * out
    elif c.prediction_type == "v_prediction":
        x0 = x / (now**2 + 1) - now / math.sqrt(now**2 + 1) * out
    else:
        x0 = out
    return x0.clamp(-c.clip_sample_range, c.clip_sample_range) if c.get("clip_sample") else x0


def heun(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """arXiv:2206.00364, algorithm 1; `begin` is where a whole step begins."""
    c, sh = s.config, s.sigmas.double().tolist()
    for i in range(begin, len(s.timesteps), 2):
        now, to = sh[i], sh[i + 1]
        x0 = _data(c, x, model(x, i), now)
        slope = (x - x0) / now
        ahead = x + (to - now) * slope
        yield ahead, x0
        if to > 0:
            x0 = _data(c, ahead, model(ahead, i + 1), to)
            x = x + (to - now) * (slope + (ahead - x0) / to) / 2
            yield x, x0


def kdpm2(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """arXiv:2206.00364, appendix C: the slope of the middle; ancestral as euler_ancestral.

    With the middle, sigma_down and sigma_up that the schedule holds, where they are numbers."""
    c, sh, ancestral = s.config, s.sigmas.double().tolist(), hasattr(s, "sigmas_up")

    def held(name: str, i: int, formula: float) -> float:
        value = float(getattr(s, name)[i])
        return value if value > 0 else formula

    for i in range(begin, len(s.timesteps), 2):
        now, to = sh[i], sh[i + 1]
        up, down = 0.0, to
        if ancestral:
            up = held("sigmas_up", i, to / now * double.root(now**2 - to**2))
            down = held("sigmas_down", i, to**2 / now)
        middle = held("sigmas_interpol", i + 1 - ancestral, math.sqrt(now * down))
        x0 = _data(c, x, model(x, i), now)
        ahead = x + (middle - now) * (x - x0) / now
        yield ahead, x0
        if to > 0:
            x0 = _data(c, ahead, model(ahead, i + 1), middle)
            x = x + (down - now) * (ahead - x0) / middle
            if ancestral:
                x = x + up * draw()
            yield x, x0


RECURSION = {
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2,
}
