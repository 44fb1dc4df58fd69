"""The record as a page, docs/quality.md, and as one sentence for the README."""

from __future__ import annotations

from typing import Any

from fastdiff.quality.picture import SHOWN_AT
from fastdiff.quality.ranking import Row, best, rows

ODD = "dpmsolver_2m_sde"
ORDER_KEPT = 15  # steps from which on diffusers' class ends in second order
WHY = (
    f"from {ORDER_KEPT} steps on diffusers' class no longer lowers the order of the last step, and "
    "with trailing spacing that step spans a factor of 7.6 in sigma at 20 steps, on which second "
    "order with noise overshoots. Diffusers' own class gives the same latents, to rounding."
)


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    what, found = record["conditions"], rows(record)
    versions = ", ".join(f"{name} {number}" for name, number in record["made"].items())
    steps = sorted({r.steps for r in found})
    parts = [
        "# Quality against steps",
        "<!-- written by fastdiff bench quality; edit fastdiff/quality/page.py -->",
        "This page, its picture, [its numbers](quality.json) and [the same as a table]"
        "(quality.csv) are written by `fastdiff bench quality`.",
        "![Quality against calls](quality.svg)",
        "## What was measured",
        f"Pictures of {what['model']}, weights `{what['weights'][:16]}`, guidance "
        f"{what['guidance']:g}, for prompts of two objects that training never saw, each from a "
        "seed of its own and the same for every sampler. A sampler is the drop-in class that "
        f"`fastdiff.sampler` makes, with {what['spacing']} spacing (2S and 3S have linspace "
        "alone), in the loop of a pipeline; a guided evaluation counts as one call. Columns of the "
        f"tables are steps; the picture has calls. {_calls(found)}\n\n"
        f"* {_pictures(found)}\n"
        "* Right: colours, shapes, relation and layout, by the oracle of "
        "`fastdiff/shapes/oracle.py`; with Wilson's 95 % interval. Where intervals overlap, the "
        "order is chance.\n"
        f"* RMS: distance of the latents to the end of DPM-Solver++ 2M with "
        f"{what['reference_calls']} calls in float64, over the first {_compared(found)} pictures. "
        "A picture that falls to another side "
        "of a decision, a shape a few pixels on, makes a large part of it; samplers with noise "
        "follow no trajectory, so their distance says nothing of their quality.\n"
        f"* Milliseconds a picture: time of the process, {what['threads']} "
        f"thread{'s' if what['threads'] > 1 else ''}, {what['batch']} pictures at once, decoding "
        f"included, {what['device']}. The time of the clock is in the JSON; the machine was "
        "shared.",
        f"Versions: {versions}.",
    ]
    if any(r.model == "student" for r in found):
        parts += ["## Teacher and student", _student(found, record.get("student"))]
    else:
        parts += [
            "A distilled student joins the chart with `fastdiff bench quality --student FOLDER`, "
            "its U-Net's folder."
        ]
    for title, cell in (
        ("Right, %", _share),
        ("RMS distance to the reference", _rms),
        ("Calls of the network, and milliseconds a picture", _cost),
    ):
        parts += [f"## {title}", _table(found, steps, cell)]
    odd = {r.steps: r.right for r in found if r.sampler == ODD and r.right is not None}
    low = {n: share for n, share in odd.items() if n >= ORDER_KEPT and share < odd.get(10, 0) / 2}
    if low:
        said = ", ".join(f"{100 * share:.0f} % at {n}" for n, share in low.items())
        told = f"`{ODD}` is right in {100 * odd[10]:.0f} % at 10 steps but {said}: {WHY}"
        parts += ["## What stands out", told]
    parts += ["## Left out", _left_out(record)]
    return "\n\n".join(parts) + "\n"


def sentence(record: dict[str, Any]) -> str:
    """What is right most often with at most 4, 6 and 10 calls, for the README."""
    found = rows(record)
    said = []
    for calls in SHOWN_AT:
        top = best(found, calls)
        if top is not None:
            said.append(
                f"{100 * (top.right or 0):.0f} % at {calls} (`{top.sampler}`; 95 % interval "
                f"{100 * (top.low or 0):.0f} to {100 * (top.high or 0):.0f} %, {top.pictures} "
                "pictures)"
            )
    if not said:
        return "Nothing has been measured yet."
    *first, last = said
    listed = f"{'; '.join(first)}; and {last}" if first else last
    return (
        "Right pictures of the built-in model, by an oracle that reads colours, shapes and places, "
        "with the sampler that is right most often with at most so many calls of the network, of "
        f"equals the nearest to the reference: {listed}. "
        "[Every sampler and number of steps](docs/quality.md)."
    )


def _pictures(found: list[Row]) -> str:
    counts = sorted({r.pictures for r in found}) or [0]
    if len(counts) == 1:
        return f"Every number is of {counts[0]} pictures."
    return (
        f"Numbers are of {counts[0]} to {counts[-1]} pictures, as many as the CSV says: the run is "
        "not finished."
    )


def _calls(found: list[Row]) -> str:
    """Samplers whose steps are no calls, from the record."""
    more = dict.fromkeys(r.sampler for r in found if r.evaluations != r.steps)
    if not more:
        return "A step is a call."
    return (
        f"A step is a call, but of {', '.join(f'`{name}`' for name in more)}: see the last table."
    )


def _compared(found: list[Row]) -> int:
    return max((r.compared for r in found), default=0)


def _share(row: Row) -> str:
    if row.right is None:
        return "not finite"
    return f"{100 * row.right:.0f} ({100 * (row.low or 0):.0f}-{100 * (row.high or 0):.0f})"


def _rms(row: Row) -> str:
    return "-" if row.rms is None else f"{row.rms:.3f}"


def _cost(row: Row) -> str:
    return f"{row.evaluations}, {row.cpu_ms:.0f}"


def _table(found: list[Row], steps: list[int], cell: Any) -> str:
    """A line a sampler, a column a number of steps."""
    known = {(r.model, r.sampler, r.steps): r for r in found}
    head = ["sampler", *(str(s) for s in steps)]
    lines = [head, ["---", *("---:" for _ in steps)]]
    for model, name in dict.fromkeys((r.model, r.sampler) for r in found):
        cells = [known.get((model, name, s)) for s in steps]
        said = f"`{name}`" if model == "teacher" else f"student, `{name}`"
        lines.append([said, *("" if row is None else cell(row) for row in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _student(found: list[Row], weights: str | None) -> str:
    lines = ["| calls | teacher, best | student |", "| ---: | ---: | ---: |"]
    for row in found:
        if row.model == "student":
            top = best(found, row.evaluations)
            said = "-" if top is None else f"{_share(top)} `{top.sampler}`"
            lines.append(f"| {row.evaluations} | {said} | {_share(row)} |")
    return (
        "\n".join(lines)
        + "\n\nIn percent, with Wilson's 95 % interval; the teacher's best with at most so many "
        "calls, of equals the nearest to the reference. The student, weights "
        f"`{weights or 'not recorded':.16}`, has no guidance and is not compared with the "
        "reference."
    )


def _left_out(record: dict[str, Any]) -> str:
    lines = [f"* `{name}`: {why}." for name, why in record["left_out"].items()]
    refused: dict[tuple[str, str], list[str]] = {}
    for key, why in record["refused"].items():
        name, _, steps = key.partition(", ")
        refused.setdefault((name, " ".join(why.split())), []).append(steps)
    for (name, why), steps in refused.items():
        lines.append(f"* `{name}`, {', '.join(steps)} steps: its class says {why!r}.")
    return "\n".join(lines)
