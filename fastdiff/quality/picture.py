"""The record as an SVG: right pictures, and distance to the reference, against calls."""

from __future__ import annotations

import math
from typing import Any

from fastdiff import chart
from fastdiff.chart import COLOURS, HEIGHT, LEFT, LEGEND, TOP, WIDTH
from fastdiff.quality.ranking import Row, best, rows

SHOWN_AT = (4, 6, 10)  # calls at which the best sampler is drawn in colour
MOST = 7  # colours of the teacher; the student has the last one
CELL = (LEFT + WIDTH + 18, TOP + HEIGHT + 50)
Point = tuple[float, float]


def svg(record: dict[str, Any]) -> str:
    """The whole picture; two panels and one legend."""
    found = rows(record)
    names = coloured(found)
    size = (2 * CELL[0] + LEGEND, CELL[1] + 24)
    panels = [_right(found, names), _distance(found, names)]
    body = [chart.panel(i * CELL[0], 0, panel) for i, panel in enumerate(panels)]
    for i, (model, name) in enumerate(names):
        said = name if model == "teacher" else f"student, {name}"
        body.append("".join(chart.key(2 * CELL[0] + 4, i, names[model, name], said)))
    count = max((r.pictures for r in found), default=0)
    note = (
        f"At most {count} pictures a point; bars: Wilson's 95 % interval. Coloured: most right "
        f"with at most {', '.join(map(str, SHOWN_AT))} calls; grey: all other samplers."
    )
    return chart.document("Quality against calls of the network", size, body, note)


def coloured(found: list[Row]) -> dict[tuple[str, str], str]:
    """(model, sampler) -> colour: the best at few calls, and the student."""
    chosen: dict[tuple[str, str], str] = {}
    for calls in SHOWN_AT:
        top = best(found, calls)
        if top is not None and len(chosen) < MOST:
            chosen.setdefault((top.model, top.sampler), COLOURS[len(chosen)])
    for row in found:
        if row.model == "student":
            chosen[row.model, row.sampler] = COLOURS[-1]
    return chosen


def _lines(found: list[Row], what: str) -> dict[tuple[str, str], list[Row]]:
    """Rows with a number, by model and sampler, few calls first."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        if getattr(row, what) is not None:
            lines.setdefault((row.model, row.sampler), []).append(row)
    for line in lines.values():
        line.sort(key=lambda r: r.evaluations)
    return lines


def _across(found: list[Row]) -> tuple[float, float]:
    calls = [r.evaluations for r in found] or [1]
    return math.log(min(calls)), math.log(max(calls))


def _x(calls: float, ends: tuple[float, float]) -> float:
    return LEFT + WIDTH * (math.log(calls) - ends[0]) / ((ends[1] - ends[0]) or 1)


def _right(found: list[Row], names: dict[tuple[str, str], str]) -> str:
    ends = _across(found)

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    out = _frame("pictures that the oracle finds right, %", found, ends)
    for share in (0, 0.25, 0.5, 0.75, 1):
        out += chart.level(y(share), f"{100 * share:.0f}")
    lines = _lines(found, "right")
    for key in sorted(lines, key=lambda k: k in names):  # grey first
        places = [(_x(r.evaluations, ends), y(r.right or 0.0)) for r in lines[key]]
        out.append(_line(places, names.get(key)))
        if key in names:
            out += [
                f'<path stroke="{names[key]}" stroke-width="1" '
                f'd="M{_x(r.evaluations, ends):.1f} {y(r.high or 0):.1f}'
                f'V{y(r.low or 0):.1f}"/>'
                for r in lines[key]
            ]
    return "\n".join(out)


def _distance(found: list[Row], names: dict[tuple[str, str], str]) -> str:
    ends = _across(found)
    lines = _lines(found, "rms")
    values = [r.rms for line in lines.values() for r in line if r.rms] or [1.0]
    # what is farther than 3 is noise: no latent of the model is as large
    low, high = math.log10(min(values)), math.log10(min(max(values), 3.0))
    low, high = math.floor(low * 4) / 4, math.ceil(high * 4) / 4

    def y(value: float) -> float:
        place = (high - math.log10(value)) / ((high - low) or 1)
        return TOP + HEIGHT * max(place, 0.0)

    out = _frame("RMS distance to the reference", found, ends)
    for value in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2):
        if low <= math.log10(value) <= high:
            out += chart.level(y(value), f"{value:g}")
    if max(values) > 10**high:
        out += chart.level(TOP, f"&gt; {10**high:.1f}")  # where what is farther is drawn
    for key in sorted(lines, key=lambda k: k in names):
        places = [(_x(r.evaluations, ends), y(r.rms)) for r in lines[key] if r.rms]
        out.append(_line(places, names.get(key)))
    return "\n".join(out)


def _frame(title: str, found: list[Row], ends: tuple[float, float]) -> list[str]:
    """Title, and a line for every number of steps that ran."""
    out = [chart.heading(title)]
    for calls in sorted({r.steps for r in found}):
        x = _x(calls, ends)
        if LEFT - 0.1 <= x <= LEFT + WIDTH + 0.1:
            out += chart.column(x, calls)
    return [*out, chart.axis()]


def _line(places: list[Point], colour: str | None) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = chart.REST if colour is None else chart.coloured(colour)
    return f'<polyline points="{points}" {style}/>'
