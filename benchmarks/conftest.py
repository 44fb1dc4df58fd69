"""Conditions of every benchmark: one thread, no gradient, provenance in the JSON."""

import pytest
import torch

from benchmarks.provenance import provenance


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
    return not request.config.getoption("benchmark_disable")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastdiff"] = provenance()
