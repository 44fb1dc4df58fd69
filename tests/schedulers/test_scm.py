"""SCMScheduler, whose timesteps are angles, one more than the steps, and of which none is a beta's.

d = cos(t) x - sin(t) F,    x' = cos(t') d + sin(t') sigma_d z
"""

import copy
import inspect
import itertools
import math
import pickle
import random

import pytest
import torch

import fastdiff
from tests.fake_device import FakeDevice

from .classes import counted, ours, stock
from .loops import answer, same

SCM = "SCMScheduler"
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
TWO = {"num_inference_steps": 2}  # diffusers' default: 1.5708, 1.3, 0
ANGLES = [1.5, 1.1, 0.6, 0.2, 0.0]
OWN = {
    "num_inference_steps": 4,
    "timesteps": ANGLES,
    "max_timesteps": None,
    "intermediate_timesteps": None,
}
GRIDS = [TWO, TWO | {"max_timesteps": 1.4}, OWN, OWN | {"timesteps": torch.tensor(ANGLES)}]
GRIDS += [{"num_inference_steps": n, "intermediate_timesteps": None} for n in (1, 2, 7)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def generators(kind, seed=3):
    many = [torch.Generator().manual_seed(seed + j) for j in range(3)]
    return {"list": many[:2], "longer": many, "one in a list": many[:1], "one": many[0]}.get(kind)


def run(s, grid=OWN, begin=0, edit=None, dtype=torch.float32, told=True, kind="one"):
    """Every (sample, prediction of x_0), and the states of the generators."""
    s.set_timesteps(**grid)
    if told:
        s.set_begin_index(begin)
    x, seen, generator = X.to(dtype), [], generators(kind)
    torch.manual_seed(8)
    for i, t in enumerate(s.timesteps[begin:-1], begin):
        if edit is not None:
            edited = edit(i, s, x)
            x = x if edited is None else edited
        e = answer(x.double(), i).to(dtype)
        x, d = s.step(e, t, x, generator=generator, return_dict=False)
        seen += [x, d]
    many = generator if isinstance(generator, list) else [generator]
    return seen, [g.get_state() if g else torch.get_rng_state() for g in many]


def recursion(s, grid, begin=0, kind="one"):
    """In float64, from the angles that a scheduler holds."""
    s.set_timesteps(**grid)
    t, spread = s.timesteps.double().tolist(), s.config.sigma_data
    x, seen, generator = X.double(), [], generators(kind)
    torch.manual_seed(8)
    for i in range(begin, len(t) - 1):
        z = draw(generator).double()
        d = math.cos(t[i]) * x - math.sin(t[i]) * answer(x, i)
        x = math.cos(t[i + 1]) * d + math.sin(t[i + 1]) * spread * z
        seen += [x, d]
    return seen


def draw(generator):
    if isinstance(generator, list) and len(generator) > 1:
        return torch.cat([torch.randn(1, *X.shape[1:], generator=g) for g in generator[:2]])
    one = generator[0] if isinstance(generator, list) else generator
    return torch.randn(X.shape, generator=one)


def compare(mine, theirs, rel=1e-5):
    assert len(mine[0]) == len(theirs[0]) > 0
    for a, b in zip(mine[0], theirs[0], strict=True):
        same(a, b, rel)
    assert all(torch.equal(a, b) for a, b in zip(mine[1], theirs[1], strict=True))


def both(**config):
    return ours(SCM)(**config), stock(SCM)(**config)


@pytest.mark.parametrize("seed", range(60))
def test_every_combination_of_options_agrees_with_diffusers(seed):
    rng = random.Random(seed)
    config = {
        "sigma_data": rng.choice([0.5, 0.5, 1.0, 0.25]),
        "num_train_timesteps": rng.choice([1000, 400]),
    }
    grid, begin = rng.choice(GRIDS), rng.choice([0, 0, 1])
    more = {
        "begin": min(begin, grid["num_inference_steps"] - 1),
        "told": rng.random() < 0.5,
        "kind": rng.choice(["list", "longer", "one in a list", "one", "global"]),
    }
    mine, theirs = both(**config)
    compare(run(mine, grid, **more), run(theirs, grid, **more))
    assert torch.equal(mine.timesteps, theirs.timesteps)
    assert mine.step_index == theirs.step_index == len(mine.timesteps) - 1
    assert mine.num_inference_steps == theirs.num_inference_steps
    assert counted(mine) == (mine.num_inference_steps - more["begin"], {}, 0)


def test_every_option_of_diffusers_is_drawn_above():
    options = set(inspect.signature(stock(SCM)).parameters)
    assert options == {"num_train_timesteps", "prediction_type", "sigma_data"}
    numbers = [p.default for p in inspect.signature(stock(SCM).step).parameters.values()]
    assert [n for n in numbers if isinstance(n, (int, float))] == [True]  # return_dict


@pytest.mark.parametrize("numerics", ["faithful", "exact"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_float64_is_the_recursion(grid, numerics):
    s = ours(SCM)(sigma_data=0.4)
    s.numerics = numerics
    wanted = recursion(ours(SCM)(sigma_data=0.4), grid)
    for a, b in zip(run(s, grid, dtype=torch.float64)[0], wanted, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("kind", ["list", "one in a list", "one", "global"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_recursion_is_that_of_diffusers(grid, kind):
    wanted = recursion(stock(SCM)(), grid, kind=kind)
    for a, b in zip(run(stock(SCM)(), grid, kind=kind)[0], wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("output", "sample"), [*itertools.product(DTYPES, repeat=2)], ids=str)
def test_dtypes_are_those_of_diffusers(output, sample):
    rows = []
    for s in both():
        s.set_timesteps(**OWN)
        g, x, row = torch.Generator().manual_seed(1), X.to(sample), []
        for i, t in enumerate(s.timesteps[:3]):
            x, d = s.step(answer(X, i).to(output), t, x, generator=g, return_dict=False)
            row += [x.dtype, d.dtype]
            x = x.to(sample)
        rows.append((row, x.double(), g.get_state()))
    assert rows[0][0] == rows[1][0]
    assert torch.equal(rows[0][2], rows[1][2])
    eps = max(torch.finfo(d).eps for d in (output, sample, torch.float32))
    assert (rows[0][1] - rows[1][1]).abs().max() <= 8 * eps * rows[1][1].abs().max()


def test_noise_is_drawn_in_the_default_dtype():
    before, runs = torch.get_default_dtype(), []
    try:
        torch.set_default_dtype(torch.float64)
        for s in both():
            runs.append(run(s))
    finally:
        torch.set_default_dtype(before)
    compare(*runs)
    assert runs[0][0][0].dtype == torch.float64


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize("change", ["replaced", "written", "moved on", "again", "another shape"])
def test_edited_in_the_middle(change, inference):
    if inference and change == "written":
        pytest.skip("PyTorch keeps no count of writes there: seen where a run starts")

    def edit(i, s, x):
        if i != 2:
            return None
        if change == "replaced":
            s.timesteps = s.timesteps * 0.97
        elif change == "written":
            s.timesteps[3] *= 0.9
        elif change == "moved on":
            s._step_index += 1
        elif change == "again":
            s._step_index -= 1
        else:
            return x[:, :, :3].clone()
        return None

    grid = {"num_inference_steps": 6, "intermediate_timesteps": None}
    with torch.inference_mode(inference):
        results = []
        for s in both():
            s.set_timesteps(**grid)
            s.set_begin_index(0)
            x, g, seen = X, torch.Generator().manual_seed(0), []
            for i, t in enumerate(s.timesteps[:4]):
                edited = edit(i, s, x)
                x = x if edited is None else edited
                x = s.step(answer(x, i), t, x, generator=g).prev_sample
                seen.append(x)
            results.append((seen, [g.get_state()]))
        compare(*results)


def test_sigma_data_changed_after_construction_counts():
    def edit(i, s, x):
        if i == 2:
            s.register_to_config(sigma_data=0.9)

    mine, theirs = both()
    compare(run(mine, edit=edit), run(theirs, edit=edit))


@pytest.mark.parametrize("pick", ["element", "clone", "number", "expanded"])
def test_every_kind_of_timestep_gives_the_same_run(pick):
    runs = []
    for kind in ("element", pick):
        s, x = ours(SCM)(), X
        s.set_timesteps(**OWN)
        g = torch.Generator().manual_seed(0)
        for i in range(1, 4):  # from the middle: the first one says where
            t = s.timesteps[i]
            t = {
                "element": t, "clone": t.clone(), "number": t.item(), "expanded": t.expand(2)
            }[kind]  # fmt: skip
            x = s.step(answer(x, i), t, x, generator=g).prev_sample
        runs.append(x)
        looked_up = counted(s).looked_up
    assert torch.equal(*runs)
    assert looked_up == (pick in ("clone", "number"))


def test_copies_and_pickles_go_on():
    whole, copies, first = run(ours(SCM)(), kind="global")[0], [], ours(SCM)()

    def edit(i, s, x):
        if i == 3:
            copies.extend([copy.deepcopy(s), pickle.loads(pickle.dumps(s))])

    run(first, edit=edit, kind="global")
    for s in copies:
        assert type(s) is ours(SCM)
        assert s.step_index == 3
        x = whole[4]
        d = s.step(answer(x.double(), 3).float(), s.timesteps[3], x).pred_original_sample
        assert torch.equal(d, whole[7])


def test_a_refused_step_changes_nothing():
    def clumsy(i, s, x):
        if i in (0, 2):
            with pytest.raises(ValueError, match="model_output must have the shape of sample"):
                s.step(x[:, :3], s.timesteps[i], x, generator=torch.Generator())
            assert s.step_index == i

    a, b = run(ours(SCM)(), edit=clumsy), run(ours(SCM)())
    assert all(torch.equal(p, q) for p, q in zip(a[0], b[0], strict=True))


def test_gradients_and_float64_leave_the_kernel_and_are_counted():
    s = ours(SCM)()
    e = X[:1, :1, :2, :2].double()

    def two(e, x):
        s.set_timesteps(**OWN)
        g = torch.Generator().manual_seed(0)
        for t in s.timesteps[1:3]:
            x = s.step(e + x, t, x, generator=g).prev_sample
        return x

    assert torch.autograd.gradcheck(two, (e.clone().requires_grad_(), e.clone().requires_grad_()))
    assert counted(s).fused == 0
    assert len(counted(s).reference) == 1


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[:, :, ::2],
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x[0],
        lambda x: x.unsqueeze(2).repeat(1, 1, 3, 1, 1),
    ],
    ids=["channels_last", "strided", "expanded", "3-d", "5-d"],
)
def test_any_layout_and_number_of_dimensions(layout):
    results = []
    for s in both():
        s.set_timesteps(**OWN)
        g, x, e = torch.Generator().manual_seed(0), layout(X), layout(answer(X, 0))
        for t in s.timesteps[:2]:
            x = s.step(e, t, x, generator=g).prev_sample
        results.append(x)
    same(*results)


def test_saved_loaded_accelerated_restored(tmp_path):
    s = ours(SCM)(sigma_data=0.7)
    s.save_pretrained(tmp_path)
    again = ours(SCM).from_pretrained(tmp_path)
    assert type(stock(SCM).from_pretrained(tmp_path)) is stock(SCM)
    for a, b in zip(run(again)[0], run(s)[0], strict=True):
        assert torch.equal(a, b)
    theirs, plain = fastdiff.accelerate(stock(SCM)()), stock(SCM)()
    assert isinstance(theirs, ours(SCM))
    compare(run(theirs), run(plain))

    def swap(i, s, x):
        if i in (1, 3):
            (fastdiff.restore if i == 1 else fastdiff.accelerate)(s)

    compare(run(theirs, edit=swap), run(plain))
    assert type(fastdiff.restore(theirs)) is stock(SCM)
    assert set(theirs.__dict__) == set(plain.__dict__)
    strict = fastdiff.accelerate(stock(SCM)(), strict=True)
    strict.set_timesteps(2)
    with pytest.raises(RuntimeError, match="strict=False"):
        strict.step(X.double(), strict.timesteps[0], X.double())


def test_the_contract_is_that_of_diffusers():
    cls = ours(SCM)
    assert cls.__init__ is stock(SCM).__init__
    assert (cls.__name__, cls.__module__) == (SCM, "fastdiff")
    assert len(cls()) == 1000
    for key, theirs in inspect.getmembers(stock(SCM), inspect.isfunction):
        mine = list(inspect.signature(getattr(cls, key)).parameters.values())
        names = list(inspect.signature(theirs).parameters)
        assert [p.name for p in mine[: len(names)]] == names
        assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(names) :])
    s = cls()
    assert s.scale_model_input(X, s.timesteps[0]) is X
    assert s.init_noise_sigma == 1.0


def test_one_kernel_a_step_no_sync_one_upload(monkeypatch):
    op = torch.ops.fastdiff.affine_step.default
    monkeypatch.setattr("fastdiff.ops.affine_step.affine_step_ref", lambda *args: op(*args))
    grid = {"num_inference_steps": 9, "max_timesteps": 1.5701, "intermediate_timesteps": None}
    with FakeDevice() as device:
        s = ours(SCM)()  # a schedule that no other run has brought there
        s.set_timesteps(**grid, device=device.name)
        x = torch.randn(1, 4, 64, 64, device=device.name)
        device.clear()
        for t in s.timesteps[:-1]:
            x = s.step(x, t.expand(1), x, return_dict=False)[0]
        kernels = [event.op for event in device.events if event.kind == "kernel"]
        assert [op for op in kernels if op != "randn"] == ["affine_step"] * 9
        assert (device.syncs, device.blocking_uploads) == ([], [])
        assert len(device.uploads) == 1
