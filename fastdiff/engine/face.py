"""What an engine shows of a network in PyTorch, whichever it is: config, dtype, device, closing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.manifest import Graph, Manifest
from fastdiff.engine.networks import TORCH

if TYPE_CHECKING:
    from fastdiff.engine.bundle import Bundle


class Runner(Protocol):
    """What runs a graph: ONNX Runtime's session, or TensorRT plans."""

    graph: Graph
    device: torch.device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""

    def close(self) -> None:
        """Give its memory back."""


class Engine:
    """A network in an engine.  `with` or `close` gives its memory back.

    config     that of the exported network, read as an attribute or a key
    dtype      of its first input and of its answer
    bundle     where it came from, with its manifest

    It has no parameters: no LoRA, no FreeU, no attention processors act on it, and arguments of
    forward that would need them are refused.
    """

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        from diffusers.configuration_utils import FrozenDict

        self._runner, self.bundle = runner, bundle
        self.config = FrozenDict(bundle.manifest.model.config)
        self._ports = {port.name: port for port in runner.graph.inputs}
        self.dtype = TORCH[runner.graph.inputs[0].dtype]

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        return self._runner.device

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the network's class in diffusers."""
        raise NotImplementedError

    def close(self) -> None:
        """Give its memory back; a call after it is an EngineError."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Itself; Incompatible for another device or dtype than it was loaded for."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != self.device.type:
            raise Incompatible(
                f"device must be {self.device}, for which the engine was loaded; got {device}. "
                f"Load it again: fastdiff.load_engine(.., device='{device}')"
            )
        if dtype is not None and dtype != self.dtype:
            raise Incompatible(
                f"dtype must be {self.dtype}, in which the engine was exported; got {dtype}"
            )
        return self

    def _times(self, times: Tensor | float | int, batch: int) -> Tensor:
        """(batch,) float32 of a number, () or (B,)."""
        given = torch.as_tensor(times, dtype=torch.float32, device=self.device)
        return given.reshape(-1).expand(batch)


def refuse(arguments: Mapping[str, object]) -> None:
    """Incompatible for an argument that is not None, for the graph has no input for it."""
    for name, value in arguments.items():
        if value is not None and value != {}:
            raise Incompatible(
                f"{name} must be None, for an engine has no input for it; got "
                f"{type(value).__name__}. Run this pipeline with the network in PyTorch"
            )


__all__ = ["Engine", "Runner", "refuse"]
