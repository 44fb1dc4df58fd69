"""What sample refuses: each message names the argument, what it got, and what would do."""

import re

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
        (ValueError, {"noise": torch.tensor(1.0)}, "noise must be a float tensor (B, *shape); got"),
        (
            ValueError,
            {"dtype": torch.int32},
            "dtype must be a float dtype, the network's; got torch",
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
            "denoise must return cond of the sample's shape (2, 3); got (1, 3)",
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
            "noise must have a batch of 3, as the plan's guidance has; got 2",
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
