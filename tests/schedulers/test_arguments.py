"""Arguments and results of `step`: noise, memory, gradients; add_noise and its like."""

import pytest
import torch

from .classes import (
    DDIM,
    DDPM,
    DPM,
    EDM_DPM,
    EDM_EULER,
    EULER,
    EULER_A,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    KDPM2,
    KDPM2_A,
    NAMES,
    PNDM,
    SA,
    SD,
    SINGLE,
    WITH_BETAS,
    WITH_HISTORY,
    WITH_INDEX,
    base,
    both,
    counted,
    ours,
    takes,
)
from .loops import SHAPE, answer, first_step, follow, latents, loop, same, scaled, seeded

SDE = {"algorithm_type": "sde-dpmsolver++"}
NOISY = [
    (DPM, SDE, {}),
    (DDIM, {}, {"eta": 0.8}),
    (SINGLE, SDE, {}),
    (EDM_EULER, {}, {"s_churn": 30.0}),
    (EDM_DPM, SDE, {}),
    (EULER, {}, {"s_churn": 30.0}),
    (EULER_A, {}, {}),
    (DDPM, {}, {}),
    (SA, {}, {}),
    (FLOW_EULER, {"stochastic_sampling": True}, {}),
    (FLOW_LCM, {}, {}),
    (FLOW_HEUN, {}, {"s_churn": 2.0}),
]


