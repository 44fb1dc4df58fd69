"""generate.json: what a run was asked for and what it ran, from which it can be repeated."""

import json
from pathlib import Path
from typing import Any

from fastdiff.cli import UserError
from fastdiff.plan import Plan

NAME = "generate.json"
SCHEMA = 1
OPTIONS: dict[str, tuple[type, ...]] = {  # of a request, and what JSON must hold there
    "prompts": (list,),
    "sampler": (str,),
    "steps": (int,),
    "seed": (int,),
    "count": (int,),
    "guidance": (int, float, type(None)),
    "spacing": (str, type(None)),
    "negative_prompt": (str,),
    "scale": (int,),
    "sheet": (bool,),
    "model": (str, type(None)),
    "batch": (int,),
    "device": (str,),
    "few_step": (int, type(None)),
    "engine": (str, type(None)),
    "noise": (str,),
}
LATER: dict[str, Any] = {
    "engine": None,
    "noise": "diffusers",
}  # what earlier records do not say, and what they did


def read(path: Path) -> dict[str, Any]:
    """The arguments of a Request from a record; what is wrong with it is a UserError."""
    try:
        body = _typed("the file", json.loads(path.read_text(encoding="utf-8")), (dict,))
        if body.get("schema") != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}; got {body.get('schema')!r}")
        options = _options(_typed("request", body.get("request"), (dict,)))
        found = _typed("model", body.get("model"), (dict,))
        plan = Plan.from_json(json.dumps(_typed("plan", body.get("plan"), (dict,))))
        if plan.rows.shape[1] != 1:
            raise ValueError(f"plan must be one for all pictures; got {plan.rows.shape[1]} a step")
        weights = _typed("model.sha256", found.get("sha256"), (str,))
        engine = _typed("engine", body.get("engine"), (dict, type(None)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--repeat must be a {NAME} of this program; {str(path)!r}: {error}"
        ) from error
    return options | {"made": plan, "weights": weights, "made_with": engine}


def _options(given: dict[str, Any]) -> dict[str, Any]:
    said, given = ", ".join(given) or "none", LATER | given
    if given.keys() != OPTIONS.keys():
        raise ValueError(f"request must have {', '.join(OPTIONS)}; got {said}")
    options = {name: _typed(f"request.{name}", given[name], OPTIONS[name]) for name in OPTIONS}
    for prompt in options["prompts"]:
        _typed("each of request.prompts", prompt, (str,))
    for name in ("model", "engine"):
        options[name] = None if options[name] is None else Path(options[name])
    return options


def _typed(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} must be of kind {wanted}; got {value!r:.80}")
