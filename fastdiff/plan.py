"""A plan: everything a run needs to know before it starts, as numbers.

`plan(...)` joins a solver, a model family, a spacing, a prediction and guidance into a table of
rows (see table.py).  A Plan is immutable NumPy float64; its JSON (`schema: 1`) is the command
line's record, the format of tables made elsewhere, and an engine's sampler.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff import plan_file
from fastdiff.predictions import PREDICTIONS, perfect
from fastdiff.registry import Solver, find
from fastdiff.schedules import NoiseSchedule, levels
from fastdiff.solvers.row import Grid
from fastdiff.table import G, check, check_rings, conversion, encode, to_slots, width

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
NUMERICS = ("exact", "faithful")
CHOICES = {"solver_type": ("midpoint", "heun"), "variance": ("small", "large")}


@dataclass(frozen=True, eq=False)
class Plan:
    """N rows for N calls of the network.

    rows         (N, 1 or B, K) float64, columns of table.py, history by ring slot
    timesteps    (N,) model time of each call
    alpha sigma  (N + 1,) noise levels of the sample, x = alpha x_0 + sigma n
    draw         (N,) bool: noise is drawn on this row (also where its weight is 0, to keep seeds)
    depths       ring slots of each kept vector; P = len(depths), R = sum(depths)
    noise_scale  the run starts from noise_scale * (unit normal noise)
    c_in         factor of the sample for the first call
    guided       the network returns (uncond, cond)
    about        solver, options and versions it was made with; null solver for a learned table
    """

    rows: Floats
    timesteps: Floats
    alpha: Floats
    sigma: Floats
    draw: NDArray[np.bool_]
    depths: tuple[int, ...] = ()
    noise_scale: float = 1.0
    c_in: float = 1.0
    guided: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.timesteps)
        want = (n, width(self.keeps, self.history))
        if self.rows.ndim != 3 or (self.rows.shape[0], self.rows.shape[2]) != want:
            raise ValueError(
                f"rows must have shape ({want[0]}, 1 or batch, {want[1]}) for {n} timesteps and "
                f"depths {self.depths}; got {self.rows.shape}"
            )
        for name, length in (("alpha", n + 1), ("sigma", n + 1), ("draw", n)):
            if getattr(self, name).shape != (length,):
                raise ValueError(
                    f"{name} must have shape ({length},) for {n} timesteps; "
                    f"got {getattr(self, name).shape}"
                )
        self._close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose arrays NumPy makes writable."""
        self.__dict__.update(state)
        self._close()

    def _close(self) -> None:
        """Give the plan arrays of its own, read-only."""
        for name in ("rows", "timesteps", "alpha", "sigma", "draw"):
            own = getattr(self, name).copy()
            own.setflags(write=False)
            object.__setattr__(self, name, own)

    @property
    def keeps(self) -> int:
        """P: vectors kept by a row."""
        return len(self.depths)

    @property
    def history(self) -> int:
        """R: slots of all rings."""
        return sum(self.depths)

    @property
    def steps(self) -> int:
        """N: calls of the network."""
        return len(self.timesteps)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The rows on a device, (N, 1 or B, K), float32 unless asked for float64; made once."""
        return _on_device(self, str(device), dtype)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan written by `save`; a malformed one raises ValueError naming the field."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"path must be a plan as JSON, written by Plan.save; {str(path)!r} is not UTF-8 "
                f"text: {error.reason} at byte {error.start}"
            ) from error
        return Plan.from_json(text)

    def to_json(self) -> str:
        """JSON text; numbers keep all digits, infinities are the strings "inf" and "-inf"."""
        return plan_file.write(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote; a malformed one raises ValueError naming the field."""
        return Plan(**plan_file.read(text))