class TestNoise:
    @pytest.mark.parametrize("kind", ["list", "longer list", "one in a list", "one", "global"])
    @pytest.mark.parametrize(("name", "config", "call"), NOISY, ids=str)
    def test_same_numbers_as_in_diffusers(self, name, config, call, kind):
        def given():
            many = [torch.Generator().manual_seed(j) for j in range(3)]
            kinds = {"list": many[:2], "longer list": many, "one in a list": many[:1]}
            return (kinds | {"one": many[0], "global": None})[kind]

        runs, states = [], []
        for s in both(name, **base(name) | config):
            torch.manual_seed(5)
            generator = given()
            runs.append(loop(s, call=call | {"generator": generator}, steps=5))
            ends = generator if isinstance(generator, list) else [generator]
            states += [[g.get_state() if g else torch.get_rng_state() for g in ends]]
        for a, b in zip(*runs, strict=True):
            same(a, b)
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))

    @pytest.mark.parametrize(("name", "config", "call"), NOISY, ids=str)
    def test_a_sample_does_not_depend_on_its_neighbours(self, name, config, call):
        """With a list of generators, sample 1 of a batch is what it is alone."""
        config = config | ({"clip_sample": True} if takes(name, "clip_sample") else {})
        s, t, e, x = first_step(name, **config)
        many = [torch.Generator().manual_seed(j) for j in range(2)]
        pair = s.step(e, t, x, generator=many, **call)[0]
        s, t, _, _ = first_step(name, **config)
        alone = s.step(e[1:], t, x[1:], generator=[torch.Generator().manual_seed(1)], **call)[0]
        assert torch.equal(pair[1:], alone)

    @pytest.mark.parametrize("length", [0, 2])
    @pytest.mark.parametrize(("name", "config", "call"), NOISY, ids=str)
    def test_a_list_that_is_too_short_is_refused(self, name, config, call, length):
        s, t, e, x = first_step(name, **config)
        e, x = e.repeat(2, 1, 1, 1), x.repeat(2, 1, 1, 1)
        many = [torch.Generator() for _ in range(length)]
        with pytest.raises(ValueError, match=rf"generator .*sample \(4\); got a list of {length}"):
            s.step(e, t, x, generator=many, **call)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_variance_noise_takes_the_place_of_drawn_numbers(self, dtype):
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)).to(dtype)
        before = torch.get_rng_state()
        follow(DPM, config=SDE, call={"variance_noise": z})
        if dtype != torch.float16:  # diffusers multiplies in the dtype of z; float64 widens all
            follow(DDIM, call={"eta": 0.8, "variance_noise": z.float()})
        assert torch.equal(before, torch.get_rng_state())

    def test_variance_noise_in_half_precision(self):
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)).half()
        mine, theirs = both(DDIM, **SD)
        runs = [loop(s, call={"eta": 0.8, "variance_noise": z}) for s in (mine, theirs)]
        for a, b in zip(*runs, strict=True):
            same(a, b, rel=torch.finfo(torch.float16).eps)  # diffusers rounds std * z to half

    @pytest.mark.parametrize(("name", "config", "call"), NOISY[:2], ids=str)
    def test_one_variance_noise_for_all_samples(self, name, config, call):
        z = torch.randn(1, *SHAPE[1:], generator=torch.Generator().manual_seed(9))
        follow(name, config=config, call=call | {"variance_noise": z})

    @pytest.mark.parametrize("eta", [-0.5, -1e-9])
    def test_eta_below_0_is_named(self, eta):
        s, t, e, x = first_step(DDIM)
        with pytest.raises(ValueError, match=f"eta must be 0 or more; got {eta:g}"):
            s.step(e, t, x, eta=eta)

    def test_variance_noise_and_a_generator_are_refused_together(self):
        s, t, e, x = first_step(DDIM)
        with pytest.raises(ValueError, match=r"generator.*variance_noise"):
            s.step(e, t, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
        s.step(e, t, x, eta=0.0, generator=torch.Generator(), variance_noise=x)  # none is used

    @pytest.mark.parametrize(("name", "config", "call"), [NOISY[0], NOISY[1]], ids=str)
    def test_variance_noise_of_another_shape_is_refused(self, name, config, call):
        s, t, e, x = first_step(name, **config)
        with pytest.raises(ValueError, match="noise"):
            s.step(e, t, x, variance_noise=torch.randn(2, 4, 6, 5), **call)


class TestShapes:
    @pytest.mark.parametrize("config", [{}, {"thresholding": True}], ids=["plain", "thresholding"])
    @pytest.mark.parametrize("name", NAMES)
    def test_one_model_output_for_all_samples(self, name, config):
        """As in diffusers, for the noise that is drawn in its shape too."""
        if config and not takes(name, "thresholding"):
            pytest.skip("no thresholding there")
        runs = []
        for s in both(name, **base(name) | config):
            s.set_timesteps(6)
            x, seen = latents(s), []
            for i, t in enumerate(s.timesteps[:3]):
                e = answer(scaled(s, x, t), i)[:1]
                x = s.step(e, t, x, **seeded(s, i))[0]
                seen.append(x)
            runs.append(seen)
        for a, b in zip(*runs, strict=True):
            same(a, b)


class TestMemory:
    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_passed_in_is_written_and_results_are_fresh(self, name):
        """Callbacks keep references to samples; a network may reuse its output buffer."""
        s, kept = ours(name)(**base(name)), []
        s.set_timesteps(6)
        x = latents(s)
        for i, t in enumerate(s.timesteps):
            e = answer(scaled(s, x, t), i)
            copies = e.clone(), x.clone()
            out = s.step(e, t, x)
            assert torch.equal(e, copies[0])
            assert torch.equal(x, copies[1])
            prev = out.prev_sample
            assert prev.data_ptr() not in (x.data_ptr(), e.data_ptr())
            kept.append((prev, prev.clone(), out.get("pred_original_sample")))
            e.fill_(torch.nan)
            x = prev
        assert all(torch.equal(a, b) for a, b, _ in kept)
        assert len({a.data_ptr() for a, _, _ in kept}) == len(kept)

    @pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
    @pytest.mark.parametrize("name", WITH_BETAS)
    def test_an_output_buffer_used_again_does_not_reach_into_history(self, name, prediction):
        """Where diffusers itself keeps the network's tensor (prediction "sample"), so may we."""
        if prediction == "sample" and name in (*WITH_HISTORY, EULER_A, KDPM2, KDPM2_A, PNDM):
            pytest.skip("kept by reference in diffusers, or not implemented there")

        def run(reuse):
            s = ours(name)(**base(name), prediction_type=prediction)
            s.set_timesteps(6)
            x, buffer = latents(s), torch.empty(SHAPE)
            torch.manual_seed(0)
            for i, t in enumerate(s.timesteps):
                e = answer(scaled(s, x, t), i)
                x = s.step(buffer.copy_(e) if reuse else e, t, x)[0]
            return x

        assert torch.equal(run(True), run(False))

    @pytest.mark.parametrize(
        "layout",
        [
            lambda x: x.to(memory_format=torch.channels_last),
            lambda x: x.transpose(2, 3),
            lambda x: x[:, :, ::2],
            lambda x: x[:1].expand(2, -1, -1, -1),
            lambda x: x[0],
            lambda x: x.unsqueeze(2).repeat(1, 1, 3, 1, 1),
            lambda x: x.flatten(2),
        ],
        ids=["channels_last", "transposed", "strided", "expanded", "3-d", "5-d", "tokens"],
    )
    @pytest.mark.parametrize("name", NAMES)
    def test_any_layout_and_number_of_dimensions(self, name, layout):
        mine, theirs = both(name, **base(name))
        x = layout(latents(mine))
        results = []
        for s in (mine, theirs):
            s.set_timesteps(6)
            y = x
            for i, t in enumerate(s.timesteps[:3]):
                e = layout(answer(latents(s, seed=i), i))
                y = s.step(e, t, y, **seeded(s, i))[0]
            results.append(y)
        same(*results)
        assert results[0].stride() == results[1].stride()


class TestGradients:
    @pytest.mark.parametrize("name", NAMES)
    def test_gradcheck(self, name):
        """Through two steps, so also through history; float64 runs in float64."""
        s = ours(name)(
            **base(name), **({"clip_sample": False} if takes(name, "clip_sample") else {})
        )

        def two_steps(e, x):
            s.set_timesteps(6)
            x0 = 0
            for i, t in enumerate(s.timesteps[:2]):
                out = s.step(e * (i + 1) + scaled(s, x, t), t, x, **seeded(s, i))
                x, x0 = out.prev_sample, x0 + out.get("pred_original_sample", 0)
            return x + x0

        g = torch.Generator().manual_seed(0)
        e, x = (torch.randn(1, 2, 2, 2, generator=g).double().requires_grad_() for _ in range(2))
        assert torch.autograd.gradcheck(two_steps, (e, x))

    @pytest.mark.parametrize("config", [{}, {"thresholding": True}], ids=["plain", "thresholding"])
    @pytest.mark.parametrize("name", NAMES)
    def test_gradients_are_those_of_diffusers(self, name, config):
        if config and not takes(name, "thresholding"):
            pytest.skip("no thresholding there")
        grads = []
        for s in both(name, **base(name) | config):
            s.set_timesteps(6)
            x = latents(s).requires_grad_()
            e = answer(latents(s, seed=1), 1).requires_grad_()
            y = x
            for i, t in enumerate(s.timesteps[:3]):
                y = s.step(e * (i + 1), t, y, **seeded(s, i))[0]
            y.square().sum().backward()
            grads.append((x.grad, e.grad))
        for a, b in zip(*grads, strict=True):
            same(a, b)

    @pytest.mark.parametrize("name", NAMES)
    def test_no_graph_where_none_was_asked_for(self, name):
        s, t, e, x = first_step(name)
        with torch.no_grad():
            assert not s.step(e.requires_grad_(), t, x)[0].requires_grad
        if name != DDPM:
            assert counted(s).fused == 1


class TestOtherMethods:
    @pytest.mark.parametrize("moment", ["before", "told", "after a step"])
    @pytest.mark.parametrize("name", WITH_BETAS)
    def test_add_noise(self, name, moment):
        mine, theirs = both(name, **base(name))
        x, z = torch.randn(SHAPE), torch.randn(SHAPE)
        results = []
        for s in (mine, theirs):
            s.set_timesteps(8)
            if moment != "before" and name in WITH_INDEX:
                s.set_begin_index(3)
            if moment == "after a step":
                s.step(z, s.timesteps[3], x, **seeded(s))
            results.append(s.add_noise(x, z, s.timesteps[[3, 5]]))
            follow_up = s.step(z, s.timesteps[5], x, **seeded(s, 1))[0]
            results.append(follow_up)
        same(results[0], results[2])
        same(results[1], results[3])

    @pytest.mark.parametrize("name", [DDIM, DDPM, EULER])
    def test_get_velocity(self, name):
        mine, theirs = both(name, **base(name))
        x, z = torch.randn(SHAPE), torch.randn(SHAPE)
        a, b = (s.get_velocity(x, z, s.timesteps[[3, 500]]) for s in (mine, theirs))
        same(a, b)

    @pytest.mark.parametrize("name", WITH_BETAS)
    def test_scale_model_input_and_init_noise_sigma(self, name):
        more = {"timestep_spacing": "leading", "steps_offset": 1}
        more = more if takes(name, "timestep_spacing") else {}
        mine, theirs = both(name, **base(name) | more)
        for s in (mine, theirs):
            s.set_timesteps(8)
        x = torch.randn(SHAPE)
        assert float(mine.init_noise_sigma) == float(theirs.init_noise_sigma)
        same(*(s.scale_model_input(x, s.timesteps[0]) for s in (mine, theirs)))
