"""Which backend runs an op, and what is said when one cannot."""

import os
import shutil
import subprocess
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastdiff
from fastdiff import backends
from fastdiff.backends import BackendError, Key
from fastdiff.ops import affine_step_reference
from fastdiff.ops.affine_step import affine_step

CPU = Key("cpu", torch.float32)
NATIVE = backends.why_not("affine_step", "cpu", CPU) is None


def test_the_first_that_can_run_is_taken():
    assert backends.chosen("affine_step", CPU) == ("cpu" if NATIVE else "reference")
    assert backends.chosen("affine_step", Key("cpu", torch.float64)) == "reference"
    assert backends.chosen("affine_step", Key("mps", torch.float16)) == "reference"
    run = backends.resolve("affine_step", Key("cpu", torch.float64))
    assert run is affine_step_reference.launch


def test_each_backend_says_why_not():
    def why(backend, key=CPU):
        return backends.why_not("affine_step", backend, key)

    assert why("reference") is None
    if NATIVE:
        assert why("cpu", Key("cpu", torch.float64)).startswith("torch.float64 has no kernel")
        assert why("cpu", Key("cuda", torch.float32)) == (
            "it runs on cpu tensors, these are on cuda"
        )
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in why("triton")
        assert "torch sees no CUDA device" in why("cuda")
    with pytest.raises(ValueError, match=r"backend must be one of .*'cuda', 'triton'.* got 'tpu'"):
        why("tpu")
    with pytest.raises(ValueError, match=r"op must be one of .*affine_step.* got 'conv'"):
        backends.why_not("conv", "cpu", CPU)


@pytest.mark.skipif(not NATIVE, reason="the native extension was not built")
def test_cuda_says_how_the_extension_was_built(monkeypatch):
    """As on a machine with a GPU, for each record that setup.py leaves behind."""

    def why(device="cuda", **record):
        monkeypatch.setattr(backends, "build_info", lambda: {"native": True} | record)
        return backends.why_not("affine_step", "cuda", Key(device, torch.float32))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    without = "the native extension was built without CUDA: "
    assert why(nvcc=None).startswith(without + "it is older than the CUDA kernels.")
    assert why(nvcc=None, why_no_cuda="nvcc was not on the PATH").startswith(
        without + "nvcc was not on the PATH. Install it again"
    )
    built = {"nvcc": "/usr/bin/nvcc", "cuda_archs": ["80", "90a"]}
    assert why(**built) is None
    assert why("cpu", **built) == "it runs on cuda tensors, these are on cpu"
    too_new = why(**built | {"cuda_archs": ["90a", "120a"]})
    assert "was built for sm_90 and newer" in too_new
    assert too_new.endswith("this device is sm_86")


def test_use_backend_forces_or_raises_with_the_reasons():
    with fastdiff.use_backend("reference"):
        assert backends.chosen("affine_step", CPU) == "reference"
    assert backends.chosen("affine_step", CPU) != "reference" or not NATIVE
    with (
        fastdiff.use_backend("cpu"),
        pytest.raises(BackendError, match=r"(?s)no backend can run fastdiff::affine_step.*cpu: "),
    ):
        affine_step(*torch.zeros(2, 3, dtype=torch.float64), torch.zeros(1, 1, 12))
    with pytest.raises(ValueError, match="must be one of"), fastdiff.use_backend("trition"):
        pass
    if not torch.cuda.is_available():
        reason = "backend 'cuda' cannot run here: torch sees no CUDA device"
        with pytest.raises(BackendError, match=reason), fastdiff.use_backend("cuda"):
            pass


def test_a_forced_backend_belongs_to_its_thread():
    seen = []
    with fastdiff.use_backend("reference"):
        worker = threading.Thread(target=lambda: seen.append(backends.chosen("affine_step", CPU)))
        worker.start()
        worker.join()
    assert seen == [backends.chosen("affine_step", CPU)]


