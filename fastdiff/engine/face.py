"""What an engine shows of a network in PyTorch, whichever it is: config, dtype, device, closing."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastdiff.engine import weight_map
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from fastdiff.engine.lora import Lora
from fastdiff.engine.manifest import Graph, Manifest
from fastdiff.engine.networks import TORCH
from fastdiff.engine.refit import Weights

if TYPE_CHECKING:
    from fastdiff.engine.bundle import Bundle

Source = Lora | str | Path | Mapping[str, Tensor] | nn.Module


class Runner(Protocol):
    """What runs a graph: ONNX Runtime's session, or TensorRT plans."""

    graph: Graph
    device: torch.device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""

    def refit(self, weights: Weights) -> None:
        """Run with these weights from the next call on."""

    def close(self) -> None:
        """Give its memory back."""


class Engine:
    """A network in an engine.  `with` or `close` gives its memory back.

    config     that of the exported network, read as an attribute or a key
    dtype      of its first input and of its answer
    bundle     where it came from, with its manifest

    It has no parameters: LoRAs are set by set_loras; FreeU and attention processors cannot act on
    it, and arguments of forward that would need them are refused.
    """

    graph: str  # of the bundle
    needs: tuple[str, ...]  # inputs without which it is no such network

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        from diffusers.configuration_utils import FrozenDict

        self._runner, self.bundle = runner, bundle
        self._weights: Weights | None = None
        self.config = FrozenDict(_plain(bundle.manifest.model.config))
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

    def set_loras(self, loras: Sequence[tuple[Source, float]]) -> None:
        """Weights = those of the bundle + sum of strength * LoRA; what was set before is gone.

        loras  (LoRA, strength) each: a .safetensors file, a state dict of peft or diffusers, a
               network that a pipeline has loaded LoRAs into, or a Lora; none: the bundle's own
               weights again, verified bit for bit

        Takes as long as loading the engine.  Raises Incompatible, and changes nothing, for a LoRA
        of weights that the graph does not hold as such, and for a TensorRT plan that was not
        exported with refittable=True.
        """
        found = _checked(loras, self.graph)
        if self._weights is None:
            import onnx

            model = onnx.load(self.bundle.graph(self.graph))
            self._weights = Weights(model, weight_map.read(model))
        if found:
            self._weights.apply(found)
        else:
            self._weights.restore()
        self._runner.refit(self._weights)

    def close(self) -> None:
        """Give its memory back; a call after it is an EngineError."""
        self._runner.close()

    def eval(self) -> Self:
        """Itself: an engine only answers."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Itself, without gradients: ValueError where they are asked for."""
        if requires_grad:
            raise ValueError("requires_grad must be False: an engine has no gradients")
        return self

    def __repr__(self) -> str:
        made = self.manifest
        target = f"{made.target.name}, {made.dtype}, {self.device}"
        return f"{type(self).__name__}({made.model.kind} of {str(self.bundle.path)!r}, {target})"

    def __getattr__(self, name: str) -> Any:
        lora = " LoRAs are set with set_loras." if "lora" in name or "adapter" in name else ""
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}, for it has no modules or parameters.{lora} "
            "Put the network in PyTorch back for what needs them"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise EngineError(
            "an engine cannot be copied or pickled; load it again: "
            f"fastdiff.load_engine({str(self.bundle.path)!r})"
        )

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
        try:
            given = torch.as_tensor(times, dtype=torch.float32, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Incompatible(f"timestep must be a number or a tensor; {error}") from error
        if given.numel() not in (1, batch):
            raise Incompatible(
                f"timestep must be one number, or one for each sample of a batch of {batch}; got "
                f"{tuple(given.shape)}"
            )
        return given.reshape(-1).expand(batch)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config, which is read as attributes, too: Corrupt where a key would hide a method."""
    for name in config:
        if not name.isidentifier() or name.startswith("_") or hasattr(OrderedDict, name):
            raise Corrupt(
                f"model.config must have names of a network's options; got {name!r:.80}. Fetch or "
                "export the bundle again"
            )
    return config


def _checked(loras: Sequence[tuple[Source, float]], part: str) -> list[tuple[Lora, float]]:
    """What set_loras was given, each as a Lora that changes something."""
    found = []
    pairs = list(loras) if isinstance(loras, Sequence) and not isinstance(loras, str) else [loras]
    for pair in pairs:
        if not (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and isinstance(pair[1], (int, float))
            and abs(pair[1]) <= sys.float_info.max  # math.isfinite raises for 10**400
        ):
            raise TypeError(
                "loras must be a list of (LoRA, strength), the strength a finite number; got "
                f"{pair!r:.80}. Try [(LoRA, 1.0)]"
            )
        lora = _lora(pair[0], part)
        if not lora.factors:
            raise Incompatible(
                f"loras must change the {part}; got {pair[0]!r:.60}, which has nothing for it"
            )
        found.append((lora, float(pair[1])))
    return found


def _lora(source: Source, part: str) -> Lora:
    if isinstance(source, Lora):
        return source
    if isinstance(source, (str, Path)):
        try:
            return Lora.read(source, part=part)
        except (OSError, SafetensorError) as error:
            raise Incompatible(
                f"loras must name .safetensors files that can be read; {str(source)!r}: {error}"
            ) from error
    if isinstance(source, nn.Module):
        return Lora.of_module(source)
    if isinstance(source, Mapping):
        return Lora.of_state_dict(source, part=part)
    raise TypeError(
        "loras must be (LoRA, strength) pairs, a LoRA a file, a state dict or a network; got "
        f"{type(source).__name__}"
    )


def tensor(name: str, value: Any, axes: int) -> Tensor:
    """The value; Incompatible where it is no tensor of so many axes, none of them empty."""
    if not isinstance(value, Tensor) or value.dim() != axes or 0 in value.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Incompatible(f"{name} must be a tensor of {axes} axes, none of them empty; got {got}")
    return value


def refuse(arguments: Mapping[str, object]) -> None:
    """Incompatible for an argument that is not None, for the graph has no input for it."""
    for name, value in arguments.items():
        if value is not None and value != {}:
            raise Incompatible(
                f"{name} must be None, for an engine has no input for it; got "
                f"{type(value).__name__}. Run this pipeline with the network in PyTorch"
            )


__all__ = ["Engine", "Runner", "refuse", "tensor"]
