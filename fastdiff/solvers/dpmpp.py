"""DPM-Solver and DPM-Solver++, multistep, orders 1 to 3, deterministic or with noise.

In lambda = log(alpha / sigma), with h = lambda_{i+1} - lambda_i, primes for grid point i + 1 and
eta >= 0 the amount of noise put back (0: the ODE, 1: the reverse SDE), the exact step is

  data     x' = (s'/s) e^{-eta h} x + (1 + eta) a' int_0^h e^{-(1 + eta)(h - u)} d(u) du
                + s' sqrt(1 - e^{-2 eta h}) z                            "dpmsolver++", "sde-..."
  noise    x' = (a'/a) x - (1 + eta) s' int_0^h e^{h - u} n(u) du
                + s' sqrt(eta (e^{2h} - 1)) z                            "dpmsolver",   "sde-..."

and a polynomial through the last predictions stands in for d or n.  The integrals of 1, u, u^2/2
are phi functions.  Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095; eta as in k-diffusion.
"""

from __future__ import annotations

import math

from fastdiff.solvers.phi import phi
from fastdiff.solvers.row import DATA, NOISE, Grid, Row, Weights

REPEATED = (
    1e-6  # earlier steps shorter than this part of a step count as none: their slope is noise
)


NO_SIGNAL = 2.0**-17  # of alpha: weights 1 / alpha of x and n cancel, and 1e-11 of 1 must be left


def order_at(
    i: int, n: int, k: int, order: int, lower_order_final: bool, euler_at_final: bool
) -> int:
    """The order that row i of n can and may have after k rows.

    Below 15 steps `lower_order_final` lowers the last two rows (arXiv:2211.01095, appendix; 15 is
    diffusers' number).
    """
    few = lower_order_final and n < 15
    if i == n - 1 and (euler_at_final or few):
        return 1
    possible = min(order, k + 1, i + 1)
    return min(possible, 2) if few and i == n - 2 else possible


def dpmpp(
    grid: Grid,
    i: int,
    k: int,
    *,
    order: int = 2,
    solver_type: str = "midpoint",
    predict: str = "data",
    eta: float = 0.0,
    s_noise: float = 1.0,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    d2_scale: float = 2.0,
    sde3_offset: float = 0.0,
) -> Row:
    """One row.  keeps one vector, depth order - 1.

    solver_type        of order 2: "heun" integrates the line through two predictions exactly,
                       "midpoint" takes half of the constant's weight for the slope
    predict            "data" (DPM-Solver++) or "noise" (DPM-Solver)
    d2_scale           2 makes order 3 third order; every shipped version has 1 (see quirks)
    sde3_offset        added to the weight of the second difference with data and noise (see quirks)
    """
    n = grid.steps
    a, s = float(grid.alpha[i]), float(grid.sigma[i])
    a1, s1 = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    kept = DATA if predict == "data" else NOISE
    past = order - 1
    if s1 == 0:  # h is infinite: the sample is the prediction of x_0
        last = Weights(d=a1, h=(0.0,) * past)
        return Row(last, (kept,) if past else ())
    if predict == "noise" and a < NO_SIGNAL * s:
        if eta > 0:
            raise ValueError(
                "a solver that predicts the noise and draws some cannot start from a level without "
                f"signal (alpha = {a:g}); use DPM-Solver++ or start below it"
            )
        # of first order the two forms are one step, and that of the data keeps its digits
        rest = -a1 * math.expm1(-grid.span(i, i + 1))
        return Row(Weights(x=s1 / s, d=rest, h=(0.0,) * past), (kept,) if past else ())
    if a == 0:  # h is infinite at the other end: no signal yet, so a first step of first order
        fresh = s1 * s_noise if eta > 0 else 0.0
        start = Weights(x=0.0 if eta > 0 else s1 / s, d=a1, z=fresh, h=(0.0,) * past)
        return Row(start, (kept,) if past else ())
    h = grid.span(i, i + 1)
    if h == 0:  # two equal noise levels: nothing to do
        return Row(Weights(x=1.0, h=(0.0,) * past), (kept,) if past else ())

    if h < 0:  # towards the noise there is no reverse SDE: the ODE (diffusers: NaN)
        eta = 0.0
    x, g, slope, bend, noise = integrals((a, s), (a1, s1), h, predict, eta)
    second = d2_scale * bend
    if predict == "data" and eta > 0:
        second += a1 * sde3_offset
    noise *= s_noise

    use = order_at(i, n, k, order, lower_order_final, euler_at_final)
    weights = _differences(grid, i, h, use, g, slope, second, solver_type)
    now, older = weights[0], (*weights[1:], *(0.0,) * (past + 1 - len(weights)))
    if predict == "data":
        return Row(Weights(x=x, d=now, z=noise, h=older), (kept,) if past else ())
    return Row(Weights(x=x, n=now, z=noise, h=older), (kept,) if past else ())


def integrals(
    here: tuple[float, float], there: tuple[float, float], h: float, predict: str, eta: float
) -> tuple[float, float, float, float, float]:
    """Weights of x, of P(0), h P'(0) and h^2 P''(0) for a polynomial P through the predictions, and
    of z: a step of length h from (alpha, sigma) here to there.
    """
    (a, s), (a1, s1) = here, there
    if predict == "data":
        z = (1 + eta) * h
        noise = s1 * math.sqrt(-math.expm1(-2 * eta * h))
        x = s1 / s * math.exp(-eta * h)
        return x, -a1 * math.expm1(-z), a1 * z * phi(2, -z), a1 * z * phi(3, -z), noise
    factor = -(1 + eta) * s1 * h
    return (
        a1 / a,
        factor * phi(1, h),
        factor * phi(2, h),
        factor * phi(3, h),
        s1 * math.sqrt(eta * math.expm1(2 * h)),
    )


def _differences(
    grid: Grid,
    i: int,
    h: float,
    use: int,
    g: float,
    slope: float,
    second: float,
    solver_type: str,
) -> tuple[float, ...]:
    """Weights of the predictions at i, i - 1, i - 2 from those of value, h d', h^2 d'' / 2."""
    if use == 1:
        return (g,)
    r0 = grid.span(i - 1, i) / h
    if r0 < REPEATED:  # the step before had no length: its prediction adds nothing but rounding
        return (g,)
    if use == 2:
        w = (g / 2 if solver_type == "midpoint" else slope) / r0
        return (g + w, -w)
    r1 = grid.span(i - 2, i - 1) / h
    if r1 < REPEATED:
        return (g + slope / r0, -slope / r0)
    u = (slope * (1 + r0 / (r0 + r1)) + second / (r0 + r1)) / r0
    v = -(slope * r0 + second) / (r0 + r1) / r1
    return (g + u, -u + v, -v)
