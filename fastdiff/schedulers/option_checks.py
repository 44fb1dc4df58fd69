"""What a value of each option may be, asked by fastdiff.sampler.

The constructors are diffusers': they take what it takes, and fail where it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np


class Check(NamedTuple):
    """what: the values in words; fits: whether a value is one of them."""

    what: str
    fits: Callable[[Any], bool]

    def or_none(self) -> Check:
        return Check(f"None or {self.what}", lambda v: v is None or self.fits(v))


def checked(option: str, value: Any) -> None:
    """ValueError with the option's name unless the value is one of those that it may have."""
    check = CHECKS[option]
    if not check.fits(value):
        raise ValueError(f"{option} must be {check.what}; got {value!r:.80}")


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(
    what: str, fits: Callable[[float], bool], finite: Callable[[float], bool] = math.isfinite
) -> Check:
    return Check(what, lambda v: _real(v) and finite(float(v)) and fits(float(v)))


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _whole(least: int) -> Check:
    return Check(f"a whole number of at least {least}", lambda v: _is_whole(v, least))


def _words(*words: str) -> Check:
    """Of any class: a whole config brings those of its own along."""
    return Check(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words)


def _list_of(what: str, fits: Callable[[Any], bool], least: int = 0) -> Check:
    return Check(
        what, lambda v: isinstance(v, list | tuple) and len(v) >= least and all(map(fits, v))
    )


def _betas(value: Any) -> bool:
    """A list or array (NumPy or torch) of betas."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged; a tensor that is not on the CPU
        return False
    return (
        array.ndim == 1
        and array.size > 0
        and array.dtype.kind in "iuf"
        and bool(((array > 0) & (array <= 1)).all())
    )


_FLAG = Check("True or False", lambda v: isinstance(v, bool | np.bool_))
_NUMBER = _numbers("a finite number", lambda v: True)
_ABOVE_0 = _numbers("a finite number above 0", lambda v: v > 0)
_BETA = _numbers("a number above 0 and below 1", lambda v: 0 < v < 1)


def _all(names: Iterable[str], check: Check) -> dict[str, Check]:
    return dict.fromkeys(names, check)


CHECKS: dict[str, Check] = {
    **_all(
        (
            *("clip_sample", "euler_at_final", "invert_sigmas", "lower_order_final", "predict_x0"),
            *("rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps"),
            *("stochastic_sampling", "thresholding", "use_dynamic_shifting", "use_flow_sigmas"),
            "use_lu_lambdas",
        ),
        _FLAG,
    ),
    **_all(
        ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"),
        _FLAG.or_none(),  # as Euler of diffusers has them
    ),
    **_all(
        (
            *("base_image_seq_len", "max_image_seq_len", "num_train_timesteps"),
            *("original_inference_steps", "predictor_order", "corrector_order", "solver_order"),
        ),
        _whole(1),
    ),
    "steps_offset": _whole(0),
    **_all(("beta_start", "beta_end"), _BETA),
    "trained_betas": Check(
        "a list or array of numbers above 0, at most 1, one for each training step", _betas
    ).or_none(),
    **_all(
        (
            *("clip_sample_range", "flow_shift", "rho", "sample_max_value", "shift", "sigma_data"),
            "timestep_scaling",
        ),
        _ABOVE_0,
    ),
    **_all(("sigma_max", "sigma_min"), _ABOVE_0.or_none()),
    **_all(("base_shift", "max_shift"), _NUMBER.or_none()),
    "dynamic_thresholding_ratio": _numbers("a number in 0 .. 1", lambda v: 0 <= v <= 1),
    "lambda_min_clipped": _numbers(
        "a number, or -inf for no limit", lambda v: v < math.inf, lambda v: not math.isnan(v)
    ),
    "shift_terminal": _numbers(
        "a number of at least 0 and below 1", lambda v: 0 <= v < 1
    ).or_none(),
    "scale_factors": _list_of("a list of numbers above 0", _ABOVE_0.fits, 1).or_none(),
    "disable_corrector": _list_of("a list of steps, 0 the first", lambda v: _is_whole(v, 0)),
    "solver_p": Check("a scheduler", lambda v: hasattr(v, "set_timesteps")).or_none(),
    "tau_func": Check("a function of the timestep", callable).or_none(),
    "algorithm_type": _words(
        *("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
        *("data_prediction", "noise_prediction"),
    ),
    "beta_schedule": _words(
        *("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
    ),
    "final_sigmas_type": _words("zero", "sigma_min"),
    "interpolation_type": _words("linear", "log_linear"),
    "prediction_type": _words(
        *("epsilon", "sample", "original_sample", "v_prediction", "flow_prediction", "trigflow")
    ),
    "sigma_schedule": _words("karras", "exponential"),
    "solver_type": _words("midpoint", "heun", "bh1", "bh2", "logrho"),
    "time_shift_type": _words("exponential", "linear"),
    "timestep_spacing": _words("linspace", "leading", "trailing"),
    "timestep_type": _words("discrete", "continuous"),
    "upscale_mode": _words(
        *("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")
    ),
    "variance_type": _words(
        *("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        *("learned", "learned_range"),
    ).or_none(),
}
