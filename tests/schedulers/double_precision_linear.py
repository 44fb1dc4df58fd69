"""The recursions of the linear multistep schedulers in float64, as double_precision.py's.

x' = x + int_sh^sh' P(u) du      P through the last slopes (x - x_0) / sh, over their levels
x' / a' = X / a + (sh' - sh) n     of PNDM, n a mean of slopes with the weights of equal steps
"""

import math
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


ADAMS = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}  # to be divided by their sum


def pndm(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0, stride=True):
    """arXiv:2202.09778, with raw outputs in the place of noises, as in diffusers.  stride: from t a
    step goes to t - T // n, and the second call of a run is always that of the first step again;
    else to the next timestep, and a run that begins later has no such call."""
    c, abar, steps = s.config, s.alphas_cumprod.double().tolist(), s.num_inference_steps
    far, times = c.num_train_timesteps // steps, [*s.timesteps.tolist(), -1]
    first = [] if c.skip_prk_steps else [int(t) for t in s.prk_timesteps]
    outs: list[Tensor] = []

    def move(x: Tensor, out: Tensor, t: int, then: int) -> Tensor:
        p, q = abar[t], abar[then] if then >= 0 else float(s.final_alpha_cumprod)
        a, b = math.sqrt(p), math.sqrt(1 - p)
        n = a * out + b * x if c.prediction_type == "v_prediction" else out
        return math.sqrt(q) * (x / a + (math.sqrt((1 - q) / q) - b / a) * n)

    for call, i in enumerate(range(begin, len(s.timesteps))):
        t, out = times[i], model(x, i)
        part = call % 4
        if call < len(first):
            if part == 0:
                start, slopes, outs = x, [], [*outs, out]
            slopes.append(out)
            ahead = t - far // 2 if stride else times[i + 1]
            if part == 3:
                out = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
            x = move(start, out, first[call - part], t if part % 2 else ahead)
        elif call == 1 and (stride or begin == 0):
            x = move(start, (out + outs[0]) / 2, t + far if stride else times[0], t)
        else:
            start, outs = x, [*outs[-3:], out]
            weights = ADAMS[len(outs)]
            mean = sum(w * o for w, o in zip(weights, outs[::-1], strict=True)) / sum(weights)
            x = move(x, mean, t, t - far if stride else times[i + 1])
        yield x, None


RECURSION = {"LMSDiscreteScheduler": lms, "PNDMScheduler": pndm}
