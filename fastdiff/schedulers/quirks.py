"""Where diffusers computes something else than the method it names: the one list.

The solvers know only right formulas with explicit parameters.  `numerics = "faithful"` (the default
of a drop-in, whose pictures must not change) sets the parameters below; "exact" leaves them out.
Entries without a parameter are not reproduced in either: there diffusers crashes, makes NaN or
rounds. docs/mathematics.md shows the same list with the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECKED = ">=0.42,<0.44"  # versions of diffusers that the list was made for


@dataclass(frozen=True)
class Quirk:
    """One deviation.

    classes    that have it; () for all
    parameter  what "faithful" sets, name=value in words; "" if it is not reproduced
    size       how much it changes, measured on diffusers 0.42.1
    issue      thread in huggingface/diffusers, or "" if none was found
    """

    name: str
    classes: tuple[str, ...]
    parameter: str
    size: str
    issue: str = ""
    versions: str = CHECKED


_DPM = ("DPMSolverMultistepScheduler",)
_EDM = ("EDMDPMSolverMultistepScheduler",)
_SINGLE = ("DPMSolverSinglestepScheduler",)
_UNIPC = ("UniPCMultistepScheduler",)
_SA = ("SASolverScheduler",)

QUIRKS = (
    Quirk(
        "third order is second order",
        _DPM + _EDM,
        "d2_scale=1",
        "the second difference lacks a factor 2: order 2.0 instead of 3.0 from an exact start",
    ),
    Quirk(
        "sign of the third-order SDE term",
        _DPM,
        "sde3_offset=-1",
        "31 % from k-diffusion over 16 Karras steps; with the sign turned 9e-7",
    ),
    Quirk(
        "sign of the third-order SDE term of a cycle",
        _SINGLE,
        "sde3_offset=-1",
        "solver_type heun: samples differ by 140 % of their size over 8 to 20 steps; the error of "
        "the variance is the same for any number of steps",
    ),
    Quirk(
        "DDIM's previous timestep is t - T // n",
        ("DDIMScheduler",),
        "prev_timestep=stride",
        "with trailing, 6 steps: 3 of 5 jumps miss the next timestep; linspace, 10 steps: 9 of 9",
        "#12633",
    ),
    Quirk(
        "PLMS steps from t to t - T // n",
        ("PNDMScheduler",),
        "prev_timestep=stride",
        "linspace, 10 steps: 10 % of the sample; the middles of the Runge-Kutta start are off, too",
        "#12633",
    ),
    Quirk(
        "the second call of PLMS in a run that begins later",
        ("PNDMScheduler",),
        "second_call=always",
        "image to image: no timestep comes twice there, all later ones are one level late; 5 %",
    ),
    Quirk(
        "model times are cut to whole numbers",
        _DPM + _SINGLE + _UNIPC + _SA,
        "integer_timesteps=True",
        "flow: 954 instead of 954.2; exponential and beta sigmas: up to one whole timestep",
    ),
    Quirk(
        "mu of one run stays for the next",
        _DPM + _SINGLE,
        "keep_mu=True",
        "set_timesteps(mu=..) changes flow_shift for every later set_timesteps without mu",
    ),
    Quirk(
        "beta_t of DDPM is a difference of float32 numbers",
        ("DDPMScheduler",),
        "chain=(alpha_t, 1 - alpha_t) rounded to float32",
        "relative error 6e-8 / beta_t: 6e-4 at the first of 1000 linear betas; 5e-5 of a whole run",
    ),
    Quirk(
        "weights of predictions that a run does not have",
        ("LMSDiscreteScheduler",),
        "order=place",
        "image to image: of equal levels, the first step is 55/24 of its length, then -4/24, 33/24",
    ),
    Quirk(
        "the first step drops the prediction of x_0",
        ("IPNDMScheduler",),
        "least_signal=1e-8",
        "alpha = 0 there, (x - x) / 1e-8 stands for x_0: a' x_0 is missing, a' = 0.11 of 20 steps",
    ),
    Quirk(
        "no division by zero for equal noise levels",
        _DPM + _UNIPC + _SA,
        "",
        "order 3, Karras, final sigma_min, 15 steps or more: NaN there, the identity step here; "
        "UniPC: order 3 with lower_order_final=False; SA-Solver: as many steps as timesteps",
        "#9007",
    ),
    Quirk(
        "thresholding of predicted noise",
        _SINGLE,
        "",
        "dpmsolver with thresholding: alpha of all timesteps at once and RuntimeError there, the "
        "noise that is left of the thresholded x_0 here",
    ),
    Quirk(
        "sde-dpmsolver of order 3",
        _DPM + _EDM,
        "",
        "UnboundLocalError there (EDM: sde-dpmsolver++, too), a third-order step here",
        "#13778",
    ),
    Quirk(
        "duplicate timesteps",
        _DPM + _UNIPC + _SA,
        "",
        "squaredcos_cap_v2 with Karras sigmas: IndexError at the end there, AssertionError of "
        "UniPC and SA-Solver (12 unique of 20); a run that begins at one of them begins at the "
        "second there, at the one that was passed here",
        "#12771",
    ),
    Quirk(
        "the step to level 0 is as long as any other",
        _UNIPC,
        "",
        "solver_type bh1, lower_order_final=False or predict_x0=False, to level 0: NaN there (at "
        "order 3 LinAlgError), the prediction of x_0 here",
    ),
    Quirk(
        "the noise of a flow's last level is left",
        ("DEISMultistepScheduler", *_SA),
        "final_level=last",
        "8 steps: ends at sigma = 0.125, with flow_shift=3 at 0.3, after a step of no length; 0 in "
        "exact, and with sigmas=",
    ),
    Quirk(
        "spacings of a flow lie between the levels of the betas",
        (*_DPM, *_SINGLE, *_UNIPC, "DEISMultistepScheduler"),
        "",
        "use_flow_sigmas with Karras, exponential or beta sigmas: alpha = 1 - sigma below 0, NaN "
        "there (but not UniPC's Karras without sigmas=), between the levels of the flow here",
    ),
    Quirk(
        "a flow that does not end at 0 ends at the least level of the betas",
        _DPM + _SINGLE,
        "final_level=betas",
        "dpmsolver, final_sigmas_type sigma_min: 0.01, with Stable Diffusion's betas 0.029; above "
        "100 steps the last one goes up; 1 / T in exact, and with sigmas=",
    ),
    Quirk(
        "custom timesteps of a flow are overwritten",
        _DPM + _SINGLE,
        "",
        "use_flow_sigmas, timesteps=[900, 500, 100]: TypeError of the first, 999, 666, 332 of the "
        "second there; 900, 500, 100 here",
    ),
    Quirk(
        "the shift of a flow matching config is dropped",
        (*_DPM, *_SINGLE, *_UNIPC, "DEISMultistepScheduler"),
        "",
        "from_config(config, use_flow_sigmas=True): flow_shift is 1 there, the config's shift here",
    ),
    Quirk(
        "x_0 of a predicted noise",
        _SA,
        "",
        "noise_prediction with thresholding: RuntimeError there, since the level is looked up by "
        "a timestep of None; its x_0 is bounded here",
    ),
    Quirk(
        "noise beside a learned variance",
        _SA,
        "",
        "drawn in the shape of mean and variance, RuntimeError there; in that of the mean here",
    ),
    Quirk(
        "sigma_down of a long step",
        ("KDPM2AncestralDiscreteScheduler",),
        "",
        "the root of a difference of float32 numbers: 0 or NaN there, sigma'^2 / sigma here",
    ),
    Quirk(
        "variance fixed_large_log",
        ("DDPMScheduler",),
        "",
        "the root of log(beta_t) there: NaN, but 0 where beta_t = 1 (rescale_betas_zero_snr, t = "
        "T - 1); sqrt(beta_t), as fixed_large, here",
    ),
    Quirk(
        "epsilon without a signal",
        ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"),
        "",
        "rescale_betas_zero_snr, linspace or trailing (LCM, TCD: always), x_0 not bounded: a "
        "division by 0, whose infinities and NaN are returned there; ValueError here",
    ),
    Quirk(
        "eta below 0",
        ("DDIMScheduler",),
        "",
        "the noise of a level is made smaller there and none is put back; ValueError here",
    ),
    Quirk(
        "coefficients in float32",
        (),
        "",
        "relative error of a weight, Karras 50, 1000 steps: order 2 8e-6, 3e-3; order 3 2e-4, 2.4",
    ),
)


def parameters(scheduler: str, numerics: str, *, order: int, sde: bool) -> dict[str, Any]:
    """Options of the solver for a class of the DPM family in a mode."""
    if numerics != "faithful" or order < 3:
        return {}
    if scheduler in _SINGLE:
        return {"sde3_offset": -1.0} if sde else {}
    # of order 3 with noise EDM's has nothing to be faithful to
    wrong = sde and scheduler not in _EDM
    return {"d2_scale": 1.0, "sde3_offset": -1.0 if wrong else 0.0}


def parameters_of_lms(numerics: str) -> bool:
    """Whether the order is what the place in the grid allows, however short the history is."""
    return numerics == "faithful"


def least_signal(numerics: str) -> float:
    """What diffusers' IPNDM divides by where alpha is less; 0: the limit is taken."""
    return 1e-8 if numerics == "faithful" else 0.0


def rounded_chain(levels: NDArray[np.float64], t: int, prev: int) -> tuple[float, float]:
    """(alpha_t, beta_t) as diffusers' DDPM has them: a float32 quotient, and 1 minus it."""
    before = np.float32(levels[prev]) if prev >= 0 else np.float32(1.0)
    alpha = np.float32(levels[t]) / before
    return float(alpha), float(np.float32(1.0) - alpha)
