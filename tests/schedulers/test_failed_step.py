"""A step that is refused changes nothing, and a schedule that is written to is read again: the
right call after a mistake makes the numbers of a run without it."""

import pytest
import torch

from fastdiff.schedulers import DPMSolverMultistepScheduler

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


def test_sigmas_written_in_place_forget_what_was_read_from_a_device():
    s = DPMSolverMultistepScheduler()
    s.set_timesteps(6)
    x = s.step(X, s.timesteps[0], X).prev_sample
    s._fused.levels_of = s.sigmas  # as after reading them back from a device
    s.sigmas[-1] = s.sigmas[-2]
    s.step(x, s.timesteps[1], x)
    assert s._fused.levels_of is None