@functools.lru_cache(maxsize=64)
def _on_device(plan: Plan, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    import torch

    table = torch.from_numpy(plan.rows.astype(np.float64))
    table = table.to(torch.float32 if dtype is None else dtype)  # rounded once
    target = torch.device(device)
    if target.type == "cuda":
        return table.pin_memory().to(target, non_blocking=True)
    return table.to(target)


def plan(
    solver: str | Solver,
    *,
    steps: int,
    noise: str | NoiseSchedule = "scaled_linear",
    spacing: str | ArrayLike = "karras",
    prediction: str = "epsilon",
    guidance: float | ArrayLike | None = None,
    begin: int = 0,
    numerics: str = "exact",
    final_sigma: str = "zero",
    **solver_options: Any,
) -> Plan:
    """Compute the table of a run.

    solver       a name of the registry ("dpmpp_2m", "DPM++ 2M SDE", ..; see `fastdiff samplers`),
                 or a registry.Solver of your own
    steps        calls of the network for a whole run, N
    noise        model family: a beta schedule's name, "flow", or a NoiseSchedule
    spacing      a name, sigmas (float, N or N + 1 of them, descending), or timesteps (int, N)
    prediction   what the network returns: epsilon, sample, v_prediction, flow_prediction
    guidance     None, or the g of u + g (c - u): a number, (N,) per step, (1 or N, B) per sample
    begin        first row to run (image to image); the sample then starts at that noise level
    numerics     "exact", or "faithful" to diffusers' deviations (schedulers/quirks.py)
    final_sigma  "zero", or "sigma_min": stop at the cleanest trained level
    options      of the solver: eta, s_noise, solver_type, lower_order_final, s_churn, ..

    Raises ValueError that names the argument, what it got and what would do.
    """
    chosen = solver if isinstance(solver, Solver) else find(solver)
    _require(numerics in NUMERICS, "numerics", "one of " + ", ".join(NUMERICS), numerics)
    _require(
        prediction in PREDICTIONS, "prediction", "one of " + ", ".join(PREDICTIONS), prediction
    )
    _require(_whole(steps) and steps >= 1, "steps", "a whole number >= 1", steps)
    _require(_whole(begin) and 0 <= begin < steps, "begin", f"a row in 0 .. {steps - 1}", begin)
    options = _options(chosen, numerics, solver_options)
    known = isinstance(noise, (str, NoiseSchedule))
    _require(known, "noise", "a name or a NoiseSchedule", noise)
    family = NoiseSchedule.named(noise) if isinstance(noise, str) else noise
    if (prediction == "flow_prediction") != (family.kind == "flow"):
        raise ValueError(
            f"prediction {prediction!r} does not go with a {family.kind!r} noise schedule; "
            "flow_prediction goes with noise='flow', the others with a beta schedule"
        )
    ratios = _ratios(family, spacing, int(steps), final_sigma)
    grid, scales = _grid(chosen, family, ratios)
    times = _times(family, spacing, ratios)
    if numerics == "faithful":
        times = np.round(times)
    g = _guidance(guidance, int(steps))

    ages = []
    draws = np.zeros(steps, dtype=bool)
    for i in range(begin, steps):
        row = chosen.row(grid, i, i - begin, **options)
        draws[i] = chosen.noise or row.next.z != 0 or row.churn is not None
        numbers = conversion(prediction, grid, i, float(scales[i]), row.churn)
        ages.append(encode(row, numbers, c_in=float(scales[i + 1])))
    by_age = np.array(ages)
    rows = to_slots(by_age, chosen.depths)
    outputs = [
        perfect(prediction, float(grid.alpha[i]), float(grid.sigma[i]), float(scales[i]))
        for i in range(begin, steps)
    ]
    silent = draws[begin:] & (options.get("s_noise", 1.0) == 0)
    check(rows, grid, begin, chosen.depths, outputs, silent)
    check_rings(rows, chosen.depths, by_age)
    table = np.repeat(rows[:, None, :], g.shape[1], axis=1)
    table[:, :, G] = g[begin:]
    top = float(np.hypot(grid.alpha[begin], grid.sigma[begin]))
    about = {
        "solver": chosen.name,
        "options": {k: str(v) if v == float("inf") else v for k, v in options.items()},
        "noise": family.origin,
        "spacing": spacing if isinstance(spacing, str) else "custom",
        "prediction": prediction,
        "numerics": numerics,
        "begin": int(begin),
    }
    return Plan(
        table,
        times[begin:],
        grid.alpha[begin:],
        grid.sigma[begin:],
        draws[begin:],
        chosen.depths,
        top if family.kind == "vp" else float(grid.sigma[begin]),
        float(scales[begin]),
        guidance is not None,
        about,
    )


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _require(fine: bool, name: str, wanted: str, got: object) -> None:
    if not fine:
        raise ValueError(f"{name} must be {wanted}; got {got!r}")


def _options(solver: Solver, numerics: str, given: dict[str, Any]) -> dict[str, Any]:
    if unknown := given.keys() - solver.options.keys():
        known = ", ".join(solver.options) or "none"
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of solver {solver.name!r}; it takes {known}"
        )
    for name, value in given.items():
        default = solver.options[name]
        if name in CHOICES:
            _require(value in CHOICES[name], name, " or ".join(CHOICES[name]), value)
        elif isinstance(default, bool):
            _require(isinstance(value, (bool, np.bool_)), name, "True or False", value)
        else:
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            fine = number and value >= 0 and (value < np.inf or default == np.inf)
            _require(bool(fine), name, "a number >= 0", value)
    faithful = solver.faithful if numerics == "faithful" else {}
    return {**solver.preset, **solver.options, **given, **faithful}


