"""Where a module's parameters went in its ONNX graph: by their bytes, not by guessing at names.

An exporter renames, transposes and merges weights (of 208 parameters of a small U-Net 110 keep
their name).  What it does not change are the numbers, so the map is made at export, by hash, and
travels in the graph's metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fastdiff.engine.errors import Corrupt

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import Tensor

METADATA = "fastdiff.weights"
TORCH_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}  # of TensorProto


@dataclass(frozen=True)
class Initializer:
    """A constant of the graph that holds a parameter; sha256 of its bytes as exported."""

    name: str
    transposed: bool
    sha256: str


@dataclass(frozen=True)
class WeightPlace:
    """Where a parameter is: one initializer, or two (as it is and transposed).

    shared    other parameters that were the same numbers and became the same initializer
    """

    initializers: tuple[Initializer, ...]
    shared: tuple[str, ...] = ()


def weight_map(module: torch.nn.Module, onnx_model: onnx.ModelProto) -> dict[str, WeightPlace]:
    """The place of every parameter of `module` that the graph holds, by its name in the module.

    onnx_model    exported from the module in its dtype, its external data loaded
    """
    by_content: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for constant in onnx_model.graph.initializer:
        if constant.data_type in TORCH_TYPES and len(constant.dims) > 0:
            key = tuple(constant.dims), _sha256(raw(constant))
            by_content.setdefault(key, []).append(constant.name)
    found: dict[str, tuple[Initializer, ...]] = {}
    users: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters():
        places: dict[str, Initializer] = {}
        for transposed in (False, True)[: parameter.ndim]:
            if transposed and parameter.ndim != 2:
                continue
            tensor = parameter.detach().t() if transposed else parameter.detach()
            digest = _sha256(data(tensor))
            for constant_name in by_content.get((tuple(tensor.shape), digest), ()):
                places.setdefault(constant_name, Initializer(constant_name, transposed, digest))
        if places:
            found[name] = tuple(places.values())
            for constant_name in places:
                users.setdefault(constant_name, []).append(name)
    return {name: _place(name, places, users) for name, places in found.items()}


def _place(
    name: str, places: tuple[Initializer, ...], users: Mapping[str, list[str]]
) -> WeightPlace:
    """Equal parameters: each its own initializer where all go by their names, else shared."""
    alike = users[places[0].name]
    if len(alike) > 1:
        names = {place.name: [p for p in alike if _named(place.name, p)] for place in places}
        owners = [owner[0] for owner in names.values() if len(owner) == 1]
        if len(owners) < len(places) or set(owners) != set(alike):
            return WeightPlace(places, tuple(other for other in alike if other != name))
        places = tuple(place for place in places if names[place.name] == [name])
    return WeightPlace(places)


def _named(constant: str, parameter: str) -> bool:
    return constant == parameter or constant.endswith("." + parameter)


def write(model: onnx.ModelProto, places: Mapping[str, WeightPlace]) -> None:
    """Keep the map in the graph's metadata."""
    text = json.dumps({name: asdict(place) for name, place in places.items()}, sort_keys=True)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA, value=text)


def read(model: onnx.ModelProto) -> dict[str, WeightPlace]:
    """The map of `write`; empty for a graph without one, Corrupt for one that is not whole."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA), "{}")
    try:
        places = {
            str(name): WeightPlace(
                tuple(
                    Initializer(str(i["name"]), bool(i["transposed"]), str(i["sha256"]))
                    for i in place["initializers"]
                ),
                tuple(map(str, place["shared"])),
            )
            for name, place in json.loads(text).items()
        }
        if nowhere := [name for name, place in places.items() if not place.initializers]:
            raise ValueError(f"{nowhere[0]!r:.40} is nowhere")  # a LoRA of it would do nothing
        return places
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Corrupt(
            f"the graph's {METADATA} must be a map of weights ({type(error).__name__}: "
            f"{error!s:.80}). Export the model again"
        ) from None


def size(model: onnx.ModelProto) -> int:
    """Bytes of the weights that are in the model itself.

    protobuf's own ByteSize raises above 2^31, which is what one asks for (seen at 2.4 GB).
    """
    return sum(len(constant.raw_data) for constant in model.graph.initializer)


def raw(constant: onnx.TensorProto) -> bytes:
    """The bytes of an initializer, row by row, little-endian."""
    if constant.data_location == 1:  # EXTERNAL
        raise ValueError(
            f"onnx_model must have its external data loaded; {constant.name!r} is not. "
            "Use onnx.load(path)"
        )
    if constant.HasField("raw_data"):
        return constant.raw_data
    from onnx import numpy_helper

    return numpy_helper.to_array(constant).tobytes()


def data(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row by row."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


__all__ = ["Initializer", "WeightPlace", "read", "weight_map", "write"]
