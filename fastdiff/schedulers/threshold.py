"""Dynamic thresholding as numbers of a row: clamp to +-q and divide by q, q per sample.

q = the `ratio` quantile of |x_0| over a sample, at least 1 and at most `maximum`.
Saharia et al. 2022, arXiv:2205.11487, section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.table import GAIN, HI, KE, KX, LO


def thresholded(
    table: Tensor,
    sample: Tensor,
    model_output: Tensor,
    dtype: torch.dtype,
    ratio: float,
    maximum: float,
) -> Tensor:
    """A row (1, 1, K) as rows (1, B, K) whose lo, hi, gain are -q, q, 1 / q of each sample.

    dtype: in which diffusers holds x_0 when it takes the quantile.  Nothing is read back.
    """
    wide = table.dtype
    batch = sample.shape[0]
    kx, ke = table[0, 0, KX], table[0, 0, KE]
    x0 = torch.where(kx != 0, kx * sample.to(wide), 0.0) + ke * model_output.to(wide)
    q = torch.quantile(x0.to(dtype).to(wide).reshape(batch, -1).abs(), ratio, dim=1)
    # with a maximum below 1 the upper bound wins, as in torch.clamp
    q = q.clamp(min=1.0, max=maximum)
    rows = table.expand(1, batch, -1).clone()
    rows[0, :, LO], rows[0, :, HI], rows[0, :, GAIN] = -q, q, 1 / q
    return rows
