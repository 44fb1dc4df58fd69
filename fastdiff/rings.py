"""The step of a run whose table and kept vectors stay: what does not change is asked once.

affine_step_out asks everything of every argument on every call, three times what the kernel takes
at a latent of 64x64.  Of a run only the network's answer and the noise are new each time; where
they are plain, contiguous and on the CPU, the kernel gets addresses at once, else the op is called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops.affine_step import DTYPE_CODES, SERIAL_BELOW, affine_step_out
from fastdiff.plan import Plan


class Rings:
    """Rings of a plan's kept vectors, in the layout of x, and the steps that read and write them.

    table  (N, 1 or B, K) the plan's rows on the device of x
    entry  dtype of what the network gets next, c_in x'; None: that is x' itself
    """

    def __init__(self, plan: Plan, table: Tensor, x: Tensor, entry: torch.dtype | None) -> None:
        self.kept = [torch.empty_like(x) for _ in range(plan.history)]
        self._table, self._entry, self._keeps = table, entry, plan.keeps
        fits = _plain(x) and table.dtype == torch.float32
        self._kernel = backends.native("affine_step") if fits else None
        numel = x.numel()
        row = table.stride(0) * table.element_size()
        self._rows = [table.data_ptr() + i * row for i in range(len(table))] if self._kernel else []
        self._run = (table.shape[1], numel, plan.keeps)

    def step(
        self,
        i: int,
        x: Tensor,
        cond: Tensor,
        uncond: Tensor | None = None,
        noise: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x', the network's next input) of row i, new tensors.

        noise, or seeds (B,) int64 of which the kernel makes the noise of step i, or neither.

        The caller has seen to it that all have the shape and device of x, and x is what step
        returned, or the tensor that the rings are like.
        """
        moved = torch.empty_like(x)
        entry = moved if self._entry is None else torch.empty_like(x, dtype=self._entry)
        given = (x, uncond, cond, noise)
        if self._kernel is None or not _at_once(given):
            affine_step_out(
                x,
                cond,
                self._table[i : i + 1],
                x_next=moved,
                model_input=None if entry is moved else entry,
                uncond=uncond,
                history=self.kept,
                noise=noise,
                seeds=seeds,
                noise_step=i,
                keeps=self._keeps,
            )
            return moved, entry
        operands = [*given, moved, None, None if entry is moved else entry, *self.kept]
        codes, shift = 0, 0
        addresses = []
        for operand in operands:
            if operand is None:
                addresses.append(0)
            else:
                codes |= DTYPE_CODES[operand.dtype] << shift
                addresses.append(operand.data_ptr())
            shift += 2
        samples, numel, keeps = self._run
        threads = 1 if numel < SERIAL_BELOW else torch.get_num_threads()
        self._kernel(
            *(self._rows[i], 1, 0, samples, numel, keeps, 1, threads, codes),
            (*addresses, *(0,) * keeps),
            *(() if seeds is None else (seeds.data_ptr(), len(seeds), i)),
        )
        return moved, entry


def _plain(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.is_contiguous()
        and tensor.dtype in DTYPE_CODES
    )


def _at_once(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the kernel may get addresses of these, now."""
    if backends._forced.get() not in (None, "cpu") or torch.compiler.is_compiling():
        return False
    if not all(tensor is None or _plain(tensor) for tensor in tensors):
        return False
    return backends.why_reference(*tensors) is None
