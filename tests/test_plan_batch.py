"""Samples of one batch with plans of their own: each has the bits that it has alone."""

import copy
import pickle

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.table import COLUMNS, HEAD, width

SHAPE = (3, 4, 5)


def network(x, t):
    """The same answer for an element in any batch: + and * only."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)) if t.ndim else t
    return 0.3 * x - 0.01 * x * x + t / 4000


def pair(x, t):
    return network(x, t), 0.7 * network(0.9 * x, t)


def plans_of(kind):
    make, flow = fastdiff.plan, {"noise": "flow", "prediction": "flow_prediction"}
    return {
        "steps and levels": lambda: [
            make("dpmpp_2m", steps=n, spacing=s)
            for n, s in ((3, "karras"), (9, "trailing"), (6, "exponential"))
        ],
        "solvers": lambda: [
            make("unipc_3", steps=8),
            make("euler_a", steps=5),
            make("heun", steps=7),
            make("dpmpp_3m_sde", steps=6, prediction="v_prediction"),
            make("ddim", steps=1),
            make("sa_solver_3", steps=6),
            make("flow_euler", steps=4, **flow),
        ],
        "guidance": lambda: [
            make("dpmpp_2m", steps=4, guidance=7.5),
            make("dpmpp_2m_sde", steps=5, guidance=[1.0, 2.0, 3.0, 4.0, 5.0]),
            make("unipc_2", steps=6, guidance=[[3.0]]),
        ],
        "begin": lambda: [make("dpmpp_2m_sde", steps=8, begin=b) for b in (2, 6, 3)],
    }[kind]()


KINDS = ("steps and levels", "solvers", "guidance", "begin")


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_the_bits_that_it_has_alone(kind):
    plans = plans_of(kind)
    both, seeds = fastdiff.batch(plans), [11 * b - 3 for b in range(len(plans))]
    call = pair if both.guided else network
    given = {"start": torch.ones(len(plans), *SHAPE)} if kind == "begin" else {"shape": SHAPE}
    times = []

    def seen(x, t):
        times.append(t)
        return call(x, t)

    got = fastdiff.sample(seen, "philox", both, seeds=seeds, **given)
    for b, plan in enumerate(plans):
        more = {"start": given["start"][:1]} if kind == "begin" else given
        alone = fastdiff.sample(call, "philox", plan, seeds=[seeds[b]], **more)
        assert torch.equal(got[b : b + 1], alone)
        assert [float(t[b]) for t in times[: plan.steps]] == plan.timesteps.astype("f4").tolist()
    assert {t.shape for t in times} == {(len(plans),)}
    assert len(times) == max(plan.steps for plan in plans)


@pytest.mark.parametrize("kind", ["solvers", "guidance"])
def test_with_a_gradient_and_in_another_layout(kind):
    plans = plans_of(kind)
    both, seeds = fastdiff.batch(plans), list(range(len(plans)))
    call = pair if both.guided else network
    noise = torch.randn(len(plans), *SHAPE, generator=torch.Generator().manual_seed(0))
    want = fastdiff.sample(call, noise, both, seeds=seeds)
    leaf = noise.clone().requires_grad_()
    with_gradient = fastdiff.sample(call, leaf, both, seeds=seeds)
    assert torch.equal(with_gradient, want)
    with_gradient.sum().backward()
    assert leaf.grad.isfinite().all()
    for order in ((0, 2, 3, 1), (1, 2, 3, 0)):  # channels last; the batch innermost
        back = [order.index(d) for d in range(4)]
        other = noise.permute(order).contiguous().permute(back)
        assert torch.equal(fastdiff.sample(call, other, both, seeds=seeds), want)


def test_generators_of_their_own_advance_as_alone():
    plans = [fastdiff.plan(s, steps=n) for s, n in (("euler_a", 4), ("ddpm", 7), ("heun", 5))]
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))

    def generators():
        return [torch.Generator().manual_seed(b) for b in range(3)]

    together, apart = generators(), generators()
    got = fastdiff.sample(network, noise, fastdiff.batch(plans), generator=together)
    for b, plan in enumerate(plans):
        alone = fastdiff.sample(network, noise[b : b + 1], plan, generator=[apart[b]])
        assert torch.equal(got[b : b + 1], alone)
        assert torch.equal(together[b].get_state(), apart[b].get_state())


def test_what_is_in_it():
    plans = plans_of("steps and levels")
    both = fastdiff.batch(plans)
    assert both.rows.shape == (9, 3, plans[0].rows.shape[2])
    assert both.timesteps.shape == both.draw.shape == (9, 3)
    assert both.alpha.shape == both.sigma.shape == (10, 3)
    assert both.noise_scale.tolist() == [plan.noise_scale for plan in plans]
    assert [made["spacing"] for made in both.about["batch"]] == [
        "karras",
        "trailing",
        "exponential",
    ]
    for b, plan in enumerate(plans):
        assert np.array_equal(both.rows[: plan.steps, b], plan.rows[:, 0])
        after = both.rows[plan.steps :, b, HEAD : HEAD + COLUMNS]
        assert (after == [1.0, 0.0, 0.0, 0.0]).all()
        assert (both.sigma[plan.steps :, b] == plan.sigma[-1]).all()
    assert fastdiff.batch(plans[:1]) is plans[0]
    with pytest.raises(ValueError, match="read-only"):
        both.noise_scale[0] = 2.0


@pytest.mark.parametrize("again", ["file", "json", "pickle", "copy"])
def test_saved_and_copied(again, tmp_path):
    both = fastdiff.batch(plans_of("solvers"))
    both.save(tmp_path / "plan.json")
    made = {
        "file": lambda: fastdiff.Plan.load(tmp_path / "plan.json"),
        "json": lambda: fastdiff.Plan.from_json(both.to_json()),
        "pickle": lambda: pickle.loads(pickle.dumps(both)),
        "copy": lambda: copy.deepcopy(both),
    }[again]()
    for name in ("rows", "timesteps", "alpha", "sigma", "draw", "noise_scale", "c_in"):
        one, other = getattr(made, name), getattr(both, name)
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
        assert not one.flags.writeable
    assert (made.depths, made.guided, made.about) == (both.depths, both.guided, both.about)


def deep_rings(plan, depth):
    """The plan, with a ring that nothing is written to or read from."""
    rows = np.zeros((plan.steps, 1, width(1, depth)))
    end = HEAD + COLUMNS
    rows[..., :end] = plan.rows[..., :end]
    rows[..., -2], rows[..., -1] = plan.rows[..., -1], -1
    return fastdiff.Plan(rows, plan.timesteps, plan.alpha, plan.sigma, plan.draw, (depth,))


def test_what_is_refused():
    one, guided = fastdiff.plan("ddim", steps=3), fastdiff.plan("ddim", steps=3, guidance=2.0)
    each = fastdiff.plan("ddim", steps=3, guidance=[[2.0, 3.0]])
    with pytest.raises(TypeError, match=r"plans must be a list of one or more .*got \[\]"):
        fastdiff.batch([])
    with pytest.raises(TypeError, match=r"plans\[1\] must be a fastdiff.Plan; got int"):
        fastdiff.batch([one, 3])
    with pytest.raises(ValueError, match=r"plans\[0\] must be of one sample"):
        fastdiff.batch([each, guided])
    with pytest.raises(ValueError, match=r"plans\[0\] without guidance and plans\[1\] with guid"):
        fastdiff.batch([one, guided])
    both = fastdiff.batch([one, one])
    with pytest.raises(ValueError, match="noise must have a batch of 2"):
        fastdiff.sample(network, torch.zeros(3, 4), both)
    with pytest.raises(ValueError, match=r"got 1\. With noise='philox' give as many seeds"):
        fastdiff.sample(network, "philox", both, seeds=[7], shape=(4,))
    deep, wide = deep_rings(one, 9), fastdiff.plan("sa_solver_3", steps=3)
    with pytest.raises(
        ValueError, match=r"plans must fit .*\(2, 1, 1\) of plans\[2\] and \(9,\) of"
    ):
        fastdiff.batch([one, deep, wide])
    with pytest.raises(ValueError, match=r"rows of the table must have shape \(N, 1, K\)"):
        fastdiff.TableScheduler(both)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("timesteps", np.zeros((3, 3)), r"timesteps must have shape \(3,\)"),
        ("alpha", np.ones((4, 3)), r"alpha must have shape \(4,\) for 3 timesteps"),
        ("draw", np.zeros((3, 3), bool), r"draw must have shape \(3,\)"),
        (
            "noise_scale",
            np.ones(3),
            r"noise_scale must be a number, or one for each sample, \(2,\); got \(3,\)",
        ),
        ("noise_scale", np.array([1.0, -1.0]), "noise_scale must be a finite number >= 0"),
        ("c_in", np.array([1.0, np.inf]), "c_in must be finite numbers"),
        ("sigma", np.array([[1.0, -1.0]] * 4), "sigma must not be negative"),
    ],
)
def test_fields_of_a_plan(field, value, message):
    both = fastdiff.batch([fastdiff.plan("ddim", steps=n) for n in (2, 3)])
    names = ("rows", "timesteps", "alpha", "sigma", "draw", "depths", "noise_scale", "c_in")
    fields = {name: getattr(both, name) for name in names} | {field: value}
    with pytest.raises(ValueError, match=message):
        fastdiff.Plan(**fields)


def test_noise_that_one_sample_weighs_but_does_not_draw():
    both = fastdiff.batch([fastdiff.plan("ddpm", steps=2), fastdiff.plan("ddpm", steps=3)])
    names = ("rows", "timesteps", "alpha", "sigma", "depths", "noise_scale", "c_in")
    draw = both.draw.copy()
    draw[0, 1] = False
    with pytest.raises(ValueError, match=r"row 0 of the table weighs the noise z, but draw\[0\]"):
        fastdiff.Plan(draw=draw, **{name: getattr(both, name) for name in names})
