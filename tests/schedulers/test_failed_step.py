"""A step that is refused changes nothing, and a schedule that is written to is read again: the
right call after a mistake makes the numbers of a run without it."""

import pytest
import torch

from fastdiff.schedulers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_refused_step_changes_nothing(order, algorithm):
    runs = []
    for clumsy in (False, True):
        config = {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
        s = DPMSolverMultistepScheduler(solver_order=order, **config)
        s.set_timesteps(20)
        x = X
        for i, t in enumerate(s.timesteps):
            if clumsy and i in (1, 5):
                before = list(s.model_outputs), s.lower_order_nums, s.step_index
                with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                    s.step(X[:, :3], t, x)
                after = list(s.model_outputs), s.lower_order_nums, s.step_index
                # but for the oldest, which the next step drops unread
                assert all(a is b for a, b in zip(before[0][1:], after[0][1:], strict=True))
                assert before[1:] == after[1:]
            x = s.step(torch.tanh(x), t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)


def everything(s):
    """What a step of UniPC reads and writes."""
    kept = [*s.model_outputs, *s.timestep_list, s.last_sample]
    return kept, (s.lower_order_nums, getattr(s, "this_order", None), s.step_index)


@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_refused_step_of_unipc_changes_nothing(order, predict_x0):
    runs = []
    for clumsy in (False, True):
        s = UniPCMultistepScheduler(
            solver_order=order, predict_x0=predict_x0, final_sigmas_type="sigma_min"
        )
        s.set_timesteps(20)
        x = X
        for i, t in enumerate(s.timesteps):
            if clumsy and i in (1, 5):
                kept, counted = everything(s)
                with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                    s.step(X[:, :3], t, x)
                with pytest.raises(ValueError, match="history must have the shape of sample"):
                    s.step(torch.tanh(x[:1, :3]), t, x[:1, :3])
                after, still = everything(s)
                assert all(a is b for a, b in zip(kept, after, strict=True))
                assert counted == still
            x = s.step(torch.tanh(x), t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)


def test_sigmas_written_in_place_forget_what_was_read_from_a_device():
    s = DPMSolverMultistepScheduler()
    s.set_timesteps(6)
    x = s.step(X, s.timesteps[0], X).prev_sample
    s._fused.levels_of = s.sigmas  # as after reading them back from a device
    s.sigmas[-1] = s.sigmas[-2]
    s.step(x, s.timesteps[1], x)
    assert s._fused.levels_of is None
