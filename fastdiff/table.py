"""Rows of a solver as the numbers that affine_step reads.

    e = u + g (c - u)
    m = gain clamp(kx x + ke e + kz z, lo, hi)
    [x'; r_1 .. r_P] = C [x, m, e, z, h_1 .. h_R]

One row = [g, kx, ke, kz, lo, hi, gain, C (1 + P)(4 + R) row-major, c_in, slot_1 .. slot_P].
A solver's noise column n becomes qx x + qe e, straight from the raw output: (x - alpha m) / sigma
would lose digits at small sigma, and would see the clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.predictions import Conversion, convert
from fastdiff.solvers.row import Grid, Row, Weights

Floats = NDArray[np.float64]

HEAD = 7  # g, kx, ke, kz, lo, hi, gain
G, KX, KE, KZ, LO, HI, GAIN = range(HEAD)
COLUMNS = 4  # x, m, e, z, before the history
X, M, E, Z = range(COLUMNS)
MAX_COLUMNS = 64


def width(keeps: int, history: int) -> int:
    """K, the length of a row, for P = keeps and R = history."""
    return HEAD + (1 + keeps) * (COLUMNS + history) + 1 + keeps


@dataclass(frozen=True)
class Clip:
    """m = gain clamp(., lo, hi); the default is off."""

    low: float = float("-inf")
    high: float = float("inf")
    gain: float = 1.0


OFF = Clip()


def conversion(
    prediction: str, grid: Grid, i: int, scale: float, churn: tuple[float, float] | None
) -> Conversion:
    """x_0 and n from x and the raw output at grid point i.

    After churn the sample sits at sigma_hat, but the network was called before: an epsilon is carried
    to sigma_hat, a v is converted with the level it was made for (both as diffusers does).
    """
    alpha, sigma = float(grid.alpha[i]), float(grid.sigma[i])
    if churn is not None and prediction == "epsilon":
        sigma = churn[1]
    return convert(prediction, alpha, sigma, scale)


def encode(
    row: Row,
    numbers: Conversion,
    *,
    guidance: float = 1.0,
    clip: Clip = OFF,
    c_in: float = 1.0,
    draws: bool = True,
) -> Floats:
    """One row with the history columns by age and slots -1, (K,) float64.

    draws False: no noise is at hand on this row, so its columns are cleared.
    """
    history = len(row.next.h)
    keeps = len(row.keep)
    out = np.empty(width(keeps, history))
    nu = row.churn[0] if row.churn is not None else 0.0
    out[:HEAD] = (
        guidance,
        numbers.kx,
        numbers.ke,
        numbers.kx * nu,
        clip.low,
        clip.high,
        clip.gain,
    )
    c = out[HEAD : HEAD + (1 + keeps) * (COLUMNS + history)].reshape(1 + keeps, COLUMNS + history)
    for line, weights in zip(c, (row.next, *row.keep), strict=True):
        line[:COLUMNS] = _columns(weights, numbers, draws)
        line[COLUMNS:] = weights.h or 0.0
    out[-1 - keeps] = c_in
    out[len(out) - keeps :] = -1.0
    return out


def _columns(w: Weights, k: Conversion, draws: bool) -> tuple[float, float, float, float]:
    return (w.x + w.n * k.qx, w.d, w.n * k.qe, w.z if draws else 0.0)


def to_slots(rows: Floats, depths: tuple[int, ...]) -> Floats:
    """Move the history columns of consecutive rows (N, K) from ages to ring slots, once.

    Vector p lives in a ring of depths[p] slots; row j writes slot j mod depth and finds age a in slot
    (j - a) mod depth.  Reading everything before writing, depth slots are enough.
    """
    out = rows.copy()
    keeps, history = len(depths), sum(depths)
    if not keeps:
        return out
    wide = COLUMNS + history
    for j, line in enumerate(out):
        old = rows[j, HEAD : HEAD + (1 + keeps) * wide].reshape(1 + keeps, wide)
        c = line[HEAD : HEAD + (1 + keeps) * wide].reshape(1 + keeps, wide)
        first = 0
        for p, depth in enumerate(depths):
            for age in range(1, depth + 1):
                slot = first + (j - age) % depth
                c[:, COLUMNS + slot] = old[:, COLUMNS + first + age - 1]
            line[len(line) - keeps + p] = first + j % depth
            first += depth
    return out


def check(rows: Floats, grid: Grid, begin: int, depths: tuple[int, ...]) -> None:
    """Every row must carry signal and noise: x = a x_0 + s n in, x' = a' x_0 + s' n out.

    The table itself is run on the two coordinates (x_0, n) of a perfect network, rings included, so a
    wrong sign, factor or slot raises here.  Rows that draw noise must only carry the signal.
    """
    keeps, history = len(depths), sum(depths)
    wide = COLUMNS + history
    unread = np.full(2, np.nan)
    ring = [unread] * history
    for j, line in enumerate(rows):
        i = begin + j
        x = np.array([grid.alpha[i], grid.sigma[i]])
        c = line[HEAD : HEAD + (1 + keeps) * wide].reshape(1 + keeps, wide)
        estimate = np.array([1.0, 0.0])  # m; a clip does not bind on it
        kx, ke = line[KX], line[KE]
        raw = (estimate - kx * x) / ke  # the output that makes m = x_0
        values = [x, estimate, raw, np.zeros(2), *ring]
        made = [_combine(weights, values) for weights in c]
        want = np.array([grid.alpha[i + 1], grid.sigma[i + 1]])
        error = np.abs(made[0] - want)
        if c[0, Z] != 0:
            error = error[:1]
        # a row of a thousand-step table is a sum of numbers up to 1 / h
        limit = 1e-9 * max(1.0, np.abs(c[0]).max())
        if not (error <= limit).all():
            raise ValueError(
                f"row {j} of the table does not carry signal and noise to grid point {i + 1}: it "
                f"makes {made[0][0]:.12g} x_0 + {made[0][1]:.12g} n of "
                f"{want[0]:.12g} x_0 + {want[1]:.12g} n. This is a defect of the solver"
            )
        for p in range(keeps):
            slot = int(line[len(line) - keeps + p])
            if slot >= 0:
                ring[slot] = made[1 + p]


def _combine(weights: Floats, values: list[Floats]) -> Floats:
    """The sum over the operands whose weight is not exactly 0: the others are not read."""
    return np.sum([w * v for w, v in zip(weights, values, strict=True) if w != 0], axis=0) + 0.0
