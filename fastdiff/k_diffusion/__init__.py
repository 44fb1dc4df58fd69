"""k-diffusion's interface for the solvers of the registry: sample_<name>(model, x, sigmas, ..).

    x = x_0 + sigma n,    model(x, sigma (B,), **extra_args) -> the prediction of x_0 ("denoised")

    from fastdiff.k_diffusion import sample_dpmpp_2m_sde
    x = sample_dpmpp_2m_sde(model, noise * sigmas[0], sigmas, callback=show, eta=0.5)

sample_<any name of the registry>, in lower case with underscores, is such a function, but for tcd,
which goes by the model's time; __all__ has them.  Each is a table made for alpha = 1 before the
first call of the network, then one fused step a call; nothing is read from the device between two
calls.  The state stays float32 (float64 for float64 x) whatever x is; model and callback get it in
the dtype of x.

As in k-diffusion, and not as fastdiff.plan has it: DPM-Solvers and DEIS lower no order towards the
end (lower_order_final=False) and those of order 3 start with a second step that is exact for a
line; churned noise is added before the network is called.  Otherwise than there: where it takes a
Brownian tree, noise comes from torch.randn_like (noise_sampler takes a tree), and the second
difference of dpmpp_3m_sde has the weight that makes it third order (docs/mathematics.md).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.k_diffusion.arguments import Floats, check, check_flow, levels_of, vector
from fastdiff.k_diffusion.loop import Denoiser, steps_of
from fastdiff.k_diffusion.rows import as_there, make
from fastdiff.plan import options_of
from fastdiff.registry import SOLVERS, Solver, find
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.noise_levels import HIGHEST
from fastdiff.schedules.spacing import SPACINGS, levels

Sampler = Callable[..., Tensor]
PREFIX = "sample_"
FIT = 2.0**-10  # of a flow's levels: in float16 they are known to 2^-12, and so is the shift
LOWEST = 1e-7  # of trained levels: below it 1 / (1 + sigma^2) is 1 in float64
FIRST = ("model", "x", "sigmas", "extra_args", "callback", "disable")
DOC = """{name} on x = x_0 + sigma n, from sigmas[0] to sigmas[-1].

    model      model(x, sigma (B,), **extra_args) -> denoised, the shape of x
    x          (B, *shape) of a float dtype, at the level sigmas[0]
    sigmas     (N + 1,) descending float tensor; 0 at the end or not
    callback   gets a dict of x, i, sigma, sigma_hat, denoised, to be read
    disable    True hides the progress bar; None: it is hidden off a terminal
    flow       x = (1 - sigma) x_0 + sigma n in place of x_0 + sigma n
{noise}    options    of the solver: {options}

    Returns the sample, dtype and shape of x.  Raises TypeError or ValueError that names the
    argument, what it got and what would do.
    """
NOISE = """    noise_sampler  noise_sampler(sigma, sigma_next) -> unit normal noise like x; None:
               torch.randn_like(x)
