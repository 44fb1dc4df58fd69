"""What is wrong is said in words that name the argument, and the scheduler works afterwards."""

import copy

import numpy as np
import pytest
import torch

from .classes import (
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EDM,
    EDM_DPM,
    EDM_EULER,
    EULER,
    EULER_A,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    HEUN,
    KDPM2,
    KDPM2_A,
    LCM,
    LMS,
    NAMES,
    PNDM,
    SA,
    SINGLE,
    TCD,
    UNIPC,
    WITH_BETAS,
    WITH_HISTORY,
    WITH_INDEX,
    base,
    both,
    ours,
    takes,
)
from .loops import SHAPE, answer, first_step, loop, same, seeded

ENDS_IN_SIGMAS = (  # those whose `sigmas` may hold the level where a run ends
    *(DPM, SINGLE, UNIPC, DEIS, SA, EULER_A, HEUN, KDPM2, KDPM2_A, LMS, EDM_DPM),
    *(DDIM, LCM, TCD, PNDM),
)


@pytest.mark.parametrize("name", [DPM, SINGLE, DDIM, UNIPC, FLOW_HEUN, EDM_DPM, PNDM, SA])
def test_step_before_set_timesteps(name):
    s = ours(name)(**base(name))
    with pytest.raises(ValueError, match="set_timesteps"):
        s.step(torch.zeros(SHAPE), 1, torch.zeros(SHAPE))


@pytest.mark.parametrize("name", [EULER, EULER_A, FLOW_EULER, FLOW_LCM, EDM_EULER])
def test_euler_steps_on_the_training_levels_before_set_timesteps(name):
    mine, theirs = both(name, **base(name))
    x = torch.randn(SHAPE)
    a, b = (
        s.step(answer(x, 0), s.timesteps[4], x, generator=torch.Generator())[0]
        for s in (mine, theirs)
    )
    same(a, b)


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 3, 6, 6), (2, 8, 6, 6), (4, 6, 6)])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_output_of_another_shape_is_named(name, shape):
    s, t, _, x = first_step(name)
    with pytest.raises(ValueError, match=r"model_output.*\(2, 4, 6, 6\)"):
        s.step(torch.zeros(shape), t, x)


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_a_history_of_another_shape_is_named(name):
    s = ours(name)(**base(name))

    def edit(i, s, x):
        if i == (3 if name == SINGLE else 4):  # where history is read
            s.model_outputs = [m[:, :, :2] for m in s.model_outputs]

    with pytest.raises(ValueError, match=r"model_outputs|history"):
        loop(s, edit)


@pytest.mark.parametrize("name", NAMES)
def test_after_an_error_the_step_can_be_repeated(name):
    s, t, e, x = first_step(name)
    with pytest.raises(ValueError, match="model_output"):
        s.step(e[:, :, :3], t, x)
    clean, _, _, _ = first_step(name)
    again, expected = (one.step(e, t, x, **seeded(one))[0] for one in (s, clean))
    assert torch.equal(again, expected)
    if name in WITH_INDEX:
        assert s.step_index == 1


@pytest.mark.parametrize("name", WITH_INDEX)
def test_a_step_after_the_last_one(name):
    s = ours(name)(**base(name))
    x = loop(s, steps=4)[-1]
    state = torch.get_rng_state()
    n = len(s.timesteps)
    with pytest.raises(
        IndexError, match=rf"step_index must be below {n}.*got {n}\..*set_timesteps"
    ):
        s.step(x, s.timesteps[-1], x)
    assert s.step_index == n
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(loop(s, steps=4)[-1], x)


