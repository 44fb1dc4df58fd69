"""IPNDMScheduler, which has a schedule of its own and no options of the other classes.

n_i = s_i x + a_i out_i,    x' = (a' / a) x + (s' - s a' / a) sum_j w_j n_{i-j}
"""

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest
import torch

import fastdiff
from tests.fake_device import FakeDevice

from .classes import counted, ours, stock
from .loops import answer, same

IPNDM = "IPNDMScheduler"
BETAS = [1.0, 0.96, 0.8, 0.55, 0.3, 0.1, 0.0]
WEIGHTS = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55, -59, 37, -9]}
WEIGHTS[4] = [w / 24 for w in WEIGHTS[4]]
RUNS = [
    ({}, 8, 0),
    ({}, 25, 0),
    ({}, 25, 9),
    ({"num_train_timesteps": 300}, 3, 0),
    ({"trained_betas": BETAS}, 6, 0),
    ({"trained_betas": BETAS}, 6, 2),
]
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def run(s, steps, begin=0, edit=None, dtype=torch.float32, told=True):
    s.set_timesteps(steps)
    if told:
        s.set_begin_index(begin)
    x, seen = X.to(dtype), []
    for i, t in enumerate(s.timesteps[begin:], begin):
        if edit is not None:
            edited = edit(i, s, x)
            x = x if edited is None else edited
        e = answer(s.scale_model_input(x, t).double(), i).to(dtype)
        x = s.step(e, t, x).prev_sample
        seen.append(x)
    return seen


def float64(s, steps, begin=0, x0_of_the_first=False):
    """The recursion, on the levels that a scheduler holds."""
    s.set_timesteps(steps)
    a, b = s.alphas.double().tolist(), s.betas.double().tolist()
    x, past, seen = X.double(), [], []
    for i in range(begin, len(s.timesteps)):
        out = answer(x, i)
        past = [b[i] * x + a[i] * out, *past][:4]
        slope = sum(w * n for w, n in zip(WEIGHTS[len(past)], past, strict=True))
        if a[i] == 0:  # diffusers divides 0 by 1e-8
            x = b[i + 1] * slope - (a[i + 1] * out if x0_of_the_first else 0)
        else:
            x = a[i + 1] * (x - b[i] * slope) / a[i] + b[i + 1] * slope
        seen.append(x)
    return seen


def follow(edit=None, **config):
    mine, theirs = ours(IPNDM)(**config), stock(IPNDM)(**config)
    for a, b in zip(run(mine, 8, edit=edit), run(theirs, 8, edit=edit), strict=True):
        same(a, b)
    return mine, theirs


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("config", "steps", "begin"), RUNS, ids=str)
def test_agrees_with_diffusers(config, steps, begin, told):
    mine, theirs = ours(IPNDM)(**config), stock(IPNDM)(**config)
    for a, b in zip(*(run(s, steps, begin, told=told) for s in (mine, theirs)), strict=True):
        same(a, b)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    assert mine.step_index == theirs.step_index == len(mine.timesteps)
    seen = counted(mine)
    assert (seen.fused, seen.reference, seen.looked_up) == (len(mine.timesteps) - begin, {}, 0)


@pytest.mark.parametrize("numerics", ["faithful", "exact"])
@pytest.mark.parametrize(("config", "steps", "begin"), RUNS, ids=str)
def test_float64_is_the_recursion(config, steps, begin, numerics):
    s = ours(IPNDM)(**config)
    s.numerics = numerics
    wanted = float64(ours(IPNDM)(**config), steps, begin, numerics == "exact")
    for a, b in zip(run(s, steps, begin, dtype=torch.float64), wanted, strict=True):
        # at alpha = 0 the weights of x are 1e8 there, and cancel
        assert (a - b).abs().max() <= (1e-7 if numerics == "faithful" else 1e-12) * b.abs().max()


