"""What a cycle of DPMSolverSinglestepScheduler keeps, and what is done to it in the middle."""

import pytest
import torch

from fastdiff.solvers.singlestep import order_of

from .classes import SD, SINGLE, both, counted, ours
from .loops import answer, first_step, latents, loop, same

CYCLES = [
    {},
    {"solver_order": 3},
    {"solver_order": 3, "solver_type": "heun", "algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("config", CYCLES, ids=str)
def test_it_keeps_what_diffusers_keeps(config):
    seen = []
    for s in both(SINGLE, **SD, **config):
        kept = []

        def edit(i, s, x, kept=kept):
            kept.append([*s.model_outputs, s.sample])

        loop(s, edit, steps=7)
        seen.append((kept, s.order_list))
    assert seen[0][1] == seen[1][1]
    for mine, theirs in zip(seen[0][0], seen[1][0], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a is b is None or same(a, b) is None


@pytest.mark.parametrize("config", CYCLES, ids=str)
def test_a_refused_step_changes_nothing(config):
    runs = []
    for clumsy in (False, True):
        s = ours(SINGLE)(**SD, **config)

        def edit(i, s, x, clumsy=clumsy):
            if clumsy:
                before = [*s.model_outputs, s.sample], s.step_index
                with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                    s.step(x[:, :3], s.timesteps[i], x, generator=torch.Generator())
                after = [*s.model_outputs, s.sample], s.step_index
                assert all(a is b for a, b in zip(before[0], after[0], strict=True))
                assert i == 0 or before[1] == after[1]

        runs.append(loop(s, edit))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_cycle_without_its_beginning_is_named():
    s, t, e, x = first_step(SINGLE)
    x = s.step(e, t, x).prev_sample
    s.sample = None
    with pytest.raises(ValueError, match=r"scheduler.sample must hold the sample .* got NoneType"):
        s.step(answer(x, 1), s.timesteps[1], x)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("n", [4, 6, 7])
def test_custom_sigmas_have_the_orders_of_a_run_of_their_number(n, order):
    for final in ("zero", "sigma_min"):
        s = ours(SINGLE)(**SD, solver_order=order, final_sigmas_type=final)
        plain = ours(SINGLE)(**SD, solver_order=order, final_sigmas_type=final)
        plain.set_timesteps(n)
        s.set_timesteps(sigmas=[9.0 * 0.5**j for j in range(n)])
        assert s.order_list == plain.order_list
        assert s.config.lower_order_final == plain.config.lower_order_final
        assert (float(s.sigmas[-1]) == 0) == (final == "zero")
        want = [order_of(i, n, order, s.config.lower_order_final) for i in range(n)]
        assert s.order_list[:-1] == want[:-1]
        x = latents(s)
        for i, t in enumerate(s.timesteps):
            x = s.step(answer(x, i), t, x).prev_sample
        assert torch.isfinite(x).all()


def test_thresholded_noise_runs_here():
    """diffusers takes alpha of all timesteps at once, which has no shape to go with a sample's."""
    config = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": True}
    mine, theirs = both(SINGLE, **SD, **config)
    with pytest.raises(RuntimeError, match="size of tensor"):
        loop(theirs)
    assert all(torch.isfinite(x).all() for x in loop(mine))
    multi, _ = both("DPMSolverMultistepScheduler", **SD, **config, solver_order=1)
    first, _ = both(SINGLE, **SD, **config, solver_order=1)
    first.set_timesteps(6)
    multi.set_timesteps(6)
    x = latents(first)
    e = answer(x, 0)
    same(*(s.step(e, s.timesteps[0], x).prev_sample for s in (first, multi)))
    assert not counted(mine).looked_up
