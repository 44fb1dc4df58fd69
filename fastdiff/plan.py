"""A plan: everything a run needs to know before it starts, as numbers.

`plan(...)` joins a solver, a model family, a spacing, a prediction and guidance into a table of
rows (see table.py).  A Plan is immutable NumPy float64; its JSON (`schema: 1`) is the command
line's record, the format of tables made elsewhere, and an engine's sampler.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff import plan_file
from fastdiff.plan_fields import check_eta, check_levels, check_shapes, check_times, of_sample
from fastdiff.predictions import PREDICTIONS, perfect
from fastdiff.registry import Solver, find
from fastdiff.schedules import NoiseSchedule, Origin
from fastdiff.schedules.noise_levels import ratios_of, require, times_of
from fastdiff.solvers.ddim import ddim
from fastdiff.solvers.row import Grid
from fastdiff.table import (
    MAX_COLUMNS,
    MAX_VECTORS,
    G,
    check,
    check_rings,
    check_table,
    conversion,
    encode,
    to_slots,
    width,
)

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
MOST = float(np.finfo(np.float32).max)
NUMERICS = ("exact", "faithful")
CHOICES = (("midpoint", "heun"), ("bh1", "bh2"), ("small", "large"))  # of options that are words


@dataclass(frozen=True, eq=False)
class Plan:
    """N rows for N calls of the network.

    rows         (N, 1 or B, K) float64, columns of table.py, history by ring slot
    timesteps    (N,) model time of each call; (N, B) for samples with times of their own
    alpha sigma  (N + 1,) or (N + 1, B) noise levels of the sample, x = alpha x_0 + sigma n
    draw         (N,) or (N, B) bool: noise is drawn on this row (also where its weight is 0, to
                 keep seeds)
    depths       ring slots of each kept vector; P = len(depths), R = sum(depths)
    noise_scale  the run starts from noise_scale * (unit normal noise); a number or (B,)
    c_in         factor of the sample for the first call; a number or (B,)
    guided       the network returns (uncond, cond)
    about        solver, options and versions it was made with; null solver for a learned table

    Arrays and about are the plan's own and read-only.  Raises ValueError that names the field, what
    it got and what would do, also for rows that no kernel may run.
    """

    rows: Floats
    timesteps: Floats
    alpha: Floats
    sigma: Floats
    draw: NDArray[np.bool_]
    depths: tuple[int, ...] = ()
    noise_scale: float | Floats = 1.0
    c_in: float | Floats = 1.0
    guided: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rows", "timesteps", "alpha", "sigma"):
            object.__setattr__(self, name, _floats(name, getattr(self, name)))
        object.__setattr__(self, "draw", np.asarray(self.draw))
        require(self.draw.dtype == bool, "draw", "an array of bool", self.draw)
        whole = isinstance(self.depths, (tuple, list)) and all(
            _whole(d) and d >= 0 for d in self.depths
        )
        require(whole, "depths", "a tuple of whole numbers >= 0", self.depths)
        object.__setattr__(self, "depths", tuple(int(d) for d in self.depths))
        require(isinstance(self.guided, (bool, np.bool_)), "guided", "True or False", self.guided)
        object.__setattr__(self, "guided", bool(self.guided))
        for name in ("noise_scale", "c_in"):
            given = getattr(self, name)
            each = given if isinstance(given, np.ndarray) and given.ndim == 1 else None
            value = _number(given) if each is None else _floats(name, each)
            require(
                bool(np.all((np.asarray(value) >= 0) & (np.asarray(value) < np.inf))),
                name,
                "a finite number >= 0",
                given,
            )
            object.__setattr__(self, name, value)
        if width(self.keeps, self.history) > MAX_COLUMNS or self.keeps + self.history > MAX_VECTORS:
            raise ValueError(
                f"depths must leave a row at most {MAX_COLUMNS} columns and {MAX_VECTORS} vectors; "
                f"got {self.depths}, {width(self.keeps, self.history)} columns. Fewer kept vectors "
                "would do"
            )
        check_times(self.timesteps, self.rows, self.draw)
        n = len(self.timesteps)
        want = (n, width(self.keeps, self.history))
        if self.rows.ndim != 3 or (self.rows.shape[0], self.rows.shape[2]) != want:
            raise ValueError(
                f"rows must have shape ({want[0]}, 1 or batch, {want[1]}) for {n} timesteps and "
                f"depths {self.depths}; got {self.rows.shape}"
            )
        check_shapes(self, n)
        for sample in range(self.rows.shape[1]):
            check_levels(*of_sample(self, sample))
        check_table(self.rows, self.draw, self.depths)
        object.__setattr__(self, "about", Origin(self.about))
        self._close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose arrays NumPy makes writable."""
        self.__dict__.update(state)
        self._close()

    def _close(self) -> None:
        """Give the plan arrays of its own, read-only."""
        for name in ("rows", "timesteps", "alpha", "sigma", "draw", "noise_scale", "c_in"):
            if isinstance(value := getattr(self, name), np.ndarray):
                own = value.copy()
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
        """A copy of the rows on a device, (N, 1 or B, K), float32 unless asked for float64."""
        return on_device(self, str(device), dtype).clone()

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; TypeError or ValueError where path names no file."""
        plan_file.file_of(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan written by `save`; a malformed one raises ValueError naming the field."""
        text = plan_file.text_of(path)
        try:
            return Plan.from_json(text)
        except ValueError as error:
            raise ValueError(f"{error} (in the file {str(path)!r})") from error

    def to_json(self) -> str:
        """JSON text; numbers keep all digits, infinities are the strings "inf" and "-inf"."""
        return plan_file.write(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote; a malformed one raises ValueError naming the field.

        Raises TypeError where text is no text.
        """
        return Plan(**plan_file.read(text))


@functools.lru_cache(maxsize=64)
def on_device(plan: Plan, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    """The rows on a device, made once: shared by all runs, to be read only."""
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

    solver       a name of the registry ("dpmpp_2m", "DPM++ 2M SDE", ..; registry.SOLVERS has
                 all), or a registry.Solver of your own
    steps        calls of the network for a whole run, N; a solver with two calls a step goes over
                 M = N // 2 + 1 levels, one whose first step alone has two (PLMS) over N - 1
    noise        model family: a beta schedule's name, "flow", or a NoiseSchedule
    spacing      a name (schedules/spacing.py; leading is that of the solver's class in diffusers),
                 sigmas (float, N or N + 1 of them, descending), or timesteps (int, N); where a
                 step has two calls M takes the place of N
    prediction   what the network returns: epsilon, sample, v_prediction, flow_prediction
    guidance     None, or the g of u + g (c - u): a number, (N,) per step, (1 or N, B) per sample
    begin        first row to run (image to image); the sample then starts at that noise level
    numerics     "exact", or "faithful" to diffusers' deviations (schedulers/quirks.py)
    final_sigma  "zero", or "sigma_min": stop at the cleanest trained level
    options      of the solver: eta, s_noise, solver_type, lower_order_final, s_churn, ..

    Raises ValueError that names the argument, what it got and what would do.
    """
    chosen = solver if isinstance(solver, Solver) else find(solver)
    _choice("numerics", NUMERICS, numerics)
    _choice("prediction", PREDICTIONS, prediction)
    require(_whole(steps) and steps >= 1, "steps", "a whole number >= 1", steps)
    require(_whole(begin) and 0 <= begin < steps, "begin", f"a row in 0 .. {steps - 1}", begin)
    steps, begin = int(steps), int(begin)
    options = options_of(chosen, numerics, solver_options)
    known = isinstance(noise, (str, NoiseSchedule))
    require(known, "noise", "a name or a NoiseSchedule", noise)
    family = NoiseSchedule.named(noise) if isinstance(noise, str) else noise
    if (prediction == "flow_prediction") != (family.kind == "flow"):
        raise ValueError(
            f"prediction {prediction!r} does not go with a {family.kind!r} noise schedule; "
            "flow_prediction goes with noise='flow', the others with a beta schedule"
        )
    if chosen.points is None:
        ratios = ratios_of(family, spacing, steps, final_sigma, chosen.at_zero)
        times = times_of(family, spacing, ratios)
    else:
        whole = ratios_of(family, spacing, chosen.steps(steps), final_sigma)
        ratios = chosen.points(whole, steps, **options)
        times = family.time_of(ratios[:-1])
    grid, scales = _grid(chosen, family, ratios)
    if chosen.inner is not None:
        grid = replace(grid, inner=chosen.inner(family, ratios, **options))
    if numerics == "faithful":
        times = np.round(times)
    elif chosen.row is ddim:
        check_eta(options["eta"], grid, begin)
    g = _guidance(guidance, steps)

    rows, draws = rows_of(chosen, grid, prediction, scales, begin, options)
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
        "begin": begin,
    }
    return Plan(
        table,
        times[begin:],
        grid.alpha[begin:],
        grid.sigma[begin:],
        draws,
        chosen.depths,
        top if family.kind == "vp" else float(grid.sigma[begin]),
        float(scales[begin]),
        guidance is not None,
        about,
    )


