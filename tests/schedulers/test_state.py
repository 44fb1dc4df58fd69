"""State lives where diffusers keeps it, and whatever is done to it there has the same effect.

Each runs the loop of loops.py with diffusers' class and ours, and does what some pipeline does.
"""

import copy
import pickle

import pytest
import torch

from .classes import (
    DDIM,
    DDPM,
    DPM,
    EULER_A,
    FLOW_LCM,
    KDPM2_A,
    LCM,
    SA,
    SD,
    TCD,
    UNIPC,
    WITH_GENERATOR,
    WITH_INDEX,
    WITH_SIGMAS,
    base,
    both,
    calls,
    ours,
)
from .loops import SHAPE, answer, compare, follow, latents, loop, same, scaled, seeded
from .variants import BY_TIMESTEP, KEEPING, SCALED, VARIANTS


def each(*variants):
    return pytest.mark.parametrize(("name", "config"), list(variants), ids=str)


class TestSigmas:
    @pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
    @each(*SCALED)
    def test_last_one_overwritten_after_set_timesteps(self, name, config, inference):
        """Cosmos2: sigmas[-1] = sigmas[-2], two equal levels."""

        def ready(s):
            s.sigmas[-1] = s.sigmas[-2]

        with torch.inference_mode(inference):
            mine, theirs = both(name, **base(name) | config)
            compare(mine, theirs, ready=ready)
            compare(mine, theirs)  # and a second run, with its own levels, is not affected
            compare(mine, theirs, ready=ready)

    def test_two_equal_levels_at_the_end_are_the_identity(self):
        s = ours(DPM)(**SD, solver_order=3)

        def ready(s):
            s.sigmas[-1] = s.sigmas[-2]

        seen = loop(s, ready=ready, steps=20)
        assert all(torch.isfinite(x).all() for x in seen)
        same(seen[-1], seen[-2], 1e-6)

    @each(*SCALED)
    def test_one_scaled_in_the_middle_of_a_run(self, name, config):
        def edit(i, s, x):
            if i == 3:
                s.sigmas[5] *= 0.9

        follow(name, edit, config)

    @each(*SCALED)
    def test_replaced_by_another_tensor(self, name, config):
        def edit(i, s, x):
            if i == 3:
                s.sigmas = s.sigmas * 0.97

        follow(name, edit, config)

    @each(*BY_TIMESTEP)
    def test_alphas_cumprod_replaced_or_written(self, name, config):
        def edit(i, s, x):
            if i == 2:
                s.alphas_cumprod = s.alphas_cumprod**1.1
            if i == 4:
                s.alphas_cumprod[300:] *= 0.9

        follow(name, edit, config)

    @each(*VARIANTS, *BY_TIMESTEP)
    def test_written_without_a_trace_before_a_run(self, name, config):
        """Through NumPy or .data, of which PyTorch keeps no count: seen when a run starts."""

        def ready(s):
            if name in WITH_SIGMAS:
                s.sigmas.numpy()[4] *= 1.05
                s.sigmas.data[6] *= 0.9
            else:
                s.alphas_cumprod.numpy()[300:] *= 0.95

        mine, theirs = both(name, **base(name) | config)
        for s in (mine, theirs):
            if name not in WITH_SIGMAS:  # rows of the values before the write
                loop(s)
                ready(s)
        compare(mine, theirs, ready=ready if name in WITH_SIGMAS else None)

    @each(*SCALED)
    def test_written_without_a_trace_between_two_runs_of_one_schedule(self, name, config):
        runs = []
        for s in both(name, **base(name) | config):
            s.set_timesteps(8)
            for factor in (1.0, 0.9):
                s._step_index = None  # a new run, without set_timesteps
                if s.order == 2:
                    s.dt = s.prev_derivative = s.sample = None
                s.sigmas.numpy()[1] *= factor
                x, t = latents(s), s.timesteps[0]
                e = answer(scaled(s, x, t), 0)
                x = s.step(e, t, x, **seeded(s)).prev_sample
            runs.append(x)
        same(*runs)

    @each(*BY_TIMESTEP)
    def test_alphas_cumprod_of_inference_mode_written_between_runs(self, name, config):
        with torch.inference_mode():
            mine, theirs = both(name, **base(name) | config)
            compare(mine, theirs)
            for s in (mine, theirs):
                s.alphas_cumprod[300:] *= 0.9
            compare(mine, theirs)

    @pytest.mark.parametrize("how", ["replaced", "written", "through NumPy"])
    def test_final_alpha_cumprod(self, how):
        """Read on every step that ends there."""
        s, theirs = both(DDIM, **SD, clip_sample=False)
        results = []
        for scheduler in (s, theirs):
            scheduler.set_timesteps(4)
            t, x = scheduler.timesteps[-1], latents(scheduler)
            scheduler.step(answer(x, 0), t, x)
            if how == "replaced":
                scheduler.final_alpha_cumprod = torch.tensor(0.99995)
            elif how == "written":
                scheduler.final_alpha_cumprod.fill_(0.99995)
            else:
                scheduler.final_alpha_cumprod.numpy()[...] = 0.99995
            results.append(scheduler.step(answer(x, 0), t, x).prev_sample)
        same(*results)

    @each(*VARIANTS, *BY_TIMESTEP)
    def test_in_bfloat16(self, name, config):
        """The values count, whatever dtype holds them; diffusers computes with 8 bits then."""

        source, runs = "sigmas" if name in WITH_SIGMAS else "alphas_cumprod", []
        for dtypes in ((torch.bfloat16,), (torch.bfloat16, torch.float32)):

            def ready(s, dtypes=dtypes):
                for dtype in dtypes:
                    setattr(s, source, getattr(s, source).to(dtype))

            s = ours(name)(**base(name) | config)
            s.scale_model_input = lambda x, t: x  # Euler's is diffusers' code: in bfloat16
            runs.append(loop(s, ready=ready))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


