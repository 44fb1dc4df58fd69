"""The sampling loop: precision, batches, gradients, image to image, what it refuses."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.registry import SOLVERS
from tests.loop import run
from tests.mixture import Mixture

DATA = Mixture()


def start(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wave(x, t):
    """A network that is the same for every element of the batch, and depends on the time."""
    return torch.sin(2 * x + t.to(x.dtype) / 1000)


# precision


def mixture_error(steps, latent=None, solver="dpmpp_2m"):
    """Relative RMS error of a run with a bfloat16 network against the same run in float64."""
    plan = fastdiff.plan(solver, steps=steps)
    noise = start((1, 4096))

    def rounded(i, t, x):
        if latent is not None:
            x.copy_(x.to(latent))

    ends = [
        fastdiff.sample(DATA.network(plan, "epsilon"), n, plan, dtype=dtype, callback=callback)
        for n, dtype, callback in (
            (noise.double(), torch.float64, None),
            (noise, torch.bfloat16, rounded),
        )
    ]
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


def test_a_float32_latent_does_not_drift_under_a_bfloat16_network():
    errors = {steps: mixture_error(steps) for steps in (8, 20, 50)}
    assert errors[50] < 5e-3
    assert errors[50] <= 1.25 * errors[8]
    assert errors[20] <= 1.25 * errors[8]
    # a latent rounded to bfloat16 after every step does drift
    drifting = {steps: mixture_error(steps, torch.bfloat16) for steps in (8, 50)}
    assert drifting[50] > 1.5 * drifting[8]
    assert drifting[50] > 3 * errors[50]


@pytest.mark.parametrize("model", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("outer", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(outer, model):
    """The network sees its own dtype, t is float32; the result is float32, float64 for float64."""
    seen = set()

    def denoise(x, t):
        seen.add((x.dtype, t.dtype, t.ndim, tuple(x.shape)))
        return x / 2

    plan = fastdiff.plan("dpmpp_2m", steps=3)
    out = fastdiff.sample(denoise, start((2, 3)).to(outer), plan, dtype=model)
    assert seen == {(model, torch.float32, 0, (2, 3))}
    assert out.dtype == (torch.float64 if outer == torch.float64 else torch.float32)
    assert out.shape == (2, 3)


def test_the_network_gets_the_noise_dtype_if_none_is_given():
    seen = []
    plan = fastdiff.plan("euler", steps=2)
    fastdiff.sample(lambda x, t: seen.append(x.dtype) or x, start((1, 2)).half(), plan)
    assert seen == [torch.float16] * 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_is_the_float64_run_rounded(solver):
    """A row is a short sum: the error of N rows is some N ulps of the largest sample."""
    plan = fastdiff.plan(solver, steps=20, prediction="v_prediction")
    noise, z = start((1, 64)), np.random.default_rng(0).standard_normal((20, 1, 64))
    z = z.astype(np.float32)
    want = run(
        plan,
        lambda x, t, j: np.sin(2 * x + t / 1000),
        noise.double().numpy() * plan.noise_scale,
        z.astype(np.float64),
    )
    draws = iter(torch.from_numpy(z[plan.draw]))
    got, path = None, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdiff.sampling._draw", lambda *_: next(draws))
        got = fastdiff.sample(
            lambda x, t: wave(x.double(), t.double()).float(),
            noise,
            plan,
            callback=lambda i, t, x: path.append(x),
        )
    size = np.abs(want).max()
    for j, x in enumerate(path):
        # sin(2x) doubles an error at most, and rows repeat it with weights near 1
        assert np.abs(x.numpy() - want[j + 1]).max() <= 20 * 2.0**-23 * size
    assert got is path[-1]


def test_strange_layouts_of_noise():
    plan = fastdiff.plan("dpmpp_2m", steps=4)
    base = start((2, 4, 6, 5))
    want = fastdiff.sample(wave, base, plan)
    for noise in (
        base.to(memory_format=torch.channels_last),
        base.transpose(1, 3).contiguous().transpose(1, 3),
        torch.stack([base, base], dim=-1)[..., 0],
    ):
        assert torch.equal(fastdiff.sample(wave, noise, plan), want)
    turned = fastdiff.sample(lambda x, t: wave(x, t).mT.contiguous().mT, base, plan)
    assert torch.equal(turned, want)
    last = fastdiff.sample(wave, base.to(memory_format=torch.channels_last), plan)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_the_callers_noise_is_not_touched():
    noise = start((2, 3))
    before = noise.clone()
    fastdiff.sample(wave, noise, fastdiff.plan("euler_a", steps=3))
    assert torch.equal(noise, before)


# random numbers


@pytest.mark.parametrize("solver", [name for name, row in SOLVERS.items() if row.noise])
def test_a_sample_is_the_same_in_any_batch(solver):
    plan = fastdiff.plan(solver, steps=6)
    noise = start((4, 3, 5))
    together = fastdiff.sample(wave, noise, plan, generator=[seeded(s) for s in range(4)])
    for s in range(4):
        alone = fastdiff.sample(wave, noise[s : s + 1], plan, generator=[seeded(s)])
        assert torch.equal(alone[0], together[s])
    backwards = fastdiff.sample(
        wave, noise.flip(0), plan, generator=[seeded(s) for s in (3, 2, 1, 0)]
    )
    assert torch.equal(backwards.flip(0), together)


def test_the_same_generator_the_same_picture():
    plan = fastdiff.plan("dpmpp_2m_sde", steps=6)
    runs = [fastdiff.sample(wave, start((2, 3)), plan, generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_random_numbers_are_those_of_torch_in_order():
    """One draw a row, shape of the sample, also on the last row, whose weight is 0."""
    plan = fastdiff.plan("euler_a", steps=5)
    noise = start((2, 3))
    generator = seeded(9)
    got = fastdiff.sample(wave, noise, plan, generator=generator)
    after = torch.randn(3, generator=generator)
    expected = seeded(9)
    z = torch.stack([torch.randn((2, 3), generator=expected) for _ in range(5)])
    assert torch.equal(after, torch.randn(3, generator=expected))
    want = run(
        plan,
        lambda x, t, j: np.sin(2 * x + t / 1000),
        noise.double().numpy() * plan.noise_scale,
        z.double().numpy(),
    )[-1]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


def test_deterministic_solvers_draw_nothing():
    generator = seeded(4)
    fastdiff.sample(wave, start((1, 2)), fastdiff.plan("dpmpp_3m", steps=4), generator=generator)
    assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=seeded(4)))


# guidance


def test_guidance_is_u_plus_g_times_c_minus_u():
    plan = fastdiff.plan("ddim", steps=4, guidance=5.0, prediction="sample")
    plain = fastdiff.plan("ddim", steps=4, prediction="sample")
    noise = start((2, 3), dtype=torch.float64)
    guided = fastdiff.sample(lambda x, t: (x.cos(), x.sin()), noise, plan)
    by_hand = fastdiff.sample(lambda x, t: x.cos() + 5.0 * (x.sin() - x.cos()), noise, plain)
    assert torch.equal(guided, by_hand)
    halves = fastdiff.sample(lambda x, t: torch.cat([x.cos(), x.sin()]).chunk(2), noise, plan)
    assert torch.equal(guided, halves)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_a"])
def test_every_sample_its_own_guidance(solver):
    scales = [1.0, 4.0, 7.5]
    noise = start((3, 5))
    plan = fastdiff.plan(solver, steps=5, guidance=[scales])

    def pair(x, t):
        return wave(x, t) / 2, wave(x, t)

    together = fastdiff.sample(pair, noise, plan, generator=[seeded(s) for s in range(3)])
    for s, scale in enumerate(scales):
        one = fastdiff.plan(solver, steps=5, guidance=scale)
        alone = fastdiff.sample(pair, noise[s : s + 1], one, generator=[seeded(s)])
        assert torch.equal(alone[0], together[s])


def test_guidance_per_step():
    scales = [1.0, 2.0, 3.0]
    plan = fastdiff.plan("ddim", steps=3, guidance=scales, prediction="sample")
    x = start((1, 4), dtype=torch.float64)
    got = fastdiff.sample(lambda x, t: (torch.zeros_like(x), x.cos()), x, plan)
    given = iter(scales)
    plain = fastdiff.plan("ddim", steps=3, prediction="sample")
    want = fastdiff.sample(lambda x, t: next(given) * x.cos(), x, plain)
    assert torch.equal(got, want)


# image to image


@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp_2m"])
def test_start_puts_noise_on_a_clean_sample(solver):
    clean, noise = start((1, 6), 1, torch.float64), start((1, 6), 2, torch.float64)
    plan = fastdiff.plan(solver, steps=10, begin=6, prediction="sample")
    seen = []
    out = fastdiff.sample(lambda x, t: seen.append(x) or clean, noise, plan, start=clean)
    a, s = plan.alpha[0], plan.sigma[0]
    np.testing.assert_allclose(seen[0], (a * clean + s * noise) * plan.c_in, rtol=1e-12)
    assert len(seen) == 4
    np.testing.assert_allclose(out, clean, rtol=1e-12)


def test_image_to_image_is_the_end_of_the_whole_run():
    """From the exact sample at the place where it begins, DDIM comes to the same end."""
    whole, late = (fastdiff.plan("ddim", steps=9, begin=b) for b in (0, 5))
    path = []
    noise = start((1, 7), dtype=torch.float64)
    end = fastdiff.sample(wave, noise, whole, callback=lambda i, t, x: path.append(x))
    again = fastdiff.sample(wave, path[4] / late.noise_scale, late)
    np.testing.assert_allclose(again, end, rtol=1e-12)


# the loop


def test_callback_after_every_row_with_a_tensor_that_stays():
    plan = fastdiff.plan("dpmpp_2m", steps=5)
    order, kept = [], []

    def denoise(x, t):
        order.append(("network", float(t)))
        return wave(x, t)

    def callback(i, t, x):
        order.append(("callback", i, float(t)))
        kept.append((x, x.clone()))

    out = fastdiff.sample(denoise, start((1, 3)), plan, callback=callback)
    times = [float(np.float32(t)) for t in plan.timesteps]
    want = [e for i, t in enumerate(times) for e in (("network", t), ("callback", i, t))]
    assert order == want
    assert all(torch.equal(x, copy) for x, copy in kept)
    assert kept[-1][0] is out


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("solver", ["dpmpp_3m", "euler_a"])
def test_gradient_modes_do_not_change_the_numbers(solver, mode):
    plan = fastdiff.plan(solver, steps=4)
    want = fastdiff.sample(wave, start((2, 3)), plan, generator=seeded())
    with mode():
        got = fastdiff.sample(wave, start((2, 3)), plan, generator=seeded())
        assert not got.requires_grad
    assert torch.equal(got.clone(), want)


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_reach_the_network_and_the_noise(solver, guidance):
    plan = fastdiff.plan(solver, steps=4, guidance=guidance)
    noise = start((2, 2), dtype=torch.float64).requires_grad_()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def result(noise, weight):
        def denoise(x, t):
            out = torch.sin(weight * x)
            return (out / 2, out) if guidance else out

        return fastdiff.sample(denoise, noise, plan, generator=seeded())

    assert torch.autograd.gradcheck(result, (noise, weight))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_with_gradients_makes_the_same_numbers(solver):
    """Another path through the loop: the op's functional form, and c_in applied outside it."""
    plan = fastdiff.plan(solver, steps=6, guidance=2.0)
    noise = start((2, 5), dtype=torch.float64)
    path, slow_path = [], []
    one = torch.ones((), dtype=torch.float64)
    for seen, scale in ((path, one), (slow_path, one.clone().requires_grad_())):
        fastdiff.sample(
            lambda x, t, s=scale: (s * wave(x, t) / 2, s * wave(x, t)),
            noise,
            plan,
            generator=seeded(),
            callback=lambda i, t, x, seen=seen: seen.append(x.detach()),
        )
    for fast, slow in zip(path, slow_path, strict=True):
        np.testing.assert_allclose(slow, fast, rtol=1e-12, atol=1e-13)


