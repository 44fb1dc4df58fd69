"""Noise of a run that belongs to a sample: its seed, the element and the step, and nothing else.

    starting noise of sample b, element i      normal(seeds[b], i, 0, 0)
    noise of step j (row of the plan)          normal(seeds[b], i, j, STEP_STREAM)

by philox_normal (fastdiff/ops/philox_normal.py), which says how any language makes these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.philox_normal import check_seeds, philox_normal

PHILOX = "philox"
RANGE = range(-(2**63), 2**63)


def seeds_of(seeds: object, device: torch.device | None = None) -> Tensor:
    """(B,) int64 on the device (where a tensor lies, else the CPU), checked."""
    if isinstance(seeds, Tensor):
        check_seeds(seeds, None, 0)
        return seeds if device is None else seeds.to(device)
    listed = isinstance(seeds, Sequence) and not isinstance(seeds, (str, bytes))
    if not listed or not all(type(one) is int and one in RANGE for one in seeds):  # type: ignore[attr-defined]
        raise ValueError(
            "seeds must be whole numbers in -2^63 .. 2^63 - 1, one for each sample, or an int64 "
            f"tensor (B,); got {seeds!r:.60}. Try seeds=[7, 8]"
        )
    return torch.tensor(seeds, dtype=torch.int64, device=device or "cpu")


def starting_noise(noise: object, seeds: object, shape: Any, start: Tensor | None) -> Tensor:
    """Unit normal float32 (B, *shape) for noise="philox"."""
    if noise != PHILOX:
        raise ValueError(f"noise must be a tensor (B, *shape) or {PHILOX!r}; got {noise!r:.60}")
    if seeds is None:
        raise ValueError(
            f"seeds must be given with noise={PHILOX!r}, one for each sample. Try seeds=[7, 8]"
        )
    if shape is None:
        if start is None:
            raise ValueError(
                f"shape must be given with noise={PHILOX!r}: the sizes of one sample, such as "
                "(4, 64, 64)"
            )
        shape = start.shape[1:]
    return philox_normal(seeds_of(seeds, None if start is None else start.device), shape)


def step_seeds(seeds: object, noise: Tensor, generator: object) -> Tensor | None:
    """Seeds for the noise of the steps; None where a generator makes it."""
    if seeds is None:
        return None
    if generator is not None:
        raise ValueError("generator and seeds were both given: noise is drawn from one of them")
    made = seeds_of(seeds, noise.device)
    if len(made) != len(noise):
        raise ValueError(
            f"seeds must be one for each sample of noise, {len(noise)}; got {len(made)}"
        )
    return made
