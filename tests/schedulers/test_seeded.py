"""set_noise("philox"): noise of a drop-in's step from the seed of each sample.

The same bits whatever the batch around a sample, with the keys of fastdiff.sample, and in pipelines
of diffusers as they are.
"""

import copy
import pickle
from collections import Counter
from functools import partial

import pytest
import torch

import fastdiff
from fastdiff import TableScheduler
from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal
from fastdiff.schedulers.guidance import Answer, Deferred
from tests.fake_device import FakeDevice

from . import flow_pipelines
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
    KDPM2_A,
    LCM,
    SA,
    SINGLE,
    TCD,
    UNIPC,
    base,
    counted,
    ours,
    stock,
)
from .loops import SHAPE, scaled
from .pipelines import SIDE, inputs, networks, pipeline
from .test_budget import _subclasses_reach_the_op as _subclasses_reach_the_op

SCM = "SCMScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
DRAWING = [  # every class whose step adds noise: config, arguments of step
    (DPM, SDE, {}),
    (DPM, SDE | {"thresholding": True}, {}),
    (SINGLE, SDE | {"lower_order_final": True}, {}),
    (DDIM, {"clip_sample": False}, {"eta": 1.0}),
    (DDPM, {"clip_sample": False}, {}),
    (EULER, {}, {"s_churn": 2.0}),
    (EULER_A, {}, {}),
    (LCM, {}, {}),
    (TCD, {}, {}),
    (FLOW_EULER, {"stochastic_sampling": True}, {}),
    (FLOW_LCM, {}, {}),
    (FLOW_HEUN, {}, {"s_churn": 2.0}),
    (KDPM2_A, {}, {}),
    (EDM_EULER, {}, {"s_churn": 30.0}),
    (EDM_DPM, SDE, {}),
    (SA, {}, {}),
    (SCM, {}, {}),
    ("TableScheduler", {"table": fastdiff.plan("dpmpp_2m_sde", steps=5)}, {}),
]
SEEDS, STEPS = [7, 2**50, -4], 5
every_class = pytest.mark.parametrize(
    ("name", "config", "call"), DRAWING, ids=[f"{i} {name}" for i, (name, *_) in enumerate(DRAWING)]
)


def made(name, config, seeds=None):
    if name == "TableScheduler":
        s = TableScheduler(**config)
    else:
        s = ours(name)(**({} if name == SCM else base(name)) | config)
    if seeds is not None:
        s.set_noise("philox", seeds=seeds)
    return s


def began(s, steps=STEPS):
    """The timesteps of a run."""
    if type(s).__name__ == SCM:
        s.set_timesteps(steps, intermediate_timesteps=None)
        return s.timesteps[:-1]
    s.set_timesteps(steps)
    return s.timesteps


def polynomial(x):
    """A network whose answer for an element is the same in any batch: + and * only."""
    return 0.3 * x - 0.01 * x * x


def run(s, x, call, begin=0, told=False, ready=None, dtype=torch.float32):
    """All samples; ready(j) comes before the step at place j of the timesteps."""
    times, seen = began(s), []
    if told and hasattr(s, "set_begin_index"):
        s.set_begin_index(begin)
    x = x.to(dtype)
    for j, t in enumerate(times[begin:], begin):
        if ready is not None:
            ready(j)
        x = s.step(polynomial(scaled(s, x, t)), t, x, **call)[0].to(dtype)
        seen.append(x)
    return torch.stack(seen)


def start(s):
    return s.starting_noise(SHAPE[1:]) * torch.as_tensor(s.init_noise_sigma)


@every_class
def test_a_sample_is_the_same_in_any_batch(name, config, call):
    s = made(name, config, SEEDS)
    whole = run(s, start(s), call)
    assert whole.isfinite().all()
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert counted(s).reference == {}
    for order in ([2], [1, 0], [2, 2, 0, 1]):
        torch.manual_seed(len(order))  # which nobody asks
        s.set_noise("philox", seeds=[SEEDS[b] for b in order])
        assert torch.equal(run(s, start(s), call), whole[:, order])


