"""A plan: what it holds, for every solver, spacing, guidance and family."""

import dataclasses

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.plan import on_device
from fastdiff.predictions import PREDICTIONS
from fastdiff.registry import SOLVERS
from fastdiff.schedules import SPACINGS, NoiseSchedule
from fastdiff.solvers.consistency import consistency
from fastdiff.solvers.sa import sa_solver
from fastdiff.solvers.singlestep import singlestep
from fastdiff.solvers.tcd import tcd
from fastdiff.solvers.unipc import unipc
from fastdiff.table import HEAD, G
from tests.loop import run
from tests.mixture import Mixture

BY_NOISE = [n for n, row in SOLVERS.items() if row.preset.get("predict") == "noise"]
TWO = [name for name, row in SOLVERS.items() if row.evaluations == 2]  # calls a step
ARRAYS = ("rows", "timesteps", "alpha", "sigma", "draw")


def test_a_plan_does_not_change():
    plan = fastdiff.plan("dpmpp_2m", steps=5)
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(plan, name)[0] = 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.noise_scale = 2.0


def test_a_plan_does_not_close_or_follow_its_callers_arrays():
    plan = fastdiff.plan("ddim", steps=3)
    rows, alpha = plan.rows.copy(), plan.alpha.copy()
    mine = dataclasses.replace(plan, rows=rows, alpha=alpha)
    rows[0] = 7.0
    alpha[0] = 7.0
    np.testing.assert_array_equal(mine.rows, plan.rows)
    np.testing.assert_array_equal(mine.alpha, plan.alpha)


def test_the_device_table_is_made_once():
    plan = fastdiff.plan("dpmpp_2m", steps=5)
    assert on_device(plan, "cpu", None) is on_device(plan, "cpu", None)
    assert plan.to("cpu").dtype == torch.float32
    assert plan.to("cpu").is_contiguous()
    assert plan.to("cpu", torch.float64).dtype == torch.float64
    assert plan.to("cpu").shape == plan.rows.shape


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("begin", [1, 4, 7])
def test_begin_cuts_the_first_rows(solver, begin):
    """Image to image: the rest of the run, but with a cold start where the cut is."""
    whole = fastdiff.plan(solver, steps=8)
    late = fastdiff.plan(solver, steps=8, begin=begin)
    assert late.steps == 8 - begin
    np.testing.assert_array_equal(late.timesteps, whole.timesteps[begin:])
    cold = 1 if solver in TWO else 0  # from a middle on there is no second half, which would draw
    np.testing.assert_array_equal(late.draw[cold:], whole.draw[begin + cold :])
    for name in ("alpha", "sigma"):
        np.testing.assert_array_equal(getattr(late, name), getattr(whole, name)[begin:])
    if not whole.depths:
        np.testing.assert_array_equal(late.rows, whole.rows[begin:])
    else:  # no row reads what was kept before the start; later ones are the same but for the slots
        history = late.rows[0, 0, HEAD + 4 : HEAD + 4 + late.history]
        assert not history.any()
        warm = late.steps - sum(whole.depths)
        if warm > 1:
            last = slice(HEAD, HEAD + 4)
            np.testing.assert_array_equal(late.rows[-1, 0, last], whole.rows[-1, 0, last])


def test_begin_scales_the_start():
    for solver in ("euler", "ddim"):
        plan = fastdiff.plan(solver, steps=10, begin=4)
        assert plan.noise_scale == pytest.approx(np.hypot(plan.alpha[0], plan.sigma[0]))
    assert fastdiff.plan("ddim", steps=10, begin=4).c_in == 1
    plan = fastdiff.plan("euler", steps=10, begin=4)
    assert plan.c_in == pytest.approx(1 / np.hypot(1, plan.sigma[0]), rel=1e-14)
    plan = fastdiff.plan("euler", steps=10, begin=4, noise="flow", prediction="flow_prediction")
    assert (plan.noise_scale, plan.c_in) == (plan.sigma[0], 1.0)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (7.5, (6, 1)),
        (np.float32(7.5), (6, 1)),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (6, 1)),
        ([[1.0, 2.0, 3.0]], (6, 3)),
        (np.arange(12.0).reshape(6, 2), (6, 2)),
        (torch.tensor([[4.0, 5.0]]), (6, 2)),
    ],
)
def test_guidance_per_step_and_per_sample(given, shape):
    plan = fastdiff.plan("dpmpp_2m", steps=6, guidance=given)
    values = np.asarray(given, dtype=float)
    want = np.broadcast_to(values.reshape(-1, 1) if values.ndim < 2 else values, shape)
    assert plan.guided
    assert plan.rows.shape[:2] == shape
    np.testing.assert_array_equal(plan.rows[:, :, G], want)
    rest = np.delete(plan.rows, G, axis=2)  # never folded into the other numbers
    plain = np.delete(fastdiff.plan("dpmpp_2m", steps=6).rows, G, axis=2)
    np.testing.assert_array_equal(rest, np.broadcast_to(plain, rest.shape))
    late = fastdiff.plan("dpmpp_2m", steps=6, guidance=given, begin=2)
    np.testing.assert_array_equal(late.rows[:, :, G], want[2:])