class TestHistory:
    @each(*KEEPING)
    def test_overwritten_before_the_first_step(self, name, config):
        """diffusers' own tests do this, with lower_order_nums still 0."""

        def ready(s):
            s.model_outputs = [torch.full(SHAPE, 0.3 * j) for j in range(len(s.model_outputs))]

        follow(name, config=config, ready=ready)

    @each(*KEEPING)
    def test_overwritten_in_the_middle(self, name, config):
        def edit(i, s, x):
            if i == 4:
                s.model_outputs = [m * 0.8 + 0.1 for m in s.model_outputs]

        follow(name, edit, config)

    @each(*KEEPING)
    def test_written_in_place(self, name, config):
        def edit(i, s, x):
            if i == 4:
                s.model_outputs[-1].mul_(0.7)

        follow(name, edit, config)

    @each(*KEEPING)
    def test_cut_to_another_shape(self, name, config):
        """ChronoEdit drops frames: sample and history go on with another shape."""

        def edit(i, s, x):
            if i == 4:
                s.model_outputs = [m[:, :, :3].clone() for m in s.model_outputs]
                for kept in ("sample", "last_sample", "last_noise"):
                    if hasattr(s, kept):
                        setattr(s, kept, getattr(s, kept)[:, :, :3].clone())
                return x[:, :, :3].clone()

        follow(name, edit, config)

    @each(*KEEPING)
    def test_the_counter_restarted(self, name, config):
        def edit(i, s, x):
            if i in (3, 5):
                s.lower_order_nums = i - 3  # 0: first order next; 2: as if nothing had happened

        follow(name, edit, config)

    def test_is_kept_where_others_read_it(self):
        mine, theirs = both(DPM, **SD, solver_order=3)
        compare(mine, theirs)
        assert mine.lower_order_nums == theirs.lower_order_nums == 3
        for kept, reference in zip(mine.model_outputs, theirs.model_outputs, strict=True):
            same(kept, reference)

    @each(*(one for one in KEEPING if one[0] in (UNIPC, SA)))
    def test_of_a_corrector_is_kept_where_others_read_it(self, name, config):
        mine, theirs = both(name, **base(name) | config)
        orders = ("this_order", "this_predictor_order", "this_corrector_order")

        def edit(i, s, x):
            used = [getattr(s, order, None) for order in orders]
            seen.append((used, s.lower_order_nums, [*s.timestep_list]))
            kept.append([*s.model_outputs, s.last_sample, getattr(s, "last_noise", None)])

        runs = []
        for s in (mine, theirs):
            seen, kept = [], []
            loop(s, edit)
            runs.append((seen, kept))
        assert runs[0][0] == runs[1][0]
        for ours_, reference in zip(runs[0][1], runs[1][1], strict=True):
            for a, b in zip(ours_, reference, strict=True):
                assert a is b is None or same(a, b) is None

    def test_a_stale_history_cannot_be_read(self):
        """Weights of 0 do not touch what they weigh: NaN left by somebody else stays away."""

        def ready(s):
            s.model_outputs = [torch.full(SHAPE, torch.nan)] * 3

        seen = loop(ours(DPM)(**SD, solver_order=3), ready=ready)
        assert all(torch.isfinite(x).all() for x in seen)


