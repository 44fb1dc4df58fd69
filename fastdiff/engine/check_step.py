"""The graph of a sampler's step against PyTorch, in numbers, as check.py has it of a network.

The reference is the network in the wider dtype and affine_step in float64; what the graph may be
farther than that is measured with the network in its own dtype and affine_step in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.engine.check import Distances, Error, Reference, corners
from fastdiff.engine.manifest import Graph, Profile
from fastdiff.engine.session import Session
from fastdiff.engine.step_nodes import SAMPLE, TIMESTEP
from fastdiff.ops.affine_step import affine_step_ref
from fastdiff.plan import Plan, plan

ROWS = 3  # at least: of the beginning, the middle and the end of a plan
USUAL, GUIDANCES = ("dpmpp_2m", 20), (None, 7.5)  # beside the tables, if none of them is such a one


def measure_step(
    reference: Reference, graph: Graph, path: Path, profile: Profile, plans: Sequence[Plan]
) -> Error:
    """Rows of the plans at the smallest size, each output for itself; raises EngineError.

    Of two samples, if the profile has room: with one, what is the batch's and what the guidance's
    may be mistaken for each other.
    """
    (sizes,) = corners(profile, "smallest")
    sizes["batch"] = min(max(2, sizes["batch"]), profile["batch"].max)
    session, found = Session(graph, path), Distances(graph.file)
    for number, (table, row) in enumerate(_rows(_both(plans))):
        step = _Step(reference, table, row, sizes, seed=number)
        answers = session.run(step.feeds())
        exact = step.outputs(step.exact, torch.float64)
        layouts = [step.outputs(raw, torch.float32) for raw in step.layouts]
        for name, want in exact.items():
            theirs = [outputs[name] for outputs in layouts]
            place = f"in {name} of row {row} of {table.about.get('solver')}"
            found.add(answers[name], theirs, want, place)
    session.close()
    return found.judged(reference)


def _both(plans: Sequence[Plan]) -> list[Plan]:
    """The plans, and one with guidance or without, whichever they lack."""
    usual = [plan(USUAL[0], steps=USUAL[1], guidance=g) for g in GUIDANCES]
    return [*plans, *(p for p in usual if p.guided not in {known.guided for known in plans})]


def _rows(plans: Sequence[Plan]) -> Iterator[tuple[Plan, int]]:
    """Every plan once, ROWS rows or more, one after the other from beginning, middle and end."""
    for i in range(max(ROWS, len(plans))):
        table = plans[i % len(plans)]
        last = len(table.timesteps) - 1
        yield table, (0, last // 2, last)[i % ROWS]


class _Step:
    """One row with inputs drawn at random: what the network is given has deviation 1."""

    def __init__(
        self, reference: Reference, table: Plan, row: int, sizes: dict[str, int], seed: int
    ) -> None:
        network = reference.network
        self.plan, self.row = table, row
        self.rows = torch.tensor(table.rows, dtype=torch.float32)
        where = self.rows.shape[-1] - 1 - table.keeps
        first = torch.tensor(table.c_in, dtype=torch.float32).reshape(-1)
        self.first = first
        scale = first if row == 0 else self.rows[row - 1, :, where]
        scale = scale.reshape(-1, 1, 1, 1)
        batch, copies = sizes["batch"], 1 + table.guided
        times = torch.tensor(table.timesteps, dtype=torch.float32).reshape(len(self.rows), -1)
        self.times = times
        inputs = network.example(sizes | {"batch": copies * batch}, seed=seed)
        self.inputs = dict(zip((port.name for port in network.inputs), inputs, strict=True))
        generator = torch.Generator().manual_seed(seed)

        def normal(*lead: int) -> Tensor:
            shape = (*lead, batch, *self.inputs[SAMPLE].shape[1:])
            return torch.randn(shape, generator=generator)

        self.x = normal() / scale
        self.noise = normal() * (1.0 if table.draw[row].any() else torch.nan)  # then not read
        self.history = normal(sum(table.depths))
        entry = (self.x * scale).to(reference.dtype)
        self.inputs[SAMPLE] = torch.cat([entry] * copies)
        self.inputs[TIMESTEP] = times[row].expand(batch).repeat(copies)
        given = list(self.inputs.values())
        self.exact, self.layouts = reference.exact(given), reference.layouts(given)

    def feeds(self) -> dict[str, Tensor]:
        """The inputs of the graph."""
        others = {n: v for n, v in self.inputs.items() if n not in (SAMPLE, TIMESTEP)}
        return others | {
            "x": self.x,
            "history": self.history,
            "noise": self.noise,
            "row": torch.tensor(self.row),
            "table": self.rows,
            "timesteps": self.times,
            "c_in": self.first,
        }

    def outputs(self, raw: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The graph's outputs, in PyTorch, after what the network said; no empty history."""
        table, keeps = self.rows[self.row : self.row + 1].to(dtype), self.plan.keeps
        raw, x, noise = (v.to(dtype) for v in (raw, self.x, self.noise))
        history = self.history.to(dtype, copy=True)
        uncond, cond = raw.chunk(2) if self.plan.guided else (None, raw)
        x_next, x0, results = affine_step_ref(
            x, uncond, cond, list(history), noise, table, None, keeps, dtype, dtype
        )
        slots = table[0, :, table.shape[-1] - keeps :].long()
        for result, slot in zip(results, slots.T, strict=True):
            for sample, place in enumerate(slot.expand(len(x))):
                if place >= 0:
                    history[place, sample] = result[sample]
        found = {"x_next": x_next, "x0": x0, "history_next": history}
        return {name: value for name, value in found.items() if value.numel()}


__all__ = ["measure_step"]
