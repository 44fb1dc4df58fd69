"""Every trajectory is affine in its inputs, through the rows, the op and the loop that users run.

The network's outputs are given in advance, so nothing else can bend the line: for inputs P, Q and
the same noise, sample(0.7 P + 0.3 Q) = 0.7 sample(P) + 0.3 sample(Q), and nothing in gives
nothing out.
"""

import pytest
import torch

import fastdiff
from fastdiff.predictions import PREDICTIONS
from fastdiff.registry import SOLVERS

STEPS = 7
SHAPE = (1, 3, 5)
OPTIONS = {
    "ddim": ({}, {"eta": 0.4}),
    "euler": ({}, {"s_churn": 2.0, "s_noise": 1.1}),
    "ddpm": ({}, {"variance": "large"}),
    "sa_solver": ({}, {"tau": 0.4, "s_noise": 1.1, "lower_order_final": False}),
    "unipc_2": ({}, {"solver_type": "bh1", "lower_order_final": False}),
    "dpmpp_2m": ({}, {"solver_type": "heun", "lower_order_final": False}),
    "dpmpp_3m": ({}, {"numerics": "faithful"}),
    "dpmpp_3s": ({}, {"solver_type": "heun", "lower_order_final": False}),
    "dpmpp_3s_sde": ({"numerics": "faithful", "solver_type": "heun", "eta": 0.3},),
    "dpmpp_3m_sde": ({}, {"numerics": "faithful", "eta": 0.3}),
}
CASES = [(name, options) for name in SOLVERS for options in OPTIONS.get(name, ({},))]


def through(plan, start, outputs, generator):
    """The trajectory (N, *SHAPE) for given network outputs (N, *SHAPE) or pairs of them."""
    path, given = [], iter(outputs)
    fastdiff.sample(
        lambda x, t: next(given),
        start,
        plan,
        generator=torch.Generator().manual_seed(generator),
        callback=lambda i, t, x: path.append(x),
    )
    return torch.stack(path)


def inputs(seed, guided):
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    sides = 2 if guided else 1
    outputs = torch.randn((STEPS, sides, *SHAPE), generator=g, dtype=torch.float64)
    return start, outputs


def fed(outputs):
    return [tuple(pair) if len(pair) == 2 else pair[0] for pair in outputs]


@pytest.mark.parametrize("guidance", [None, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "options"), CASES)
def test_affine(solver, options, prediction, guidance):
    noise = "flow" if prediction == "flow_prediction" else "scaled_linear"
    plan = fastdiff.plan(
        solver, steps=STEPS, noise=noise, prediction=prediction, guidance=guidance, **options
    )
    p, q = (inputs(seed, plan.guided) for seed in (1, 2))
    mixed = tuple(0.7 * a + 0.3 * b for a, b in zip(p, q, strict=True))
    made = [through(plan, start, fed(outputs), generator=3) for start, outputs in (p, q, mixed)]
    # an epsilon table at sigma = 14.6 multiplies its inputs by up to 14.6, guidance by up to 5
    size = max(m.abs().max() for m in made)
    assert torch.isfinite(size)
    assert (made[2] - (0.7 * made[0] + 0.3 * made[1])).abs().max() <= 1e-13 * size


@pytest.mark.parametrize("solver", [name for name, row in SOLVERS.items() if not row.noise])
def test_nothing_in_nothing_out(solver):
    plan = fastdiff.plan(solver, steps=STEPS)
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    assert not through(plan, zero, [zero] * STEPS, generator=0).any()
