"""A bundle's U-Net in TensorRT: the plan of the smallest profile that has the size, when asked for.

Plans come from our cache, built there from the bundle's ONNX graph if need be, or with
trust_engine=True from the bundle.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdiff.engine import cache, profiles, tensorrt, tensorrt_build
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.session import check_inputs
from fastdiff.engine.tensorrt_refit import refit
from fastdiff.engine.tensorrt_run import Plan, read

if TYPE_CHECKING:
    from fastdiff.engine.bundle import Bundle


class TensorRTRunner:
    """What EngineUNet runs: `graph`, `device`, `run`, `close`; threads may run side by side."""

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cuda",
        *,
        name: str = "unet",
        trust_engine: bool = False,
        reuse_outputs: bool = False,
    ) -> None:
        self.bundle, self.device, self.name = bundle, torch.device(device), name
        self.graph = bundle.manifest.graphs[name]
        self._target = bundle.manifest.target
        if self.device.type != "cuda":
            raise Incompatible(
                f"device must be cuda for a bundle of target {self._target.name}; got {device}. "
                "Use a bundle of target onnxruntime there"
            )
        tensorrt.check_device(tensorrt.load(self._target.name))
        self._trust, self._reuse = trust_engine, reuse_outputs
        self._plans: dict[int, Plan] = {}
        self._keys: dict[int, str] = {}  # of the plans in the cache
        self._weights: bytes | None = None
        self._closed = False
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; Incompatible for an input or a size that no profile takes."""
        sizes = check_inputs(self.graph.inputs, inputs, self.device)
        wanted = self.bundle.manifest.profiles
        index = profiles.choose(wanted, sizes, pixels=self.bundle.manifest.model.vae_scale)
        return self.plan(index).run(inputs)

    def plan(self, index: int) -> Plan:
        """The plan of a profile; loaded, and built if need be, the first time."""
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; load it again with fastdiff.load_engine")
            if index not in self._plans:
                plan = self._load(index)
                if self._weights is not None:
                    refit(plan, self._weights)
                self._plans[index] = plan
            return self._plans[index]

    def refit(self, graph: bytes) -> None:
        """Give every plan the weights of an ONNX graph, those loaded later too; as refit says."""
        with self._lock:
            for plan in self._plans.values():
                refit(plan, graph)
            self._weights = graph

    def close(self) -> None:
        """Give its memory back; what tensorrt-rtx compiled is kept for the next time."""
        with self._lock:
            self._closed = True
            for index, plan in self._plans.items():
                if kernels := plan.runtime_cache():
                    cache.put(self._kernels(index), kernels, f"kernels of {self.name}")
                    cache.release(self._kernels(index))
                plan.close()
            for key in self._keys.values():
                cache.release(key)
            self._plans.clear()
            self._keys.clear()

    def _load(self, index: int) -> Plan:
        manifest = self.bundle.manifest
        of_bundle = [e for e in manifest.engines if (e.graph, e.profile) == (self.name, index)]
        if self._trust and of_bundle:
            path = self.bundle.plan(of_bundle[0], trust_engine=True)
            self._keys.pop(index, None)
        else:
            settings = tensorrt_build.Settings(refittable=any(e.refittable for e in of_bundle))
            (path,) = tensorrt_build.plans(
                self.bundle.graph(self.name),
                [manifest.profiles[index]],
                self._target.name,
                settings,
                store=cache,
            )
            self._keys[index] = path.parent.name
        kernels = cache.get(self._kernels(index)) if self._target.name == "tensorrt-rtx" else None
        return read(
            path,
            self._target.name,
            trust_engine=self._trust and bool(of_bundle),
            reuse_outputs=self._reuse,
            runtime_cache=kernels.read_bytes() if kernels else b"",
        )

    def _kernels(self, index: int) -> str:
        """The key of what tensorrt-rtx compiled for this plan on this GPU."""
        sha = self.bundle.manifest.files[self.graph.file].sha256
        device = torch.cuda.get_device_name(self.device)
        version = tensorrt.load(self._target.name).version
        text = f"kernels {tensorrt_build.FORMAT} {sha} {index} {device} {version}"
        return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["TensorRTRunner"]
