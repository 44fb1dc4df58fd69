"""Settings of every test run: no network, and the same hypothesis examples each time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile("fastdiff", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fastdiff")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device, skipped where there is none")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of tiny_model.py; who writes to it copies it first."""
    from tests import tiny_model

    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(tiny):
    """The model of that folder at guidance 2, as tune and bench quality see it."""
    from fastdiff.cli import model

    return model.subject(tiny, 2.0)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The folder of exported.py: bundle/, and the graphs *.onnx as they were traced."""
    from tests import exported

    return exported.folder(tmp_path_factory)


@pytest.fixture
def no_gradients():
    import torch

    with torch.no_grad():
        yield