@every_class
def test_the_key_of_a_step_is_its_place_in_timesteps(name, config, call):
    """From its begin on, told and found; noise in memory makes the bits that the kernel makes."""
    seeds = torch.tensor(SEEDS)
    s, other = made(name, config, SEEDS), made(name, config)
    table = name == "TableScheduler"  # whose rows read what those before keep
    for begin, told in ((0, False),) if table else ((0, False), (2, True), (2, False)):
        for dtype in (torch.float32, torch.bfloat16):
            noise = partial(philox_normal, seeds, SHAPE[1:], stream=STEP_STREAM)
            x, now = start(s), []
            other._draw = lambda *_, noise=noise, now=now: noise(noise_step=now[-1])
            want = run(other, x, call, begin, told, now.append, dtype)
            assert torch.equal(run(s, x, call, begin, told, None, dtype), want)


@pytest.mark.parametrize(
    "solver",
    ["ddpm", "euler_a", "dpmpp_2s_sde", "kdpm2_a", "dpmpp_3m_sde", "sa_solver", "lcm", "tcd"],
)
def test_a_table_makes_the_bits_of_sample(solver):
    plan = fastdiff.plan(solver, steps=7)
    agree(plan, TableScheduler(plan))


@pytest.mark.parametrize(
    ("solver", "name", "config"),
    [
        ("dpmpp_2m_sde", DPM, SDE | {"final_sigmas_type": "zero"}),
        ("dpmpp_2s_sde", SINGLE, SDE | {"final_sigmas_type": "zero", "lower_order_final": True}),
        ("flow_lcm", FLOW_LCM, {}),
    ],
)
def test_a_class_with_the_rows_of_a_plan_makes_the_bits_of_sample(solver, name, config):
    s = made(name, config)
    s.numerics = "exact"
    s.set_timesteps(7)
    flow = {"noise": "flow", "prediction": "flow_prediction"} if name == FLOW_LCM else {}
    levels = s.sigmas[:-1].double().numpy()
    agree(fastdiff.plan(solver, steps=7, spacing=levels, **flow), s)


def agree(plan, s):
    seen, s_steps = [], plan.steps
    fastdiff.sample(
        lambda x, t: polynomial(x),
        "philox",
        plan,
        seeds=SEEDS,
        shape=SHAPE[1:],
        callback=lambda i, t, x: seen.append(x),
    )
    s.set_noise("philox", seeds=SEEDS)
    s.set_timesteps(s_steps)
    x = start(s)
    for t, want in zip(s.timesteps, seen, strict=True):
        x = s.step(polynomial(scaled(s, x, t)), t, x).prev_sample
        assert torch.equal(x, want)


@pytest.mark.parametrize("name", [DDIM, DDPM])
def test_a_timestep_that_is_a_number_has_its_place(name):
    call = {"eta": 1.0} if name == DDIM else {}
    s = made(name, {"clip_sample": False}, [7])
    times = began(s)
    x = start(s)
    want = s.step(x, times[2], x, **call).prev_sample
    assert torch.equal(s.step(x, int(times[2]), x, **call).prev_sample, want)
    with pytest.raises(
        ValueError, match=r"timestep must be one of scheduler\.timesteps with set_n"
    ):
        s.step(x, int(times[2]) - 1, x, **call) if name == DDIM else s._draw(x, None, None, None)


@pytest.mark.parametrize("name", [EULER_A, SA])
def test_guidance_that_the_step_computes(name):
    s = made(name, {}, SEEDS)
    t, x = began(s)[0], start(s)
    s.scale_model_input(x, t)
    u, c = polynomial(x), torch.cos(x)
    want = s.step(u + 3.0 * (c - u), t, x).prev_sample
    began(s)
    s.scale_model_input(x, t)
    a, b = Deferred((Answer(Counter()),), torch.cat([u, c])).chunk(2)
    assert torch.equal(s.step(a + 3.0 * (b - a), t, x).prev_sample, want)


