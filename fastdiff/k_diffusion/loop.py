"""The loop of k-diffusion's interface: no branch on a solver's name, no state that outlives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from fastdiff.k_diffusion.arguments import like
from fastdiff.k_diffusion.rows import Run
from fastdiff.plan import on_device
from fastdiff.rings import Rings

Denoiser = Callable[..., Tensor]


def steps_of(
    run: Run,
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], object] | None,
    disable: bool | None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """x at sigmas[-1]; arguments as in fastdiff.k_diffusion."""
    plan = run.plan
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    table = on_device(plan, str(x.device), wide)
    hats = torch.tensor(plan.timesteps, dtype=sigmas.dtype)
    seen = hats.to(x.device, x.dtype, non_blocking=True)[:, None] * x.new_ones([x.shape[0]])
    hats = hats.to(sigmas.device, non_blocking=True)
    state = x.to(wide)
    if run.first is not None:
        state = state.add(torch.randn_like(x), alpha=run.first)
    entry = state.to(x.dtype)
    rings = Rings(plan, table, state, None if x.dtype == wide else x.dtype)
    for row in trange(plan.steps, disable=disable):
        i, half = run.call(row)
        denoised = like("model must return denoised", model(entry, seen[row], **extra_args), x)
        if callback is not None and half == 0:
            told = {"sigma": sigmas[i], "sigma_hat": hats[row], "denoised": denoised}
            callback({"x": entry, "i": i, **told})
        z = None
        if plan.draw[row]:
            if noise_sampler is None:
                z = torch.randn_like(entry)
            else:
                made = noise_sampler(sigmas[i], sigmas[i + 1])
                z = like("noise_sampler must return noise", made, x)
        state, entry = rings.step(row, state, denoised, noise=z)
    return entry
