"""Conditions of every benchmark: one thread, no gradient, provenance in the JSON."""

import pytest
import torch

from benchmarks.provenance import provenance


def pytest_addoption(parser):
    parser.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    parser.addoption("--bundle", help="of the built-in model, in the place of an export")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def compiles(request):
    """Whether torch.compile takes part: not where nothing is timed, for it takes a while."""
    left_out = (
        request.config.getoption(name, False) for name in ("no_compile", "benchmark_disable")
    )
    return not any(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastdiff"] = provenance()
