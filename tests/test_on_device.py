"""Every op on a CUDA device, by every backend that can run there, in fp32, fp16 and bf16.

Without a device all of that is skipped, and two things are tested on the CPU: that the checks can
be passed (by the reference), and that a wrong kernel does not pass them.
"""

import pytest
import torch

import fastdiff
from benchmarks.campaign.checks import op_names
from fastdiff import backends
from tests.on_device import CHECKS
from tests.on_device.cases import DTYPES

MATRIX = [(op, name) for op, checks in CHECKS.items() for name in checks]


def test_every_op_is_checked_on_a_device():
    """In a file of tests/on_device; "launch" is what the sanitizer watches."""
    missing = [op for op in op_names() if "launch" not in CHECKS.get(op, {})]
    assert not missing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("op", "check"), MATRIX)
def test_on_device(op, check, backend, dtype):
    why = backends.why_not(op, backend, backends.Key("cuda", DTYPES[dtype]))
    if why is not None:
        pytest.skip(why)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with fastdiff.use_backend(backend):
        CHECKS[op][check]("cuda", DTYPES[dtype])
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("op", CHECKS)
def test_the_device_runs_a_kernel(op):
    """Not the reference, for want of anything better."""
    assert backends.chosen(op, backends.Key("cuda", torch.bfloat16)) in ("cuda", "triton")


@pytest.mark.parametrize(("op", "check"), MATRIX)
def test_the_reference_passes(op, check):
    with fastdiff.use_backend("reference"):
        CHECKS[op][check]("cpu", torch.float32)


def spoiled(launch, how):
    """A kernel that does what `launch` does, and then something wrong with all that it writes."""

    def wrong(*args):
        before = [a._version if torch.is_tensor(a) else None for a in args]
        launch(*args)
        for a, version in zip(args, before, strict=True):
            if torch.is_tensor(a) and a._version != version and a.numel():
                how(a)

    return wrong


def scaled(t):
    t.mul_(1 + 64 * torch.finfo(t.dtype).eps)


def with_a_hole(t):
    t.select(-1, -1).fill_(float("nan"))


@pytest.mark.parametrize("how", [scaled, with_a_hole])
@pytest.mark.parametrize("op", [op for op in CHECKS if op in backends.ops()])
def test_a_wrong_kernel_fails(monkeypatch, op, how):
    """Some check of each op is red when its results are a little too large, or have a hole."""
    resolve = backends.resolve
    monkeypatch.setattr(backends, "resolve", lambda o, key: spoiled(resolve(o, key), how))
    red = []
    for name, check in CHECKS[op].items():
        try:
            with fastdiff.use_backend("reference"):  # writes by operators, which count versions
                check("cpu", torch.float32)
        except AssertionError:
            red.append(name)
    assert red
    if how is with_a_hole and "written" in CHECKS[op]:
        assert "written" in red
