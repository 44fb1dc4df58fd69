"""group_norm: numbers, layouts, batch invariance, replays."""

import torch

from fastdiff.ops.group_norm import group_norm, group_norm_out
from tests import group_norm_cases
from tests.on_device.cases import assert_empty_and_scattered, assert_same_when_replayed, seeds
from tests.pointwise_cases import Guarded

PLAIN = {}
ADDED = {"addend": "nc", "residual": True}
JOINED = {"addend": "c", "tokens": True}
MODELS = [((2, 320, 64, 64), 32), ((2, 1280, 8, 8), 32), ((2, 2560, 16, 16), 32)]
MODELS += [((1, 128, 256, 256), 32)]


def norm_numbers(device, dtype):
    for shape, groups in group_norm_cases.SHAPES:
        for layout in group_norm_cases.LAYOUTS:
            for spec in (PLAIN, ADDED, JOINED | {"second": shape[1] // 3}):
                _as_good_as_torch(device, dtype, shape, groups, layout=layout, **spec)


def norm_of_models(device, dtype):
    for shape, groups in MODELS if device == "cuda" else MODELS[1:2]:
        for layout in group_norm_cases.LAYOUTS:
            _as_good_as_torch(device, dtype, shape, groups, layout=layout)


def norm_eps(device, dtype):
    """As large as the variance."""
    for eps in (1e-3, 3.0):
        for layout in group_norm_cases.LAYOUTS:
            for shape, groups in (((2, 40, 9, 7), 4), ((1, 32, 64, 64), 32)):
                spec = {"layout": layout, "eps": eps, "std": eps**0.5}
                _as_good_as_torch(device, dtype, shape, groups, **spec)


def norm_far_from_zero(device, dtype):
    """|mean| / std up to 1000, where a dtype has numbers enough for it."""
    for mean in (30.0, 1000.0 if dtype == torch.float32 else 100.0):
        for layout in group_norm_cases.LAYOUTS:
            for shape, groups in (((2, 64, 33, 31), 8), ((1, 32, 64, 64), 32)):
                spec = {"layout": layout, "mean": mean}
                _as_good_as_torch(device, dtype, shape, groups, **spec)


def _as_good_as_torch(device, dtype, shape, groups, **spec):
    run = group_norm_cases.assert_as_good_as_torch
    run(None, seeds(device), shape=shape, groups=groups, dtype=dtype, device=device, **spec)


def norm_batch(device, dtype):
    """The bits of a sample depend on no other sample and not on how many there are."""
    for layout in group_norm_cases.LAYOUTS:
        given = {"dtype": dtype, "layout": layout, "device": device, "addend": "nc"}
        case = group_norm_cases.make_case(0, (5, 96, 20, 20), 8, **given)
        whole = group_norm(**case)
        for i in (0, 3):
            one = case | {k: case[k][i : i + 1] for k in ("x", "addend")}
            assert torch.equal(group_norm(**one)[0], whole[i])


def norm_written(device, dtype):
    """Results lie between guard bands and are NaN before: nothing beside them, no hole."""
    for layout in group_norm_cases.LAYOUTS:
        for shape in ((2, 40, 9, 7), (1, 320, 33, 5)):
            given = {"dtype": dtype, "layout": layout, "device": device, "residual": True}
            case = group_norm_cases.make_case(0, shape, 4, **given)
            y, total = Guarded(case["x"]), Guarded(case["x"])
            group_norm_out(**case, out=y.tensor, total=total.tensor)
            y.check()
            total.check()
            assert torch.equal(y.tensor, group_norm(**case)[0])


def norm_edges(device, dtype):
    case = group_norm_cases.make_case(0, (3, 40, 9, 7), 4, dtype=dtype, device=device)
    x = case.pop("x")
    assert_empty_and_scattered(lambda x: group_norm(x, **case), [x], [x[:0]])


def norm_replayed(device, dtype):
    for shape in ((2, 320, 16, 16), (1, 128, 128, 128)):
        given = {"dtype": dtype, "layout": "channels_last", "device": device}
        case = group_norm_cases.make_case(0, shape, 32, **given)
        out = torch.full_like(case["x"], float("nan"))

        def run(case=case, out=out):
            group_norm_out(**case, out=out)
            return [out]

        assert_same_when_replayed(run, device)


def norm_launch(device, dtype):
    for layout in group_norm_cases.LAYOUTS:
        for shape, spec in (((2, 40, 9, 7), ADDED), ((1, 60, 65, 67), JOINED | {"second": 20})):
            given = {"dtype": dtype, "layout": layout, "device": device}
            group_norm(**group_norm_cases.make_case(0, shape, 4, **given, **spec))


ON_DEVICE = {
    "group_norm": {
        "numbers": norm_numbers,
        "models": norm_of_models,
        "eps": norm_eps,
        "far from zero": norm_far_from_zero,
        "batch": norm_batch,
        "written": norm_written,
        "edges": norm_edges,
        "replayed": norm_replayed,
        "launch": norm_launch,
    },
}
