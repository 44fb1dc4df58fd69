"""An ONNX file to TensorRT plans, one for each profile, kept in the cache.

The network is strongly typed: what the graph says is computed in the dtype that it says.  Plans
carry no host code: version and hardware compatibility are off, and so are plug-ins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastdiff.engine import profiles as sizes_of
from fastdiff.engine import tensorrt
from fastdiff.engine.build_progress import Progress, cancellable, monitor
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from fastdiff.engine.manifest import Profile
from fastdiff.engine.tensorrt import Flavour

FORMAT = 1  # of what is kept: part of every key
MOST_PROBLEMS = 5  # that an error lists


@dataclass(frozen=True)
class Settings:
    """What a plan is built with; part of its key in the cache.

    memory_limit         bytes of scratch memory that a layer may use; None: all of the GPU
    refittable           its weights can be replaced (a LoRA); slower by what folding would save
    strip                refittable, and without the weights: the ONNX file has them
    weight_streaming     weights may stay in host memory, as far as the GPU's does not do
    capabilities         compute capabilities to build for, tensorrt-rtx only
    """

    memory_limit: int | None = None
    refittable: bool = False
    strip: bool = False
    weight_streaming: bool = False
    capabilities: tuple[str, ...] = tensorrt.RTX_CAPABILITIES

    def flags(self, flavour: Flavour) -> list[str]:
        """The names of the BuilderFlags."""
        wanted = {
            "REFIT": self.refittable or self.strip,
            "STRIP_PLAN": self.strip,
            "WEIGHT_STREAMING": self.weight_streaming,
        }
        names = [name for name, on in wanted.items() if on]
        for name in names:
            if not hasattr(flavour.trt.BuilderFlag, name):
                raise Incompatible(
                    f"{flavour.target} {flavour.version} has no {name}; build without it, or "
                    f"pip install -U 'fastdiff-engine[{flavour.target}]'"
                )
        return names


class Store(Protocol):
    """Where plans are kept: fastdiff.engine.cache, or what looks like it."""

    def get(self, key: str) -> Path | None:
        """The file of a key, or None."""

    def put(self, key: str, data: bytes, about: str = "") -> Path:
        """Keep bytes under a key, and what they are in words."""

    def locked(self, key: str) -> AbstractContextManager[None]:
        """Nobody else has the key meanwhile."""

    def release(self, key: str) -> None:
        """What was got or put is no longer in use here."""


def plans(
    onnx: Path,
    profiles: Sequence[Profile],
    target: str,
    settings: Settings = Settings(),
    *,
    store: Store,
    progress: bool = True,
) -> list[Path]:
    """A file in the store for every profile; only what it does not have is built."""
    flavour = tensorrt.load(target)
    _check(flavour, settings)
    content, paths = _content(onnx), []
    for number, profile in enumerate(profiles, 1):
        name = key(content, [profile], flavour, settings)
        with store.locked(name):  # who wants the same plan at the same time waits for this one
            path = store.get(name)
            if path is None:
                title = f"building {number}/{len(profiles)}" if progress else None
                plan = _build(onnx, [profile], flavour, settings, store, title)
                about = f"{onnx.stem} for {target} {flavour.version}: {sizes_of.show(profile)}"
                path = store.put(name, plan, about)
        paths.append(path)
    return paths


def build(
    onnx_path: Path,
    profiles: Sequence[Profile],
    target: str,
    *,
    memory_limit: int | None = None,
    refittable: bool = False,
    strip: bool = False,
    weight_streaming: bool = False,
    capabilities: Sequence[str] = tensorrt.RTX_CAPABILITIES,
    store: Store | None = None,
    progress: bool = True,
) -> list[bytes]:
    """One plan for each profile, as bytes; nothing is kept but the timing cache, in `store`.

    The dimensions of the graph's inputs must be numbers, or name axes of the profiles, as in
    profiles.size.  EngineError (Incompatible, Corrupt) for a graph, a flavour or a device that
    will not do; KeyboardInterrupt as soon as the step that runs has ended.
    """
    settings = Settings(memory_limit, refittable, strip, weight_streaming, listed(capabilities))
    flavour = tensorrt.load(target)
    _check(flavour, settings)
    number = len(profiles)
    titles = [f"building {i}/{number}" if progress else None for i in range(1, number + 1)]
    return [
        _build(onnx_path, [profile], flavour, settings, store, title)
        for profile, title in zip(profiles, titles, strict=True)
    ]


def key(
    content: Sequence[str], profiles: Sequence[Profile], flavour: Flavour, settings: Settings
) -> str:
    """The name of a plan in the cache: SHA-256 of all that it depends on.

    content     SHA-256 of the ONNX file and of the file of its weights
    """
    return _digest(
        {
            "format": FORMAT,
            "content": list(content),
            "profiles": [{n: axis.model_dump() for n, axis in p.items()} for p in profiles],
            "settings": dataclasses.asdict(settings),
            "tf32": _tf32(),
            "environment": tensorrt.environment(flavour, settings.capabilities),
        }
    )


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content(onnx: Path) -> list[str]:
    data = onnx.with_name(onnx.name + ".data")
    return [_sha256(path) for path in (onnx, data) if path == onnx or path.exists()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tf32() -> bool:
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32)


def listed(capabilities: Any) -> tuple[str, ...]:
    """Compute capabilities as Settings has them; TypeError or ValueError where they are none."""
    words = f"capabilities must be a tuple like ('12.0',); got {capabilities!r:.60}"
    if not isinstance(capabilities, Sequence) or isinstance(capabilities, str):
        raise TypeError(words)
    if not capabilities or not all(
        isinstance(name, str) and re.fullmatch(r"[0-9]{1,2}\.[0-9]", name) for name in capabilities
    ):
        raise ValueError(words)
    return tuple(capabilities)


def possible(target: str, settings: Settings) -> None:
    """Incompatible where no such plan can be built here: not installed, no GPU, other GPUs."""
    _check(tensorrt.load(target), settings)


def _check(flavour: Flavour, settings: Settings) -> None:
    """Incompatible where this flavour cannot build that here."""
    here = tensorrt.capability()
    if flavour.portable:
        tensorrt.check_capabilities(flavour, settings.capabilities)
        if here is None and (settings.refittable or settings.strip):
            raise Incompatible(
                "tensorrt-rtx builds refittable and stripped plans only where there is a GPU, and "
                "torch sees none. Build there, or with neither; a LoRA fused before the "
                "export needs no refit"
            )
        if here is None and "7.5" in settings.capabilities:
            raise Incompatible(
                "tensorrt-rtx builds for compute capability 7.5 only where there is a GPU, and "
                f"torch sees none. Build there, or for {', '.join(tensorrt.RTX_CAPABILITIES)}"
            )
    elif here is None:
        raise Incompatible(
            "target tensorrt builds only on the GPU that will run the plan, and torch sees none. "
            "Build there, or use target tensorrt-rtx (builds without a GPU) or onnxruntime"
        )
    settings.flags(flavour)


def _build(
    onnx: Path,
    profiles: Sequence[Profile],
    flavour: Flavour,
    settings: Settings,
    store: Store | None,
    title: str | None,
) -> bytes:
    trt = flavour.trt
    if not onnx.is_file():
        raise Corrupt(f"the graph must be a file; there is none at {onnx}. Export the model again")
    with flavour.listening() as problems:
        builder = trt.Builder(flavour.logger)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, flavour.logger)
        if not parser.parse_from_file(str(onnx)):
            raise _not_parsed(onnx, parser, flavour)
        config = builder.create_builder_config()
        for profile in profiles:
            _add_profile(builder, config, network, profile)
        _configure(config, flavour, settings)
        timing = None if flavour.portable else _timing_key(flavour)
        if timing is not None and store is not None:
            kept = store.get(timing)
            cache = config.create_timing_cache(kept.read_bytes() if kept else b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        plan = _run(builder, network, config, trt, title)
        if plan is None:
            raise _not_built(onnx, list(problems), flavour, settings)
        if timing is not None and store is not None:
            about = f"timing cache of {flavour.target} {flavour.version}"
            store.put(timing, bytes(config.get_timing_cache().serialize()), about)
            store.release(timing)
        return bytes(plan)


def _run(builder: Any, network: Any, config: Any, trt: Any, title: str | None) -> Any:
    progress = Progress(title or "", shown=title is not None)
    config.progress_monitor = monitor(trt, progress)
    device = _current_device()

    def work() -> Any:
        if device is not None:  # the current device is a thread's own
            import torch

            torch.cuda.set_device(device)
        return builder.build_serialized_network(network, config)

    try:
        return cancellable(work, progress)
    finally:
        progress.close()


def _current_device() -> int | None:
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else None


def _configure(config: Any, flavour: Flavour, settings: Settings) -> None:
    trt = flavour.trt
    for name in settings.flags(flavour):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not _tf32():  # TensorRT's default is on: 10 bits of mantissa where torch has 23
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.memory_limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.memory_limit)
    if flavour.portable:
        config.num_compute_capabilities = len(settings.capabilities)
        for i, name in enumerate(settings.capabilities):
            member = "SM" + name.replace(".", "")
            config.set_compute_capability(getattr(trt.ComputeCapability, member), i)


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile) -> None:
    one = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        port = network.get_input(i)
        if -1 not in tuple(port.shape):
            continue
        shapes = []
        for which in ("min", "opt", "max"):
            at = {name: getattr(axis, which) for name, axis in profile.items()}
            shapes.append(
                tuple(
                    n if n >= 0 else sizes_of.size(port.get_dimension_name(k) or "", at)
                    for k, n in enumerate(port.shape)
                )
            )
        one.set_shape(port.name, *shapes)
    if config.add_optimization_profile(one) < 0:
        raise Incompatible(
            f"profile {sizes_of.show(profile)} is refused by TensorRT. Export with another range"
        )


def _timing_key(flavour: Flavour) -> str:
    return _digest({"timing": FORMAT, **tensorrt.environment(flavour, ())})


def _not_parsed(onnx: Path, parser: Any, flavour: Flavour) -> EngineError:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    known = {str(getattr(error.code(), "name", error.code())) for error in errors}
    said = []
    for error in errors[:MOST_PROBLEMS]:
        place = (
            f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
        )
        said.append(place + " ".join(error.desc().split()).rstrip("."))
    text = "; ".join(said) or "no reason given"
    if "MODEL_DESERIALIZE_FAILED" in known:
        return Corrupt(f"{onnx.name} must be an ONNX model; {text}. Export the model again")
    more = len(errors) - len(said)
    return Incompatible(
        f"{flavour.target} {flavour.version} cannot take {onnx.name}: {text}"
        + (f", and {more} more" if more else "")
        + f". Export the model with target {flavour.target}, or use target onnxruntime"
    )


def _not_built(
    onnx: Path, problems: Sequence[str], flavour: Flavour, settings: Settings
) -> EngineError:
    text = "; ".join(problems[-MOST_PROBLEMS:]) or "no reason given"
    advice = "a narrower profile"
    if settings.memory_limit is not None:
        advice += f", a memory limit above {settings.memory_limit} bytes"
    return EngineError(
        f"{flavour.target} {flavour.version} could not build a plan of {onnx.name}: {text}. "
        f"Try {advice}, or target onnxruntime"
    )


__all__ = ["Settings", "Store", "build", "key", "plans"]
