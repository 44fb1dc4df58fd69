"""A plan run in NumPy, row by row, straight from the definition of its columns.

    e = u + g (c - u)
    m = gain clamp(kx x + ke e + kz z, lo, hi)
    [x'; r_1 .. r_P] = C [x, m, e, z, h_1 .. h_R]

Independent of torch and of every kernel.  Rings start as NaN, so a read before a write shows.
"""

import numpy as np


def run(plan, denoise, x, noises=None, given=None):
    """The samples after each row, (N + 1, *x.shape), the start included.

    denoise(entry, t, j) gets c_in * x and returns the raw output, or (uncond, cond) if guided;
    noises (N, *x.shape) is what z is on each row, 0 if None; given {grid point: sample} takes the
    place of what the rows before made.
    """
    x = np.asarray(x, dtype=np.float64)
    keeps, history = plan.keeps, plan.history
    wide = 4 + history
    ring = [np.full(x.shape, np.nan)] * history
    path, c_in = [x], plan.c_in
    for j, rows in enumerate(plan.rows):
        assert len(rows) == 1, "one sample"
        line = rows[0]
        g, kx, ke, kz, lo, hi, gain = line[:7]
        c = line[7 : 7 + (1 + keeps) * wide].reshape(1 + keeps, wide)
        out = denoise(c_in * x, plan.timesteps[j], j)
        e = out[0] + g * (out[1] - out[0]) if plan.guided else out
        z = np.zeros_like(x) if noises is None else noises[j]
        m = gain * np.clip(_sum((kx, ke, kz), (x, e, z)), lo, hi)
        made = [_sum(weights, (x, m, e, z, *ring)) for weights in c]
        for slot, vector in zip(line[len(line) - keeps :], made[1:], strict=True):
            if slot >= 0:
                ring[int(slot)] = vector
        x, c_in = made[0], line[len(line) - keeps - 1]
        x = x if given is None else given.get(j + 1, x)
        path.append(x)
    return np.array(path)


def _sum(weights, values):
    """An operand with weight 0 is not read."""
    used = [w * v for w, v in zip(weights, values, strict=True) if w != 0]
    return sum(used) if used else np.zeros_like(values[0])
