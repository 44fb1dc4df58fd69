"""Rows of a solver as the numbers that affine_step reads.

    e = u + g (c - u)
    m = gain clamp(kx x + ke e + kz z, lo, hi)
    [x'; r_1 .. r_P] = C [x, m, e, z, h_1 .. h_R]

One row = [g, kx, ke, kz, lo, hi, gain, C (1 + P)(4 + R) row-major, c_in, slot_1 .. slot_P].
A solver's noise column n becomes qx x + qe e, straight from the raw output: (x - alpha m) / sigma
would lose digits at small sigma, and would see the clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.predictions import Conversion, convert
from fastdiff.solvers.row import Grid, Row, Weights

Floats = NDArray[np.float64]

HEAD = 7  # g, kx, ke, kz, lo, hi, gain
G, KX, KE, KZ, LO, HI, GAIN = range(HEAD)
COLUMNS = 4  # x, m, e, z, before the history
X, M, E, Z = range(COLUMNS)
MAX_COLUMNS, MAX_VECTORS = 64, 25  # of a row that a kernel may run: K; P + R


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

    After churn the sample sits at sigma_hat, but the network was called before: an epsilon is
    carried to sigma_hat, a v is converted with the level it was made for (both as diffusers does).
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
    nu = row.churn[0] if row.churn is not None and draws else 0.0
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


def trimmed(weights: Weights) -> Weights:
    """Without the oldest kept vectors that this row does not read."""
    h = weights.h
    while h and h[-1] == 0:
        h = h[:-1]
    return replace(weights, h=h)


def noise_from_data(row: Row, alpha: float, sigma: float) -> Row:
    """The row with n taken from the (clipped) prediction of x_0: n = (x - alpha d) / sigma."""

    def rewrite(w: Weights) -> Weights:
        return replace(w, x=w.x + w.n / sigma, d=w.d - w.n * alpha / sigma, n=0.0)

    return replace(row, next=rewrite(row.next), keep=tuple(rewrite(w) for w in row.keep))


def to_slots(rows: Floats, depths: tuple[int, ...]) -> Floats:
    """Move the history columns of consecutive rows (N, K) from ages to ring slots, once.

    Vector p lives in a ring of depths[p] slots; row j writes slot j mod depth and finds age a in
    slot (j - a) mod depth.  Reading everything before writing, depth slots are enough.
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
            held = depth and c[1 + p].any()  # else only returned, or nothing at all
            line[len(line) - keeps + p] = first + j % depth if held else -1
            first += depth
    return out


def check(
    rows: Floats,
    grid: Grid,
    begin: int,
    depths: tuple[int, ...],
    outputs: ArrayLike | None = None,
    silent: ArrayLike | None = None,
) -> None:
    """Every row must carry signal and noise: x = a x_0 + s n in, x' = a' x_0 + s' n out.

    The table itself is run on the two coordinates (x_0, n) of a perfect network, rings included, so
    a wrong sign, factor or slot raises here.  Rows that read noise, drawn now or kept from a row
    before, must only carry the signal.

    outputs  (N, 2), what that network returns; None: whatever makes m = x_0 (a table of which the
             prediction is not known)
    silent   (N,) bool, rows that draw noise with weight 0 (s_noise = 0)
    """
    keeps, history = len(depths), sum(depths)
    wide = COLUMNS + history
    perfect = None if outputs is None else np.asarray(outputs, dtype=np.float64)
    values = np.full(
        (wide, 2), np.nan
    )  # of x, m, e, z and the rings, which nothing has written yet
    values[Z] = 0.0
    fresh = np.zeros(wide, dtype=bool)  # which of them hold noise that was drawn
    fresh[Z] = True
    estimate = np.array([1.0, 0.0])  # m; a clip does not bind on it
    for j, line in enumerate(rows):
        i = begin + j
        x = np.array([grid.alpha[i], grid.sigma[i]])
        c = line[HEAD : HEAD + (1 + keeps) * wide].reshape(1 + keeps, wide)
        kx, ke, kz = line[KX], line[KE], line[KZ]
        if perfect is None:
            raw = (estimate - kx * x) / ke
        else:
            raw = perfect[j]
            made = kx * x + ke * raw
            if not _close(made, estimate, line[[KX, KE]], signal_only=kz != 0):
                raise ValueError(
                    f"row {j} of the table does not estimate x_0: a perfect output makes "
                    f"{made[0]:.12g} x_0 + {made[1]:.12g} n. This is a defect of the prediction"
                )
        values[X], values[M], values[E] = x, estimate, raw
        moved = [_combine(weights, values) for weights in c]
        want = np.array([grid.alpha[i + 1], grid.sigma[i + 1]])
        drawn = bool(fresh[c[0] != 0].any()) or (silent is not None and bool(np.asarray(silent)[j]))
        if not _close(moved[0], want, c[0], signal_only=drawn):
            raise ValueError(
                f"row {j} of the table does not carry signal and noise to grid point {i + 1}: it "
                f"makes {moved[0][0]:.12g} x_0 + {moved[0][1]:.12g} n of "
                f"{want[0]:.12g} x_0 + {want[1]:.12g} n. This is a defect of the solver"
            )
        later = [bool(fresh[weights != 0].any()) for weights in c[1:]]
        for p in range(keeps):
            slot = int(line[len(line) - keeps + p])
            if slot >= 0:
                values[COLUMNS + slot] = moved[1 + p]
                fresh[COLUMNS + slot] = later[p]