class TestCopies:
    @each(*VARIANTS, *BY_TIMESTEP)
    def test_deepcopy_in_the_middle(self, name, config):
        """The copy goes on as the original would, and neither disturbs the other."""
        whole, _ = both(name, **base(name) | config)
        expected = loop(whole)
        first, _ = both(name, **base(name) | config)
        copies = []

        def edit(i, s, x):
            if i == 4:
                copies.append(copy.deepcopy(s))
                copies[0].step(answer(x, 9), s.timesteps[4], x)  # moves the copy on
                copies.append(copy.deepcopy(s))

        for a, b in zip(loop(first, edit), expected, strict=True):
            assert torch.equal(a, b)
        second = copies[1]
        if name in WITH_INDEX:
            assert second.step_index == 4
            assert copies[0].step_index == 5
            assert first.step_index == calls(name, 8)
        kept = getattr(second, "model_outputs", [])
        assert not any(a is b for a in kept for b in first.model_outputs)

    @each(*VARIANTS, *BY_TIMESTEP)
    def test_dict_swapped_between_views(self, name, config):
        """Panorama: one scheduler, and a deep copy of its __dict__ for each of several windows."""

        def windows(s):
            s.set_timesteps(6)
            states, xs = [copy.deepcopy(s.__dict__) for _ in range(2)], []
            xs = [latents(s, seed=j) for j in range(2)]
            generator = torch.Generator().manual_seed(0)
            for i, t in enumerate(s.timesteps):
                for j in range(2):
                    s.__dict__.update(states[j])
                    e = answer(scaled(s, xs[j], t), i + j)
                    more = {"generator": generator} if name in WITH_GENERATOR else {}
                    xs[j] = s.step(e, t, xs[j], **more).prev_sample
                    states[j] = copy.deepcopy(s.__dict__)
            return xs

        mine, theirs = both(name, **base(name) | config)
        for a, b in zip(windows(mine), windows(theirs), strict=True):
            same(a, b)

    @each(*VARIANTS, *BY_TIMESTEP)
    def test_pickled_in_the_middle(self, name, config):
        whole, _ = both(name, **base(name) | config)
        expected = loop(whole)[4]
        half, _ = both(name, **base(name) | config)
        kept = []

        def edit(i, s, x):
            if i == 4:
                kept.extend([pickle.loads(pickle.dumps(s)), x])

        loop(half, edit)
        restored, x = kept
        assert type(restored) is type(half)
        assert restored.numerics == half.numerics
        t = restored.timesteps[4]
        noisy = "algorithm_type" in config or "stochastic_sampling" in config
        if noisy or name in (EULER_A, DDPM, LCM, TCD, FLOW_LCM, KDPM2_A, SA):
            return  # noise: the generator was not kept
        e = answer(scaled(restored, x, t), 4)
        assert torch.equal(restored.step(e, t, x).prev_sample, expected)


class TestIndex:
    @each(*VARIANTS)
    @pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
    @pytest.mark.parametrize("begin", [0, 1, 3, 7])
    def test_a_run_from_the_middle(self, name, config, begin, told):
        begin *= ours(name).order
        mine = follow(name, config=config, begin=begin, told=told)
        assert mine.step_index == calls(name, 8)
        assert mine.begin_index == (begin if told else None)

    @each(*VARIANTS)
    def test_step_index_written_back(self, name, config):
        """LEDITS++ and Cosmos: _step_index -= 1 repeats a step."""

        def edit(i, s, x):
            if i in (4, 6):  # not earlier: diffusers' third order would read sigmas[-1]
                s._step_index -= 1

        follow(name, edit, config)

    @each(*VARIANTS)
    def test_step_index_forgotten(self, name, config):
        def edit(i, s, x):
            if i == 4:  # where a whole step begins
                s._step_index = None

        follow(name, edit, config, told=False)

    @each(*VARIANTS)
    def test_timesteps_used_out_of_order_only_count(self, name, config):
        """After the first step the counter rules, whatever timestep is passed."""

        def out_of_order(s):
            s.set_timesteps(8)
            x, seen = latents(s), []
            for j in (5, 2, 6):
                t = s.timesteps[j]
                scaled(s, x, t)
                x = s.step(answer(x, j), t, x, **seeded(s, j))[0]
                seen.append((x, s.step_index))
            return seen

        mine, theirs = both(name, **base(name) | config)
        pairs = zip(out_of_order(mine), out_of_order(theirs), strict=True)
        for (a, index), (b, reference) in pairs:
            same(a, b)
            assert index == reference