"""


def get_sigmas(spacing: str, steps: int, trained: Tensor, *, flow: bool = False) -> Tensor:
    """Levels of a named spacing, (steps + 1,) float32 on the CPU, descending, 0 at the end.

    spacing  karras, exponential, beta, linspace, leading, trailing, .. (fastdiff.plan has them)
    trained  (T,) the levels that the model was trained at, ascending (`model_sampling.sigmas` in
             ComfyUI, `CompVisDenoiser.sigmas` in k-diffusion)
    flow     the levels are those of x = (1 - sigma) x_0 + sigma n, r t / (1 + (r - 1) t) at
             t = 1/T, 2/T .. 1; their shift r is kept

    Raises ValueError that names the argument, what it got and what would do.
    """
    check_flow(flow)
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}; got {spacing!r}")
    known = vector("trained", trained, least=2)
    top = 1.0 if flow else HIGHEST
    if not (np.diff(known) > 0).all() or known[0] < LOWEST or known[-1] > top:
        raise ValueError(
            f"trained must ascend within {LOWEST:g} .. {top:g}{', as flow=True' if flow else ''}; "
            f"got {known[0]:g} .. {known[-1]:g}"
        )
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1; got {steps!r}")
    if flow:
        family = NoiseSchedule.flow(_shift(known), len(known))
    else:
        family = NoiseSchedule("vp", len(known), 1 / (1 + known**2))
    return torch.from_numpy(np.append(levels(family, spacing, int(steps)), 0.0)).float()


def _shift(trained: Floats) -> float:
    """r of trained levels (T,) of a flow; ValueError where they are those of none."""
    times = np.arange(1, len(trained) + 1) / len(trained)
    middle = (len(trained) - 1) // 2  # never the last level, 1 for every shift
    s, t = float(trained[middle]), float(times[middle])
    shift = s * (1 - t) / (t * (1 - s))
    fitted = shift * times / (1 + (shift - 1) * times)
    far = np.abs(fitted - trained)
    worst = int(far.argmax())
    if far[worst] > FIT:
        raise ValueError(
            "trained must be the levels of a flow, r t / (1 + (r - 1) t) at t = 1/T .. 1, as "
            f"flow=True; got {trained[worst]:g} at t = {times[worst]:g}, where r = {shift:g} of "
            f"the middle has {fitted[worst]:g}. Give sigmas of your own"
        )
    return shift


def function(solver: str | Solver) -> Sampler:
    """The function of a solver: a name, or a registry.Solver of your own.

    Raises ValueError for a name that the registry has not, with those that are near.
    """
    solver = as_there(solver if isinstance(solver, Solver) else find(solver))
    if solver.inner is not None:
        raise ValueError(
            f"{solver.name} goes by the model's time, of which this interface knows nothing; "
            "fastdiff.plan and fastdiff.sampler do"
        )
    # k-diffusion's churn takes no noise_sampler: its noise has no second level
    draws = "s_churn" not in solver.options and solver.draws != "never"

    @functools.lru_cache(maxsize=16)
    def table(sigmas: tuple[float, ...], flow: bool, given: tuple[tuple[str, Any], ...]) -> Any:
        return make(solver, np.array(sigmas), flow, dict(given))

    @torch.no_grad()
    def sample(
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        flow = options.pop("flow", False)
        noise_sampler = options.pop("noise_sampler", None) if draws else None
        check(model, x, extra_args, callback, disable, flow, noise_sampler)
        given = options_of(solver, "exact", options)  # refuses what the solver does not take
        known = levels_of(sigmas, flow)
        if len(known) == 1:  # no step
            return x
        run = table(known, flow, tuple(given.items()))
        return steps_of(
            run, model, x, sigmas, dict(extra_args or {}), callback, disable, noise_sampler
        )

    sample.__name__ = sample.__qualname__ = PREFIX + solver.name
    sample.__doc__ = DOC.format(
        name=solver.name, noise=NOISE if draws else "", options=", ".join(solver.options) or "none"
    )
    kind = inspect.Parameter
    first = zip(FIRST, (kind.empty,) * 3 + (None,) * 3, strict=True)
    named = {**solver.options, **({"noise_sampler": None} if draws else {}), "flow": False}
    sample.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [kind(name, kind.POSITIONAL_OR_KEYWORD, default=value) for name, value in first]
        + [kind(name, kind.KEYWORD_ONLY, default=value) for name, value in named.items()]
    )
    return sample


def _names() -> list[str]:
    """Names of functions: of each solver its own, and those of ComfyUI and k-diffusion."""
    solvers = [s for s in SOLVERS.values() if s.inner is None]
    return [PREFIX + n for s in solvers for n in dict.fromkeys((s.name, *s.comfyui))]


def __getattr__(name: str) -> Sampler:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module 'fastdiff.k_diffusion' has no attribute {name!r}")
    try:
        solver = find(name.removeprefix(PREFIX))
        made = globals().get(PREFIX + solver.name) or function(solver)
    except ValueError as error:
        raise AttributeError(str(error)) from None
    globals()[PREFIX + solver.name] = globals()[name] = made
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = ["function", "get_sigmas", *_names()]
