"""Inputs for affine_step, and its formula in NumPy float64, element by element of the row."""

import numpy as np
import torch

from fastdiff.ops.affine_step import row_size

OFF = (-float("inf"), float("inf"), 1.0)  # lo, hi, gain that leave m alone


def make_row(keeps, depth, *, g=1.0, k=(0, 0, 0), clip=OFF, c=None, c_in=1.0, slots=None):
    """One row (K,), float32; c maps (result, column) to weights, column 4 + r is h_r."""
    matrix = np.zeros((1 + keeps, 4 + depth))
    for place, weight in (c or {}).items():
        matrix[place] = weight
    slots = [-1] * keeps if slots is None else slots
    row = [g, *k, *clip, *matrix.ravel(), c_in, *slots]
    assert len(row) == row_size(keeps, depth)
    return torch.tensor(row, dtype=torch.float32)


def make_rows(generator, steps, samples, keeps, depth, zeros=0.3):
    """Random rows (steps, samples, K); a share of the weights is exactly 0, m is clamped to +-2."""
    rows = torch.randn(steps, samples, row_size(keeps, depth), generator=generator)
    rows[torch.rand(rows.shape, generator=generator) < zeros] = 0.0
    rows[..., 4], rows[..., 5], rows[..., 6] = -2.0, 2.0, 0.5
    rows[..., rows.shape[2] - keeps :] = -1.0
    return rows


def make_operands(generator, shape, depth, dtype, guided=True, noisy=True, device="cpu"):
    """Arguments of affine_step without rows: x, cond, uncond, history, noise."""

    def draw():
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    return {
        "x": draw(),
        "cond": draw(),
        "uncond": draw() if guided else None,
        "noise": draw() if noisy else None,
        "history": [draw() for _ in range(depth)],
    }


def exact(rows, step, keeps, *, x, cond, uncond=None, noise=None, history=()):
    """(x', m, [r_p], model_input) in NumPy float64 from the operands as they were rounded."""

    def number(tensor):
        return np.asarray(tensor.double().cpu().contiguous().numpy())

    depth = len(history)
    table = number(rows)[step]
    results = []
    for b in range(table.shape[0]):
        row = table[b]
        part = slice(None) if table.shape[0] == 1 else slice(b, b + 1)
        e = number(cond)[part]
        if uncond is not None:
            u = number(uncond)[part]
            e = u + row[0] * (e - u)
        z = np.zeros_like(e) if noise is None else number(noise)[part]
        xb = number(x)[part]

        def total(weights, vectors):
            used = [w * v for w, v in zip(weights, vectors, strict=True) if w != 0]
            return sum(used, np.zeros_like(vectors[0]))

        m = row[6] * np.clip(total(row[1:4], [xb, e, z]), row[4], row[5])
        vectors = [xb, m, e, z, *(number(h)[part] for h in history)]
        matrix = row[7 : 7 + (1 + keeps) * (4 + depth)].reshape(1 + keeps, 4 + depth)
        after = [total(weights, vectors) for weights in matrix]
        c_in = row[7 + (1 + keeps) * (4 + depth)]
        results.append([after[0], m, *after[1:], c_in * after[0]])
    joined = [
        np.concatenate(part, axis=0) if len(results) > 1 else part[0]
        for part in zip(*results, strict=True)
    ]
    return joined[0], joined[1], joined[2:-1], joined[-1]


def rms(values):
    values = np.asarray(values, dtype=np.float64)
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def assert_as_good_as_torch(got, torch_says, truth, dtype):
    """RMS error at most twice PyTorch's own in this dtype, plus eps / 4 of the result's RMS."""
    own = rms(torch_says.double().cpu().numpy() - truth)
    limit = 2 * own + torch.finfo(dtype).eps / 4 * rms(truth)
    assert rms(got.double().cpu().numpy() - truth) <= limit
