"""The recursions of the linear multistep schedulers in float64, as double_precision.py's.

x' = x + int_sh^sh' P(u) du      P through the last slopes (x - x_0) / sh, over their levels
"""

from typing import Any

import numpy as np
from torch import Tensor

from . import double_precision as double
from .double_precision_two_calls import _data

NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)  # exact up to degree 15


def lms(
    s: Any,
    model: double.Model,
    x: Tensor,
    draw: double.Draw,
    *,
    begin: int = 0,
    order: int = 4,
    short: bool = False,
):
    """k-diffusion's linear multistep.  short: a run that begins in the middle begins with order 1;
    diffusers takes the weights of the whole order, of which the first belong to slopes it has."""
    sh, past = s.sigmas.double().tolist(), []
    for i in range(begin, len(s.timesteps)):
        now, to = sh[i], sh[i + 1]
        x0 = _data(s.config, x, model(x, i), now)
        past = [(x - x0) / now, *past][:order]
        places = [sh[i - j] for j in range(min(order, len(past) if short else i + 1))]
        points = (now + to) / 2 + (to - now) / 2 * NODES
        for j, slope in enumerate(past[: len(places)]):
            others = places[:j] + places[j + 1 :]
            basis = np.prod([(points - p) / (places[j] - p) for p in others], axis=0)
            x = x + (to - now) / 2 * float(np.sum(WEIGHTS * basis)) * slope
        yield x, x0


RECURSION = {"LMSDiscreteScheduler": lms}