def rows_of(
    solver: Solver,
    grid: Grid,
    prediction: str,
    scales: Floats,
    begin: int,
    options: Mapping[str, Any],
) -> tuple[Floats, NDArray[np.bool_]]:
    """Rows by ring slot, (N - begin, K), checked, and where noise is drawn, (N - begin,).

    scales  (N + 1,) what the network's input is scaled by at each grid point
    """
    ages = []
    draws = np.zeros(grid.steps - begin, dtype=bool)
    for i in range(begin, grid.steps):
        row = solver.row(grid, i, i - begin, **options)
        each = solver.noise and solver.evaluations == 1  # of two calls the second one draws
        draws[i - begin] = each or row.next.z != 0 or row.churn is not None
        numbers = conversion(prediction, grid, i, float(scales[i]), row.churn)
        ages.append(encode(row, numbers, c_in=float(scales[i + 1])))
    by_age = np.array(ages)
    rows = to_slots(by_age, solver.depths)
    outputs = [
        perfect(prediction, float(grid.alpha[i]), float(grid.sigma[i]), float(scales[i]))
        for i in range(begin, grid.steps)
    ]
    silent = draws & (options.get("s_noise", 1.0) == 0)
    check(rows, grid, begin, solver.depths, outputs, silent)
    check_rings(rows, solver.depths, by_age)
    return rows, draws


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _number(value: object) -> float:
    """A number as a Python float, NaN where it is none: a NumPy scalar pulls what it meets to its
    own precision.
    """
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _floats(name: str, value: object) -> Floats:
    try:
        made = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers; got {value!r:.60}") from error
    if name != "rows" and not np.isfinite(made).all():
        raise ValueError(f"{name} must be finite numbers; got {made}")
    return made


