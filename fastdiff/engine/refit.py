"""New weights for an exported graph: base + sum of LoRAs, computed anew each time.

Never a delta on what is there: rounding would stay behind, and two LoRAs in another order would
be another network.  The base is kept byte by byte and verified by its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from fastdiff.engine.lora import Factor, Lora
from fastdiff.engine.weight_map import TORCH_TYPES, Initializer, WeightPlace, data, raw

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


class Weights:
    """The weights of a graph that a map names: `apply` and `restore` change `model` in place.

    model     with its external data loaded; what is built or loaded from it has the new weights
    places    weight_map.weight_map of the module that it was exported from
    """

    def __init__(self, model: onnx.ModelProto, places: Mapping[str, WeightPlace]) -> None:
        self.model = model
        self.places = dict(places)
        self._constants: dict[str, onnx.TensorProto] = {
            constant.name: constant for constant in model.graph.initializer
        }
        self._base: dict[str, bytes] = {}  # of what was ever changed
        self._changed: set[str] = set()

    def apply(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Weights = base + sum of strength * LoRA; what was applied before is gone.

        Incompatible, and nothing changed, for a LoRA of a layer that the map lacks, that shares
        its weights with another, that has another shape, or that has NaN or infinity in it;
        Corrupt for a map that does not fit the graph; EngineError for a weight that is
        no longer finite in the graph's dtype.
        """
        wanted: dict[str, list[tuple[Factor, float]]] = {}
        for lora, strength in loras:
            for name, factors in lora.factors.items():
                wanted.setdefault(name, []).extend((factor, strength) for factor in factors)
        new: dict[str, bytes] = {}
        for name, factors_of in wanted.items():
            for place in self._places(name):
                new[place.name] = self._fused(name, place, factors_of)
        back = {name: self._base[name] for name in self._changed - new.keys()}
        for name, content in {**new, **back}.items():
            if name in new:
                self._base.setdefault(name, raw(self._constants[name]))
            constant = self._constants[name]
            for field in ("float_data", "int32_data"):  # where a foreign graph may hold floats
                constant.ClearField(field)
            constant.raw_data = content
        self._changed = set(new)

    def restore(self) -> None:
        """The base again, and Corrupt if it is not bit for bit what was exported."""
        self.apply([])
        self.verify()

    def verify(self) -> None:
        """Corrupt unless every weight of the map has the SHA-256 that it had at export."""
        for place in self.places.values():
            for constant in place.initializers:
                self._checked(constant, raw(self._constant(constant)))

    def changed(self) -> dict[str, Tensor]:
        """The initializers that differ from the base, by name, in the graph's dtype and shape."""
        return {name: self._tensor(name, raw(self._constants[name])) for name in self._changed}

    def code(self, name: str) -> int:
        """The dtype of an initializer, as TensorProto has it."""
        return self._constants[name].data_type

    def _places(self, name: str) -> tuple[Initializer, ...]:
        place = self.places.get(name)
        if place is None:
            raise Incompatible(
                f"the LoRA changes {name!r}, which the graph does not hold as a weight. Fuse it "
                "(pipe.fuse_lora()) and export again"
            )
        if place.shared:
            raise Incompatible(
                f"the LoRA changes {name!r}, which had the same numbers as {place.shared[0]!r} and "
                "is one with it in the graph. Fuse it (pipe.fuse_lora()) and export again"
            )
        return place.initializers

    def _fused(
        self, name: str, place: Initializer, factors: Sequence[tuple[Factor, float]]
    ) -> bytes:
        import torch

        content = self._base.get(place.name)
        if content is None:
            content = raw(self._constant(place))
        self._checked(place, content)
        base = self._tensor(place.name, content)
        weight = (base.t() if place.transposed else base).float()
        total = torch.zeros_like(weight)
        for factor, strength in factors:
            if not factor.fits(tuple(weight.shape)):
                raise Incompatible(
                    f"the LoRA of {name!r} must be of a weight of shape {tuple(weight.shape)}; got "
                    f"{tuple(factor.up.shape)} x {tuple(factor.down.shape)}. It is of another model"
                )
            total += strength * factor.delta(tuple(weight.shape)).to(weight.device)
        fused = (weight + total).to(base.dtype)
        if not torch.isfinite(fused).all():
            if not all(factor.finite() for factor, _ in factors):
                raise Incompatible(
                    f"the LoRA of {name!r} must have finite numbers; got NaN or infinity among "
                    "them. Fetch or train it again"
                )
            raise EngineError(
                f"the LoRA makes {name!r} too large for {base.dtype}; lower its strength"
            )
        return data(fused.t() if place.transposed else fused)

    def _constant(self, place: Initializer) -> onnx.TensorProto:
        name = place.name
        if name not in self._constants:
            raise Corrupt(f"the graph must hold {name!r}, as its map says. Export the model again")
        constant = self._constants[name]
        shape = tuple(constant.dims)
        if (
            constant.data_type not in TORCH_TYPES
            or 0 in shape
            or (place.transposed and len(shape) != 2)
        ):
            kind = "floats with 2 axes" if place.transposed else "floats"
            raise Corrupt(
                f"the graph's {name!r} must be {kind}, as its map says; got ONNX's type "
                f"{constant.data_type} and shape {shape}. Export the model again"
            )
        return constant

    def _tensor(self, name: str, content: bytes) -> Tensor:
        import torch

        constant = self._constants[name]
        dtype = getattr(torch, TORCH_TYPES[constant.data_type])
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(tuple(constant.dims))

    def _checked(self, place: Initializer, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if digest != place.sha256:
            raise Corrupt(
                f"weight {place.name!r} must have the SHA-256 {place.sha256[:16]}… that it had at "
                f"export; got {digest[:16]}…. Load the bundle again"
            )


def for_onnxruntime(
    weights: Weights, options: Any, path: Path | None = None
) -> tuple[bytes | str, list[Any]]:
    """What InferenceSession takes to run the graph with its weights as they are now.

    options    SessionOptions, changed where the weights lie beside the graph
    path       the ONNX file, where its weights lie beside it: 2 GB are too many for bytes.
               SessionOptions.add_initializer is no way for other graphs: onnxruntime 1.31 takes
               it for some weights and not for others, without a word
    Returns what to load, and a list that must live as long as the session.
    """
    if path is None:
        return weights.model.SerializeToString(), []
    from onnxruntime import OrtValue

    changed = weights.changed()
    values = [
        OrtValue.ortvalue_from_numpy_with_onnx_type(data_of(tensor), code)
        for tensor, code in zip(changed.values(), map(weights.code, changed), strict=True)
    ]
    if values:
        options.add_external_initializers(list(changed), values)
    return str(path), values


def data_of(tensor: Tensor) -> Any:
    """As a NumPy array; bfloat16, which NumPy has not, as its bits."""
    import torch

    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.contiguous().numpy()


__all__ = ["Weights", "for_onnxruntime"]
