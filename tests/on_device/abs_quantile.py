"""abs_quantile: the bits of a sort, whatever is in the sample, and the rows made of it."""

import torch

from fastdiff.ops.abs_quantile import abs_quantile, threshold_rows, threshold_rows_ref
from tests.affine_step_cases import make_row
from tests.on_device.cases import assert_same_when_replayed, kernel, normal, scattered
from tests.pointwise_cases import Guarded

SHAPES = [(1, 1), (3, 5), (2, 4, 9, 7), (4, 4, 64, 64), (1, 4, 128, 128), (5, 1031)]
PLACES = (0.0, 0.3, 0.5, 0.995, 1.0)


def truth(x, p):
    """By a sort of the same numbers, in float64 from float32's rank: at most a rounding away."""
    ordered = x.float().abs().flatten(1).cpu().sort(dim=1)[0].double()
    r = torch.tensor(p, dtype=torch.float32) * (ordered.shape[1] - 1)
    k = int(r)
    low, high = ordered[:, k], ordered[:, min(k + 1, ordered.shape[1] - 1)]
    return low + float(r - k) * (high - low), high


def numbers(device, dtype):
    for shape in SHAPES:
        for p in PLACES:
            (x,) = normal(0, shape, dtype=dtype, device=device, scale=3.0)
            q = abs_quantile(x, p)
            want, high = truth(x, p)
            assert q.dtype == torch.float32
            # high - low, the product with the weight and the sum: a rounding each
            bound = 3 * 2.0**-24 * high
            assert ((q.double().cpu() - want).abs() <= bound).all(), (shape, p)


def ties_and_specials(device, dtype):
    """Equal numbers, zeros of both signs, an infinity beyond the quantile; a NaN spoils its sample
    and no other."""
    x = torch.tensor([[1.0] * 9, [0.0, -0.0] * 4 + [-2.0], [4.0] * 9, [3.0] * 9])
    x[2, 5], x[3, 4] = -float("inf"), float("nan")
    x = x.to(device, dtype)
    assert abs_quantile(x[:2], 1.0).tolist() == [1.0, 2.0]
    q = abs_quantile(x, 0.5).cpu()
    assert q[:3].tolist() == [1.0, 0.0, 4.0]
    assert q[3].isnan()


def batch(device, dtype):
    (x,) = normal(0, (6, 4, 33, 31), dtype=dtype, device=device)
    whole = abs_quantile(x, 0.995)
    assert torch.equal(abs_quantile(x[2:3], 0.995), whole[2:3])


def rows(device, dtype):
    (x,) = normal(0, (3, 4, 16, 16), dtype=dtype, device=device, scale=3.0)
    row = make_row(1, 1, k=(1, -0.5, 0))[None, None].to(device)
    got, want = threshold_rows(x, 0.9, 4.0, row), threshold_rows_ref(x, 0.9, 4.0, row)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=2**-21, atol=0)
    others = [c for c in range(row.shape[-1]) if c not in (4, 5, 6)]
    assert torch.equal(got[..., others], row.expand_as(got)[..., others])


def replayed(device, dtype):
    (x,) = normal(0, (4, 4, 64, 64), dtype=dtype, device=device)
    assert_same_when_replayed(lambda: [abs_quantile(x, 0.995)], device)


def written(device, dtype):
    """q and rows between guard bands; of a row three columns are written, and no other."""
    (x,) = normal(0, (5, 1031), dtype=dtype, device=device, scale=3.0)
    q = Guarded(torch.empty(5, device=device))
    table = torch.full((7, 12), 42.0, device=device)
    kernel("abs_quantile", x)(x, 1030, 0.0, 4.0, q.tensor, table[1:-1])
    q.check()
    assert torch.equal(q.tensor, abs_quantile(x, 1.0))
    bound = q.tensor.clamp(min=1.0, max=4.0)
    assert torch.equal(table[1:-1, 4:6], torch.stack([-bound, bound], dim=1))
    assert (table[[0, -1]] == 42).all(), "written beside the rows"
    assert (table[:, [0, 1, 2, 3, *range(7, 12)]] == 42).all(), "written into other columns"


def edges(device, dtype):
    (x,) = normal(0, (3, 4, 9, 7), dtype=dtype, device=device)
    assert abs_quantile(x[:0], 0.5).shape == (0,)
    assert torch.equal(abs_quantile(scattered(x), 0.3), abs_quantile(x, 0.3))
    for part in (x[:, 1:3], x[..., ::2], x.transpose(1, 3)):
        assert torch.equal(abs_quantile(part, 0.3), abs_quantile(part.contiguous(), 0.3))


def launch(device, dtype):
    (x,) = normal(0, (3, 1031), dtype=dtype, device=device)
    abs_quantile(x, 0.995)
    threshold_rows(x, 0.9, 4.0, make_row(0, 0)[None, None].to(device))


ON_DEVICE = {
    "abs_quantile": {
        "numbers": numbers,
        "ties and specials": ties_and_specials,
        "batch": batch,
        "rows": rows,
        "written": written,
        "edges": edges,
        "replayed": replayed,
        "launch": launch,
    },
}
