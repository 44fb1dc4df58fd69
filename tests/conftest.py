"""Settings of every test run: no network, and the same hypothesis examples each time."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile("fastdiff", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fastdiff")

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests import interpreter

    interpreter.quicken()


# The longest first, for a file is what one of several processes takes: a minute of CPU and more.
LONGEST = ["compile_everywhere", "compile_attention", "bias_residual", "generate", "cuda_on_host"]
LONGEST += ["build", "group_norm_triton", "cross_attention", "benchmarks", "add_layer_norm"]
LONGEST += ["attention", "campaign", "abs_quantile", "upsample_conv", "accelerate_modules"]


def pytest_collection_modifyitems(items):
    turn = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turn.get(item.path.stem, len(turn)))


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device, skipped where there is none")


def pytest_collection_finish():
    """What the imports made stays until the end: no collection of garbage looks through it again,
    which took a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # or libraries report objects that nobody freed


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
