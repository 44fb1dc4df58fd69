"""The whole of `fastdiff tune MODEL`, resumed from its folder.

FOLDER/tune.json           conditions, scores, states of the fits: after every step of them
FOLDER/fit.pt, held_out.pt end points of the fine runs
FOLDER/tuned-N.json        the plan
FOLDER/tuned-N.md          its card
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.accuracy.contestants import Contestant
from fastdiff.plan import Plan
from fastdiff.record_file import write
from fastdiff.shapes import checkpoint
from fastdiff.tune.card import card
from fastdiff.tune.gauss_newton import State
from fastdiff.tune.score import refuse_training, score
from fastdiff.tune.search import batches, coefficients, grid
from fastdiff.tune.subject import Start, Subject
from fastdiff.tune.untuned import Scores, candidates, name_of, of_one_call, plan_of, rank

SCHEMA = 1
RANKED = 6  # samples of the fit that the untuned are ranked on
GRIDS = 1  # of the best solvers: whose grid is searched
FINALISTS = 8  # of the untuned, measured on everything held out
Verdict = Callable[[Tensor, tuple[str, ...]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is asked for."""

    steps: int
    fit: Start
    held_out: Start
    fine: int = 100
    grid_iterations: int = 4
    iterations: int = 6


@dataclass
class Run:
    """A task, where it stands, and the folder that says so."""

    folder: Path
    subject: Subject
    task: Task
    origin: dict[str, Any]
    tell: Callable[[str], None]
    record: dict[str, Any]

    def save(self) -> None:
        """Write tune.json whole or not at all."""
        write(self.folder / "tune.json", json.dumps(self.record, indent=1))

    def keep(self, name: str, key: str) -> Callable[[State], None]:
        """A function that saves the state of a fit."""

        def after(state: State) -> None:
            values = asdict(state) | {"values": state.values.tolist()}
            self.record[name][key] = values
            self.save()
            shown = ", ".join(f"{v:.4f}" for v in state.history)
            self.tell(f"{name} {key}: {shown} ({state.calls} calls)")

        return after

    def state(self, name: str, key: str) -> State | None:
        """That of an earlier run."""
        saved = self.record[name].get(key)
        return None if saved is None else State(**{**saved, "values": np.array(saved["values"])})

    def target(self, name: str, start: Start) -> Tensor:
        """End points of the fine run, (B, C, H, W), batch after batch from the folder."""
        path = self.folder / f"{name}.pt"
        saved = checkpoint.load(path) or {"parts": []}
        plan = self.subject.reference(self.task.fine)
        for i, part in enumerate(start.parts()):
            if i == len(saved["parts"]):
                saved["parts"].append(self.subject.run(plan, part))
                checkpoint.save(path, saved)
                self.tell(f"reference {name}: {i + 1} of {len(start.parts())} batches")
        return torch.cat(saved["parts"])


def conditions(subject: Subject, task: Task, origin: dict[str, Any]) -> dict[str, Any]:
    """Everything that a number depends on."""
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                **origin,
                "steps": task.steps,
                "guidance": subject.guidance,
                "prediction": subject.prediction,
                "fine": [subject.reference(task.fine).about[k] for k in ("solver", "spacing")],
                "fine_calls": task.fine,
                "fit": asdict(task.fit),
                "held_out": asdict(task.held_out),
                "iterations": [task.grid_iterations, task.iterations],
            }
        )
    )


def opened(
    folder: Path,
    subject: Subject,
    task: Task,
    origin: dict[str, Any],
    tell: Callable[[str], None] = lambda text: None,
) -> Run:
    """The run of a folder, new or resumed.

    Raises ValueError where seeds or prompts to score on are those of the fit, or where the folder
    holds a run of other conditions.
    """
    refuse_training({"seeds": task.fit.seeds, "prompts": task.fit.prompts}, task.held_out)
    made = conditions(subject, task, origin)
    record: dict[str, Any] = {"schema": SCHEMA, "conditions": made, "untuned": {}, "grid": {}}
    record |= {"coefficients": {}, "held_out": {}, "result": {}}
    path = folder / "tune.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [k for k in made if found.get("conditions", {}).get(k) != made[k]]
        if found.get("schema") != SCHEMA or other:
            raise ValueError(
                f"{path} is of a run with another {', '.join(other) or 'schema'}. Another --folder "
                "would do"
            )
        record = found
    elif found := [p.name for p in (folder / "fit.pt", folder / "held_out.pt") if p.exists()]:
        raise ValueError(
            f"{path} must say of which run {' and '.join(found)} beside it are; got no such file. "
            "Another --folder would do"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, subject, task, origin, tell, record)
    if not path.exists():
        run.save()  # before the fine runs, which it says the conditions of
    return run


