"""The card of a tuned plan, from the record of its run: no number in it is typed."""

from __future__ import annotations

from typing import Any


def card(record: dict[str, Any], file: str) -> str:
    """Markdown."""
    what, result = record["conditions"], record["result"]
    fit, held = what["fit"]["seeds"], what["held_out"]["seeds"]
    untuned, begin = result["untuned"], record["begin"]
    (state,) = record["coefficients"].values()
    coefficients = len(state["values"]) - what["steps"]
    parts = [
        f"# {file}: {what['steps']} calls, fitted to one network",
        f"A table for `fastdiff.schedulers.TableScheduler` and `fastdiff.sample`, made by "
        f"`fastdiff tune MODEL` for {what['model']}, weights `{what['weights'][:16]}`, at guidance "
        f"{what['guidance']:g}. A guided evaluation counts as one call. For another network, "
        "guidance or number of calls it is no use.",
        f"* Reference: {what['fine'][0]} with {what['fine'][1]} spacing and {what['fine_calls']} "
        "calls, float32. Distance: RMS over all elements of the latents at the end.\n"
        f"* Fitted on {len(fit)} seeds, {fit[0]} to {fit[-1]}, and "
        f"{len(set(what['fit']['prompts']))} prompts; scored on {len(held)} seeds, {held[0]} to "
        f"{held[-1]}, and {len(set(what['held_out']['prompts']))} other prompts.\n"
        f"* Begun from {begin['name']}: its grid, then {coefficients} coefficients and "
        f"{what['steps']} model times, by Gauss-Newton. On the seeds of the fit, where distances "
        f"above the median count less (pseudo-Huber): "
        f"{_path(record['grid'][begin['name']])} (grid), {_path(state)} (coefficients); "
        f"{_calls(record)} calls of the network for one sample, references left out.",
        "## Held-out seeds",
        "| | RMS distance to the reference |",
    ]
    rows = [
        ("best untuned", untuned["name"], untuned["distance"]),
        ("its grid tuned", result["grid"]["name"], result["grid"]["distance"]),
        ("tuned", file, result["tuned"]["distance"]),
    ]
    parts[-1] += "\n| --- | ---: |\n" + "\n".join(
        f"| {kind}: {name} | {value:.4f} |" for kind, name, value in rows
    )
    shown = sorted((v, k) for k, v in record["held_out"].items() if v is not None)[:5]
    parts += [
        f"{100 * result['gain']:.1f} % nearer than the best untuned. The untuned, "
        f"{len(record['untuned'])} samplers and spacings, were ranked on seeds of the fit, and the "
        f"best {len(record['held_out'])} measured on all held-out ones: "
        + "; ".join(f"{name} {value:.4f}" for value, name in shown)
        + ".",
        "## The oracle",
        _oracle(result.get("oracle")),
    ]
    return "\n\n".join(parts) + "\n"


def _path(state: dict[str, Any]) -> str:
    return f"{state['history'][0]:.4f} to {state['history'][-1]:.4f}"


def _calls(record: dict[str, Any]) -> int:
    fits = [*record["grid"].values(), *record["coefficients"].values()]
    return sum(int(state["calls"]) for state in fits)


def _oracle(said: dict[str, Any] | None) -> str:
    """What it says, and whether it agrees with the distances."""
    if said is None:
        return "There is none for this model: distances are all that was measured."
    rows = "\n".join(
        f"| {kind} | {v['right']} of {v['count']} | {100 * v['interval'][0]:.1f} to "
        f"{100 * v['interval'][1]:.1f} % |"
        for kind, v in said.items()
    )
    table = f"| end points | all right | 95 % interval (Wilson) |\n| --- | ---: | ---: |\n{rows}"
    tuned, untuned = said["tuned"], said["untuned"]
    if tuned["interval"][0] > untuned["interval"][1]:
        word = "The oracle agrees: the tuned plan is right more often, beyond chance."
    elif tuned["interval"][1] < untuned["interval"][0]:
        word = (
            "The oracle does not agree: the tuned plan is nearer, but right less often, beyond "
            "chance."
        )
    elif tuned["right"] >= untuned["right"]:
        word = (
            "The oracle does not disagree: the tuned plan is right at least as often, but by no "
            "more than chance allows."
        )
    else:
        word = (
            "The oracle does not agree: the tuned plan is nearer, but right less often, though by "
            "no more than chance allows."
        )
    return f"{table}\n\n{word}"
