"""fastdiff.training: the forward process, targets, weights, averages, against formulas."""

import copy

import diffusers
import pytest
import torch

from fastdiff.predictions import PREDICTIONS, convert, perfect
from fastdiff.schedules import NoiseSchedule
from fastdiff.training import WEIGHTS, Average, ForwardProcess, boundary, drop, pseudo_huber

VP = ("epsilon", "sample", "v_prediction")
CASES = [("scaled_linear", p) for p in VP] + [("flow", p) for p in PREDICTIONS if p not in VP[2:]]


def example(process, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randn(6, 3, 4, 5, generator=g, dtype=torch.float64)
    n = torch.randn(6, 3, 4, 5, generator=g, dtype=torch.float64)
    t = torch.tensor([1, 20, 300, 500, 800, 999])
    return x0, n, t.float() if process.schedule.kind == "flow" else t


@pytest.mark.parametrize(("noise", "prediction"), CASES)
def test_target_and_estimates_are_those_of_the_solvers(noise, prediction):
    """A network without error gives back x_0 and n, and its output is `perfect`'s."""
    process = ForwardProcess(noise, prediction)
    x0, n, t = example(process)
    schedule = process.schedule
    alpha, sigma = schedule.alpha_sigma(schedule.ratio_at(t.numpy()))
    x, out = process.noisy(x0, n, t), process.target(x0, n, t)
    for i, (a, s) in enumerate(zip(alpha, sigma, strict=True)):
        torch.testing.assert_close(x[i], a * x0[i] + s * n[i], rtol=1e-12, atol=1e-12)
        of_x0, of_n = perfect(prediction, a, s)
        torch.testing.assert_close(out[i], of_x0 * x0[i] + of_n * n[i], rtol=1e-12, atol=1e-12)
        wrong = torch.sin(x[i])  # what any output means: the same as in the solvers
        kx, ke, qx, qe = convert(prediction, a, s)
        for found, expected in (
            (process.denoised(x[i : i + 1], wrong[None], t[i : i + 1])[0], kx * x[i] + ke * wrong),
            (process.noise_in(x[i : i + 1], wrong[None], t[i : i + 1])[0], qx * x[i] + qe * wrong),
        ):
            scale = float(expected.abs().max())  # 1 / alpha is 15 at the noisy end
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11 * scale)


