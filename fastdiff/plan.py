"""A plan: everything a run needs to know before it starts, as numbers.

`plan(...)` joins a solver, a model family, a spacing, a prediction and guidance into a table of
rows (see table.py).  A Plan is immutable NumPy float64; its JSON (`schema: 1`) is the command
line's record, the format of tables made elsewhere, and an engine's sampler.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.predictions import PREDICTIONS
from fastdiff.registry import Solver, find
from fastdiff.schedules import NoiseSchedule, levels
from fastdiff.solvers.row import Grid
from fastdiff.table import G, check, conversion, encode, to_slots, width

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
SCHEMA = 1
NUMERICS = ("exact", "faithful")


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
        for name in ("rows", "timesteps", "alpha", "sigma", "draw"):
            getattr(self, name).setflags(write=False)

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
        Path(path).write_text(self.to_json())

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan written by `save`."""
        return Plan.from_json(Path(path).read_text())

    def to_json(self) -> str:
        """JSON text; numbers keep all digits, infinities are the strings "inf" and "-inf"."""
        body: dict[str, Any] = {"schema": SCHEMA, **self.about}
        for name in ("timesteps", "alpha", "sigma", "draw"):
            body[name] = getattr(self, name).tolist()
        body |= {"depths": list(self.depths), "noise_scale": self.noise_scale}
        body |= {"c_in": self.c_in, "guided": self.guided, "rows": _finite(self.rows.tolist())}
        return json.dumps(body)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote; a malformed one raises ValueError naming the field."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a plan must be JSON; {error}") from error
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            got = body.get("schema") if isinstance(body, dict) else type(body).__name__
            raise ValueError(
                f"schema of a plan must be {SCHEMA}; got {got!r}. A newer fastdiff may read it"
            )
        take = functools.partial(_field, body)
        rows = take("rows", 3)
        plan = Plan(
            rows,
            take("timesteps", 1),
            take("alpha", 1),
            take("sigma", 1),
            take("draw", 1).astype(bool),
            tuple(int(d) for d in take("depths", 1)),
            float(take("noise_scale", 0)),
            float(take("c_in", 0)),
            bool(take("guided", 0)),
            {k: v for k, v in body.items() if k not in _OWN},
        )
        return plan


_OWN = {"schema", "timesteps", "alpha", "sigma", "draw", "depths", "noise_scale", "c_in", "guided"}
_OWN |= {"rows"}


