"""Settings of every test run: no network, and the same hypothesis examples each time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile("fastdiff", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fastdiff")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device, skipped where there is none")


@pytest.fixture
def no_gradients():
    import torch

    with torch.no_grad():
        yield
