"""Which kernel runs an op here, and why the others do not.  The only module that chooses.

An op is registered with the places where its implementations live; `resolve` imports the first of
PREFERENCE that can run tensors of a given key.  Nothing is probed before an op is first used.
"""

import functools
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PREFERENCE = ("cuda", "triton", "cpu", "reference")  # the first one that can run wins
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_targets: dict[str, dict[str, str]] = {}  # op -> backend -> "module:function"
_forced: ContextVar[str | None] = ContextVar("fastdiff_backend", default=None)


class BackendError(RuntimeError):
    """No implementation of an op can run here; the message says why, one line per backend."""


class Key(NamedTuple):
    """What a choice may depend on."""

    device: str  # torch.device.type
    dtype: torch.dtype
    layout: str = "dense"  # ops bring their operands to one dense layout first
    shape: str = "any"  # a class of shapes, where an op distinguishes them


def register(op: str, **targets: str) -> None:
    """Say where the implementations of `op` live: backend="module:function".

    Modules are imported when they are first used, so that importing an op imports no Triton.
    """
    if unknown := targets.keys() - set(PREFERENCE):
        raise ValueError(f"backends of {op!r} must be among {PREFERENCE}, got {sorted(unknown)}")
    if "reference" not in targets:
        raise ValueError(f"op {op!r} must have a reference, got only {sorted(targets)}")
    _targets[op] = targets
    _resolve.cache_clear()


def ops() -> tuple[str, ...]:
    """Names of the ops registered so far."""
    return tuple(_targets)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run every op inside the `with` block on `backend`, or raise BackendError with the reasons.

    The choice belongs to the current thread (or task): worker threads started inside the block do
    not see it.
    """
    if backend not in PREFERENCE:
        raise ValueError(f"backend must be one of {PREFERENCE}, got {backend!r}")
    if reason := _not_on_this_machine(backend):
        raise BackendError(f"backend {backend!r} cannot run here: {reason}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def resolve(op: str, key: Key) -> Callable[..., Any]:
    """The function that runs `op` on tensors of `key`."""
    return _resolve(op, key, _forced.get())[1]


def chosen(op: str, key: Key) -> str:
    """The name of the backend that `resolve` takes."""
    return _resolve(op, key, _forced.get())[0]


@functools.cache
def _resolve(op: str, key: Key, forced: str | None) -> tuple[str, Callable[..., Any]]:
    reasons = []
    for backend in (forced,) if forced else PREFERENCE:
        reason = why_not(op, backend, key)
        if reason is None:
            module, function = _targets[op][backend].split(":")
            return backend, getattr(import_module(module), function)
        reasons.append(f"  {backend}: {reason}")
    raise BackendError(f"no backend can run fastdiff::{op} on {key}\n" + "\n".join(reasons))


def why_not(op: str, backend: str, key: Key) -> str | None:
    """Why `backend` cannot run `op` on tensors of `key`, in words to act on; None if it can."""
    if op not in _targets:
        raise ValueError(f"op must be one of {ops()}, got {op!r}")
    if backend not in PREFERENCE:
        raise ValueError(f"backend must be one of {PREFERENCE}, got {backend!r}")
    if backend not in _targets[op]:
        return "not written yet for this op"
    if backend == "reference":
        return None
    if reason := _not_on_this_machine(backend):
        return reason
    home = "cpu" if backend == "cpu" else "cuda"
    if key.device != home:
        return f"it runs on {home} tensors, these are on {key.device}"
    if key.dtype not in KERNEL_DTYPES:
        return f"{key.dtype} has no kernel, only {', '.join(map(str, KERNEL_DTYPES))} have"
    return None


def _not_on_this_machine(backend: str) -> str | None:
    if backend in ("cuda", "triton") and not torch.cuda.is_available():
        return "torch sees no CUDA device (torch.cuda.is_available() is False)"
    if backend == "triton" and find_spec("triton") is None:
        return "Triton is not installed (pip install triton; Linux only)"
    if backend in ("cuda", "cpu") and (reason := why_no_native()):
        return reason
    return _not_in_the_build() if backend == "cuda" else None


def _not_in_the_build() -> str | None:
    """Why the native extension has no CUDA code for the current device."""
    info = build_info()
    if not info.get("nvcc"):
        reason = info.get("why_no_cuda", "it is older than the CUDA kernels")
        return f"the native extension was built without CUDA: {reason}. Install it again with nvcc"
    major, minor = torch.cuda.get_device_capability()
    oldest = min(int(arch.rstrip("af")) for arch in info["cuda_archs"])
    if 10 * major + minor < oldest:
        return (
            f"the native extension was built for sm_{oldest} and newer (FASTDIFF_CUDA_ARCHS when "
            f"it is installed), this device is sm_{major}{minor}"
        )
    return None


@functools.cache
def why_no_native() -> str | None:
    """Why fastdiff._C is not there or does not load; None if it does.  Imported here, once."""
    try:
        import_module("fastdiff._C")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "fastdiff._C":
            version = platform.python_version()
            reason = build_info()["reason"] or f"it was not built for Python {version}"
            return f"the native extension is missing: {reason}"
        return f"the native extension does not load: {type(error).__name__}: {error}"
    return None


def native(function: str) -> Callable[..., Any] | None:
    """One of _C's functions, for callers that go past the op; None if built without a compiler."""
    try:
        from fastdiff import _C
    except ImportError:
        return None
    found: Callable[..., Any] = getattr(_C, function)
    return found


def build_info() -> dict[str, Any]:
    """How fastdiff._C was built: compiler, flags, instruction sets, or the reason it was not."""
    path = Path(__file__).with_name("_build_info.json")
    if not path.exists():
        reason = "this checkout was not built; run `python setup.py build_ext --inplace`"
        return {"native": False, "reason": reason}
    return dict(json.loads(path.read_text()))


def why_reference(*tensors: Tensor | None) -> str | None:
    """Why these tensors must take the differentiable path, for a report; None: a kernel may run.

    A kernel gets addresses.  That is right only for plain dense tensors on the CPU or a CUDA
    device, when nothing records what happens to them (autograd, a transform, a mode, a trace).
    """
    wants_grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
            return f"{type(tensor).__name__} is a tensor subclass"
        if wants_grad and tensor.requires_grad:
            return "a gradient is wanted"
        if not (tensor.is_cpu or tensor.is_cuda):
            return f"there is no kernel for {tensor.device.type} tensors"
        if tensor.dtype not in KERNEL_DTYPES:
            return f"there is no kernel for {tensor.dtype}"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode is active"
    return why_recorded()


def why_recorded() -> str | None:
    """What follows plain operators but no custom op right now; None if nothing does."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a torch.func transform"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    return None
