"""Consistency sampling: jump to the prediction of x_0, then put fresh noise of the next level.

    x' = a' (c_out d + c_skip x) + s' z

c_out = 1, c_skip = 0 is the method for any network; latent consistency models were trained with
the boundary condition of c_skip and c_out, Luo et al. 2023, arXiv:2310.04378, eq. 4.  The last row
has no noise: the result is the prediction.  Song et al. 2023, arXiv:2303.01469, algorithm 1.
"""

from __future__ import annotations

from fastdiff.solvers.row import Grid, Row, Weights


def consistency(
    grid: Grid, i: int, k: int, *, c_out: float = 1.0, c_skip: float = 0.0, s_noise: float = 1.0
) -> Row:
    """One row; no history."""
    a, s = float(grid.alpha[i + 1]), float(grid.sigma[i + 1])
    return Row(Weights(x=a * c_skip, d=a * c_out, z=s * s_noise))
