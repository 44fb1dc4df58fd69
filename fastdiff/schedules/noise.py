"""Model families: what noise level a network's time stands for.

    x_t = alpha(t) x_0 + sigma(t) n
    vp    alpha^2 = alphas_cumprod[t] = prod(1 - beta), sigma^2 = 1 - alpha^2     t = 0 .. T - 1
    flow  alpha = 1 - sigma, sigma = t / T                                        t = 0 .. T

Between the T training levels of a variance preserving model, log(sigma / alpha) is interpolated
linearly in t.  Ho et al. 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal 2021, arXiv:2102.09672
(squaredcos_cap_v2); Lin et al. 2023, arXiv:2305.08891 (rescale_betas_zero_snr).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.schedules.origin import Origin

Floats = NDArray[np.float64]

# beta_start, beta_end: "linear" as DDPM was trained, "scaled_linear" as Stable Diffusion was
DEFAULT_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
ZERO_SNR_FLOOR = 2.0**-24  # in place of alphas_cumprod = 0, so that sigma / alpha stays finite
MAX_SHIFT = 1e6  # of a flow; alpha of the noisiest level is about 1 / (shift T)


def betas(
    schedule: str,
    steps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> Floats:
    """The T = steps training betas, (T,)."""
    if isinstance(schedule, str) and schedule == "squaredcos_cap_v2":
        t = np.arange(steps + 1) / steps
        bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.minimum(1 - bar[1:] / bar[:-1], 0.999))
    if not isinstance(schedule, str) or schedule not in DEFAULT_BETAS:
        hint = ". Make that one with NoiseSchedule.flow()" if str(schedule) == "flow" else ""
        raise ValueError(
            f"schedule must be one of {', '.join(BETA_SCHEDULES)}; got {schedule!r}{hint}"
        )
    low, high = DEFAULT_BETAS[schedule]
    low = low if beta_start is None else beta_start
    high = high if beta_end is None else beta_end
    if schedule == "linear":
        return np.linspace(low, high, steps)
    return np.asarray(np.linspace(math.sqrt(low), math.sqrt(high), steps) ** 2)


def rescale_zero_terminal_snr(values: ArrayLike) -> Floats:
    """Betas whose last level has no signal, the first one unchanged (arXiv:2305.08891, alg. 1)."""
    bar = np.sqrt(np.cumprod(1 - np.asarray(values, dtype=np.float64)))
    first, last = bar[0], bar[-1]
    bar = (bar - last) * first / (first - last)
    squares = bar**2
    return 1 - np.concatenate([squares[:1], squares[1:] / squares[:-1]])


@dataclass(frozen=True)
class NoiseSchedule:
    """A model family.  Make one with `vp`, `from_betas` or `flow`; a name is enough for `plan`.

    kind            "vp" or "flow"
    train_steps     T
    alphas_cumprod  (T,) float64 for "vp", empty for "flow"
    shift           flow only: sigma -> shift sigma / (1 + (shift - 1) sigma)
    origin          how it was made, for the plan's JSON; read-only, as alphas_cumprod
    """

    kind: str
    train_steps: int
    alphas_cumprod: Floats = field(default_factory=lambda: np.empty(0))
    shift: float = 1.0
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("vp", "flow"):
            raise ValueError(f"kind must be vp or flow; got {self.kind!r}")
        steps, bar = self.train_steps, np.asarray(self.alphas_cumprod, dtype=np.float64)
        object.__setattr__(self, "train_steps", _train_steps(steps))
        object.__setattr__(self, "shift", _shift(self.shift))
        if bar.shape != ((steps,) if self.kind == "vp" else (0,)):
            raise ValueError(
                f"alphas_cumprod must have shape (train_steps,) = ({steps},) for kind 'vp' and be "
                f"empty for 'flow'; got {bar.shape} for {self.kind!r}"
            )
        tiny = np.finfo(np.float64).tiny  # below it (1 - bar) / bar is not finite
        if not ((bar >= tiny) & (bar < 1)).all():
            raise ValueError(
                "alphas_cumprod, the products of 1 - beta, must lie in (0, 1), in float64; got "
                f"{bar.min()} .. {bar.max()}. Fewer or other betas would do"
            )
        object.__setattr__(self, "origin", Origin(self.origin))
        self._close(bar)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose array NumPy makes writable."""
        self.__dict__.update(state)
        self._close(self.alphas_cumprod)

    def _close(self, bar: Floats) -> None:
        """Give the schedule an array of its own, read-only."""
        own = bar.copy()
        own.setflags(write=False)
        object.__setattr__(self, "alphas_cumprod", own)

    @staticmethod
    def vp(
        schedule: str = "scaled_linear",
        train_steps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        rescale_betas_zero_snr: bool = False,
    ) -> NoiseSchedule:
        """A named variance preserving schedule.

        Raises ValueError that names the argument, what it got and what would do.
        """
        train_steps = _train_steps(train_steps)
        start = None if beta_start is None else _beta("beta_start", beta_start)
        end = None if beta_end is None else _beta("beta_end", beta_end)
        made = NoiseSchedule.from_betas(
            betas(schedule, train_steps, start, end), rescale_betas_zero_snr
        )
        origin = {
            "schedule": schedule,
            "train_steps": train_steps,
            "beta_start": start,
            "beta_end": end,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
        }
        return NoiseSchedule("vp", train_steps, made.alphas_cumprod, 1.0, origin)

    @staticmethod
    def from_betas(trained_betas: ArrayLike, rescale_betas_zero_snr: bool = False) -> NoiseSchedule:
        """A variance preserving schedule from the betas a model was trained with, (T,)."""
        if not isinstance(rescale_betas_zero_snr, (bool, np.bool_)):
            raise ValueError(
                f"rescale_betas_zero_snr must be True or False; got {rescale_betas_zero_snr!r}"
            )
        try:
            values = np.asarray(trained_betas, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "trained_betas must be one-dimensional, at least two numbers in (0, 1); got "
                f"{trained_betas!r:.60}"
            ) from error
        if values.ndim != 1 or len(values) < 2 or not ((values > 0) & (values < 1)).all():
            raise ValueError(
                "trained_betas must be one-dimensional, at least two numbers in (0, 1); got shape "
                f"{values.shape} in [{values.min(initial=1)}, {values.max(initial=0)}]"
            )
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN is refused with a sentence
            if rescale_betas_zero_snr:
                values = rescale_zero_terminal_snr(values)
            cumulative = np.asarray(np.cumprod(1 - values), dtype=np.float64)
        if rescale_betas_zero_snr:
            cumulative[-1] = ZERO_SNR_FLOOR
        origin = {"schedule": "trained_betas", "rescale_betas_zero_snr": rescale_betas_zero_snr}
        return NoiseSchedule("vp", len(values), cumulative, 1.0, origin)

    @staticmethod
    def flow(shift: float = 1.0, train_steps: int = 1000) -> NoiseSchedule:
        """Rectified flow: x = (1 - sigma) x_0 + sigma n.

        Raises ValueError that names the argument, what it got and what would do.
        """
        shift, train_steps = _shift(shift), _train_steps(train_steps)
        origin = {"schedule": "flow", "shift": shift, "train_steps": train_steps}
        return NoiseSchedule("flow", train_steps, np.empty(0), shift, origin)

    @staticmethod
    def named(name: str) -> NoiseSchedule:
        """The schedule that a name stands for: a beta schedule's, or "flow".

        Raises ValueError that calls the name noise, as fastdiff.plan does.
        """
        if name not in (*BETA_SCHEDULES, "flow"):
            raise ValueError(
                f"noise must be one of {', '.join(BETA_SCHEDULES)}, flow; got {name!r}"
            )
        return NoiseSchedule.flow() if name == "flow" else NoiseSchedule.vp(name)

    @property
    def ratios(self) -> Floats:
        """sigma / alpha of the training levels, (T,), from clean to noisy; vp only."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def time_of(self, ratio: ArrayLike) -> Floats:
        """Model time of noise levels given as sigmas: sigma / alpha for vp, sigma for flow.

        Levels outside the trained ones get the nearest trained time.
        """
        wanted = np.asarray(ratio, dtype=np.float64)
        if self.kind == "flow":
            return wanted * self.train_steps
        known = np.log(self.ratios)
        times = np.arange(self.train_steps, dtype=np.float64)
        return np.interp(np.log(np.maximum(wanted, 1e-10)), known, times)

    def ratio_at(self, time: ArrayLike) -> Floats:
        """Sigmas of model times: the inverse of time_of."""
        wanted = np.asarray(time, dtype=np.float64)
        if self.kind == "flow":
            return wanted / self.train_steps
        times = np.arange(self.train_steps, dtype=np.float64)
        return np.exp(np.interp(wanted, times, np.log(self.ratios)))

    def alpha_sigma(self, ratio: ArrayLike) -> tuple[Floats, Floats]:
        """(alpha, sigma) of sigmas; a sigma of 0 gives (1, 0)."""
        values = np.asarray(ratio, dtype=np.float64)
        if self.kind == "flow":
            return 1 - values, values.copy()
        alpha = 1 / np.sqrt(1 + values**2)
        return alpha, values * alpha


def _train_steps(value: object) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 2:
        return int(value)
    raise ValueError(f"train_steps must be a whole number >= 2; got {value!r}")


def _beta(name: str, value: object) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and 0 < value < 1:
        return float(value)
    raise ValueError(f"{name} must be a number in (0, 1), or None; got {value!r}")


def _shift(value: object) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if number and not isinstance(value, bool) and 0 < value <= MAX_SHIFT:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(
        f"shift must be above 0 and at most {MAX_SHIFT:g} (1 leaves the grid as it is); "
        f"got {value!r}"
    )
