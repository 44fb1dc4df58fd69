"""The recursion of singlestep DPM-Solver in float64, as double_precision.py's: a cycle of steps
from one point, each the defining integral of the polynomial through what the cycle predicted.
"""

import math

from . import double_precision as double
from .double_precision_exponential import interpolated, levels


def dpm_singlestep(
    s, model: double.Model, x, draw: double.Draw, *, begin: int = 0, sde_sign: float = -1.0
):
    """DPM-Solver(++) 2S and 3S, arXiv:2206.00927, 2211.01095.  sde_sign: of the 1/2 in the weight
    of P'' with noise, +1 is right, diffusers has -1."""
    c, level, past, start = s.config, levels(s), [], x
    data, sde = c.algorithm_type.endswith("++"), c.algorithm_type.startswith("sde")
    eta = 1.0 if sde else 0.0
    for done, i in enumerate(range(begin, len(s.timesteps))):
        a, b, _ = level[i]
        out = model(x, i)
        if c.variance_type in ("learned", "learned_range") and c.prediction_type == "epsilon":
            out = out[:, :3]
        ratio = float(s.sigmas[i])
        keep = (
            double._as_data(c, x, out, a, b, ratio) if data else double._as_noise(c, x, out, a, b)
        )
        past = [keep, *past][: c.solver_order]
        z = draw() if sde else None

        order = min(s.order_list[i], done + 1)
        if order == 1:
            start = x
        (a0, b0, lam0), (a1, b1, lam1) = level[i + 1 - order], level[i + 1]
        h = lam1 - lam0
        if b1 == 0:
            x = a1 * keep
        elif h == 0:
            x = start
        else:
            scale, power = (a1, -(1 + eta) * h) if data else (-b1, h)
            length = (1 + eta) * h * scale
            nodes = [((level[i - j][2] - lam0) / h, past[j]) for j in range(order)]
            if order == 3 and c.solver_type == "midpoint":
                nodes = [nodes[0], nodes[2]]
            if order == 2 and c.solver_type == "midpoint":
                (u, newest), (_, first) = nodes
                change = double.moment(0, power) * (first + (newest - first) / (2 * u))
            else:
                change = interpolated(nodes, power)
            change = length * change
            if len(nodes) == 3 and data and sde:
                (u0, m0), (u1, m1), (_, m2) = nodes
                bend = 2 * ((m0 - m2) / u0 - (m1 - m2) / u1) / (u0 - u1)
                change = change + a1 * (sde_sign - 1) / 2 * bend
            x = (b1 / b0 * math.exp(-eta * h) if data else a1 / a0) * start + change
            if sde:
                x = x + b1 * double.root(-math.expm1(-2 * h)) * z
        yield x, keep


RECURSION = {"DPMSolverSinglestepScheduler": dpm_singlestep}
