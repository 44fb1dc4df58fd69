"""Launches of kernels whose grid has samples in its second direction."""

from collections.abc import Iterator

SAMPLES = 65_535  # blocks that CUDA allows in the second direction


def by_samples(blocks: int, samples: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """(the first sample, the grid) of each launch."""
    for first in range(0, samples, SAMPLES):
        yield first, (blocks, min(samples - first, SAMPLES))
