"""What sample refuses: each message names the argument, what it got, and what would do."""

import re

import numpy as np
import pytest
import torch

import fastdiff
from tests.test_sampling import seeded, wave

PLAN = {"solver": "dpmpp_2m", "steps": 3}


@pytest.mark.parametrize(
    ("error", "change", "message"),
    [
        (TypeError, {"plan": "dpmpp_2m"}, "plan must be a fastdiff.Plan; got str. Make one with"),
        (TypeError, {"noise": [1.0, 2.0]}, "noise must be a tensor (B, *shape); got list"),
        (
            ValueError,
            {"noise": torch.ones(2, 3).long()},
            "noise must be a float tensor (B, *shape)",
        ),
        (
            ValueError,
            {"noise": torch.tensor(1.0)},
            "noise must be a float tensor (B, *shape) of 16 bits or more; got torch.float32 ()",
        ),
        (
            ValueError,
            {"noise": torch.ones(2, 3).to(torch.float8_e4m3fn)},
            "noise must be a float tensor (B, *shape) of 16 bits or more; got torch.float8_e4m3fn",
        ),
        (
            ValueError,
            {"noise": torch.ones(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
            "noise must be a float tensor (B, *shape) of 16 bits or more; got torch.float4_e2m1fn",
        ),
        (
            ValueError,
            {"start": torch.ones(2, 3).to(torch.float8_e4m3fn)},
            "start must be a float tensor of 16 bits or more on the device of noise, cpu; got t",
        ),
        (
            ValueError,
            {"dtype": torch.float8_e4m3fn},
            "dtype must be a float dtype of 16 bits or more, the network's; got torch.float8_e4m3f",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: x.to(torch.float8_e4m3fn)},
            "denoise must return a tensor of a float dtype of 16 bits or more; got torch.float8_e4",
        ),
        (
            ValueError,
            {"dtype": torch.int32},
            "dtype must be a float dtype of 16 bits or more, the network's; got torch.int32",
        ),
        (
            TypeError,
            {"dtype": "float16"},
            "dtype must be a torch.dtype, such as torch.float16; got '",
        ),
        (
            TypeError,
            {"generator": 3},
            "generator must be a torch.Generator, or a list of one per sample; got int. Make one",
        ),
        (
            TypeError,
            {"generator": [1, 2]},
            "generator must be a torch.Generator, or a list of one per sample; got a list with int",
        ),
        (
            TypeError,
            {"generator": [seeded(), None]},
            "generator must be a torch.Generator, or a list of one per sample; got a list with N",
        ),
        (
            TypeError,
            {"start": np.ones((2, 3))},
            "start must be a tensor like noise; got ndarray",
        ),
        (
            ValueError,
            {"start": torch.ones(2, 3).int()},
            "start must be a float tensor of 16 bits or more on the device of noise, cpu; got t",
        ),
        (
            ValueError,
            {"start": torch.ones(2, 3, device="meta")},
            "on the device of noise, cpu; got torch.float32 on meta",
        ),
        (TypeError, {"callback": 3}, "callback must be a function callback(i, t, x); got int"),
        (
            TypeError,
            {"denoise": None},
            "denoise must be a function denoise(x, t), the network; got NoneType",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: x.long()},
            "denoise must return a tensor of a float dtype of 16 bits or more; got torch.int64",
        ),
        (
            ValueError,
            {"denoise": lambda x, t: x.to("meta")},
            "denoise must return a tensor on the sample's device, cpu; got meta",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: (x, None), "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return cond as a tensor, since the plan has guidance; got NoneType",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: (None, x), "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return uncond as a tensor, since the plan has guidance; got NoneType",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: (x, x.int()), "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return cond of a float dtype of 16 bits or more; got torch.int32",
        ),
        (
            ValueError,
            {"generator": [seeded()]},
            "generator must be one, or a list of one per sample of the batch, 2; got 1",
        ),
        (
            ValueError,
            {"start": torch.ones(2, 4)},
            "start must have the shape of noise, (2, 3); got (2, 4)",
        ),
        (
            ValueError,
            {"denoise": lambda x, t: x[:1]},
            "denoise must return a tensor of the sample's shape (2, 3); got (1, 3)",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: (x, x)},
            "denoise must return a tensor; got tuple. For (uncond, cond) make the plan with",
        ),
        (TypeError, {"denoise": lambda x, t: None}, "denoise must return a tensor; got NoneType"),
        (
            TypeError,
            {"denoise": lambda x, t: x, "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return (uncond, cond), since the plan has guidance; got Tensor",
        ),
        (
            TypeError,
            {"denoise": lambda x, t: (x, x, x), "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return (uncond, cond), since the plan has guidance; got tuple",
        ),
        (
            ValueError,
            {"denoise": lambda x, t: (x[:1], x), "plan": fastdiff.plan(**PLAN, guidance=2.0)},
            "denoise must return uncond of the sample's shape (2, 3); got (1, 3)",
        ),
        (
            ValueError,
            {"plan": fastdiff.plan(**PLAN, guidance=[[1.0, 2.0, 3.0]])},
            "noise must have a batch of 3, since the plan has a row for each sample; got 2",
        ),
    ],
)
def test_wrong_arguments(error, change, message):
    """Each names the argument, what it got, and what would do."""
    arguments = {
        "denoise": wave,
        "noise": torch.ones(2, 3),
        "plan": fastdiff.plan(**PLAN),
        **change,
    }
    with pytest.raises(error, match=re.escape(message)):
        fastdiff.sample(
            arguments.pop("denoise"), arguments.pop("noise"), arguments.pop("plan"), **arguments
        )


def test_a_network_is_not_called_with_wrong_arguments():
    called = []
    for change in ({"generator": 3}, {"dtype": "float16"}, {"callback": 3}, {"start": [1.0]}):
        with pytest.raises(TypeError):
            fastdiff.sample(
                lambda x, t: called.append(t) or x,
                torch.ones(2, 3),
                fastdiff.plan(**PLAN),
                **change,
            )
    assert not called


def test_a_tuple_of_generators_is_a_list():
    plan = fastdiff.plan("euler_a", steps=3)
    runs = [
        fastdiff.sample(wave, torch.ones(2, 3), plan, generator=kind([seeded(1), seeded(2)]))
        for kind in (list, tuple)
    ]
    assert torch.equal(*runs)
