"""An .onnx file from elsewhere, looked at before any runtime gets it.

`check` reads the protobuf itself (wire.py), so that nothing of the file is parsed by native code
until its fields, operators (operators.py) and tensors (tensors.py) are permitted; then it asks
onnx.checker.  `check_ports` compares with the manifest.  No shape is inferred and no node is run.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.engine import operators, tensors
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible, Untrusted
from fastdiff.engine.manifest import Graph
from fastdiff.engine.wire import Message, Reader

MOST_BYTES = (1 << 31) - 1  # what a protobuf message may have
MOST_NODES = 200_000
IR_VERSIONS = range(8, 14)
HERE = ("", "ai.onnx")  # two names of ONNX's own domain
_KINDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}


@dataclass(frozen=True)
class Port:
    """An input or output: shape of numbers and names, None where the file says nothing."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Seen:
    """What an ONNX file says of itself."""

    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int


def check(path: Path, folder: Path, data: str | None) -> Seen:
    """What the ONNX file at `path` is, if all in it is permitted: Untrusted or Corrupt if not.

    data  name of the one file in `folder` where weights may lie, of a tensor each; None: nowhere
    """
    beside = tensors.Beside(data, _length(folder / data) if data is not None else 0)
    with _mapped(path) as content:
        try:
            seen = _check_model(Reader(content), beside)
        except EngineError as error:
            raise type(error)(f"{path.name}: {error}") from None
    _ask_onnx(path)
    return seen


def check_ports(seen: Seen, graph: Graph) -> None:
    """The opset and ports of the file are those of the manifest: Corrupt if not."""
    if seen.opset != graph.opset:
        raise Corrupt(f"{graph.file} must be of opset {graph.opset}; got {seen.opset}")
    for what, ports, wanted in (
        ("inputs", seen.inputs, graph.inputs),
        ("outputs", seen.outputs, graph.outputs),
    ):
        got = [(port.name, port.dtype, port.shape) for port in ports]
        manifest = [(port.name, port.dtype, tuple(port.shape)) for port in wanted]
        for there, here in zip(got, manifest, strict=False):
            if there != here:
                raise Corrupt(
                    f"{what} of {graph.file} must be as in the manifest, {here!r:.160}; "
                    f"got {there!r:.160}"
                )
        if len(got) != len(manifest):
            raise Corrupt(
                f"{graph.file} must have {len(manifest)} {what} as in the manifest; got {len(got)}"
            )


