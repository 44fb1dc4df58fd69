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


RECURSION = {"HeunDiscreteScheduler": heun}