def _field(body: dict[str, Any], name: str, ndim: int) -> Floats:
    if name not in body:
        raise ValueError(f"a plan must have the field {name!r}; got {sorted(body)}")
    try:
        value = np.array(body[name], dtype=object).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"field {name!r} of a plan must hold numbers; {error}") from error
    if value.ndim != ndim or np.isnan(value).any():
        raise ValueError(
            f"field {name!r} of a plan must be an array of {ndim} dimensions without NaN; "
            f"got {value.ndim}"
        )
    return value


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(v) for v in values]
    return values if np.isfinite(values) else str(values)


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
    solver: str,
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

    solver       a name of the registry ("dpmpp_2m", "DPM++ 2M SDE", ..); `fastdiff samplers` lists
    them steps        calls of the network for a whole run, N noise        model family: a beta
    schedule's name, "flow", or a NoiseSchedule spacing      a name, sigmas (float, N or N + 1 of
    them, descending), or timesteps (int, N) prediction   what the network returns: epsilon, sample,
    v_prediction, flow_prediction guidance     None, or the scale of u + g (c - u): a number, (N,)
    per step, (1 or N, B) per sample begin        first row to run (image to image); the sample then
    starts at that noise level numerics     "exact", or "faithful" to diffusers' deviations
    (schedulers/quirks.py) final_sigma  "zero", or "sigma_min": stop at the cleanest trained level
    options      of the solver: eta, s_noise, solver_type, lower_order_final, s_churn, ..

    Raises ValueError that names the argument, what it got and what would do.
    """
    chosen = find(solver)
    _require(numerics in NUMERICS, "numerics", "one of " + ", ".join(NUMERICS), numerics)
    _require(
        prediction in PREDICTIONS, "prediction", "one of " + ", ".join(PREDICTIONS), prediction
    )
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool) and steps >= 1
    _require(whole, "steps", "a whole number >= 1", steps)
    _require(0 <= begin < steps, "begin", f"a row in 0 .. {steps - 1}", begin)
    options = _options(chosen, numerics, solver_options)
    family = NoiseSchedule.named(noise) if isinstance(noise, str) else noise
    if (prediction == "flow_prediction") != (family.kind == "flow"):
        raise ValueError(
            f"prediction {prediction!r} does not go with a {family.kind!r} noise schedule; "
            "flow_prediction goes with noise='flow', the others with a beta schedule"
        )
    ratios = _ratios(family, spacing, int(steps), final_sigma)
    grid, scales = _grid(chosen, family, ratios)
    times = family.time_of(ratios[:-1])
    if numerics == "faithful":
        times = np.round(times)
    g = _guidance(guidance, int(steps))

    ages = []
    draws = np.zeros(steps, dtype=bool)
    for i in range(begin, steps):
        row = chosen.row(grid, i, i - begin, **options)
        draws[i] = chosen.noise or row.next.z != 0 or row.churn is not None
        if grid.alpha[i] == 0 and prediction == "epsilon":
            raise ValueError(
                "prediction 'epsilon' says nothing at a level without signal (alpha = 0); use "
                "prediction='v_prediction' or a schedule without zero terminal SNR"
            )
        numbers = conversion(prediction, grid, i, float(scales[i]), row.churn)
        ages.append(encode(row, numbers, c_in=float(scales[i + 1])))
    rows = to_slots(np.array(ages), chosen.depths)
    check(rows, grid, begin, chosen.depths)
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


def _require(fine: bool, name: str, wanted: str, got: object) -> None:
    if not fine:
        raise ValueError(f"{name} must be {wanted}; got {got!r}")


def _options(solver: Solver, numerics: str, given: dict[str, Any]) -> dict[str, Any]:
    if unknown := given.keys() - solver.options.keys():
        known = ", ".join(solver.options) or "none"
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of solver {solver.name!r}; it takes {known}"
        )
    if given.get("solver_type", "midpoint") not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be midpoint or heun; got {given['solver_type']!r}")
    faithful = solver.faithful if numerics == "faithful" else {}
    return {**solver.preset, **solver.options, **given, **faithful}


def _ratios(family: NoiseSchedule, spacing: Any, steps: int, final_sigma: str) -> Floats:
    """sigma (flow) or sigma / alpha (vp) at the N + 1 grid points."""
    _require(final_sigma in ("zero", "sigma_min"), "final_sigma", "zero or sigma_min", final_sigma)
    if isinstance(spacing, str):
        sigmas = levels(family, spacing, steps)
    else:
        values = np.asarray(spacing)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ValueError(
                "spacing must be a name, one-dimensional sigmas (float) or timesteps (int); got "
                f"{values.dtype} of shape {values.shape}"
            )
        sigmas = family.ratio_at(values) if values.dtype.kind in "iu" else values.astype(float)
        _require(len(values) in (steps, steps + 1), "spacing", f"{steps} long", len(values))
        if not (np.diff(sigmas) <= 0).all() or sigmas[-1] < 0 or sigmas[-1] == sigmas[0]:
            raise ValueError(
                f"spacing must go from noisy to clean and end at or above 0; got {values.tolist()}"
            )
    if len(sigmas) == steps + 1:
        return sigmas
    lowest = 1 / family.train_steps if family.kind == "flow" else float(family.ratios[0])
    return np.append(sigmas, 0.0 if final_sigma == "zero" else min(lowest, sigmas[-1]))


def _grid(solver: Solver, family: NoiseSchedule, ratios: Floats) -> tuple[Grid, Floats]:
    """The solver's noise levels, and c_in at each."""
    alpha, sigma = family.alpha_sigma(ratios)
    if solver.state == "ve" and family.kind == "vp":
        return Grid(np.ones_like(ratios), ratios), alpha
    return Grid(alpha, sigma), np.ones_like(ratios)


def _guidance(guidance: float | ArrayLike | None, steps: int) -> Floats:
    """(N, 1 or B)."""
    values = np.asarray(1.0 if guidance is None else guidance, dtype=np.float64)
    if values.ndim <= 1 and values.size in (1, steps):
        return np.broadcast_to(values.reshape(-1, 1), (steps, 1))
    if values.ndim == 2 and values.shape[0] in (1, steps):
        return np.broadcast_to(values, (steps, values.shape[1]))
    raise ValueError(
        f"guidance must be a number, ({steps},) per step or (1 or {steps}, batch) per sample; "
        f"got shape {values.shape}"
    )