def test_no_guidance():
    plan = fastdiff.plan("dpmpp_2m", steps=6)
    assert not plan.guided
    assert (plan.rows[:, :, G] == 1).all()


def test_custom_sigmas_with_and_without_the_last():
    sigmas = [10.0, 3.0, 1.0, 0.2]
    open_end = fastdiff.plan("dpmpp_2m", steps=3, spacing=sigmas)
    ratio = open_end.sigma / open_end.alpha
    np.testing.assert_allclose(ratio, sigmas, rtol=1e-14)
    closed = fastdiff.plan("dpmpp_2m", steps=4, spacing=np.array(sigmas))
    np.testing.assert_allclose(closed.sigma / closed.alpha, [*sigmas, 0.0], rtol=1e-14)
    low = fastdiff.plan("dpmpp_2m", steps=4, spacing=sigmas, final_sigma="sigma_min")
    assert (low.sigma / low.alpha)[-1] == pytest.approx(NoiseSchedule.vp().ratios[0], rel=1e-14)
    assert fastdiff.plan("dpmpp_2m", steps=1, spacing=[5.0]).sigma[-1] == 0
    np.testing.assert_allclose(
        open_end.timesteps, NoiseSchedule.vp().time_of(sigmas[:3]), rtol=1e-12
    )


def test_custom_timesteps_are_what_the_network_gets():
    for values in ([999, 500, 17], np.array([999, 500, 17]), torch.tensor([999, 500, 17])):
        plan = fastdiff.plan("ddim", steps=3, spacing=values)
        np.testing.assert_array_equal(plan.timesteps, [999, 500, 17])
        bar = NoiseSchedule.vp().alphas_cumprod[[999, 500, 17]]
        np.testing.assert_allclose(plan.alpha[:-1] ** 2, bar, rtol=1e-12)
    flow = fastdiff.plan(
        "euler", steps=2, spacing=[1000, 250], noise="flow", prediction="flow_prediction"
    )
    np.testing.assert_allclose(flow.sigma, [1.0, 0.25, 0.0])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_whole_model_times_are_whole(spacing):
    plan = fastdiff.plan("ddim", steps=20, spacing=spacing)
    times = plan.timesteps.astype(np.float32)  # as the loop hands them to the network
    np.testing.assert_array_equal(times, np.round(times))


def test_faithful_times_are_whole():
    plan = fastdiff.plan("dpmpp_2m", steps=7, numerics="faithful")
    np.testing.assert_array_equal(plan.timesteps, np.round(plan.timesteps))
    exact = fastdiff.plan("dpmpp_2m", steps=7)
    assert 0 < np.abs(exact.timesteps - plan.timesteps).max() <= 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_levels_are_the_identity(solver):
    """h = 0: nothing moves, nothing is infinite, also twice, at the start, and for what follows.
    But for consistency sampling, which replaces all or part of the noise at any level."""
    sigmas = np.array([9.0, 9.0, 4.0, 4.0, 4.0, 1.5, 0.3, 0.3])
    chosen = SOLVERS[solver]
    calls = chosen.rows(7)
    plan = fastdiff.plan(solver, steps=calls, spacing=sigmas)
    assert np.isfinite(np.delete(plan.rows, [4, 5], axis=2)).all()
    data = Mixture()
    x = np.linspace(-2, 2, 5) * plan.noise_scale
    noises = np.random.default_rng(0).normal(size=(calls, 5))
    path = run(plan, data.network(plan, "epsilon"), x, noises)
    assert np.isfinite(path).all()
    if chosen.row in (consistency, tcd):
        return
    # at the ends of whole steps
    first = [row for row in range(calls) if chosen.call(row)[1] == 0]
    path = [path[row] for row in (*first, calls)]
    corrects = chosen.row in (unipc, sa_solver)
    # the third row of a cycle takes it again, with a prediction at its end
    again = chosen.row is singlestep and chosen.depths == (2, 1)
    for j in (0, 3, 6) if again else (0, 2, 3, 6):
        if corrects and j in (2, 6):  # the step before is corrected, and then nothing moves
            lines = HEAD + (1 + plan.keeps) * (4 + plan.history)
            next_, _, begun, *_ = plan.rows[j, 0, HEAD:lines].reshape(1 + plan.keeps, -1)
            np.testing.assert_array_equal(next_, begun)
        else:
            np.testing.assert_allclose(path[j + 1], path[j], rtol=1e-12, atol=1e-13)


