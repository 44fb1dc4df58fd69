"""Whole runs of the classes against the installed diffusers, over random draws of all options.

Let r be the run in float64 (double_precision.py), s diffusers' and o ours.  Tensor by tensor, for
the samples and for the predictions of x_0 apart:

    worst max |o - s| <= max(1e-5, c * worst max |s - r|)

over the run, relative to max |s| there, with c = 2 for samples.  What diffusers itself loses in
float32 (steps from sigma = 4096 of a zero-SNR schedule lose four digits) is the yardstick; an error
of ours cannot hide there, as it would have to be as small as theirs.  For x_0, c = 4: at such noise
levels it is a small difference of two large terms, whose error is mostly the rounding of their
coefficients, two of ours (kx, ke) and one of theirs (sigma), each the same for all elements, so the
ratio is that of three draws.  So is that of single steps, of samples too, for which

    max |o - s| <= 1e-5 max |s|     or     rms(o - s) <= 4 * the worst rms(s - r) so far

is asked besides: on the first step "so far" is one draw, which came out at 2.1 and 2.2 in two runs
of 1,000 on one kind of CPU and below 2 in all on another.  A schedule that begins with nearly no
signal (alpha < 1/16) loses nearly all of what it loses on its first step, so that a whole run is
one draw, too: c = 4.  LMS loses most of all on its last step, to level 0: the four weights there
cancel, and raise what the kept slopes were rounded by; c = 4 for the same reason.
Where diffusers is not finite (two equal noise levels), r takes the place of s, a step between
equal levels being the identity.  What diffusers would have lost there is not known, so that step is
asked for what single steps are, and is no part of the worst of the run (UniPC-3 on a flow to
sigma_min: 4.3e-6 on the step before its last, which in diffusers is not finite, and 1.8e-5 on that;
seen on a second kind of CPU).  Where r is not finite either (epsilon where there is no signal, the
root of a logarithm), ours may say so, and need not agree.
Generators must end in the same state: same numbers drawn, in the same order and dtype.
"""

import inspect

from .classes import EDM, FLOWS, LMS, NAMES, ONE_RESULT, PNDM, SA, SINGLE, stock
from .options import draw
from .runs import Case, finite, gaps, level, mine, reference, theirs

REL = 1e-5
COUNT = {8: 120, 20: 45, 50: 15}  # draws per class
# DPM-Solver has twice the options of the others and shares them with singlestep; flow matching and
# EDM have half; of two calls a step runs are twice as long
WEIGHT = {"DPMSolverMultistepScheduler": 2, **dict.fromkeys((*FLOWS, *EDM, SINGLE), 0.5)}
WEIGHT |= {name: 0.3 for name in NAMES if name not in FLOWS and stock(name).order == 2}
WEIGHT[LMS] = 0.5  # SciPy integrates every weight in diffusers
WEIGHT |= {PNDM: 0.5, SA: 0.8}


def complaint(case: Case) -> str:
    """Empty, or what is wrong with our run of this case."""
    (s, their_state), r = theirs(case), reference(case)
    try:
        o, state = mine(case)
    except ValueError as error:
        return "" if "no signal" in str(error) and not finite(r) else f"raised {error!r}"
    except Exception as error:
        return f"raised {error!r}"
    if any((p != q).any() for p, q in zip(state, their_state, strict=True)):
        return "drew other random numbers than diffusers"
    if not finite(r):
        return ""
    kinds = 1 if case.name in ONE_RESULT else 2  # samples (and x_0)
    for kind in range(kinds):
        ours, them, exact = o[kind::kinds], s[kind::kinds], r[kind::kinds]
        what = ("sample", "x_0")[kind]
        known = [finite([a]) for a in them]
        them = [a if finite([a]) else b for a, b in zip(them, exact, strict=True)]
        lost = 0.0
        sets = zip(gaps(ours, them), gaps(ours, them, "rms"), gaps(them, exact, "rms"), strict=True)
        for i, (largest, typical, theirs_lost) in enumerate(sets):
            lost = max(lost, theirs_lost)
            if not (largest <= REL or typical <= 4 * lost):
                return (
                    f"{what} of step {i}: {largest:.1e} from diffusers (rms {typical:.1e}), "
                    f"which is {lost:.1e} from float64"
                )
        factor = 4 if kind == 1 or one_draw(case) else 2
        worst = max((gap for gap, it in zip(gaps(ours, them), known, strict=True) if it), default=0)
        allowed = max(REL, factor * max(gaps(them, exact)))
        if worst > allowed:
            return f"{what}: {worst:.1e} from diffusers, {allowed:.1e} allowed over the run"
    return ""


def one_draw(case: Case) -> bool:
    """Whether one step loses nearly all: from a level with nearly no signal, or LMS to level 0,
    whose polynomial through four slopes is extrapolated with weights that cancel."""
    silent = level(case.levels, case.begin[0])[0] < 1 / 16
    return silent or (case.name == LMS and case.call["order"] > 1)


def disagreements(name: str, steps: int) -> str:
    """Empty, or what is wrong with which of the draws of a class."""
    wrong = {}
    for seed in range(int(COUNT[steps] * WEIGHT.get(name, 1))):
        case = draw(name, steps, seed)
        if said := complaint(case):
            wrong[seed] = f"{said}\n    {changed(case)}"
    if not wrong:
        return ""
    lines = "\n".join(f"  {seed}: {text}" for seed, text in wrong.items())
    return f"draw({name!r}, {steps}, seed) for {len(wrong)} seeds:\n{lines}"


def changed(case: Case) -> dict:
    """What of a case is not diffusers' default."""
    default = {k: p.default for k, p in inspect.signature(stock(case.name)).parameters.items()}
    config = {k: v for k, v in case.config.items() if k != "trained_betas" and v != default[k]}
    if case.config.get("trained_betas") is not None:
        config["trained_betas"] = "..."
    return config | case.call | case.grid | {"begin": case.begin, "rng": case.rng}