def test_a_gradient_that_begins_late():
    """Weights that need a gradient only from some row on: the rows before ran without."""
    plan = fastdiff.plan("dpmpp_3m", steps=6)
    weight = torch.tensor(0.7, requires_grad=True)
    calls = iter(range(6))

    def denoise(x, t):
        return wave(x, t) * (weight if next(calls) >= 3 else 0.7)

    out = fastdiff.sample(denoise, start((1, 4)), plan)
    (slope,) = torch.autograd.grad(out.sum(), weight)
    assert torch.isfinite(slope)
    assert slope != 0
    plain = fastdiff.sample(lambda x, t: wave(x, t) * 0.7, start((1, 4)), plan)
    np.testing.assert_allclose(out.detach(), plain, rtol=1e-5, atol=1e-6)


def test_one_step_and_a_thousand():
    for steps in (1, 1000):
        plan = fastdiff.plan("dpmpp_2m", steps=steps)
        out = fastdiff.sample(DATA.network(plan, "epsilon"), start((1, 8)), plan)
        assert torch.isfinite(out).all()
        assert out.abs().max() < 3


def test_a_plan_serves_many_runs():
    """Nothing of a run stays in the plan."""
    plan = fastdiff.plan("dpmpp_3m", steps=6)
    before = plan.to_json()
    first = fastdiff.sample(wave, start((2, 3)), plan)
    fastdiff.sample(wave, start((5, 4), 1), plan)
    assert torch.equal(fastdiff.sample(wave, start((2, 3)), plan), first)
    assert plan.to_json() == before
