"""The record as an SVG: error against calls, both axes logarithmic, every solver at its best
spacing.
"""

from __future__ import annotations

import math
from typing import Any

from fastdiff import chart
from fastdiff.accuracy.contestants import OURS, THEIRS
from fastdiff.accuracy.ranking import of_solver, ranked, score, solvers
from fastdiff.chart import COLOURS, HEIGHT, LEFT, LEGEND, TOP, WIDTH

BEST_AT = (5, 10, 20)
TITLES = {
    ("vp", "rms"): "scaled_linear, deterministic: RMS distance to the exact ODE",
    ("vp", "w1"): "scaled_linear, with noise: W1 distance to the data",
    ("flow", "rms"): "flow, deterministic: RMS distance to the exact ODE",
    ("flow", "w1"): "flow, with noise: W1 distance to the data",
}
CELL = (LEFT + WIDTH + LEGEND, TOP + HEIGHT + 50)
Point = tuple[float, float]


def svg(record: dict[str, Any]) -> str:
    """The whole picture."""
    panels = [kind for kind in TITLES if solvers(record, *kind)]
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns)
    size = (columns * CELL[0], rows * CELL[1] + 24)
    body = [
        chart.panel(i % columns * CELL[0], i // columns * CELL[1], _panel(record, *kind))
        for i, kind in enumerate(panels)
    ]
    note = (
        "Each solver at its best spacing. Solid: fastdiff; dashed: diffusers' own class. "
        "Coloured: best at 5, 10 or 20 calls on either side; grey: all others."
    )
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>'
    clip = f'<clipPath id="frame">{frame}</clipPath>'
    return chart.document("Error against calls of the network", size, body, note, clip)


def winners(record: dict[str, Any], family: str, metric: str) -> list[str]:
    """Solvers that are best at 5, 10 or 20 calls, on either side."""
    found = {
        entries[0].solver: None
        for budget in BEST_AT
        for side in (OURS, THEIRS)
        if (entries := ranked(record, family, metric, budget, side))
    }
    return list(found)


def curve(record: dict[str, Any], family: str, metric: str, solver: str, side: str) -> list[Point]:
    """(calls, error) of a solver, at each budget with the spacing that is best there."""
    found = {}
    for budget in record["conditions"]["budgets"]:
        entry = of_solver(ranked(record, family, metric, budget, side), solver)
        if entry is not None:
            found[entry.calls] = entry.score
    return sorted(found.items())


def _panel(record: dict[str, Any], family: str, metric: str) -> str:
    names, best = solvers(record, family, metric), winners(record, family, metric)
    curves = {(n, s): curve(record, family, metric, n, s) for n in names for s in (OURS, THEIRS)}
    budgets = record["conditions"]["budgets"]
    lowest = min(error for points in curves.values() for _, error in points)
    bottom, top = min(-1, math.floor(math.log10(lowest) * 2) / 2), 0.0
    first, last = math.log(min(budgets)), math.log(max(budgets))

    def across(calls: float) -> float:
        return LEFT + WIDTH * (math.log(calls) - first) / ((last - first) or 1)

    def down(error: float) -> float:
        return TOP + HEIGHT * (top - math.log10(error)) / (top - bottom)

    out = [chart.heading(TITLES[family, metric])]
    for calls in budgets:
        out += chart.column(across(calls), calls)
    for power in range(math.ceil(bottom), 1):
        out += chart.level(down(10.0**power), f"1e{power}")
    out.append(chart.axis())

    def line(name: str, side: str, style: str) -> None:
        points = " ".join(f"{across(n):.1f},{down(error):.1f}" for n, error in curves[name, side])
        dash = "" if side == OURS else ' stroke-dasharray="5 3"'
        if points:
            out.append(f'<polyline clip-path="url(#frame)" points="{points}" {style}{dash}/>')

    for name, side in curves:
        if name not in best:
            line(name, side, chart.REST)
    for i, name in enumerate(best):
        colour = COLOURS[i % len(COLOURS)]
        for side in (OURS, THEIRS):
            line(name, side, chart.coloured(colour))
        out += chart.key(LEFT + WIDTH + 8, i, colour, name)
    if metric == "w1":
        y = down(score(record["floors"]))
        out.append(f'<path class="floor" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
        out.append(f'<text x="{LEFT + 4}" y="{y:.1f}" dy="-3">exact samples, as many</text>')
    return "\n".join(out)
