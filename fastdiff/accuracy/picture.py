"""The record as an SVG: error against calls, both axes logarithmic, every solver at its best
spacing.  Readable on light and dark pages: it brings its own background for both.
"""

from __future__ import annotations

import math
from typing import Any

from fastdiff.accuracy.contestants import OURS, THEIRS
from fastdiff.accuracy.ranking import of_solver, ranked, score, solvers

BEST_AT = (5, 10, 20)
TITLES = {
    ("vp", "rms"): "scaled_linear, deterministic: RMS distance to the exact ODE",
    ("vp", "w1"): "scaled_linear, with noise: W1 distance to the data",
    ("flow", "rms"): "flow, deterministic: RMS distance to the exact ODE",
    ("flow", "w1"): "flow, with noise: W1 distance to the data",
}
COLOURS = ("#2a7de1", "#e0701b", "#2ca05a", "#c2428f", "#8a63d2", "#a88410", "#d0433b", "#1b9aa0")
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 300, 230, 52, 34, 146
CELL = (LEFT + WIDTH + LEGEND, TOP + HEIGHT + 50)
STYLE = """
  .page { fill: #ffffff } text { fill: #24292f; font: 11px sans-serif }
  .title { font-weight: bold; font-size: 12px } .grid { stroke: #d0d7de; stroke-width: 0.6 }
  .rest { stroke: #8c959f; stroke-width: 0.7; opacity: 0.55; fill: none }
  .line { stroke-width: 1.9; fill: none } .floor { stroke: #8c959f; stroke-dasharray: 1 3 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #d1d7e0 } .grid { stroke: #30363d }
  }
"""
Point = tuple[float, float]


def svg(record: dict[str, Any]) -> str:
    """The whole picture."""
    panels = [kind for kind in TITLES if solvers(record, *kind)]
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns)
    size = (columns * CELL[0], rows * CELL[1] + 24)
    body = [
        f'<g transform="translate({i % columns * CELL[0]} {i // columns * CELL[1]})">\n'
        f"{_panel(record, *kind)}\n</g>"
        for i, kind in enumerate(panels)
    ]
    note = (
        "Each solver at its best spacing. Solid: fastdiff; dashed: diffusers' own class. "
        "Coloured: best at 5, 10 or 20 calls on either side; grey: all others."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" role="img">\n'
        f"<title>Error against calls of the network</title>\n<style>{STYLE}</style>\n"
        f'<defs><clipPath id="frame"><rect x="{LEFT}" y="{TOP}" width="{WIDTH}" '
        f'height="{HEIGHT}"/></clipPath></defs>\n'
        f'<rect class="page" width="{size[0]}" height="{size[1]}"/>\n'
        + "\n".join(body)
        + f'\n<text x="{LEFT}" y="{size[1] - 10}">{note}</text>\n</svg>\n'
    )


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

    def place(calls: float, error: float) -> str:
        x = LEFT + WIDTH * (math.log(calls) - first) / ((last - first) or 1)
        y = TOP + HEIGHT * (top - math.log10(error)) / (top - bottom)
        return f"{x:.1f},{y:.1f}"

    out = [f'<text class="title" x="{LEFT}" y="{TOP - 12}">{TITLES[family, metric]}</text>']
    for calls in budgets:
        x = place(calls, 1).split(",")[0]
        out.append(f'<path class="grid" d="M{x} {TOP}v{HEIGHT}"/>')
        out.append(f'<text x="{x}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{calls}</text>')
    for power in range(math.ceil(bottom), 1):
        y = place(budgets[0], 10.0**power).split(",")[1]
        out.append(f'<path class="grid" d="M{LEFT} {y}h{WIDTH}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">1e{power}</text>')
    middle = LEFT + WIDTH / 2
    under = TOP + HEIGHT + 31
    out.append(f'<text x="{middle}" y="{under}" text-anchor="middle">calls of the network</text>')

    def line(name: str, side: str, style: str) -> None:
        points = " ".join(place(*point) for point in curves[name, side])
        dash = "" if side == OURS else ' stroke-dasharray="5 3"'
        if points:
            out.append(f'<polyline clip-path="url(#frame)" points="{points}" {style}{dash}/>')

    for name, side in curves:
        if name not in best:
            line(name, side, 'class="rest"')
    for i, name in enumerate(best):
        colour = COLOURS[i % len(COLOURS)]
        for side in (OURS, THEIRS):
            line(name, side, f'class="line" stroke="{colour}"')
        right, down = LEFT + WIDTH + 8, TOP + 10 + 16 * i
        out.append(f'<path class="line" stroke="{colour}" d="M{right} {down - 4}h16"/>')
        out.append(f'<text x="{right + 21}" y="{down}">{name}</text>')
    if metric == "w1":
        y = place(budgets[0], score(record["floors"])).split(",")[1]
        out.append(f'<path class="floor" d="M{LEFT} {y}h{WIDTH}"/>')
        out.append(f'<text x="{LEFT + 4}" y="{y}" dy="-3">exact samples, as many</text>')
    return "\n".join(out)
