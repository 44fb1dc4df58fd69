"""Quiet what diffusers says about its own deprecations; our warnings still show."""

import functools
from pathlib import Path

import diffusers
import pytest
import torch

from fastdiff.schedulers.kdpm2 import time_between

from .classes import PLAIN_INITS, PLAIN_TIMES

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for kind in ("FutureWarning", "DeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}:diffusers"))


def brief(init):
    """The constructor, which sets a schedule of 8 steps and not of every trained one: whoever calls
    set_timesteps finds nothing of it (test_agreement.py)."""

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        whole = type(self).set_timesteps
        self.__dict__["set_timesteps"] = lambda _, *rest: whole(self, 8, *rest)
        try:
            init(self, *args, **kwargs)
        finally:
            del self.__dict__["set_timesteps"]

    return __init__


def quick(plain):
    def _sigma_to_t(self, sigma, log_sigmas):
        if isinstance(sigma, torch.Tensor) and isinstance(log_sigmas, torch.Tensor):
            return time_between(sigma, log_sigmas)
        return plain(self, sigma, log_sigmas)

    return _sigma_to_t


@pytest.fixture(autouse=True, scope="session")
def _diffusers_makes_kdpm2_in_less_than_a_second():
    """Its model times by our code, which test_two_calls.py shows to be bit by bit its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, plain in PLAIN_TIMES.items():
            patch.setattr(getattr(diffusers, name), "_sigma_to_t", quick(plain))
            patch.setattr(getattr(diffusers, name), "__init__", brief(PLAIN_INITS[name]))
        yield


@pytest.fixture(autouse=True, scope="session")
def _diffusers_says_errors_only():
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
