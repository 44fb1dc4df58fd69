"""Dynamic thresholding as numbers of a row: clamp to +-q and divide by q, q per sample.

q = the `ratio` quantile of |x_0| over a sample, at least 1 and at most `maximum`.
Saharia et al. 2022, arXiv:2205.11487, section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.ops.abs_quantile import threshold_rows
from fastdiff.table import KE, KX


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
    kx, ke = table[0, 0, KX], table[0, 0, KE]
    x0 = torch.where(kx != 0, kx * sample.to(wide), 0.0) + ke * model_output.to(wide)
    x0 = x0.to(dtype)
    # the kernel reads 16 bits as they are; in float64 the quantile is one of float64
    return threshold_rows(x0.to(wide) if wide == torch.float64 else x0, ratio, maximum, table)