def test_equal_levels_do_not_change_the_result():
    """A repeated level is not a step, whatever the order: the run without it comes out the same."""
    data, x = Mixture(), np.linspace(-2, 2, 5)
    once = np.array([9.0, 4.0, 1.5, 0.3])
    twice = np.array([9.0, 9.0, 4.0, 1.5, 0.3, 0.3])
    for solver in ("ddim", "dpmpp_1", "euler"):
        ends = []
        for sigmas in (once, twice):
            plan = fastdiff.plan(solver, steps=len(sigmas) - 1, spacing=sigmas)
            ends.append(run(plan, data.network(plan, "epsilon"), x * plan.noise_scale)[-1])
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def test_sigma_min_twice_at_the_end_stays_finite():
    """Karras and final sigma_min: the last level comes twice; diffusers' third order makes NaN."""
    for solver in ("dpmpp_3m", "dpmsolver_3m"):
        plan = fastdiff.plan(solver, steps=20, final_sigma="sigma_min", lower_order_final=False)
        assert plan.sigma[-1] == plan.sigma[-2]
        assert plan.rows[-1, 0, HEAD] == 1  # the identity
        assert np.isfinite(np.delete(plan.rows, [4, 5], axis=2)).all()


@pytest.mark.parametrize("solver", [n for n, row in SOLVERS.items() if row.depths])
def test_nearly_equal_levels_do_not_blow_up_rounding(solver):
    """Levels that differ by rounding: a slope over that distance would be noise times 1e15."""
    sigmas = np.array([9.0, 4.0, 4.0 * (1 - 2e-16), 1.5, 1.5 * (1 - 2e-16), 1.5 * (1 - 4e-16), 0.3])
    options = {"lower_order_final": False} if "lower_order_final" in SOLVERS[solver].options else {}
    plan = fastdiff.plan(solver, steps=SOLVERS[solver].rows(6), spacing=sigmas, **options)
    assert np.abs(plan.rows[:, :, HEAD:]).max() < 50


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_terminal_snr(solver):
    family = NoiseSchedule.vp(rescale_betas_zero_snr=True)
    plan = fastdiff.plan(
        solver, steps=10, noise=family, spacing="trailing", prediction="v_prediction"
    )
    start = plan.alpha[0] / np.hypot(plan.alpha[0], plan.sigma[0])
    assert start == pytest.approx(2.0**-12, rel=1e-9)
    x = np.linspace(-2, 2, 5)
    noises = np.random.default_rng(0).normal(size=(10, 5))
    path = run(plan, Mixture().network(plan, "v_prediction"), x * plan.noise_scale, noises)
    assert np.isfinite(path).all()
    if solver not in (*BY_NOISE, *TWO):  # holding n over a long step from no signal overshoots
        assert np.abs(path[-1]).max() < 4


@pytest.mark.parametrize("top", [1.0, 0.999])
@pytest.mark.parametrize("solver", [n for n in SOLVERS if not (n in BY_NOISE and "sde" in n)])
def test_flow_from_pure_noise(solver, top):
    sigmas = np.array([top, 0.8, 0.5, 0.1, 0.0])
    calls = SOLVERS[solver].rows(4)
    plan = fastdiff.plan(
        solver, steps=calls, noise="flow", prediction="flow_prediction", spacing=sigmas
    )
    x = np.linspace(-2, 2, 5)
    noises = np.random.default_rng(0).normal(size=(calls, 5))
    path = run(plan, lambda x, t, j: np.sin(3 * x) + t / 1000, x, noises)
    assert np.isfinite(path).all()
    first = [row for row in range(calls) if SOLVERS[solver].call(row)[1] == 0]
    np.testing.assert_array_equal(plan.timesteps[first], 1000 * sigmas[:-1])


def test_flow_from_pure_noise_is_the_limit():
    """Of first order; of higher order the first prediction fades only like 1 / lambda."""
    ends = []
    for top in (1.0, 1 - 1e-9):
        for solver in ("ddim", "euler", "dpmpp_1", "dpmsolver_1", "deis_1"):
            plan = fastdiff.plan(
                solver,
                steps=4,
                noise="flow",
                prediction="flow_prediction",
                spacing=np.array([top, 0.8, 0.5, 0.1, 0.0]),
            )
            path = run(plan, lambda x, t, j: np.sin(x), np.linspace(-2, 2, 5) / top)
            ends.append(path[-1])
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=1e-8)