@pytest.mark.parametrize(
    ("name", "given", "named"),
    [
        (DPM, {}, "num_inference_steps"),
        (SINGLE, {}, "num_inference_steps"),
        (SINGLE, {"timesteps": [9, 3], "sigmas": [1.0, 0.0]}, "sigmas"),
        (SINGLE, {"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
        (DDIM, {}, "num_inference_steps"),
        (DDIM, {"num_inference_steps": 2000}, "num_inference_steps"),
        (DDPM, {"num_inference_steps": 2000}, "num_inference_steps"),
        (DDPM, {"timesteps": [3, 7]}, "timesteps"),
        (DDPM, {"timesteps": [1000, 7]}, "timesteps"),
        (DPM, {"timesteps": [9, 3], "sigmas": [1.0, 0.0]}, "sigmas"),
        (DPM, {"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
        (UNIPC, {}, "num_inference_steps"),
        (UNIPC, {"timesteps": [9, 3], "sigmas": [1.0, 0.0]}, "sigmas"),
        (UNIPC, {"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
        (UNIPC, {"timesteps": [3, 7]}, "timesteps"),
        (UNIPC, {"timesteps": [1000, 7]}, "timesteps"),
        (UNIPC, {"num_inference_steps": 3, "sigmas": [1.0, 0.5, 0.2, 0.1, 0.0]}, "sigmas"),
        (SA, {}, "num_inference_steps"),
        (SA, {"timesteps": [9, 3], "sigmas": [1.0, 0.0]}, "sigmas"),
        (SA, {"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
        (SA, {"sigmas": [0.0]}, "sigmas must begin above 0"),
        (SA, {"timesteps": [1000, 7]}, "timesteps"),
        (SA, {"num_inference_steps": 3, "sigmas": [1.0, 0.5, 0.2, 0.1, 0.0]}, "sigmas"),
        (PNDM, {}, "num_inference_steps"),
        (PNDM, {"num_inference_steps": 2000}, r"num_inference_steps must be 1 \.\. 1000"),
        (PNDM, {"timesteps": [3, 7]}, "timesteps"),
        (EULER_A, {"sigmas": [3.0, float("nan")]}, "sigmas"),
        (DDIM, {"timesteps": [[9, 3]]}, "timesteps"),
        (DDIM, {"timesteps": ["a"]}, "timesteps"),
        *((name, {"num_inference_steps": 4, "mu": 0.5}, "mu") for name in (*WITH_BETAS, *EDM)),
        (EDM_EULER, {}, "num_inference_steps"),
        (EDM_EULER, {"sigmas": [0.0, 0.5], "timesteps": [1.0, 0.5]}, "not both"),
        (EDM_EULER, {"sigmas": 0.5}, "sigmas must be one-dimensional"),
        (EDM_EULER, {"num_inference_steps": 3, "sigmas": [0.0, 1.0]}, "num_inference_steps"),
        (EDM_EULER, {"timesteps": [0.5, 1.0]}, "timesteps must be log"),
        (EDM_EULER, {"timesteps": [900.0, 1.0]}, "timesteps must be log"),
        (EDM_DPM, {}, "num_inference_steps"),
        (EDM_DPM, {"timesteps": [0.5, 1.0]}, "timesteps must be log"),
        (EDM_DPM, {"sigmas": [0.5, 1.0]}, "sigmas must go down"),
        (EDM_DPM, {"sigmas": [0.0]}, "sigmas must begin above 0"),
        (EDM_DPM, {"sigmas": [2.0, 0.0, 0.0]}, "sigmas must be above 0"),
        (EDM_DPM, {"num_inference_steps": 4, "sigmas": [2.0, 1.0]}, "num_inference_steps"),
        *(  # even where they agree, as diffusers
            (name, {"num_inference_steps": 2, "timesteps": [500, 4]}, "not both")
            for name in (LCM, TCD)
        ),
        (FLOW_EULER, {}, "num_inference_steps"),
        (FLOW_EULER, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "num_inference_steps"),
        (FLOW_EULER, {"sigmas": [1.0, 0.5], "timesteps": [900.0]}, "sigmas"),
        (FLOW_EULER, {"sigmas": [1.0, float("nan")]}, "sigmas"),
        (FLOW_EULER, {"timesteps": [[900.0]]}, "timesteps"),
        (FLOW_EULER, {"num_inference_steps": 3, "mu": "x"}, "mu must be a finite number; got 'x'"),
        (FLOW_EULER, {"num_inference_steps": 3, "mu": float("inf")}, "mu"),
        *(
            (
                name,
                {"num_inference_steps": 3, "sigmas": [9.0, 1.0, 0.0]},
                r"num_inference_steps must be None or 2, the number of sigmas before the last one",
            )
            for name in ENDS_IN_SIGMAS
        ),
    ],
    ids=str,
)
def test_set_timesteps_names_what_is_wrong(name, given, named):
    with pytest.raises(ValueError, match=named):
        ours(name)(**base(name)).set_timesteps(**given)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "x", True])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_steps_that_is_none_is_named(name, wrong):
    s = ours(name)(**base(name))
    before = copy.copy(s.timesteps)  # PNDM has none yet
    with pytest.raises(ValueError, match=r"num_inference_steps must be a whole number of at least"):
        s.set_timesteps(wrong)
    assert s.timesteps is before is None or torch.equal(s.timesteps, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_steps_beside_others_is_refused(name):
    s = ours(name)(**base(name))
    with pytest.raises(ValueError, match=r"num_inference_steps|[Oo]nly one of|not both"):
        s.set_timesteps(5, timesteps=[500, 4])


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("wrong", [None, np.zeros(SHAPE, np.float32), [1.0]], ids=type)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_tensor_is_named(name, wrong, prediction):
    known = takes(name, "prediction_type") and name not in EDM  # which has no "sample"
    config = {"prediction_type": prediction} if known else {}
    s, t, e, x = first_step(name, **config)
    with pytest.raises(TypeError, match=r"model_output must be a tensor .*; got (None|nd|list)"):
        s.step(wrong, t, x)
    with pytest.raises(TypeError, match=r"sample must be a tensor .*; got (None|nd|list)"):
        s.step(e, t, wrong)