def _close(got: Floats, want: Floats, weights: Floats, *, signal_only: bool) -> bool:
    """Equal (x_0, n); a row of a thousand-step table is a sum of numbers up to 1 / h."""
    error = np.abs(got - want)[: 1 if signal_only else 2]
    return bool((error <= 1e-9 * max(1.0, float(np.abs(weights).max()))).all())


def _combine(weights: Floats, values: Floats) -> Floats:
    """weights @ values over the operands whose weight is not exactly 0: the others are not read."""
    used = weights != 0
    return np.asarray(weights[used] @ values[used])


def check_rings(rows: Floats, depths: tuple[int, ...], ages: Floats | None = None) -> None:
    """Rows (N, K) must write to slots that exist and read only slots that were written before.

    With `ages`, the rows before to_slots, every slot must also hold the vector of the age that the
    solver gave the weight to.
    """
    keeps, history = len(depths), sum(depths)
    wide = COLUMNS + history
    first = [sum(depths[:p]) for p in range(keeps)]
    written: dict[int, tuple[int, int]] = {}  # slot -> (kept vector, row that wrote it)
    for j, line in enumerate(rows):
        size = (1 + keeps) * wide
        c = line[HEAD : HEAD + size].reshape(1 + keeps, wide)[:, COLUMNS:]
        for slot in np.flatnonzero((c != 0).any(axis=0)).tolist():
            if slot not in written:
                raise ValueError(
                    f"row {j} of the table reads slot {slot}, which no row before it has written"
                )
        if ages is not None:
            old = ages[j, HEAD : HEAD + size].reshape(1 + keeps, wide)[:, COLUMNS:]
            want = np.zeros_like(c)
            for slot, (p, i) in written.items():
                if j - i <= depths[p]:
                    want[:, slot] = old[:, first[p] + j - i - 1]
            if not np.array_equal(c, want):
                raise ValueError(f"row {j} of the table does not read the vectors that were meant")
        for p, value in enumerate(line[len(line) - keeps :]):
            if value != int(value) or not -1 <= value < history:
                raise ValueError(
                    f"row {j} of the table writes to slot {value:g}; slots are -1 .. {history - 1}"
                )
            if value >= 0:
                written[int(value)] = (p, j)


def check_table(rows: Floats, draw: NDArray[np.bool_], depths: tuple[int, ...]) -> None:
    """Rows (N, B, K) must be a table that a kernel may run; raises ValueError that says why not."""
    off = rows.copy()
    off[:, :, [LO, HI]] = np.where(np.isinf(off[:, :, [LO, HI]]), 0.0, off[:, :, [LO, HI]])
    fine = np.abs(off) <= np.finfo(np.float32).max  # not of NaN
    for j, b, column in np.argwhere(~fine).tolist():
        raise ValueError(
            f"row {j} of the table holds {rows[j, b, column]:g} in column {column}; it must hold "
            "numbers that are finite in float32, and an infinity only as a clamp that is off"
        )
    check_clamps(rows)
    check_draws(rows, draw, depths)
    for sample in range(rows.shape[1]):
        if not sample or not np.array_equal(rows[:, sample, HEAD:], rows[:, 0, HEAD:]):
            check_rings(rows[:, sample], depths)


def check_clamps(rows: Floats) -> None:
    """Rows (N, B, K) must clamp to an interval with a finite number in it."""
    low, high = rows[:, :, LO], rows[:, :, HI]
    for j, b in np.argwhere(~((low <= high) & (low < np.inf) & (high > -np.inf))).tolist():
        raise ValueError(
            f"row {j} of the table clamps to lo = {low[j, b]:g}, hi = {high[j, b]:g}; it must be "
            "lo <= hi, and -inf, inf where the clamp is off"
        )


def check_draws(rows: Floats, draw: NDArray[np.bool_], depths: tuple[int, ...]) -> None:
    """Rows (N, B, K) may weigh the noise z only where draw (N,) or (N, B) says it is drawn."""
    keeps, wide = len(depths), COLUMNS + sum(depths)
    c = rows[:, :, HEAD : HEAD + (1 + keeps) * wide].reshape(*rows.shape[:2], 1 + keeps, wide)
    weighs = (c[..., Z] != 0).any(axis=2) | (rows[:, :, KZ] != 0)
    drawn = draw[:, None] if draw.ndim == 1 else draw
    for j, _ in np.argwhere(weighs[: len(draw)] & ~drawn[: len(weighs)]).tolist():
        raise ValueError(
            f"row {j} of the table weighs the noise z, but draw[{j}] is false; it must be true "
            "where the weight is not 0"
        )
