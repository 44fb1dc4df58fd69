"""The recursions of exponential multistep schedulers in float64, as double_precision.py's: through
the defining integrals of interpolating polynomials, nothing shared with fastdiff.

    x' = (b'/b) x + a' h int_0^1 e^{-h (1 - u)} P(u) du      P through predictions of x_0
    x' = (a'/a) x - b' h int_0^1 e^{ h (1 - u)} P(u) du      P through predictions of the noise
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from . import double_precision as double

CLOSE = 1e-6  # places nearer than this are one place


def levels(s: Any) -> list[tuple[float, float, float]]:
    """(a, b, log(a / b)) of each noise level."""
    found = []
    for ratio in s.sigmas.double().tolist():
        a = 1 - ratio if s.config.use_flow_sigmas else 1 / math.sqrt(1 + ratio**2)
        b = ratio if s.config.use_flow_sigmas else ratio * a
        found.append((a, b, math.inf if b == 0 else math.log(a / b)))
    return found


def interpolated(nodes: list[tuple[float, Tensor]], z: float) -> Tensor:
    """int_0^1 e^{(1 - u) z} P(u) du, P through (place, value)."""
    total = 0 * nodes[0][1]
    for j, (at, value) in enumerate(nodes):
        others = [r for k, (r, _) in enumerate(nodes) if k != j]
        basis = np.poly1d(np.poly(others)) / math.prod(at - r for r in others)
        total = total + value * sum(
            float(weight) * double.moment(k, z) for k, weight in enumerate(basis.c[::-1])
        )
    return total


def unipc(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """UniPC, arXiv:2302.04867, algorithms 5 to 8: a corrector takes the last step again with the
    prediction at its end."""
    c, n, level = s.config, len(s.timesteps), levels(s)
    data, past, start, order = c.predict_x0, [], None, 0

    def step(i: int, x: Tensor, known: list[Tensor], after: Tensor | None) -> Tensor:
        (a, b, lam), (a1, b1, lam1) = level[i], level[i + 1]
        h = lam1 - lam
        if b1 == 0:
            return a1 * (known[0] if data else (x - b * known[0]) / a)
        if h == 0:
            return x
        nodes = [(0.0, known[0])]
        for j, value in enumerate(known[1:], 1):
            place = (level[i - j][2] - lam) / h
            if all(abs(place - other) > CLOSE for other, _ in nodes):
                nodes.append((place, value))
        if after is not None:
            nodes.append((1.0, after))
        z, scale, keep = (-h, a1, b1 / b) if data else (h, -b1, a1 / a)
        if len(known) == (2 if after is None else 1) and len(nodes) == 2:
            # where one difference is left the paper takes half of B(h), not the integral of u
            (_, first), (place, other) = nodes
            half = h if c.solver_type == "bh1" else h * double.moment(0, z)
            value = h * double.moment(0, z) * first + half / 2 * (other - first) / place
        else:
            value = h * interpolated(nodes, z)
        return keep * x + scale * value

    for i in range(begin, n):
        a, b, _ = level[i]
        out = model(x, i)
        if data:
            m = double._as_data(c, x, out, a, b, float(s.sigmas[i]))
        elif c.prediction_type == "epsilon":
            m = out
        elif c.prediction_type == "sample":
            m = (x - a * out) / b
        else:
            m = a * out + b * x
        if start is not None and i - 1 not in c.disable_corrector:
            x = step(i - 1, start, past[:order], m)
        past = [m, *past]
        order = min(c.solver_order, len(past), *([n - i] if c.lower_order_final else []))
        start = x
        x = step(i, x, past[:order], None)
        yield x, m


def deis(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """DEIS in log(rho), arXiv:2204.13902, section 3.3: a polynomial through the last predictions of
    the noise, in log(sigma / alpha); they are what x holds beside the prediction of x_0."""
    c, n, level = s.config, len(s.timesteps), levels(s)
    past: list[Tensor] = []
    for i in range(begin, n):
        (a, b, lam), (a1, b1, lam1) = level[i], level[i + 1]
        x0 = double._as_data(c, x, model(x, i), a, b, float(s.sigmas[i]))
        # diffusers takes the entry of sigmas as it is, which is b on the levels of a flow alone
        left = float(s.sigmas[i]) if c.prediction_type == "flow_prediction" else b
        past = [(x - a * x0) / left, *past][: c.solver_order]
        few = c.lower_order_final and n < 15
        order = min(len(past), 1 if few and i == n - 1 else 2 if few and i == n - 2 else 3)
        h = lam1 - lam
        if h != 0:
            places = [(level[i - j][2] - lam) / h for j in range(order)]
            nodes = [
                (p, m) for j, (p, m) in enumerate(zip(places, past, strict=False)) if not j or p
            ]
            x = a1 / a * x - b1 * h * interpolated(nodes, h)
        yield x, None


def sa(s: Any, model: double.Model, x: Tensor, draw: double.Draw, *, begin: int = 0):
    """SA-Solver, arXiv:2309.05019: a corrector takes the last step again, from where it began and
    with its noise, with the prediction at its end."""
    c, n, level = s.config, len(s.timesteps), levels(s)
    data, past, corrector = c.algorithm_type == "data_prediction", [], 0
    start = z = x  # of the step before

    def step(i: int, x: Tensor, values: list[Tensor], first: int, z: Tensor) -> Tensor:
        (a, b, lam), (a1, b1, lam1) = level[i], level[i + 1]
        h, tau2 = lam1 - lam, float(s.tau_func(int(s.timesteps[i]))) ** 2
        if h == 0:
            return x
        nodes: list[tuple[float, Tensor]] = []
        for j, value in enumerate(values):
            place = (level[first - j][2] - lam) / h
            if all(abs(place - other) > CLOSE for other, _ in nodes):
                nodes.append((place, value))
        rate = -(1 + tau2) * h if data else h
        value = interpolated(nodes, rate)
        if (
            data and len(values) == len(nodes) == 2
        ):  # the integral of u e^0 in the place of that of u e^..
            slope = (nodes[0][1] - nodes[1][1]) / (nodes[0][0] - nodes[1][0])
            value = value + (0.5 - double.moment(1, rate)) * slope
        if data:
            keep, scale, noise = b1 / b * math.exp(-tau2 * h), a1, -math.expm1(-2 * tau2 * h)
        else:
            keep, scale, noise = a1 / a, -b1, tau2 * math.expm1(2 * h)
        return keep * x + scale * (1 + tau2) * h * value + b1 * math.sqrt(noise) * z

    for done, i in enumerate(range(begin, n)):
        a, b, _ = level[i]
        out = model(x, i)
        if data:
            m = double._as_data(c, x, out, a, b, float(s.sigmas[i]))
        else:
            m = double._as_noise(c, x, out, a, b)
        past = [m, *past]
        if corrector:
            x = step(i - 1, start, past[:corrector], i, z)
        z, start = draw(), x
        left = n - i if c.lower_order_final else n
        corrector = min(c.corrector_order, left + 1, done + 2)
        x = step(i, x, past[: min(c.predictor_order, left, done + 1)], i, z)
        yield x, m


RECURSION = {
    "SASolverScheduler": sa,
    "DEISMultistepScheduler": deis,
    "UniPCMultistepScheduler": unipc,
}