def _choice(name: str, known: tuple[str, ...], got: object) -> None:
    require(isinstance(got, str) and got in known, name, "one of " + ", ".join(known), got)


def options_of(solver: Solver, numerics: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the solver's row takes: preset, defaults, and what a caller gave, checked."""
    if unknown := given.keys() - solver.options.keys():
        known = ", ".join(solver.options) or "none"
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of solver {solver.name!r}; it takes {known}"
        )
    made: dict[str, Any] = {}
    for name, value in given.items():
        default = solver.options[name]
        if isinstance(default, str):
            words = next(words for words in CHOICES if default in words)
            fine = isinstance(value, str) and value in words
            require(fine, name, " or ".join(words), value)
            made[name] = str(value)
        elif isinstance(default, bool):
            require(isinstance(value, (bool, np.bool_)), name, "True or False", value)
            made[name] = bool(value)
        else:
            made[name] = _number(value)
            top = np.inf if default == np.inf else MOST
            require(0 <= made[name] <= top, name, "a number >= 0", value)
    faithful = solver.faithful if numerics == "faithful" else {}
    return {**solver.preset, **solver.options, **made, **faithful}


def _grid(solver: Solver, family: NoiseSchedule, ratios: Floats) -> tuple[Grid, Floats]:
    """The solver's noise levels, and c_in at each."""
    alpha, sigma = family.alpha_sigma(ratios)
    if solver.state == "ve" and family.kind == "vp":
        return Grid(np.ones_like(ratios), ratios), alpha
    return Grid(alpha, sigma), np.ones_like(ratios)


def _guidance(guidance: float | ArrayLike | None, steps: int) -> Floats:
    """(N, 1 or B)."""
    try:
        values = np.asarray(1.0 if guidance is None else guidance)
    except (TypeError, ValueError, RuntimeError):
        values = np.full((), np.nan)
    numbers = values.dtype.kind in "iuf"  # "7" and True are none
    if numbers and (np.abs(values.astype(np.float64)) <= MOST).all():
        values = values.astype(np.float64)
        if values.ndim <= 1 and values.size in (1, steps):
            return np.broadcast_to(values.reshape(-1, 1), (steps, 1))
        if values.ndim == 2 and values.shape[0] in (1, steps) and values.shape[1] > 0:
            return np.broadcast_to(values, (steps, values.shape[1]))
    raise ValueError(
        f"guidance must be a finite number, ({steps},) of them per step or (1 or {steps}, batch) "
        f"per sample; got {guidance!r} of shape {values.shape}"
    )