def test_register_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"must be among .* got \['tpu'\]"):
        backends.register("nothing", reference="a:b", tpu="c:d")
    with pytest.raises(ValueError, match="must have a reference"):
        backends.register("nothing", cpu="a:b")
    assert "nothing" not in backends.ops()


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(2), None),
        (torch.nn.Parameter(torch.zeros(2), requires_grad=False), None),
        (torch.zeros(2, requires_grad=True), "a gradient is wanted"),
        (torch.zeros(2).as_subclass(Named), "Named is a tensor subclass"),
        (torch.zeros(2, dtype=torch.float64), "there is no kernel for torch.float64"),
        (torch.zeros(2, device="meta"), "there is no kernel for meta tensors"),
    ],
)
def test_what_needs_the_reference(tensor, reason):
    assert backends.why_reference(torch.ones(2), None, tensor) == reason
    if reason == "a gradient is wanted":
        with torch.no_grad():
            assert backends.why_reference(tensor) is None


def test_what_records_needs_the_reference_too():
    def reason(x):
        seen.append(backends.why_reference(torch.ones(2)))
        return x

    seen = []
    torch.func.vmap(reason)(torch.ones(2, 2))
    torch.jit.trace(reason, torch.ones(2), check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        reason(None)
    with FlopCounterMode(display=False):
        reason(None)
    assert seen == [
        "inside a torch.func transform",
        "torch.jit.trace is recording",
        "forward-mode differentiation is active",
        "a dispatch mode is active",
    ]


def test_without_the_extension_the_reference_runs_and_the_reason_is_given():
    """The package as it lies after an install without a compiler: no _C, and a record of why."""
    program = (
        "import sys, torch; sys.modules['fastdiff._C'] = None\n"
        "from fastdiff import backends; from fastdiff.ops.affine_step import affine_step\n"
        "backends.build_info = lambda: {'native': False, 'reason': 'no C++ compiler was found'}\n"
        "key = backends.Key('cpu', torch.float32)\n"
        "print(backends.chosen('affine_step', key), backends.why_not('affine_step', 'cpu', key))\n"
        "row = torch.zeros(1, 1, 12); row[..., 7] = 0.5\n"
        "print(affine_step(torch.ones(2), torch.ones(2), row)[0].tolist())\n"
        "from fastdiff.cli.info import print_info; print_info()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, second, *rest = run.stdout.splitlines()
    assert first.startswith("reference the native extension is missing: no C++ compiler was found")
    assert second == "[0.5, 0.5]"
    text = "\n".join(rest)
    assert "missing: no C++ compiler was found. A step runs as PyTorch operators" in text
    assert "op affine_step on cpu: reference" in text


def test_an_extension_that_does_not_load_is_not_chosen(tmp_path):
    """A file that is no shared library lies where the extension belongs, and was once built."""
    package = tmp_path / "fastdiff"
    ignored = shutil.ignore_patterns("__pycache__", "_C*", "weights")
    shutil.copytree(Path(fastdiff.__file__).parent, package, ignore=ignored)
    (package / f"_C{EXTENSION_SUFFIXES[0]}").write_text("not a shared library")
    (package / "_build_info.json").write_text('{"native": true, "reason": null}')
    program = (  # an editable install of the checkout must not help out
        "import sys; editable = lambda f: '__editable__' in getattr(f, '__module__', '')\n"
        "sys.meta_path = [f for f in sys.meta_path if not editable(f)]\n"
        "import fastdiff, torch; from fastdiff import backends; import fastdiff.ops.affine_step\n"
        "key = backends.Key('cpu', torch.float32)\n"
        "print(backends.chosen('affine_step', key), backends.why_not('affine_step', 'cpu', key))\n"
        "noise, none = torch.ones(1, 2), lambda x, t: torch.zeros_like(x)\n"
        "print(fastdiff.sample(none, noise, fastdiff.plan('ddim', steps=2)).isfinite().tolist())\n"
        "scheduler = fastdiff.DDIMScheduler(); scheduler.set_timesteps(2)\n"
        "x = scheduler.step(noise, int(scheduler.timesteps[0]), noise).prev_sample\n"
        "print(x.isfinite().tolist())\n"
        "try: fastdiff.use_backend('cpu').__enter__()\n"
        "except backends.BackendError as error: print(error)\n"
        "from fastdiff.cli.info import print_info; print_info()\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    reason = "the native extension does not load: ImportError: "
    first, second, third, fourth, *rest = run.stdout.splitlines()
    assert first.startswith(f"reference {reason}")
    assert str(package) in first
    assert second == third == "[[True, True]]"
    assert fourth.startswith(f"backend 'cpu' cannot run here: {reason}")
    text = "\n".join(rest)
    assert f"  {reason}" in text
    assert "A step runs as PyTorch operators" in text
    assert "op affine_step on cpu: reference" in text