def _ratios(family: NoiseSchedule, spacing: Any, steps: int, final_sigma: str) -> Floats:
    """sigma (flow) or sigma / alpha (vp) at the N + 1 grid points."""
    _require(final_sigma in ("zero", "sigma_min"), "final_sigma", "zero or sigma_min", final_sigma)
    if isinstance(spacing, str):
        sigmas = levels(family, spacing, steps)
    else:
        sigmas = _given(family, _array(spacing), steps)
    if len(sigmas) == steps + 1:
        return sigmas
    lowest = 1 / family.train_steps if family.kind == "flow" else float(family.ratios[0])
    return np.append(sigmas, 0.0 if final_sigma == "zero" else min(lowest, sigmas[-1]))


def _array(spacing: Any) -> NDArray[Any]:
    try:
        values = np.asarray(spacing)
    except ValueError:  # ragged
        values = np.asarray(None)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(
            "spacing must be a name, one-dimensional sigmas (float) or timesteps (int); got "
            f"{spacing!r}"
        )
    return values


def _given(family: NoiseSchedule, values: NDArray[Any], steps: int) -> Floats:
    """A caller's sigmas (float) or timesteps (int) as sigmas, N or N + 1 of them."""
    fit = len(values) in (steps, steps + 1)
    _require(fit, "spacing", f"{steps} or {steps + 1} long for steps={steps}", len(values))
    if values.dtype.kind in "iu":
        last = family.train_steps - (family.kind == "vp")
        inside = bool((values >= 0).all() and (values <= last).all())
        _require(inside, "spacing", f"timesteps in 0 .. {last}", values.tolist())
        sigmas = family.ratio_at(values)
    else:
        sigmas = values.astype(np.float64)
    top = 1.0 if family.kind == "flow" else np.finfo(np.float64).max
    descending = (np.diff(sigmas) <= 0).all() and sigmas[-1] >= 0 and 0 < sigmas[0] <= top
    if not descending:  # also where a number is NaN
        raise ValueError(
            "spacing must go from noisy to clean, from a finite level above 0 (at most 1 for flow) "
            f"to one at or above 0; got {values.tolist()}"
        )
    return sigmas


def _times(family: NoiseSchedule, spacing: Any, ratios: Floats) -> Floats:
    """Model times of the calls; whole numbers that the caller gave stay what they are."""
    if not isinstance(spacing, str) and (values := _array(spacing)).dtype.kind in "iu":
        return values[: len(ratios) - 1].astype(np.float64)
    return family.time_of(ratios[:-1])


def _grid(solver: Solver, family: NoiseSchedule, ratios: Floats) -> tuple[Grid, Floats]:
    """The solver's noise levels, and c_in at each."""
    alpha, sigma = family.alpha_sigma(ratios)
    if solver.state == "ve" and family.kind == "vp":
        return Grid(np.ones_like(ratios), ratios), alpha
    return Grid(alpha, sigma), np.ones_like(ratios)


def _guidance(guidance: float | ArrayLike | None, steps: int) -> Floats:
    """(N, 1 or B)."""
    try:
        values = np.asarray(1.0 if guidance is None else guidance, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full((), np.nan)
    if np.isfinite(values).all():
        if values.ndim <= 1 and values.size in (1, steps):
            return np.broadcast_to(values.reshape(-1, 1), (steps, 1))
        if values.ndim == 2 and values.shape[0] in (1, steps) and values.shape[1] > 0:
            return np.broadcast_to(values, (steps, values.shape[1]))
    raise ValueError(
        f"guidance must be a finite number, ({steps},) of them per step or (1 or {steps}, batch) "
        f"per sample; got {guidance!r} of shape {values.shape}"
    )
