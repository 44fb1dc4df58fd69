"""SDXL, ControlNet, video and audio: what our class makes of a seed is what diffusers' makes.

The rule is that of agreement.py, on the last sample: o ours, s diffusers', r diffusers' own code
with its levels and its step in float64,

    max |o - s| <= max(1e-5, 2 max |s - r|), relative to max |s|

where the network, the same in all three, raises what a step rounds by.
"""

import pytest

from . import more_pipelines
from .by_hand import wide
from .classes import DDIM, DEIS, DPM, EULER_A, FLOW_EULER, SD, UNIPC, both, counted, stock
from .loops import REL

STEPS = 4
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SDE = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
VP = [(DPM, {}), (DPM, SDE), (UNIPC, {}), (DEIS, {}), (DDIM, {"clip_sample": False}), (EULER_A, {})]
CASES = [
    *(
        (kind, name, SD | config)
        for kind in ("sdxl", "sdxl img2img", "sdxl inpaint", "controlnet", "animatediff")
        for name, config in (VP if "sdxl" in kind else VP[:3])
    ),
    *(("wan", name, FLOW) for name in (DPM, UNIPC, DEIS)),
    ("wan", DPM, FLOW | {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
    ("wan", FLOW_EULER, {"shift": 3.0}),
    *(("audio", name, {}) for name in (DPM, UNIPC, DEIS, "IPNDMScheduler")),
]
DIMENSIONS = {"animatediff": 5, "wan": 5, "audio": 3}


@pytest.fixture(scope="module")
def parts():
    """The networks of each kind, made once."""
    made = {}

    def of(kind):
        maker = more_pipelines.PARTS[kind]
        if maker not in made:
            made[maker] = maker()
        return made[maker]

    return of


@pytest.mark.parametrize(("kind", "name", "config"), CASES, ids=str)
def test_the_results_are_those_of_diffusers(parts, kind, name, config):
    mine, theirs = both(name, **config)
    a, b = (more_pipelines.run(kind, s, parts(kind), STEPS) for s in (mine, theirs))
    assert b.dim() == DIMENSIONS.get(kind, 4)
    assert b.std() > 0.05
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    gap, size = (a - b).abs().max(), b.abs().max()
    if gap > REL * size:
        exact = more_pipelines.run(kind, wide(stock(name))(**config), parts(kind), STEPS)
        lost = (b - exact).abs().max()
        assert lost < 1e-3 * size  # rounding, not other noise
        assert gap <= 2 * lost
    steps = 3 if kind in ("sdxl img2img", "sdxl inpaint") else STEPS  # strength 0.75
    assert counted(mine) == (steps, {}, 0)


@pytest.mark.parametrize("kind", more_pipelines.PARTS)
def test_a_wrong_scheduler_would_be_seen(parts, kind):
    config = FLOW if kind == "wan" else {} if kind == "audio" else SD
    runs = [
        more_pipelines.run(kind, stock(DPM)(**config, solver_order=order), parts(kind), STEPS)
        for order in (1, 2)
    ]
    assert (runs[0] - runs[1]).abs().max() > 1e-3 * runs[1].abs().max()
