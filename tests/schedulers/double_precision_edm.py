"""The recursions of the EDM schedulers in float64, as double_precision.py; x = x_0 + sigma n."""

import math
from typing import Any

from torch import Tensor

from . import double_precision as double
from .double_precision_exponential import interpolated


def denoised(c: Any, x: Tensor, out: Tensor, sigma: float) -> Tensor:
    """arXiv:2206.00364, eq. 7 with table 1: c_skip x + c_out F; v_prediction turns F's sign."""
    whole = sigma**2 + c.sigma_data**2
    sign = 1 if c.prediction_type == "epsilon" else -1
    return c.sigma_data**2 / whole * x + sign * sigma * c.sigma_data / math.sqrt(whole) * out


def edm_euler(
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
    """arXiv:2206.00364, algorithm 2 without its second half; the churn comes after the network, and
    what it said is taken for the level with the churn."""
    sh = s.sigmas.double().tolist()
    for i in range(begin, len(s.timesteps)):
        now, to = sh[i], sh[i + 1]
        out = model(x, i)
        gamma = min(s_churn / (len(sh) - 1), math.sqrt(2) - 1) if s_tmin <= now <= s_tmax else 0
        hat = now * (1 + gamma)
        if gamma > 0:
            x = x + s_noise * math.sqrt(hat**2 - now**2) * draw()
        x0 = denoised(s.config, x, out, hat)
        x = x + (to - hat) / hat * (x - x0)
        yield x, x0


def edm_dpm(
    s: Any,
    model: double.Model,
    x: Tensor,
    draw: double.Draw,
    *,
    begin: int = 0,
    second: float = 1.0,
):
    """DPM-Solver++ 1-3 with alpha = 1, arXiv:2211.01095.  second: of the weight of P'', 2 is right,
    diffusers has 1."""
    c, n, sh, past = s.config, len(s.timesteps), s.sigmas.double().tolist(), []
    eta = 1.0 if c.algorithm_type.startswith("sde") else 0.0
    for done, i in enumerate(range(begin, n)):
        now, to = sh[i], sh[i + 1]
        x0 = denoised(c, x, model(x, i), now)
        x0 = double.threshold(x0, c) if c.thresholding else x0
        past = [x0, *past][: c.solver_order]
        z = draw() if eta else None
        few, order = c.lower_order_final and n < 15, min(c.solver_order, done + 1)
        if i == n - 1 and (c.euler_at_final or few or c.final_sigmas_type == "zero"):
            order = 1
        elif few and i == n - 2:
            order = min(order, 2)
        if to == 0:
            x = x0
        elif to != now:
            h = math.log(now / to)
            length, power = (1 + eta) * h, -(1 + eta) * h
            nodes = [(math.log(now / sh[i - j]) / h, past[j]) for j in range(order)]
            if order == 2 and c.solver_type == "midpoint":
                (_, m), (u, old) = nodes
                change = double.moment(0, power) * (m + (old - m) / (2 * u))
            else:
                change = interpolated(nodes, power)
            if order == 3:
                (_, m), (u, old), (v, older) = nodes
                curve = ((older - m) / v - (old - m) / u) / (v - u)  # P'' / 2
                change = change + (second / 2 - 1) * double.moment(2, power) * curve
            x = to / now * math.exp(-eta * h) * x + length * change
            if eta:
                x = x + to * double.root(-math.expm1(-2 * h)) * z
        yield x, x0


RECURSION = {"EDMEulerScheduler": edm_euler, "EDMDPMSolverMultistepScheduler": edm_dpm}
