"""Noise of a drop-in scheduler that belongs to a sample: its seed, the element and the step.

    starting noise of sample b, element i      normal(seeds[b], i, 0, 0)
    noise of step j                            normal(seeds[b], i, j, STEP_STREAM)

by philox_normal, float32, as fastdiff.sample makes them (fastdiff/sample_seeds.py).  j is the place
of the step's timestep in `timesteps`, one for each call of the network: the row of a plan.  A run
that begins in the middle has the numbers that a whole one has there.

A step calls `self._draw`, which is `draw` until `set_noise` puts something else in its place: where
nobody asked for it, nothing is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal
from fastdiff.sample_seeds import PHILOX, seeds_of
from fastdiff.schedulers.operands import draw
from fastdiff.schedulers.rows import traced

DIFFUSERS = "diffusers"


class Philox:
    """In the place of `draw`: of a step the noise that seeds make, not yet in memory.

    in_memory  at once as a tensor, for a class that keeps it
    """

    def __init__(self, seeds: Tensor, in_memory: bool) -> None:
        self.seeds = seeds
        self.in_memory = in_memory

    def __call__(
        self, like: Tensor, generator: object, dtype: object, step: int | None
    ) -> Keyed | Tensor:
        if step is None:
            raise ValueError(
                "timestep must be one of scheduler.timesteps with set_noise('philox'): its place "
                "there is the key of the noise; got another. set_noise('diffusers') takes any"
            )
        if not self.in_memory:
            return Keyed(self, step)
        seeds = self.fitted(like)
        return philox_normal(seeds, like.shape[1:], noise_step=step, stream=STEP_STREAM)

    def fitted(self, sample: Tensor) -> Tensor:
        """The seeds (B,) on the device of a batch, one for each sample of it."""
        batch = sample.shape[0] if sample.dim() else 0
        if len(self.seeds) != batch:
            raise ValueError(
                f"seeds of set_noise must be one for each sample of the batch, {batch}; got "
                f"{len(self.seeds)}. Call set_noise('philox', seeds=..) again before another batch"
            )
        if self.seeds.device == sample.device:
            return self.seeds
        there = self.seeds.to(sample.device, non_blocking=True)
        if not traced():  # once a device
            self.seeds = there
        return there


class Keyed(NamedTuple):
    """Noise that the kernel makes inside the step."""

    philox: Philox
    step: int


class Seeded:
    """Mixed into the drop-ins: whose noise `step` takes."""

    _draw: Callable[..., Any] = staticmethod(draw)
    _noise_in_memory = False  # whether a class keeps the noise of a step

    def set_noise(self, noise: str, *, seeds: Sequence[int] | Tensor | None = None) -> None:
        """Choose the noise that `step` adds, from now on; an attribute, never in the saved config.

        noise  "diffusers" (as made): of PyTorch, from step's generator; "philox": of each sample's
               own seed, the same whatever the batch, the device and the dtype (philox_normal of
               fastdiff/ops); the key of a step is its place in `timesteps`, and its generator,
               which pipelines hand on, draws nothing
        seeds  (B,) whole numbers in -2^63 .. 2^63 - 1, or an int64 tensor, with "philox": one for
               each sample of the batches that follow; a step with another number of samples raises
               ValueError

        Raises ValueError that names the argument, what it got and what would do.
        """
        if noise == DIFFUSERS:
            if seeds is not None:
                raise ValueError(
                    f"seeds go with noise={PHILOX!r}; got {seeds!r:.60} and {DIFFUSERS!r}"
                )
            self.__dict__.pop("_draw", None)
            return
        if noise != PHILOX:
            raise ValueError(f"noise must be {PHILOX!r} or {DIFFUSERS!r}; got {noise!r:.60}")
        if seeds is None:
            raise ValueError(
                f"seeds must be given with noise={PHILOX!r}, one for each sample. Try seeds=[7, 8]"
            )
        own = seeds_of(seeds).clone()  # whoever writes to a tensor later does not change a run
        self.__dict__["_draw"] = Philox(own, self._noise_in_memory)

    def starting_noise(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Unit normal (B, *shape) of the seeds of set_noise, stream 0: `latents=` of a pipeline.

        shape   of one sample, as the scheduler sees it: (4, 64, 64), or packed (1024, 64)
        dtype   the pipeline's, where that does not cast what it is given
        device  where the seeds are if None

        Raises ValueError before set_noise("philox", ..), TypeError for a shape that is none.
        """
        seeded = self.__dict__.get("_draw")
        if not isinstance(seeded, Philox):
            raise ValueError(
                "starting_noise needs seeds; call set_noise('philox', seeds=[7, 8]) first"
            )
        seeds = seeded.seeds if device is None else seeded.seeds.to(device)
        return philox_normal(seeds, shape, dtype=dtype)


__all__ = ["Keyed", "Philox", "Seeded"]
