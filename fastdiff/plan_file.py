"""A plan as JSON, schema 1: one object.

    schema        1
    rows          (N, 1 or B, K) as nested lists, columns of table.py, history by ring slot
    timesteps     (N,), or (N, B) where samples differ, as all that follows
    alpha, sigma  (N + 1,)
    draw          (N,) booleans
    depths        (P,) ring slots of each kept vector
    noise_scale, c_in, guided
    and whatever else says how it was made: solver, options, noise, spacing, prediction, ..

Numbers keep all digits; an infinite clamp is the string "inf" or "-inf".  What is read is checked,
for kernels trust it: shapes, types, finite numbers, clamps with lo <= hi, ring slots that exist
and are written before a read, and `draw` true on every row that weighs the noise.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.table import HI, LO, width

if TYPE_CHECKING:
    from fastdiff.plan import Plan

Floats = NDArray[np.float64]
SCHEMA = 1
BOOLEANS = ("draw", "guided")
SPECIAL = ("inf", "-inf", "nan")  # numbers that JSON has no word for; NaN to name it in the error
EACH = ("timesteps", "alpha", "sigma", "draw", "noise_scale", "c_in")  # or of each sample
FIELDS = {  # name -> number of dimensions, of EACH without that of the samples
    "rows": 3,
    "timesteps": 1,
    "alpha": 1,
    "sigma": 1,
    "draw": 1,
    "depths": 1,
    "noise_scale": 0,
    "c_in": 0,
    "guided": 0,
}


def write(plan: Plan) -> str:
    """JSON text of a plan."""
    body: dict[str, Any] = {"schema": SCHEMA, **plan.about}
    for name in ("timesteps", "alpha", "sigma", "draw"):
        body[name] = getattr(plan, name).tolist()
    for name in ("noise_scale", "c_in"):
        value = getattr(plan, name)
        body[name] = value if isinstance(value, float) else value.tolist()
    body |= {"depths": list(plan.depths)}
    body |= {"guided": plan.guided, "rows": _finite(plan.rows.tolist())}
    return json.dumps(body)


def file_of(path: object) -> Path:
    """The file that `path` of save and load names; TypeError or ValueError where it names none."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"path must be the name of a file, as text or a pathlib.Path; got {path!r:.60}"
        )
    # Path("") is the folder one is in
    if not os.fspath(path) or Path(path).is_dir():
        raise ValueError(f"path must be the name of a file; got {str(path)!r}, a folder or nothing")
    return Path(path)


def text_of(path: object) -> str:
    """What is in the file; ValueError where that is no text."""
    file = file_of(path)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"path must be a plan as JSON, written by Plan.save; {str(path)!r} is not UTF-8 "
            f"text: {error.reason} at byte {error.start}"
        ) from error


def read(text: str) -> dict[str, Any]:
    """The arguments of Plan, which checks the table; a malformed text raises ValueError that names
    the field.
    """
    if not isinstance(text, (str, bytes, bytearray)):
        raise TypeError(
            f"text must be a string, the JSON of a plan; got {type(text).__name__}. "
            "Plan.load reads a file"
        )
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a plan must be JSON; {error}") from error
    got = body.get("schema") if isinstance(body, dict) else type(body).__name__
    if type(got) is not int or got != SCHEMA:  # True == 1
        raise ValueError(
            f"schema of a plan must be {SCHEMA}; got {got!r}. A newer fastdiff may read it"
        )
    values: dict[str, Any] = {name: _field(body, name, ndim) for name, ndim in FIELDS.items()}
    depths = values["depths"]
    if (depths != depths.astype(int)).any() or (depths < 0).any():
        raise ValueError(
            f"field 'depths' of a plan must hold whole numbers >= 0; got {depths.tolist()}"
        )
    values["depths"] = tuple(int(d) for d in depths)
    values["draw"] = values["draw"].astype(bool)
    values["guided"] = bool(values["guided"])
    for name in ("noise_scale", "c_in"):
        values[name] = values[name] if values[name].ndim else float(values[name])
    rows, columns = values["rows"], width(len(depths), sum(values["depths"]))
    if rows.shape[2] != columns:
        raise ValueError(
            f"field 'rows' of a plan must have {columns} columns for depths {values['depths']}; "
            f"got {rows.shape[2]}"
        )
    values["about"] = {k: v for k, v in body.items() if k not in FIELDS and k != "schema"}
    return values


def _field(body: dict[str, Any], name: str, ndim: int) -> Floats:
    if name not in body:
        raise ValueError(f"a plan must have the field {name!r}; got {sorted(body)}")
    raw = np.array(body[name], dtype=object)
    kind = "true or false" if name in BOOLEANS else "numbers"
    for item in raw.flat:
        if isinstance(item, list):  # NumPy leaves a list where its neighbours are longer, or none
            raise ValueError(
                f"field {name!r} of a plan must hold {kind} in lists of one length; got one of "
                f"{len(item)} beside others: {item!r:.40}"
            )
        if not (isinstance(item, bool) if name in BOOLEANS else _is_number(item)):
            raise ValueError(f"field {name!r} of a plan must hold {kind}; got {item!r:.60}")
    try:
        value = raw.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"field {name!r} of a plan must hold numbers; {error}") from error
    if value.ndim != ndim and not (name in EACH and value.ndim == ndim + 1):
        many = f"{ndim} or {ndim + 1}" if name in EACH else ndim
        raise ValueError(f"field {name!r} of a plan must have {many} dimensions; got {value.ndim}")
    bounded = value
    if name == "rows":  # a clamp that is off is -inf, inf
        bounded = np.delete(value, [c for c in (LO, HI) if c < value.shape[2]], axis=2)
    if not np.isfinite(bounded).all():
        raise ValueError(f"field {name!r} of a plan must hold finite numbers; got NaN or infinity")
    if np.isnan(value).any():
        raise ValueError(f"field {name!r} of a plan must not hold NaN")
    return value


def _is_number(item: object) -> bool:
    if isinstance(item, str):
        return item in SPECIAL
    return isinstance(item, (int, float)) and not isinstance(item, bool)


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(v) for v in values]
    return values if np.isfinite(values) else str(values)
