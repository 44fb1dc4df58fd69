"""The record as a page, docs/accuracy.md, and as one sentence for the README."""

from __future__ import annotations

from typing import Any

from fastdiff.accuracy.contestants import OURS, THEIRS
from fastdiff.accuracy.picture import BEST_AT
from fastdiff.accuracy.ranking import Entry, of_solver, ranked, solvers

SHOWN = (5, 10, 20, 50)
LAST_STEP = 2.2e-3  # geometric mean over the mixtures of the RMS; a test measures it
# why diffusers' number is another one: (solver, spacing, calls), then geometric means of the RMS of
# a plan as it is, of one with what its class does otherwise, and of the class; a test measures them
AHEAD: dict[tuple[str, str, int], tuple[float, dict[str, float], float]] = {
    ("dpmsolver_3m", "karras", 10): (
        1.955e-2,
        {'`numerics="faithful"`': 1.741e-2, 'and `final_sigma="sigma_min"`': 1.757e-2},
        1.757e-2,
    ),
    ("unipc_3", "exponential", 20): (2.594e-3, {"its model times": 2.296e-3}, 2.297e-3),
    ("dpmpp_2m", "exponential", 20): (1.048e-2, {"its model times": 1.214e-2}, 1.214e-2),
}
METRIC = {
    "rms": "Deterministic solvers: RMS distance to the exact ODE solution",
    "w1": "Solvers that draw noise: W1 distance to the data",
}
FAMILY = {"vp": "scaled_linear betas, a network that predicts the noise", "flow": "flow"}


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    made, what = record["made"], record["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in made.items())
    floors = ", ".join(f"{name} {value:.1e}" for name, value in record["floors"].items())
    parts = [
        "# Accuracy against calls of the network",
        "<!-- written by fastdiff bench accuracy; edit fastdiff/accuracy/page.py -->",
        "This page, its picture and [its numbers](accuracy.json) are written by "
        "`fastdiff bench accuracy`.",
        "![Error against calls](accuracy.svg)",
        "## What was measured",
        "The data are "
        + " and ".join(f"*{name}*" for name in what["mixtures"])
        + ", mixtures of three Gaussians in one dimension (numbers in the JSON). Their perfect "
        "network is known, a function of (x, t) alone, and so is the exact solution of the ODE. "
        "Both sides get the same network, the same start (unit normal noise at the noisiest level "
        "of the model) and the same number of calls at most; a second call in a step counts. "
        'fastdiff is `fastdiff.plan` with `numerics="exact"`, the model time with all its '
        "digits; diffusers is the stock class, which rounds the time where it does. All in "
        "float64. A grid that starts below the noisiest level (leading), or stops before the "
        'data (`final_sigmas_type="sigma_min"`), pays for it.',
        f"* Deterministic: RMS over {what['points']} quantiles of the noise.\n"
        f"* With noise: mean distance of {what['samples']} sorted results to the quantiles of the "
        f"data. Exact samples, as many, have {floors} (mean of {what['floor_draws']} draws): "
        "differences below that are chance, and so is an order among errors as small. One seed.\n"
        "* With scaled_linear the last step goes from sigma / alpha = 0.029 to 0. As a step of "
        f"first order it costs {LAST_STEP:.1e} on an exact sample, and so does leaving it out: "
        "more calls do not help a solver that ends so.\n"
        "* Best: the smallest geometric mean over the mixtures. Results on such data say nothing "
        "about the pictures of a trained network.",
        f"Versions: {versions}.",
    ]
    for family in what["families"]:
        for metric in METRIC:
            if solvers(record, family, metric):
                parts += [f"## {METRIC[metric]}; {FAMILY[family]}"]
                parts += [_best(record, family, metric), _all(record, family, metric)]
    parts += [*_differ(record), "## Left out", _left_out(record)]
    return "\n\n".join(parts) + "\n"


def _differ(record: dict[str, Any]) -> list[str]:
    """Why the same solver on the same spacing has two numbers, where the record has both."""
    rows = []
    for (solver, spacing, calls), (ours, steps, theirs) in AHEAD.items():
        if not {OURS, THEIRS} <= {
            entry.side
            for entry in ranked(record, "vp", "rms", calls)
            if (entry.solver, entry.spacing) == (solver, spacing)
        }:
            continue
        changed = "; ".join(f"{what} {number:.3e}" for what, number in steps.items())
        who = [f"`{solver}`", spacing, str(calls)]
        rows.append([*who, f"{ours:.3e}", changed, f"{theirs:.3e}"])
    if not rows:
        return []
    return [
        "## Where the two differ",
        "The rows of both sides are the same numbers but for what diffusers does otherwise than "
        "the papers, which a plan can do, too; with it, the difference is gone:",
        _table(["solver", "spacing", "calls", "fastdiff", "with ..", "diffusers"], rows),
        "* `dpmsolver_3m` of diffusers has half of the third-order term. On *broad* that costs a "
        "third, on *narrow* it takes away two fifths: errors of opposite sign. It also stops at "
        "the cleanest trained level.\n"
        "* With exponential and beta spacing diffusers cuts the model time to a whole number: the "
        "network answers for a level up to one time cleaner than the sample's. In the last steps "
        "that is of the size of the error, and of either sign: here it helps `unipc_3` and costs "
        "`dpmpp_2m`.\n"
        "* `leading` is the grid of the solver's class in diffusers: DPM-Solver, UniPC and DEIS "
        "have no call at time 0, the others have one.",
    ]


def sentence(record: dict[str, Any]) -> str:
    """What is best at 5, 10 and 20 calls, with its conditions, for the README."""
    found = []
    for budget in BEST_AT:
        ours = ranked(record, "vp", "rms", budget, OURS)[0]
        theirs = ranked(record, "vp", "rms", budget, THEIRS)[0]
        found.append(f"{_named(ours)} at {budget} (best of diffusers: {_named(theirs)})")
    *first, last = found
    return (
        f"Of the deterministic solvers the most accurate is {'; '.join(first)}; and {last} calls "
        "of the network: geometric mean of the RMS distances to the exact ODE solution on two "
        "one-dimensional Gaussian mixtures with a perfect network, scaled_linear betas, float64; "
        "[every solver, spacing and number of calls](docs/accuracy.md)."
    )


def _named(entry: Entry) -> str:
    return f"`{entry.solver}` with {entry.spacing} spacing, {entry.score:.1e},"[:-1]


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    calls = "" if entry.calls in SHOWN else f", {entry.calls} calls"
    return f"{entry.score:.1e} {entry.spacing}{calls}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _best(record: dict[str, Any], family: str, metric: str) -> str:
    """Best at 5, 10 and 20 calls, of each side, with the error on each mixture."""
    mixtures = list(record["conditions"]["mixtures"])
    rows = []
    for budget in record["conditions"]["budgets"]:
        for side in (OURS, THEIRS):
            entries = ranked(record, family, metric, budget, side)
            if budget in BEST_AT and entries:
                top = entries[0]
                each = [f"{top.errors[name]:.1e}" for name in mixtures]
                who = [str(budget), side, f"`{top.solver}`", top.spacing, str(top.calls)]
                rows.append([*who, *each])
    return _table(["at most", "best of", "solver", "spacing", "calls", *mixtures], rows)


def _all(record: dict[str, Any], family: str, metric: str) -> str:
    """Every solver at its best spacing."""
    budgets = [b for b in SHOWN if b in record["conditions"]["budgets"]]
    rows = []
    for name in solvers(record, family, metric):
        for side in (OURS, THEIRS):
            cells = [of_solver(ranked(record, family, metric, b, side), name) for b in budgets]
            if any(cells):
                rows.append([f"`{name}`", side, *map(_cell, cells)])
    return _table(["solver", "", *(f"{b} calls" for b in budgets)], rows)


def _left_out(record: dict[str, Any]) -> str:
    lines = []
    for row in record["excluded"]:
        what = f"`{row['solver']}`" if "solver" in row else f"spacing {row['spacing']}"
        where = "" if row["family"] == "all" else f", {row['family']}"
        side = "" if row["side"] == "both" else f", {row['side']}"
        lines.append(f"* {what}{where}{side}: {row['reason']}.")
    for row in record["rows"]:
        lost = [str(r["budget"]) for r in row["results"] if r["errors"] is None]
        if lost:
            where = f"`{row['solver']}`, {row['family']}, {row['side']}, {row['spacing']}"
            lines.append(f"* {where}, {', '.join(lost)} calls: the samples are not finite.")
    refused: dict[tuple[str, str, str], list[str]] = {}
    for row in record["refused"]:
        key = (row["solver"], row["family"], " ".join(row["reason"].split()))
        refused.setdefault(key, []).append(row["spacing"])
    for (solver, family, why), spacings in refused.items():
        lines.append(f"* `{solver}`, {family}, diffusers, {', '.join(spacings)}: it says {why!r}.")
    return "\n".join(lines)
