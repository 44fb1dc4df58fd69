"""What the EDM classes have that others have not: x_0 from outside, places for sigmas, c_noise."""

import numpy as np
import pytest
import torch

from .classes import EDM, EDM_DPM, EDM_EULER, both, ours, stock
from .loops import SHAPE, answer, latents, same
from .runs import Case, gaps, mine, prepare, reference, run

REL = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_a_given_prediction_takes_the_place_of_the_networks(churn, dtype):
    """As Cosmos hands it over, which denoises between scale_model_input and step."""
    pair = both(EDM_EULER)
    draws = [torch.Generator().manual_seed(2) for _ in pair]
    for s in pair:
        s.set_timesteps(6)
    x = latents(pair[0]).to(dtype)
    for i in range(6):
        made = []
        for s, g in zip(pair, draws, strict=True):
            t = s.timesteps[i]
            e = answer(s.scale_model_input(x, t), i)
            more = {"pred_original_sample": e} if i % 2 else {}
            out = s.step(e.to(dtype), t, x, s_churn=churn, generator=g, **more)
            assert not more or out.pred_original_sample is e
            made.append(out)
        for key in ("prev_sample", "pred_original_sample"):
            same(made[0][key], made[1][key], max(REL, torch.finfo(dtype).eps))
        x = made[1].prev_sample
    assert torch.equal(*(g.get_state() for g in draws))


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_sigmas_are_places_as_in_diffusers(schedule):
    places = torch.linspace(0, 1, 7) ** 2
    mine_, theirs = both(EDM_EULER, sigma_schedule=schedule, final_sigmas_type="sigma_min")
    theirs.set_timesteps(sigmas=places)
    for kind in (list, np.array, torch.tensor):
        mine_.set_timesteps(sigmas=kind(places.tolist()))
        assert torch.equal(mine_.sigmas, theirs.sigmas)
        assert torch.equal(mine_.timesteps, theirs.timesteps)
        assert mine_.num_inference_steps is theirs.num_inference_steps is None


@pytest.mark.parametrize("name", EDM)
def test_custom_timesteps_are_levels(name):
    levels = np.array([40.0, 9.0, 2.0, 0.4, 0.05])
    s = ours(name)()
    s.set_timesteps(timesteps=np.log(levels) / 4)
    np.testing.assert_allclose(s.sigmas.numpy(), [*levels, 0.0], rtol=1e-6)
    other = ours(name)(final_sigmas_type="sigma_min")
    other.set_timesteps(timesteps=np.log(levels) / 4)
    assert float(other.sigmas[-1]) == pytest.approx(0.05 if name == EDM_EULER else 0.002)


def test_custom_sigmas_of_the_multistep_class_are_levels():
    s = ours(EDM_DPM)(solver_order=3)
    for given, last, steps in (([40.0, 9.0, 2.0], 0.0, None), ([40.0, 9.0, 2.0, 0.5], 0.5, 3)):
        s.set_timesteps(steps, sigmas=given)
        np.testing.assert_allclose(s.sigmas.numpy(), [40.0, 9.0, 2.0, last], rtol=1e-6)
        np.testing.assert_allclose(s.timesteps.numpy(), np.log([40.0, 9.0, 2.0]) / 4, rtol=1e-6)
        assert s.num_inference_steps == 3
        x = latents(s)
        for i, t in enumerate(s.timesteps):
            x = s.step(answer(s.scale_model_input(x, t), i), t, x).prev_sample
        assert torch.isfinite(x).all()


def test_the_exact_network_of_one_point_arrives_there():
    """F = (x_0 - c_skip x) / c_out for x_0 = 0.5."""
    for name in EDM:
        s = ours(name)()
        s.set_timesteps(8)
        x, data = torch.randn(SHAPE) * s.init_noise_sigma, s.config.sigma_data
        for sigma, t in zip(s.sigmas[:-1].tolist(), s.timesteps, strict=True):
            s.scale_model_input(x, t)
            whole = sigma**2 + data**2
            out = (0.5 - data**2 / whole * x) / (sigma * data / whole**0.5)
            x = s.step(out, t, x).prev_sample
        assert (x - 0.5).abs().max() < 1e-4


def exact_run(case):
    s = prepare(ours(case.name), case)
    s.numerics = "exact"
    return run(ours(case.name), case, s)[0]


def test_third_order_has_the_factor_two_in_exact():
    case = Case(EDM_DPM, {"solver_order": 3}, 20)
    assert max(gaps(exact_run(case), reference(case, second=2.0))) <= REL
    assert max(gaps(mine(case)[0], reference(case))) <= REL
    assert max(gaps(exact_run(case), mine(case)[0])) >= 1e-4


@pytest.mark.parametrize(("numerics", "second"), [("faithful", 1.0), ("exact", 2.0)])
def test_third_order_with_noise_runs_here(numerics, second):
    case = Case(EDM_DPM, {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, 20)
    with pytest.raises(UnboundLocalError):
        run(stock(EDM_DPM), case)
    seen = exact_run(case) if numerics == "exact" else mine(case)[0]
    assert max(gaps(seen, reference(case, second=second))) <= REL


def test_a_prediction_that_they_do_not_have_is_named():
    for name in EDM:
        s = ours(name)(prediction_type="sample")
        s.set_timesteps(4)
        x = latents(s)
        with pytest.raises(ValueError, match="prediction must be one of epsilon, v_prediction"):
            s.step(x, s.timesteps[0], x)