@pytest.mark.usefixtures("_subclasses_reach_the_op")
@pytest.mark.parametrize("name", [EULER_A, DPM, DDPM])
def test_on_a_device_the_kernel_draws(name):
    """One launch a step; the seeds go there once, beside the table."""
    with FakeDevice() as device:
        s = made(name, SDE if name == DPM else {}, [7])
        s.set_timesteps(STEPS, device=device.name)
        x = torch.randn(1, 4, 8, 8, device=device.name)
        uploads = 0
        for t in s.timesteps:
            s.scale_model_input(x, t)
            device.clear()
            s.step(x, t, x)
            assert [event.op for event in device.kernels] == ["affine_step"]
            assert device.syncs == device.blocking_uploads == []
            uploads += len(device.uploads)
        assert uploads == 2


def test_the_choice_is_no_part_of_the_config_and_is_taken_back():
    s = made(EULER_A, {}, [7, 8])
    x = start(s)
    assert not s.config.keys() - made(EULER_A, {}).config.keys()
    assert "_draw" not in type(s).from_config(s.config).__dict__
    want = run(s, x, {})
    for copied in (copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        assert torch.equal(run(copied, x, {}), want)
    s.set_noise("diffusers")
    generators = [{"generator": torch.Generator().manual_seed(3)} for _ in range(2)]
    assert torch.equal(run(s, x, generators[0]), run(made(EULER_A, {}), x, generators[1]))
    own = fastdiff.accelerate(stock(EULER_A)())
    own.set_noise("philox", seeds=[7])
    assert "_draw" not in fastdiff.restore(own).__dict__


def test_a_step_that_draws_nothing_does_not_ask():
    s = made(UNIPC, {}, [7])
    x = torch.zeros(2, 4, 6, 6)
    assert torch.equal(run(s, x, {}), run(made(UNIPC, {}), x, {}))


@pytest.mark.parametrize(
    ("noise", "seeds", "message"),
    [
        ("gauss", None, "noise must be 'philox' or 'diffusers'; got 'gauss'"),
        ("philox", None, "seeds must be given with noise='philox', one for each sample"),
        ("diffusers", [7], "seeds go with noise='philox'; got .7. and 'diffusers'"),
        ("philox", 7, r"seeds must be whole numbers in -2\^63 \.\. 2\^63 - 1, one for each.*got 7"),
        ("philox", [7.0], "seeds must be whole numbers"),
        ("philox", [2**63], "seeds must be whole numbers"),
        ("philox", [-(2**63) - 1], "seeds must be whole numbers"),
        ("philox", torch.tensor([7.0]), "seeds must be a contiguous int64 tensor"),
    ],
)
def test_wrong_arguments(noise, seeds, message):
    with pytest.raises(ValueError, match=message):
        made(EULER_A, {}).set_noise(noise, seeds=seeds)


@pytest.mark.parametrize("name", [EULER_A, SA])
def test_seeds_of_another_batch(name):
    s = made(name, {}, [7, 8, 9])
    x = torch.zeros(SHAPE)
    with pytest.raises(
        ValueError, match=r"one for each sample of the batch, 2; got 3\. Call set_no"
    ):
        run(s, x, {})


def test_starting_noise_needs_seeds():
    with pytest.raises(ValueError, match=r"starting_noise needs seeds; call set_noise\('philox'"):
        made(EULER_A, {}).starting_noise((4, 6, 6))


@pytest.mark.parametrize(
    ("name", "config", "call", "why"),
    [
        (DDPM, {"variance_type": "learned"}, {}, "variance_type='learned'"),
        (UNIPC, {"solver_p": stock(DDIM)()}, {}, "solver_p is another"),
        (FLOW_LCM, {"scale_factors": [1, 2], "upscale_mode": "nearest"}, {}, "scale_factors"),
        *[
            (
                FLOW_EULER,
                {"stochastic_sampling": drawn},
                {"per_token_timesteps": torch.ones(1, 4)},
                why,
            )
            for drawn, why in ((True, "per_token_timesteps"), (False, ""))
        ],
    ],
)
def test_steps_that_diffusers_makes_are_refused_where_they_draw(name, config, call, why):
    s = made(name, config, [7])
    t, x = began(s)[0], torch.zeros(1, 4, 4)
    if not why:
        s.step(x, t, x, **call)
        return
    with pytest.raises(ValueError, match=f"noise must be 'diffusers' for this step: {why}"):
        s.step(x, t, x, **call)


def test_seeds_that_are_written_to_later_are_those_that_were_given():
    seeds = torch.tensor([7, 8])
    s = made(EULER_A, {}, seeds)
    want = s.starting_noise((3,), dtype=torch.float16)
    seeds.zero_()
    assert torch.equal(s.starting_noise((3,)).half(), want)
    assert want.dtype == torch.float16


# Whole pipelines, whose network is called for one sample at a time: matrix products of another
# batch may be summed in another order.


def one_by_one(forward, split):
    """A network that answers with what it answers for each sample alone."""

    def called(*args, **kwargs):
        batch = len(args[0] if args else kwargs["hidden_states"])

        def of(b, value, name):
            return value[b : b + 1] if name in split and value is not None else value

        outs = [
            forward(
                *(of(b, value, i) for i, value in enumerate(args)),
                **{name: of(b, value, name) for name, value in kwargs.items()},
            )[0]
            for b in range(batch)
        ]
        return (torch.cat(outs),)

    return called


def pictures(pipe, seeds, shape, **given):
    s = pipe.scheduler
    s.set_noise("philox", seeds=seeds)
    given |= {"output_type": "latent", "generator": None}
    if shape is not None:
        given["latents"] = s.starting_noise(shape)
    else:  # image to image draws the noise that it begins with
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    torch.manual_seed(len(seeds))
    return pipe(**given).images


@pytest.mark.parametrize(
    ("kind", "name", "config"), [("txt2img", EULER_A, {}), ("img2img", DPM, SDE)]
)
def test_stable_diffusion(monkeypatch, kind, name, config):
    parts = networks()
    unet = parts["unet"]
    monkeypatch.setattr(unet, "forward", one_by_one(unet.forward, {0, "encoder_hidden_states"}))
    pipe = pipeline(made(name, config), kind, parts)
    shape = (4, SIDE // 2, SIDE // 2) if kind == "txt2img" else None

    def of(seeds):
        return inputs(kind, 4, num_images_per_prompt=len(seeds))

    whole = pictures(pipe, [7, 8, 9], shape, **of([7, 8, 9]))
    assert not torch.equal(whole[0], whole[1])
    for order in ([2], [1, 0]):
        part = pictures(pipe, [[7, 8, 9][b] for b in order], shape, **of(order))
        assert torch.equal(part, whole[order])


def test_flux_which_hands_no_generator_on(monkeypatch):
    parts = flow_pipelines.networks("flux")
    net = parts["transformer"]
    split = {"hidden_states", "timestep", "guidance", "pooled_projections", "encoder_hidden_states"}
    monkeypatch.setattr(net, "forward", one_by_one(net.forward, split))
    scheduler = made(FLOW_EULER, {"stochastic_sampling": True, "use_dynamic_shifting": True})
    pipe = flow_pipelines.pipeline("flux", scheduler, parts)
    shape = ((SIDE // 4) ** 2, 16)  # packed, as Flux has its latents

    def of(seeds):
        given = flow_pipelines.inputs("flux", 4)
        prompt = {name: given[name][:1] for name in ("prompt_embeds", "pooled_prompt_embeds")}
        return given | {name: v.repeat_interleave(len(seeds), 0) for name, v in prompt.items()}

    whole = pictures(pipe, [7, 8, 9], shape, **of([7, 8, 9]))
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(pictures(pipe, [9, 7], shape, **of([9, 7])), whole[[2, 0]])
