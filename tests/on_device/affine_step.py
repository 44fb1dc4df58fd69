"""affine_step: the same bits from every kernel."""

import torch

from fastdiff.ops.affine_step import affine_step, affine_step_out, affine_step_ref
from fastdiff.ops.affine_step_reference import launch as launch_reference
from tests.affine_step_cases import make_operands, make_rows
from tests.on_device.cases import assert_same_when_replayed, scattered
from tests.pointwise_cases import Guarded, random


def _step_case(dtype, shape, keeps, depth, guided=True, per_sample=False, seed=0):
    draw = random(seed)
    operands = make_operands(draw, shape, depth, dtype, guided, True, "cpu")
    rows = make_rows(draw, 3, shape[0] if per_sample else 1, keeps, depth)
    rows[..., rows.shape[2] - keeps :] = torch.arange(keeps).float() - 1
    return operands, rows


def _to(device, operands):
    moved = {k: v.to(device) for k, v in operands.items() if torch.is_tensor(v)}
    return {**operands, **moved, "history": [h.to(device) for h in operands["history"]]}


def step_bits(device, dtype):
    for shape, keeps, depth, guided, per_sample in (
        ((3, 4, 16, 17), 1, 1, True, False),
        ((3, 4, 16, 17), 3, 5, True, True),
        ((1,), 0, 0, False, False),
        ((1023,), 2, 2, True, False),
        ((2, 4, 128, 128), 1, 2, True, False),
        ((0, 4, 8, 8), 1, 1, True, False),
    ):
        operands, rows = _step_case(dtype, shape, keeps, depth, guided, per_sample)
        step = torch.tensor(2, dtype=torch.int32)
        named = (operands[k] for k in ("x", "uncond", "cond", "history", "noise"))
        want = affine_step_ref(*named, rows, step, keeps, dtype, dtype)
        given = {"rows": rows.to(device), "step": step.to(device), "keeps": keeps}
        got = affine_step(**_to(device, operands), **given)
        for a, b in zip([got[0], got[1], *got[2]], [want[0], want[1], *want[2]], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a.cpu(), b), (shape, keeps, depth)


def step_rings(device, dtype):
    """The out form: NaN before, rings and the input of the model written, x_next may be x."""
    operands, rows = _step_case(dtype, (2, 4, 9, 7), 2, 3)

    def run(where, launch):
        here = _to(where, operands)
        x, history = here["x"].clone(), [h.clone() for h in here["history"]]
        x0, entry = (torch.full_like(x, float("nan")) for _ in range(2))
        launch(here | {"x": x, "history": history, "x0": x0, "model_input": entry}, rows.to(where))
        return [x, x0, entry, *history]

    def ours(given, rows):
        affine_step_out(**given, rows=rows, keeps=2, x_next=given["x"])

    def theirs(given, rows):
        x, u, c, h, z = (given[k] for k in ("x", "uncond", "cond", "history", "noise"))
        results = (given["x"], given["x0"], [], given["model_input"])
        launch_reference(x, u, c, h, z, rows, None, 2, *results, True)

    for a, b in zip(run(device, ours), run("cpu", theirs), strict=True):
        assert torch.equal(a.cpu(), b)


def step_draws_noise(device, dtype):
    """Noise from a seed a sample, at a step that a counter in device memory says."""
    operands, rows = _step_case(dtype, (3, 4, 9, 7), 1, 1)
    operands["noise"] = None
    seeds, step = torch.tensor([5, -8, 2**40 + 1]), torch.tensor(1, dtype=torch.int32)
    named = (operands[k] for k in ("x", "uncond", "cond", "history", "noise"))
    want = affine_step_ref(*named, rows, step, 1, dtype, dtype, seeds, 11)
    given = {"rows": rows.to(device), "step": step.to(device), "keeps": 1, "noise_step": 11}
    got = affine_step(**_to(device, operands), **given, seeds=seeds.to(device))
    for a, b in zip([got[0], got[1], *got[2]], [want[0], want[1], *want[2]], strict=True):
        assert torch.equal(a.cpu(), b)


def step_ignores_weight_zero(device, dtype):
    operands, rows = _step_case(dtype, (2, 700), 1, 2)
    rows[..., 3] = 0
    matrix = rows[..., 7 : 7 + 2 * 6].unflatten(-1, (2, 6))
    matrix[..., 3], matrix[..., 5] = 0, 0
    clean = affine_step(**_to(device, operands), rows=rows.to(device), keeps=1)
    operands["noise"].fill_(float("nan"))
    operands["history"][1].fill_(float("inf"))
    dirty = affine_step(**_to(device, operands), rows=rows.to(device), keeps=1)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[2][0], dirty[2][0])


def step_written(device, dtype):
    """Between guard bands: x_next, x0, the model's input, and the rings, whose old entries go."""
    for shape in ((2, 4, 9, 7), (1, 1031)):
        operands, rows = _step_case(dtype, shape, 2, 3)
        here, table = _to(device, operands), rows.to(device)
        want = affine_step(**here, rows=table, keeps=2)
        out = {name: Guarded(here["x"]) for name in ("x_next", "x0", "model_input")}
        rings = [Guarded(h) for h in here["history"]]
        for ring, h in zip(rings, here["history"], strict=True):
            ring.tensor.copy_(h)
        given = here | {"history": [ring.tensor for ring in rings]}
        affine_step_out(**given, rows=table, keeps=2, **{name: g.tensor for name, g in out.items()})
        for guarded in (*out.values(), *rings):
            guarded.check()
        assert torch.equal(out["x_next"].tensor, want[0])
        assert torch.equal(out["x0"].tensor, want[1])


def step_edges(device, dtype):
    """No sample is among the bits; operands that no kernel reads in place are copied."""
    operands, rows = _step_case(dtype, (3, 4, 9, 7), 1, 2)
    here, table = _to(device, operands), rows.to(device)
    there = {k: scattered(v) for k, v in here.items() if torch.is_tensor(v)}
    there = here | there | {"history": [scattered(h) for h in here["history"]]}
    got, want = (affine_step(**o, rows=table, keeps=1) for o in (there, here))
    for a, b in zip([*got[:2], *got[2]], [*want[:2], *want[2]], strict=True):
        assert torch.equal(a, b)


def step_replayed(device, dtype):
    operands, rows = _step_case(dtype, (2, 4, 32, 33), 0, 1)
    here, table = _to(device, operands), rows.to(device)
    x_next, x0 = (torch.full_like(here["x"], float("nan")) for _ in range(2))

    def run():
        affine_step_out(**here, rows=table, x_next=x_next, x0=x0)
        return [x_next, x0]

    assert_same_when_replayed(run, device)


def step_launch(device, dtype):
    for keeps, depth, guided in ((0, 0, False), (2, 3, True)):
        operands, rows = _step_case(dtype, (3, 4, 5, 7), keeps, depth, guided)
        affine_step(**_to(device, operands), rows=rows.to(device), keeps=keeps)


ON_DEVICE = {
    "affine_step": {
        "bits": step_bits,
        "rings": step_rings,
        "noise": step_draws_noise,
        "weight zero": step_ignores_weight_zero,
        "written": step_written,
        "edges": step_edges,
        "replayed": step_replayed,
        "launch": step_launch,
    },
}