@pytest.mark.parametrize("solver", ["dpmsolver_sde_1", "dpmsolver_2m_sde"])
def test_a_noise_prediction_that_draws_cannot_start_without_signal(solver):
    """Its weights of x and of the noise that is drawn both grow like 1 / alpha."""
    with pytest.raises(ValueError, match="cannot start from a level without signal"):
        fastdiff.plan(
            solver, steps=2, noise="flow", prediction="flow_prediction", spacing=[1.0, 0.5]
        )


@pytest.mark.parametrize("spacing", [s for s in SPACINGS if s != "ays_svd"])  # for other levels
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_any_number_of_steps(spacing, steps):
    if spacing == "leading" and steps == 1000:  # none of this solver's calls is at time 0
        with pytest.raises(
            ValueError, match=r"steps must be at most the 1000 .* less 1.* got 1000"
        ):
            fastdiff.plan("dpmpp_3m", steps=steps, spacing=spacing)
        steps = 999
    plan = fastdiff.plan("dpmpp_3m", steps=steps, spacing=spacing)
    assert plan.steps == steps
    assert np.isfinite(np.delete(plan.rows, [4, 5], axis=2)).all()


def test_one_step_is_the_prediction_of_x_0():
    for solver in SOLVERS:
        plan = fastdiff.plan(solver, steps=1, prediction="sample")
        path = run(plan, lambda x, t, j: np.cos(x), np.linspace(-1, 1, 3), np.ones((1, 3)))
        np.testing.assert_allclose(path[-1], np.cos(plan.c_in * np.linspace(-1, 1, 3)), rtol=1e-13)


@pytest.mark.parametrize("prediction", PREDICTIONS[:3])
def test_all_predictions_of_one_network_make_one_run(prediction):
    data, x = Mixture(), np.linspace(-2, 2, 9)
    for solver in ("ddim", "euler", "dpmpp_3m", "dpmsolver_2m"):
        ends = []
        for kind in ("epsilon", prediction):
            plan = fastdiff.plan(solver, steps=9, prediction=kind)
            ends.append(run(plan, data.network(plan, kind), x * plan.noise_scale)[-1])
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-10, atol=1e-11)


def test_the_first_rows_have_the_order_that_their_history_allows():
    plan = fastdiff.plan("dpmpp_3m", steps=20)
    read = (plan.rows[:, 0, HEAD + 4 : HEAD + 6] != 0).sum(axis=1)
    assert read.tolist() == [0, 1, *[2] * 17, 0]
    few = fastdiff.plan("dpmpp_3m", steps=10)  # below 15 steps the end is lowered twice
    read = (few.rows[:, 0, HEAD + 4 : HEAD + 6] != 0).sum(axis=1)
    assert read.tolist() == [0, 1, *[2] * 6, 1, 0]
    end = {"final_sigma": "sigma_min", "spacing": "trailing"}
    for options, last in (
        ({"lower_order_final": True}, [1, 0]),
        ({"lower_order_final": False}, [2, 2]),
        ({"lower_order_final": False, "euler_at_final": True}, [2, 0]),
    ):
        plan = fastdiff.plan("dpmpp_3m", steps=10, **end, **options)
        read = (plan.rows[:, 0, HEAD + 4 : HEAD + 6] != 0).sum(axis=1)
        assert read.tolist()[-2:] == last


def test_a_plan_of_wrong_shapes_is_refused():
    plan = fastdiff.plan("ddim", steps=3)
    with pytest.raises(ValueError, match=r"rows must have shape \(3, 1 or batch, 12\)"):
        dataclasses.replace(plan, rows=plan.rows[:, 0])
    with pytest.raises(ValueError, match=r"alpha must have shape \(4,\) for 3 timesteps"):
        dataclasses.replace(plan, alpha=plan.alpha[1:])


def test_random_numbers_are_drawn_where_the_solver_is_one_with_noise():
    """Also on rows whose weight is 0, so that seeds do not shift."""
    for solver in SOLVERS:
        noise = SOLVERS[solver].noise
        second = [False, noise, False, noise, False, False]  # the last two are Euler steps
        assert fastdiff.plan(solver, steps=6).draw.tolist() == (
            second if solver in TWO else [noise] * 6
        )
    assert fastdiff.plan("ddim", steps=4, eta=0.5).draw.tolist() == [True, True, True, False]
    limits = {"s_churn": 4.0, "s_tmin": 1.0}
    plan = fastdiff.plan("euler", steps=4, spacing=[9.0, 3.0, 0.5, 0.1], **limits)
    assert plan.draw.tolist() == [True, True, False, False]