def _length(path: Path) -> int:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise Corrupt(f"{path.name} must be there; {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted(f"{path.name} must be a plain file, not a link or another thing")
    return found.st_size


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a plain file, not copied."""
    length = _length(path)
    if not 0 < length <= MOST_BYTES:
        raise Corrupt(f"{path.name} must have 1 .. {MOST_BYTES} bytes; got {length}")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Corrupt(f"{path.name} must be readable; {error.strerror}") from None
    try:
        content = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    yield content  # not closed here: arrays that look into it may live in a traceback


def _check_model(reader: Reader, beside: tensors.Beside) -> Seen:
    model = reader.message("Model", 0, len(reader.data))
    if model.get("ir_version") not in IR_VERSIONS:
        raise Incompatible(
            f"the ONNX file must be of IR version {IR_VERSIONS[0]} .. {IR_VERSIONS[-1]}; got "
            f"{model.get('ir_version')}. Export it again"
        )
    graph: Message = model.get("graph", {})
    opset = _opset(model)
    nodes: list[Message] = graph.get("node", [])
    if not 0 < len(nodes) <= MOST_NODES:
        raise Corrupt(f"a graph must have 1 .. {MOST_NODES} nodes; got {len(nodes)}")
    constants: dict[str, NDArray[Any]] = {}
    names: set[str] = set()
    for tensor in graph.get("initializer", []):
        name = tensor.get("name", "")
        if not name or name in names:
            raise Corrupt(f"initializers must have names of their own; got {name!r:.80} again")
        names.add(name)
        tensors.check(reader.data, tensor, beside)
        _keep(constants, name, tensors.values(reader, tensor))
    beside.check()
    for node in nodes:
        _check_node(reader, node, constants)
    return Seen(
        opset,
        tuple(_port(value) for value in graph.get("input", [])),
        tuple(_port(value) for value in graph.get("output", [])),
        len(nodes),
    )


def _keep(constants: dict[str, NDArray[Any]], name: str, value: NDArray[Any] | None) -> None:
    if value is not None:
        constants[name] = value


def _opset(model: Message) -> int:
    found = [
        entry.get("version", 0)
        for entry in model.get("opset_import", [])
        if entry.get("domain", "") in HERE
    ]
    if len(found) != 1:
        raise Corrupt(f"the ONNX file must import one opset of ONNX; got {found[:4]}")
    return int(found[0])


def _check_node(reader: Reader, node: Message, constants: dict[str, NDArray[Any]]) -> None:
    op, domain, name = node.get("op_type", ""), node.get("domain", ""), node.get("name", "")
    if domain not in HERE or node.get("overload"):
        raise Untrusted(
            f"node {name!r:.80} must be an operator of ONNX itself; got {op!r:.60} of the domain "
            f"{domain!r:.60}. Export without custom operators"
        )
    if op not in operators.PERMITTED:
        raise Untrusted(
            f"node {name!r:.80} must be an operator that a bundle may have; got {op!r:.60}. Export "
            "the model with fastdiff, or run a graph you trust in ONNX Runtime itself"
        )
    numbers: dict[str, list[int]] = {}
    held: dict[str, Any] = {}
    for attribute in node.get("attribute", []):
        key = attribute.get("name", "")
        field = _KINDS.get(attribute.get("type", 0))
        others = [other for other in _KINDS.values() if other in attribute and other != field]
        if field is None or others or key in held:
            raise Corrupt(f"attribute {key!r:.60} of node {name!r:.80} must hold one kind of value")
        held[key] = attribute.get(field)
        if field == "t":
            tensors.check(reader.data, attribute.get("t", {}), None)
        elif field in ("i", "ints"):
            numbers[key] = attribute.get("ints", []) if field == "ints" else [attribute.get("i", 0)]
    operators.check_attributes(op, numbers)
    operators.check_constants(op, [constants.get(operand) for operand in node.get("input", [])])
    if op == "Constant" and len(node.get("output", [])) == 1:
        _keep(constants, node["output"][0], _constant(reader, held, numbers))


def _constant(
    reader: Reader, held: dict[str, Any], numbers: dict[str, list[int]]
) -> NDArray[Any] | None:
    """What a Constant node is, where that is numbers."""
    if isinstance(held.get("value"), dict):
        return tensors.values(reader, held["value"])
    for key in ("value_int", "value_ints"):
        if key in numbers:
            return np.array(numbers[key], np.int64)
    for key in ("value_float", "value_floats"):
        if held.get(key) is not None:
            return np.array(held[key], np.float32).reshape(-1)
    return None


def _port(value: Message) -> Port:
    tensor = value.get("type", {}).get("tensor_type")
    kind = tensors.KINDS.get(tensor.get("elem_type", 0)) if tensor is not None else None
    if tensor is None or kind is None:
        raise Untrusted(f"port {value.get('name', '')!r:.80} must be a tensor of numbers")
    shape: tuple[int | str | None, ...] | None = None
    if "shape" in tensor:
        dims = tensor["shape"].get("dim", [])
        shape = tuple(dim.get("dim_value", dim.get("dim_param")) for dim in dims)
    return Port(value.get("name", ""), kind.name, shape)


def _ask_onnx(path: Path) -> None:
    """onnx.checker, which reads the file again; whatever it raises is about the file."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        said = " ".join(str(error).split())
        raise Corrupt(f"{path.name} must be a model that onnx.checker takes: {said:.300}") from None


__all__ = ["Port", "Seen", "check", "check_ports"]
