"""The recursions of flow matching in float64, as double_precision.py's.

x = (1 - s) x_0 + s n; the network returns v = n - x_0, the velocity dx/ds, arXiv:2210.02747.
"""

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


RECURSION = {"FlowMatchEulerDiscreteScheduler": euler, "FlowMatchLCMScheduler": lcm}