@pytest.mark.parametrize("prediction", VP)
def test_noisy_and_velocity_are_those_of_diffusers(prediction):
    process = ForwardProcess("scaled_linear", prediction)
    x0, n, t = (v.float() if v.is_floating_point() else v for v in example(process))
    stock = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    # their levels are products in float32: 1000 roundings of half an ulp, of either square root
    torch.testing.assert_close(
        process.noisy(x0, n, t), stock.add_noise(x0, n, t), rtol=0, atol=1e-4
    )
    if prediction == "v_prediction":
        velocity = stock.get_velocity(x0, n, t)
        torch.testing.assert_close(process.target(x0, n, t), velocity, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("noise", "prediction"), CASES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weight_of_the_output_is_that_of_x0(noise, prediction, kind):
    """weight * |output error|^2 = w(snr) |x_0 error|^2, w from the papers."""
    process = ForwardProcess(noise, prediction)
    x0, n, t = example(process)
    x, out = process.noisy(x0, n, t), process.target(x0, n, t)
    wrong = out + torch.randn(out.shape, dtype=torch.float64)
    alpha, sigma = process.levels(t)
    snr = (alpha / sigma) ** 2
    w = {
        "sample": torch.ones_like(snr),
        "epsilon": snr,
        "min_snr": snr.clamp(max=3.0),
        "truncated_snr": snr.clamp(min=1.0),
        "snr_plus_one": snr + 1,
    }
    of_output = (wrong - out).square().flatten(1).sum(1)
    of_x0 = (process.denoised(x, wrong, t) - x0).square().flatten(1).sum(1)
    expected = of_output if kind == "uniform" else w[kind] * of_x0
    found = process.weight(kind, t, gamma=3.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found * of_output, expected, rtol=2e-6, atol=0)


def test_weights_that_are_one_by_name():
    t = torch.tensor([0, 500, 999])
    for prediction, kind in (
        *(("epsilon", "epsilon"), ("sample", "sample"), ("v_prediction", "snr_plus_one")),
    ):
        weight = ForwardProcess("scaled_linear", prediction).weight(kind, t)
        torch.testing.assert_close(weight, torch.ones(3))
    ends = torch.tensor([0.0, 1000.0])
    velocity = ForwardProcess("flow", "flow_prediction")
    assert velocity.weight("min_snr", ends).tolist() == [0.0, 0.0]
    assert velocity.weight("snr_plus_one", ends).tolist() == [1.0, 1.0]


def test_times_are_even_and_begin_where_they_should():
    g = torch.Generator().manual_seed(0)
    t = ForwardProcess("scaled_linear").times(20_000, g, low=500)
    assert t.dtype == torch.int64
    assert (int(t.min()), int(t.max())) == (500, 999)
    assert abs(float(t.double().mean()) - 749.5) < 4 * 500 / 12**0.5 / 20_000**0.5  # 4 deviations
    low = torch.tensor([0, 900]).repeat(50)
    t = ForwardProcess("flow", "flow_prediction").times(100, g, low=low)
    assert t.is_floating_point()
    assert (t >= low).all()
    assert (t <= 1000).all()
    assert float(t[::2].min()) < 900


def test_dropped_conditions_are_the_empty_one():
    tokens = torch.arange(1.0, 4001.0)[:, None, None].expand(-1, 3, 2)
    empty = torch.full((1, 3, 2), -1.0)
    found = drop(tokens, empty, 0.1, torch.Generator().manual_seed(0))
    gone = (found == -1).flatten(1)
    assert (gone.all(1) == gone.any(1)).all()  # whole samples
    assert abs(float(gone[:, 0].double().mean()) - 0.1) < 4 * (0.09 / 4000) ** 0.5
    assert torch.equal(found[~gone[:, 0]], tokens[~gone[:, 0]])
    assert torch.equal(drop(tokens, empty, 0.0), tokens)
    assert (drop(torch.arange(9), torch.tensor(9), 1.0) == 9).all()


def test_average_is_the_weighted_sum():
    p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    average, expected = Average([p], decay=0.5), p.detach().clone()
    for i in range(12):
        with torch.no_grad():
            p += 0.25 * (i + 1)
        average.update()
        d = min(0.5, (1 + i) / (10 + i))
        expected = d * expected + (1 - d) * p.detach()
        if i == 5:  # a checkpoint, into another object
            state = copy.deepcopy(average.state_dict())
            average = Average([p], decay=0.5)
            average.load_state_dict(state)
    torch.testing.assert_close(average.values[0], expected)
    other = torch.nn.Parameter(torch.zeros(2))
    average.copy_to([other])
    assert torch.equal(other.detach(), average.values[0])
    assert not average.values[0].requires_grad


def test_average_keeps_the_strides_of_the_parameters():
    conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    average = Average(conv.parameters())
    state = {"step": 0, "values": [p.detach().contiguous() for p in conv.parameters()]}
    average.load_state_dict(state)
    assert average.values[0].stride() == conv.weight.stride()


def test_boundary_is_that_of_the_scheduler():
    stock = diffusers.LCMScheduler()
    stock.sigma_data = 0.5
    t = torch.tensor([0, 1, 19, 259, 999])
    skip, out = boundary(t)
    for i, time in enumerate(t.tolist()):
        expected = stock.get_scalings_for_boundary_condition_discrete(time)
        assert (float(skip[i]), float(out[i])) == pytest.approx(tuple(map(float, expected)))
    assert (float(skip[0]), float(out[0])) == (1.0, 0.0)


def test_pseudo_huber_is_square_near_and_linear_far():
    error = torch.tensor([1e-3, 1e3])[:, None, None].expand(2, 4, 4).double()
    near, far = pseudo_huber(error, 0.1).tolist()
    assert near == pytest.approx(1e-6 / (2 * 0.1), rel=1e-4)  # e^2 / 2c, next term e^2 / 4c^2
    assert far == pytest.approx(1e3 - 0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ForwardProcess("cosine"), "noise must be one of .*'cosine'"),
        (lambda: ForwardProcess(prediction="v"), "prediction must be one of .*got 'v'"),
        (lambda: ForwardProcess("flow", "v_prediction"), "not defined on a flow .* epsilon"),
        (lambda: ForwardProcess("linear", "flow_prediction"), "not defined on a vp .* epsilon"),
        (lambda: ForwardProcess().levels(torch.tensor(3)), r"t must be one time a sample.*\(\)"),
        (lambda: ForwardProcess().levels(torch.tensor([3.0])), "t must be whole .*float32"),
        (
            lambda: ForwardProcess().noisy(
                torch.ones(2, 1), torch.ones(2, 1), torch.tensor([1, 2, 3])
            ),
            "t must hold one time a sample: 2 of them; got 3",
        ),
        (lambda: ForwardProcess().weight("snr", torch.tensor([3])), "kind must be one of .*'snr'"),
        (lambda: ForwardProcess().weight("min_snr", torch.tensor([3]), 0), "gamma must be above 0"),
        (lambda: drop(torch.ones(2), torch.ones(()), 1.5), "share must lie in 0 .. 1; got 1.5"),
        (lambda: Average([], 1.0), "decay must lie in 0 .. 1"),
        (lambda: pseudo_huber(torch.ones(2, 2), 0.0), "c must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_levels_of_a_schedule_of_your_own():
    schedule = NoiseSchedule.from_betas([0.1, 0.2, 0.3])
    alpha, sigma = ForwardProcess(schedule).levels(torch.tensor([2, 0]))
    assert alpha.tolist() == pytest.approx([(0.9 * 0.8 * 0.7) ** 0.5, 0.9**0.5])
    assert (alpha**2 + sigma**2).tolist() == pytest.approx([1.0, 1.0])