@pytest.mark.parametrize("steps", [8, 20])
def test_the_recursion_is_that_of_diffusers(steps):
    wanted = float64(stock(IPNDM)(), steps)
    for a, b in zip(run(stock(IPNDM)(), steps), wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize(("output", "sample"), itertools.product(DTYPES, repeat=2), ids=str)
def test_dtypes_are_those_of_diffusers(output, sample):
    rows = []
    for s in (ours(IPNDM)(), stock(IPNDM)()):
        s.set_timesteps(10)
        x, row = X.to(sample), []
        for i, t in enumerate(s.timesteps[:3]):
            x = s.step(answer(X, i).to(output), t, x).prev_sample
            row += [x.dtype, *(m.dtype for m in s.ets)]
            x = x.to(sample)
        rows.append((row, x.double()))
    assert rows[0][0] == rows[1][0]
    eps = max(torch.finfo(d).eps for d in (output, sample, torch.float32))
    assert (rows[0][1] - rows[1][1]).abs().max() <= 8 * eps * rows[1][1].abs().max()


@pytest.mark.parametrize("change", ["replaced", "written", "shortened", "cleared", "cut"])
def test_history_edited_in_the_middle(change):
    def edit(i, s, x):
        if i != 5:
            return None
        if change == "replaced":
            s.ets = [m * 0.8 + 0.1 for m in s.ets]
        elif change == "written":
            s.ets[-1].mul_(0.7)
        elif change == "shortened":
            s.ets = s.ets[-2:]
        elif change == "cleared":
            s.ets = []
        else:
            s.ets = [m[:, :, :3].clone() for m in s.ets]
            return x[:, :, :3].clone()
        return None

    mine, theirs = follow(edit)
    for a, b in zip(mine.ets[::-1], theirs.ets[::-1], strict=False):
        same(a, b)
    assert len(mine.ets) == min(4, len(theirs.ets))


@pytest.mark.parametrize("name", ["betas", "alphas"])
def test_levels_edited_in_the_middle(name):
    def written(i, s, x):
        if i == 3:
            getattr(s, name)[5] *= 0.9

    def replaced(i, s, x):
        if i == 3:
            setattr(s, name, getattr(s, name) * 0.97)

    follow(written)
    follow(replaced)


def test_a_step_again_and_a_run_again():
    def edit(i, s, x):
        if i in (4, 6):
            s._step_index -= 1

    follow(edit)
    mine, theirs = ours(IPNDM)(), stock(IPNDM)()
    for steps in (6, 9):
        for a, b in zip(run(mine, steps), run(theirs, steps), strict=True):
            same(a, b)


def test_copies_and_pickles_go_on():
    whole, first, copies = run(ours(IPNDM)(), 8), ours(IPNDM)(), []

    def edit(i, s, x):
        if i == 4:
            copies.extend([copy.deepcopy(s), pickle.loads(pickle.dumps(s))])

    run(first, 8, edit=edit)
    for s in copies:
        assert type(s) is ours(IPNDM)
        e = answer(whole[3].double(), 4).float()
        assert torch.equal(s.step(e, s.timesteps[4], whole[3]).prev_sample, whole[4])


def test_a_refused_step_changes_nothing():
    def clumsy(i, s, x):
        if i in (1, 5):
            before = s.ets
            with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x)
            with pytest.raises(ValueError, match="history must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x[:, :3])
            assert s.ets is before
            assert s.step_index == i

    s = ours(IPNDM)()
    for a, b in zip(run(s, 8, edit=clumsy), run(ours(IPNDM)(), 8), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(IndexError, match=r"step_index must be below 8.*got 8\."):
        s.step(X, s.timesteps[-1], X)


def test_gradients_and_float64_leave_the_kernel_and_are_counted():
    s = ours(IPNDM)()
    s.set_timesteps(6)
    e = X[:1, :1, :2, :2].double()

    def two(e, x):
        s.set_timesteps(6)
        for t in s.timesteps[1:3]:
            x = s.step(e + x, t, x).prev_sample
        return x

    assert torch.autograd.gradcheck(two, (e.clone().requires_grad_(), e.clone().requires_grad_()))
    assert counted(s).fused == 0
    assert len(counted(s).reference) == 1


def test_saved_loaded_accelerated_restored(tmp_path):
    s = ours(IPNDM)(trained_betas=BETAS)
    s.save_pretrained(tmp_path)
    again = ours(IPNDM).from_pretrained(tmp_path)
    assert type(stock(IPNDM).from_pretrained(tmp_path)) is stock(IPNDM)
    for a, b in zip(run(again, 6), run(s, 6), strict=True):
        assert torch.equal(a, b)
    theirs, plain = fastdiff.accelerate(stock(IPNDM)()), stock(IPNDM)()
    assert isinstance(theirs, ours(IPNDM))
    for a, b in zip(run(theirs, 8), run(plain, 8), strict=True):
        same(a, b)
    assert type(fastdiff.restore(theirs)) is stock(IPNDM)
    assert set(theirs.__dict__) == set(plain.__dict__)


def test_the_contract_is_that_of_diffusers():
    cls = ours(IPNDM)
    assert cls.__init__ is stock(IPNDM).__init__
    assert cls.__module__ == "fastdiff"
    for key in ("step", "set_begin_index", "scale_model_input"):
        mine, theirs = (inspect.signature(getattr(c, key)) for c in (cls, stock(IPNDM)))
        assert list(mine.parameters) == list(theirs.parameters)


def test_custom_timesteps_and_sigmas():
    times = [1.0, 0.8, 0.5, 0.2]
    s = ours(IPNDM)()
    for given in (times, np.array(times), torch.tensor(times)):
        s.set_timesteps(timesteps=given)
        torch.testing.assert_close(s.timesteps, torch.tensor(times))
        angle = torch.tensor([*times, 0.0]) * torch.pi / 2
        torch.testing.assert_close(s.betas, angle.sin())
        torch.testing.assert_close(s.alphas, angle.cos(), atol=1e-7, rtol=1e-6)
        assert s.alphas[0] == 0
    s.set_timesteps(sigmas=[8.0, 2.0, 0.5])
    torch.testing.assert_close(s.betas / s.alphas, torch.tensor([8.0, 2.0, 0.5, 0.0]))
    x = torch.full_like(X, 0.3)
    for i, t in enumerate(s.timesteps):  # the exact network of data that is 0.5 everywhere
        n = (x - s.alphas[i] * 0.5) / s.betas[i]
        x = s.step(s.alphas[i] * n - s.betas[i] * 0.5, t, x).prev_sample
    assert (x - 0.5).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 4, "mu": 0.5}, "mu"),
        ({"timesteps": [0.5, 0.2], "sigmas": [1.0, 0.5]}, "sigmas"),
        ({"timesteps": [0.2, 0.5]}, "timesteps"),
        ({"timesteps": [500.0, 0.5]}, "timesteps must be within 1"),
        ({"num_inference_steps": 3, "timesteps": [0.5, 0.2]}, "num_inference_steps"),
        ({"sigmas": [1.0, float("nan")]}, "sigmas"),
    ],
    ids=str,
)
def test_set_timesteps_names_what_is_wrong(given, named):
    with pytest.raises(ValueError, match=named):
        ours(IPNDM)().set_timesteps(**given)


def test_one_kernel_a_step_no_sync_one_upload(monkeypatch):
    op = torch.ops.fastdiff.affine_step.default
    monkeypatch.setattr("fastdiff.ops.affine_step.affine_step_ref", lambda *args: op(*args))
    with FakeDevice() as device:
        s = ours(IPNDM)()
        s.set_timesteps(17, device=device.name)
        s.betas = s.betas * (1 - 1e-6)  # a schedule that no other run has brought there
        x = torch.randn(1, 4, 64, 64, device=device.name)
        device.clear()
        for t in s.timesteps:
            x = s.step(x, t, x, return_dict=False)[0]
        kernels = [event.op for event in device.events if event.kind == "kernel"]
        assert kernels == ["affine_step"] * 17
        assert (device.syncs, device.blocking_uploads) == ([], [])
        assert len(device.uploads) == 1
