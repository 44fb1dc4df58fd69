"""Adams-Bashforth methods in the noise level of x / alpha: LMS and iPNDM.

With sh = sigma / alpha the ODE is d(x / alpha) / d sh = n, so

    x' = a' (x / a + int_sh^sh' P(u) du) = a' (x / a + sum_j w_j n_j)

with P the polynomial through the last predictions of the noise.  "exact" takes the integral on the
grid as it is (LMS of k-diffusion; iPNDM-v), "equal" the weights of equal steps,
w_j = (sh' - sh) (55, -59, 37, -9) / 24 at order 4 (iPNDM).  Early rows have the order that their
history allows.

iPNDM-v as diff-sampler and ComfyUI ship it has Newton's form of these integrals, with three slips
(docs/mathematics.md): they are not reproduced, since with them the weights have not the sum 1.

Liu et al. 2022, arXiv:2202.09778, section 3.4 (iPNDM's weights, from Zhang & Chen 2022,
arXiv:2204.13902, appendix B); k-diffusion's sample_lms.
"""

from __future__ import annotations

import math

import numpy as np

from fastdiff.solvers.row import NOISE, Grid, Row, Weights

MOST = 4
REPEATED = 1e-6  # earlier steps shorter than this part of a step count as none
EQUAL = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def adams(grid: Grid, i: int, k: int, *, order: int = MOST, steps: str = "exact") -> Row:
    """One row.  keeps the noise, depth order - 1.  steps: "exact" or "equal"."""
    if steps not in ("exact", "equal"):
        raise ValueError(f"steps must be exact or equal; got {steps!r}")
    a, a1, s1 = float(grid.alpha[i]), float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    past, keep = order - 1, (NOISE,) if order > 1 else ()
    if a == 0:  # x / a is infinite: x' = a' d + s' n is the same line
        return Row(Weights(d=a1, n=s1, h=(0.0,) * past), keep)
    length = -grid.cross(i, i + 1) / (a * a1) if a1 > 0 else -math.inf
    before = [_above(grid, i - j, i) for j in range(min(order, k + 1, i + 1))]
    used = 1
    while used < len(before) and _apart(before[used - 1] - before[used], length, before[used]):
        used += 1
    weights: tuple[float, ...] = (0.0,)
    if length == 0:  # two equal noise levels: nothing to do
        pass
    elif steps == "equal":
        weights = tuple(length * c for c in EQUAL[used])
    else:
        weights = tuple(length * w for w in _integrals([v / length for v in before[:used]]))
    older = (*weights[1:], *(0.0,) * (past + 1 - len(weights)))
    return Row(Weights(x=a1 / a, n=a1 * weights[0], h=tuple(a1 * w for w in older)), keep)


def _above(grid: Grid, j: int, i: int) -> float:
    """sh_j - sh_i, rounded once; inf without signal at j."""
    a, b = float(grid.alpha[j]), float(grid.alpha[i])
    return grid.cross(j, i) / (a * b) if a > 0 else math.inf


def _apart(step: float, length: float, level: float) -> bool:
    return math.isfinite(level) and abs(step) > REPEATED * abs(length)


def _integrals(places: list[float]) -> list[float]:
    """int_0^1 L_j(v) dv of the Lagrange polynomials through these places."""
    found = []
    for j, at in enumerate(places):
        others = [p for q, p in enumerate(places) if q != j]
        basis = np.poly1d(np.poly(others)) / math.prod(at - p for p in others)
        found.append(float(basis.integ()(1.0)))
    return found
