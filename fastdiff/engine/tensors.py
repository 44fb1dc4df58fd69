"""The tensors of an .onnx file: their bytes are all there, in it or in the one file beside it.

A tensor that claims more elements than it has bytes, whose weights lie at another place than the
manifest says, or that shares bytes with another one (a small file that asks for much memory) is
refused.  Nothing here copies weights but `values`, of small constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.engine.errors import Corrupt, Untrusted
from fastdiff.engine.wire import BYTES, Message, Reader, signed

MOST_DIMS = 16
SMALL = 1 << 16  # elements of a constant that is looked into


@dataclass(frozen=True)
class Kind:
    """A data type: its name in NumPy's words, bytes of an element, where typed numbers lie."""

    name: str
    bytes: int
    typed: str


KINDS = {
    1: Kind("float32", 4, "float_data"),
    2: Kind("uint8", 1, "int32_data"),
    3: Kind("int8", 1, "int32_data"),
    6: Kind("int32", 4, "int32_data"),
    7: Kind("int64", 8, "int64_data"),
    9: Kind("bool", 1, "int32_data"),
    10: Kind("float16", 2, "int32_data"),
    11: Kind("float64", 8, "double_data"),
    16: Kind("bfloat16", 2, "int32_data"),
}
_TYPED = ("float_data", "int32_data", "int64_data", "double_data")
_FIXED = {"float_data": 4, "double_data": 8}
EXTERNAL = 1


@dataclass
class Beside:
    """The file of weights beside a graph: its name, its length, and what of it was spoken for."""

    name: str | None
    length: int = 0
    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def check(self) -> None:
        """No two tensors may be the same bytes: Untrusted."""
        self.spans.sort()
        for (_, end, first), (start, _, second) in zip(self.spans, self.spans[1:], strict=False):
            if start < end:
                raise Untrusted(
                    f"tensors {first!r:.80} and {second!r:.80} must not share bytes of {self.name}"
                )


def check(data: bytes | mmap, tensor: Message, beside: Beside | None) -> None:
    """One tensor; beside None where weights may not lie elsewhere: Corrupt or Untrusted."""
    name = tensor.get("name", "")
    dims, kind = tensor.get("dims", []), KINDS.get(tensor.get("data_type", 0))
    if kind is None:
        raise Untrusted(
            f"tensor {name!r:.80} must be of a permitted type ({_known()}); got number "
            f"{tensor.get('data_type', 0)} of ONNX"
        )
    if len(dims) > MOST_DIMS or any(side < 0 for side in dims):
        raise Corrupt(f"dims of tensor {name!r:.80} must be at most {MOST_DIMS} numbers >= 0")
    wanted = prod(dims) * kind.bytes
    if tensor.get("data_location", 0) == EXTERNAL:
        _check_external(tensor, name, wanted, beside)
    elif tensor.get("data_location", 0) != 0 or "external_data" in tensor:
        raise Untrusted(f"tensor {name!r:.80} must say whether its weights lie in the ONNX file")
    else:
        _check_embedded(data, tensor, name, wanted, kind)


def _check_embedded(
    data: bytes | mmap, tensor: Message, name: str, wanted: int, kind: Kind
) -> None:
    sources = [source for source in ("raw_data", *_TYPED) if source in tensor]
    if len(sources) > 1 or any(source not in ("raw_data", kind.typed) for source in sources):
        raise Corrupt(f"tensor {name!r:.80} must have {kind.name} in one field; got {sources}")
    if sources == ["raw_data"]:
        start, end = tensor["raw_data"]
        got = end - start
    else:
        got = sum(_count(data, kind.typed, *span) for span in tensor.get(kind.typed, []))
        got *= kind.bytes
    if got != wanted:
        raise Corrupt(f"tensor {name!r:.80} must have {wanted} bytes for its dims; got {got}")


def _count(data: bytes | mmap, typed: str, wire: int, a: int, b: int) -> int:
    """Numbers in a span of them."""
    if typed in _FIXED:
        return (
            1 if wire != BYTES else (b - a) // _FIXED[typed] if (b - a) % _FIXED[typed] == 0 else -1
        )
    if wire != BYTES:
        return 1
    spanned = np.frombuffer(data, np.uint8, b - a, a)
    return int((spanned < 128).sum())  # a varint ends where the high bit is off


def _check_external(tensor: Message, name: str, wanted: int, beside: Beside | None) -> None:
    if beside is None:
        raise Untrusted(f"tensor {name!r:.80} of a node must have its numbers in the ONNX file")
    if any(source in tensor for source in ("raw_data", *_TYPED)):
        raise Corrupt(f"tensor {name!r:.80} must lie in the ONNX file or beside it; it does both")
    entries = [
        (entry.get("key", ""), entry.get("value", "")) for entry in tensor.get("external_data", [])
    ]
    known = dict(entries)
    if len(known) != len(entries) or not known.keys() <= {"location", "offset", "length"}:
        raise Untrusted(
            f"external data of tensor {name!r:.80} must be location, offset and length, once each; "
            f"got {[key for key, _ in entries][:5]!r:.120}"
        )
    location = known.get("location", "")
    if beside.name is None or location != beside.name:
        allowed = "nothing (its manifest names no data)" if beside.name is None else beside.name
        raise Untrusted(
            f"weights of tensor {name!r:.80} must lie in the file that the manifest names, "
            f"{allowed}; got {location!r:.80}"
        )
    offset, length = _whole(known, "offset", name, 0), _whole(known, "length", name, wanted)
    if length != wanted:
        raise Corrupt(f"tensor {name!r:.80} must have {wanted} bytes for its dims; got {length}")
    if offset + length > beside.length:
        raise Corrupt(
            f"tensor {name!r:.80} must end within {beside.name}, {beside.length} bytes; "
            f"got {offset} + {length}"
        )
    if length:
        beside.spans.append((offset, offset + length, name))


def _whole(entries: dict[str, str], key: str, name: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Corrupt(f"{key} of tensor {name!r:.80} must be a whole number; got {text!r:.40}")
    return int(text)


def values(reader: Reader, tensor: Message) -> NDArray[Any] | None:
    """The numbers of a small checked tensor in the file; None for others, float16 and bfloat16."""
    kind, count = KINDS[tensor["data_type"]], prod(tensor.get("dims", []))
    outside = tensor.get("data_location", 0) == EXTERNAL
    if outside or count > SMALL or kind.name in ("float16", "bfloat16"):
        return None
    if "raw_data" in tensor:
        start, end = tensor["raw_data"]
        return np.frombuffer(bytes(reader.data[start:end]), np.dtype(kind.name).newbyteorder("<"))
    spans: Sequence[tuple[int, int, int]] = tensor.get(kind.typed, [])
    if kind.typed in _FIXED:
        whole = b"".join(bytes(reader.data[a:b]) for _, a, b in spans)
        return np.frombuffer(whole, np.dtype(kind.name).newbyteorder("<"))
    numbers: list[int] = []
    for wire, a, b in spans:
        numbers += reader.integers(a, b) if wire == BYTES else [signed(a)]
    return np.array(numbers, np.int64)


def _known() -> str:
    return ", ".join(kind.name for kind in KINDS.values())


__all__ = ["KINDS", "Beside", "check", "values"]
