"""TensorRT plans of a bundle: built when it is made, and one for each profile when it is used."""

from __future__ import annotations

import hashlib
import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.engine import (
    cache,
    here,
    profiles,
    tensorrt,
    tensorrt_build,
    tensorrt_run,
    weight_map,
)
from fastdiff.engine.bundle import Bundle
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.manifest import Engine, Graph, Profile, Target
from fastdiff.engine.refit import Weights
from fastdiff.engine.session import MOST_BYTES, check_inputs
from fastdiff.engine.tensorrt_build import Settings
from fastdiff.engine.tensorrt_refit import refit
from fastdiff.engine.tensorrt_run import Plan


def engines(
    target: str,
    folder: Path,
    name: str,
    graph: Graph,
    ranges: Sequence[Profile],
    built: Callable[[float, int], None],
    settings: Settings,
) -> tuple[Target, list[Engine]]:
    """A plan of a graph for each profile in the bundle's folder, from the cache if it is there.

    built  called with seconds and bytes of all plans
    """
    began = time.perf_counter()
    found = tensorrt_build.plans(folder / graph.file, ranges, target, settings, store=cache)
    made = []
    for i, path in enumerate(found):
        file = f"{name}.{i}.plan"
        shutil.copyfile(path, folder / file)
        refittable = settings.refittable or settings.strip
        made.append(Engine(file=file, graph=name, profile=i, refittable=refittable))
    size = sum((folder / engine.file).stat().st_size for engine in made)
    built(time.perf_counter() - began, size)
    return target_here(target, settings), made


def target_here(name: str, settings: Settings) -> Target:
    """What the manifest says of the plans' target."""
    flavour, there = tensorrt.load(name), here.look(name)
    portable = flavour.portable
    return Target(
        name=name,  # type: ignore[arg-type]
        version=flavour.version,
        cuda=there.cuda,
        driver=None if portable else there.driver,
        compute_capability=",".join(settings.capabilities)
        if portable
        else there.compute_capability,
        os=platform.system().lower(),
        machine=platform.machine().lower(),
    )


class Plans:
    """The plans of a graph as one runner: each call goes to the smallest profile that holds it.

    A plan is read when a shape first needs it.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Sequence[Profile],
        device: torch.device,
        read: Callable[[int], Plan],
        pixels: int,
        keep: Callable[[int, Plan], None],
        stripped: Path | None = None,
    ) -> None:
        self.graph, self.device = graph, device
        self._ranges, self._read, self._pixels = list(ranges), read, pixels
        self._keep = keep  # called with each plan before it is closed
        self._plans: dict[int, Plan] = {}
        self._weights: bytes | Path | None = stripped  # the graph, where plans have no weights
        self._lock, self._closed = threading.Lock(), False

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; Incompatible, with the ranges, where no profile holds the shapes."""
        if self._closed:
            raise EngineError("the engine is closed; load it again with fastdiff.load_engine")
        sizes = check_inputs(self.graph.inputs, inputs, self.device)
        i = profiles.choose(self._ranges, sizes, pixels=self._pixels)
        with self._lock:
            if i not in self._plans:
                plan = self._read(i)
                if self._weights is not None:
                    refit(plan, self._weights)
                self._plans[i] = plan
        return self._plans[i].run(inputs)

    def refit(self, weights: Weights) -> None:
        """Give every plan, read already or later, the weights of a graph: tensorrt_refit."""
        if weight_map.size(weights.model) > MOST_BYTES:
            raise Incompatible(
                f"the graph must have at most {MOST_BYTES} bytes to get other weights; it has "
                f"{weight_map.size(weights.model)}. Fuse the LoRA (pipe.fuse_lora()), export that"
            )
        graph = weights.model.SerializeToString()
        with self._lock:
            for plan in self._plans.values():
                refit(plan, graph)
            self._weights = graph

    def close(self) -> None:
        """Give weights and memory back; a call after it is an EngineError."""
        self._closed = True
        for i, plan in self._plans.items():
            self._keep(i, plan)
            plan.close()
        self._plans.clear()


def runner(
    bundle: Bundle,
    name: str,
    device: str | torch.device,
    *,
    trust_engine: bool = False,
    reuse_outputs: bool = False,
) -> Plans:
    """What runs the graph `name` of a TensorRT bundle.

    With trust_engine the bundle's own plans, if they are for what is here; without it plans that
    are built here from its ONNX graph and kept, so that a new driver or GPU costs one build.
    """
    manifest, device = bundle.manifest, torch.device(device)
    target, ranges, graph = manifest.target.name, manifest.profiles, manifest.graphs[name]
    if device.type != "cuda":
        raise Incompatible(
            f"device must be cuda for a bundle of target {target}; got {device}. Export it with "
            "--target onnxruntime for the CPU"
        )
    tensorrt.check_device(tensorrt.load(target))
    own = {e.profile: e for e in manifest.engines if e.graph == name}
    if trust_engine:
        bundle.check_here()
        if lacking := [i for i in range(len(ranges)) if i not in own]:
            raise Incompatible(
                f"the bundle must have a plan for each profile; profile {lacking[0]} has none. "
                "Load it without trust_engine, and plans are built from its ONNX graph"
            )
        paths = [bundle.plan(own[i], trust_engine=True) for i in range(len(ranges))]
    else:
        settings = Settings(**manifest.build.model_dump(), capabilities=_capabilities(target))
        paths = tensorrt_build.plans(bundle.graph(name), ranges, target, settings, store=cache)

    def read(i: int) -> Plan:
        kept = cache.get(_kernels(bundle, name, i)) if target == "tensorrt-rtx" else None
        return tensorrt_run.read(
            paths[i],
            target,
            cache=cache.folder(),
            trust_engine=trust_engine,
            reuse_outputs=reuse_outputs,
            runtime_cache=kept.read_bytes() if kept else b"",
        )

    def keep(i: int, plan: Plan) -> None:
        if compiled := plan.runtime_cache():
            key = _kernels(bundle, name, i)
            cache.put(key, compiled, f"what {target} compiled of {name} for this GPU")
            cache.release(key)

    stripped = bundle.graph(name) if manifest.build.strip else None
    return Plans(graph, ranges, device, read, manifest.model.vae_scale, keep, stripped)


def _capabilities(target: str) -> tuple[str, ...]:
    """What tensorrt-rtx builds for here: as it does elsewhere, if that is for this GPU, too."""
    own, usual = tensorrt.capability(), tensorrt.RTX_CAPABILITIES
    return (own,) if target == "tensorrt-rtx" and own and own not in usual else usual


def _kernels(bundle: Bundle, name: str, i: int) -> str:
    """The cache's key of what tensorrt-rtx compiled for a plan on this GPU."""
    graph = bundle.manifest.graphs[name]
    content = [bundle.manifest.files[f].sha256 for f in (graph.file, graph.data) if f]
    version, gpu = tensorrt.load("tensorrt-rtx").version, torch.cuda.get_device_name()
    text = f"kernels {content} {bundle.manifest.profiles[i]} {version} {gpu}"
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["Plans", "engines", "runner", "target_here"]