def tune(run: Run, verdict: Verdict | None = None) -> Plan:
    """Search, score, and write plan and card.

    verdict  (end points, prompts) -> what an oracle says of them; None: there is none
    """
    task, subject, record = run.task, run.subject, run.record
    want = run.target("fit", task.fit)
    begun = min(RANKED, len(task.fit.seeds))
    order = rank(
        subject, task.fit.first(begun), want[:begun], task.steps, record["untuned"], run.save
    )
    run.tell("nearest untuned: " + "; ".join(f"{name} {value:.4f}" for value, name in order[:5]))
    data = batches(subject, task.fit, want)
    on_grid = _grids(run, order, data)
    plan, _ = coefficients(
        on_grid,
        len(subject.family.ratios) - 1,
        data,
        iterations=task.iterations,
        saved=run.state("coefficients", "all"),
        after=run.keep("coefficients", "all"),
    )
    plan = replace(plan, about=_about(run))
    _score(run, plan, on_grid, [name for _, name in order], verdict)
    stem = f"tuned-{task.steps}"
    plan = replace(plan, about={**plan.about, "result": record["result"]})
    plan.save(run.folder / f"{stem}.json")
    (run.folder / f"{stem}.md").write_text(card(record, f"{stem}.json"), encoding="utf-8")
    return plan


def _grids(run: Run, order: list[tuple[float, str]], data: list[Any]) -> Plan:
    """The plan on the best grid of the best solvers, each from its best spacing."""
    task = run.task
    begin: list[Contestant] = []
    solvers: set[str] = set()
    by_name = {name_of(who): who for who in candidates()}
    for _, name in order:
        who = by_name[name]
        if who.solver not in solvers and of_one_call(who) and len(begin) < GRIDS:
            solvers.add(who.solver)
            begin.append(who)
    found: list[tuple[float, int, str, Plan]] = []
    for who in begin:
        plan, state = grid(
            *(run.subject, who, task.steps, data),
            iterations=task.grid_iterations,
            saved=run.state("grid", name_of(who)),
            after=run.keep("grid", name_of(who)),
        )
        found.append((state.history[-1], len(found), name_of(who), plan))
    value, _, name, plan = min(found, key=lambda one: one[:2])
    run.record["begin"] = {"name": name, "distance": value}
    run.save()
    return plan


def _about(run: Run) -> dict[str, Any]:
    task, conditions = run.task, run.record["conditions"]
    return {
        "solver": None,
        "noise": run.subject.family.origin,
        "prediction": run.subject.prediction,
        "tuned": {
            **run.origin,
            "guidance": run.subject.guidance,
            "seeds": list(task.fit.seeds),
            "prompts": list(task.fit.prompts),
            "fine": conditions["fine"],
            "fine_calls": task.fine,
            "begun_from": run.record["begin"]["name"],
        },
    }


def _score(run: Run, plan: Plan, on_grid: Plan, names: list[str], verdict: Verdict | None) -> None:
    """Held-out distances of the plan, of its grid, and of the untuned; the oracle's word."""
    task, subject, record = run.task, run.subject, run.record
    start, want = task.held_out, run.target("held_out", task.held_out)
    held: Scores = record["held_out"]
    order = rank(subject, start, want, task.steps, held, run.save, frozenset(names[:FINALISTS]))
    best, name = order[0]
    tuned = score(subject, plan, start, want)
    record["result"] = {
        "untuned": {"name": name, "distance": best},
        "grid": {"name": record["begin"]["name"], "distance": score(subject, on_grid, start, want)},
        "tuned": {"distance": tuned},
        "gain": 1 - tuned / best,
    }
    run.tell(f"held out: {name} {best:.4f}, tuned {tuned:.4f}")
    if verdict is not None:
        who = next(who for who in candidates() if name_of(who) == name)
        ends = {
            "reference": want,
            "untuned": subject.run(plan_of(subject, who, task.steps), start),
            "tuned": subject.run(plan, start),
        }
        record["result"]["oracle"] = {
            kind: verdict(end, start.prompts) for kind, end in ends.items()
        }
    run.save()
