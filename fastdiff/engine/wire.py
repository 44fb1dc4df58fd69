"""The protobuf of an .onnx file, read by a table of what it may hold.

A field that is not in `MESSAGES` is refused, so what an ONNX runtime of another version would make
of it does not matter: model-local functions, sub-graphs (the bodies of If, Loop and Scan), sparse,
quantised and string tensors, training and device settings are not in it.  With these the messages
cannot contain one another: the depth is that of the table, 6, however a file is made.  A field
that may be there once and is there twice is refused, too: one parser takes the last, another
merges them.  Bytes of weights are not copied: `raw_data` is a span of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from struct import unpack_from
from typing import Any

from fastdiff.engine.errors import Corrupt, Untrusted

Message = dict[str, Any]
Span = tuple[int, int]

MOST_FIELDS = 8_000_000  # 6 s; the U-Net of SDXL has some 300 000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are not read

# name of a field, and its kind: a message of this table, or int, float (of 32 bits), text, bytes (a
# span), packed (spans of numbers, not decoded); "*": any number of times.
_PROPS = ("metadata_props*", "Entry")
MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int"),
        2: ("producer_name", "text"),
        3: ("producer_version", "text"),
        4: ("domain", "text"),
        5: ("model_version", "int"),
        6: ("doc_string", "text"),
        7: ("graph", "Graph"),
        8: ("opset_import*", "Opset"),
        14: _PROPS,
    },
    "Opset": {1: ("domain", "text"), 2: ("version", "int")},
    "Entry": {1: ("key", "text"), 2: ("value", "text")},
    "Graph": {
        1: ("node*", "Node"),
        2: ("name", "text"),
        5: ("initializer*", "Tensor"),
        10: ("doc_string", "text"),
        11: ("input*", "Value"),
        12: ("output*", "Value"),
        13: ("value_info*", "Value"),
        16: _PROPS,
    },
    "Node": {
        1: ("input*", "text"),
        2: ("output*", "text"),
        3: ("name", "text"),
        4: ("op_type", "text"),
        5: ("attribute*", "Attribute"),
        6: ("doc_string", "text"),
        7: ("domain", "text"),
        8: ("overload", "text"),
        9: _PROPS,
    },
    "Attribute": {
        1: ("name", "text"),
        2: ("f", "float"),
        3: ("i", "int"),
        4: ("s", "bytes"),
        5: ("t", "Tensor"),
        7: ("floats*", "float"),
        8: ("ints*", "int"),
        9: ("strings*", "bytes"),
        13: ("doc_string", "text"),
        20: ("type", "int"),
    },
    "Tensor": {
        1: ("dims*", "int"),
        2: ("data_type", "int"),
        4: ("float_data*", "packed"),
        5: ("int32_data*", "packed"),
        7: ("int64_data*", "packed"),
        8: ("name", "text"),
        9: ("raw_data", "bytes"),
        10: ("double_data*", "packed"),
        12: ("doc_string", "text"),
        13: ("external_data*", "Entry"),
        14: ("data_location", "int"),
        16: _PROPS,
    },
    "Value": {1: ("name", "text"), 2: ("type", "Type"), 3: ("doc_string", "text"), 4: _PROPS},
    "Type": {1: ("tensor_type", "TensorType"), 6: ("denotation", "text")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim*", "Dim")},
    "Dim": {1: ("dim_value", "int"), 2: ("dim_param", "text"), 3: ("denotation", "text")},
}
REFUSED = {
    ("Model", 20): "training_info",
    ("Model", 25): "functions; inline them, which onnx.inliner does",
    ("Model", 26): "configuration",
    ("Graph", 14): "quantization_annotation",
    ("Graph", 15): "sparse_initializer",
    ("Node", 10): "device_configurations",
    ("Attribute", 6): "g, a sub-graph",
    ("Attribute", 10): "tensors",
    ("Attribute", 11): "graphs, sub-graphs",
    ("Attribute", 14): "tp, a type",
    ("Attribute", 15): "type_protos",
    ("Attribute", 21): "ref_attr_name",
    ("Attribute", 22): "sparse_tensor",
    ("Attribute", 23): "sparse_tensors",
    ("Tensor", 3): "segment",
    ("Tensor", 6): "string_data",
    ("Tensor", 11): "uint64_data",
    ("Type", 4): "sequence_type",
    ("Type", 5): "map_type",
    ("Type", 7): "opaque_type",
    ("Type", 8): "sparse_tensor_type",
    ("Type", 9): "optional_type",
}
_FIELDS = {
    kind: {number: (name.rstrip("*"), of, name.endswith("*")) for number, (name, of) in row.items()}
    for kind, row in MESSAGES.items()
}


class Reader:
    """Messages of one file; Corrupt where it is no protobuf, Untrusted where it holds more."""

    def __init__(self, data: bytes | mmap) -> None:
        self.data = data
        self.left = MOST_FIELDS

    def message(self, kind: str, start: int, end: int) -> Message:
        """The fields of one message by name: lists where there may be several."""
        found: Message = {}
        for number, wire, a, b in self._fields(start, end):
            if (field := _FIELDS[kind].get(number)) is None:
                what = REFUSED.get((kind, number), "a field unknown here")
                raise Untrusted(
                    f"field {number} of {kind} in the ONNX file must not be there ({what}). Export "
                    "the model with fastdiff, or run a graph you trust in ONNX Runtime itself"
                )
            name, of, several = field
            if several:
                found.setdefault(name, []).extend(self._values(kind, name, of, wire, a, b))
            elif name in found:
                raise Corrupt(f"{name} of {kind} in the ONNX file must be there once")
            else:
                found[name] = self._value(kind, name, of, wire, a, b)
        return found

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type and span of each field; a varint's span is its value, twice."""
        while at < end:
            self._count(1)
            tag, at = self.varint(at, end)
            wire = tag & 7
            if wire == VARINT:
                start, at = self.varint(at, end)
                yield tag >> 3, wire, start, start
                continue
            start = at
            if wire == BYTES:
                length, start = self.varint(at, end)
            else:
                length = {FIXED64: 8, FIXED32: 4}.get(wire, -1)
            at = start + length
            if length < 0 or at > end:
                raise Corrupt(f"the ONNX file must be protobuf; it is not at byte {start}")
            yield tag >> 3, wire, start, at

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned number and where the next thing begins."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1, at
            shift += 7
        raise Corrupt(f"the ONNX file must be protobuf; a number at byte {at} does not end")

    def _count(self, fields: int) -> None:
        self.left -= fields
        if self.left < 0:
            raise Untrusted(f"the ONNX file must have at most {MOST_FIELDS} fields; it has more")

    def _values(self, kind: str, name: str, of: str, wire: int, a: int, b: int) -> list[Any]:
        """Of a repeated field: several where numbers are packed."""
        if of == "packed":
            return [(wire, a, b)]
        if of == "int" and wire == BYTES:
            return self.integers(a, b)
        if of == "float" and wire == BYTES:
            if (b - a) % 4:
                raise Corrupt(
                    f"{name} of {kind} in the ONNX file must hold whole numbers of 4 bytes"
                )
            self._count((b - a) // 4)
            return list(unpack_from(f"<{(b - a) // 4}f", self.data, a))
        return [self._value(kind, name, of, wire, a, b)]

    def integers(self, a: int, b: int) -> list[int]:
        """Packed varints, as signed numbers of 64 bits."""
        found: list[int] = []
        while a < b:
            self._count(1)
            value, a = self.varint(a, b)
            found.append(signed(value))
        return found

    def _value(self, kind: str, name: str, of: str, wire: int, a: int, b: int) -> Any:
        if wire != {"int": VARINT, "float": FIXED32}.get(of, BYTES):
            raise Corrupt(f"{name} of {kind} in the ONNX file must be {of}; got wire type {wire}")
        if of == "int":
            return signed(a)
        if of == "float":
            return unpack_from("<f", self.data, a)[0]
        if of == "bytes":
            return (a, b)
        if of == "text":
            try:
                return self.data[a:b].decode("utf-8")
            except UnicodeDecodeError:
                raise Corrupt(f"{name} of {kind} in the ONNX file must be UTF-8") from None
        return self.message(of, a, b)


def signed(value: int) -> int:
    """What protobuf's int64 means by an unsigned varint."""
    return value - (1 << 64) if value >> 63 else value


__all__ = ["MESSAGES", "MOST_FIELDS", "Message", "Reader", "Span", "signed"]
