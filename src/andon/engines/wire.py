"""A minimal reader of protocol buffers, to check whether an ONNX graph refers to other files.

It avoids the package onnx, which inspection does not need. Specification:
https://protobuf.dev/programming-guides/encoding and onnx.proto of ONNX 1.23, whose field numbers never change.
"""

from collections.abc import Iterator
from typing import NamedTuple

from andon.errors import BundleError

NESTED: dict[str, dict[int, str]] = {  # message → field → nested message, for all that can contain a tensor
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor
VARINT, LENGTH = 0, 2  # wire types: an integer; bytes with their length, such as a message
FIXED = {1: 8, 5: 4}  # wire type → number of bytes


class Field(NamedTuple):
    """One field of a message."""

    number: int
    value: int | memoryview  # 0 for other wire types than VARINT and LENGTH


def check(graph: bytes) -> None:
    """Check that a serialised ONNX graph does not refer to other files, which an engine would read from the disk.

    Errors: BundleError when it does, or when the graph is damaged.
    """
    try:
        external = _is_external(graph)
    except ValueError as error:
        raise BundleError(f"the graph is damaged or not ONNX: {error}. Use the original bundle.") from None
    if external:
        raise BundleError(
            "the graph refers to data in other files (ONNX external data); expected all data in the graph. "
            "Use the original bundle."
        )


def _is_external(model: bytes) -> bool:
    """Whether a model has a tensor whose values are in another file. ValueError when the model is damaged."""
    queue: list[tuple[str, memoryview]] = [("model", memoryview(model))]
    while queue:
        kind, message = queue.pop()
        for field in _fields(message):
            if kind == "tensor" and (field.number == EXTERNAL_DATA or (field.number == DATA_LOCATION and field.value)):
                return True
            inner = NESTED[kind].get(field.number)
            if inner and isinstance(field.value, memoryview):
                queue.append((inner, field.value))
    return False


def _fields(message: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        value: int | memoryview = 0
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire == LENGTH:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire in FIXED:
            at += FIXED[wire]
        else:
            raise ValueError(f"a field of wire type {wire}")
        if at > len(message):
            raise ValueError("a field is longer than its message")
        yield Field(number, value)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read an integer with 7 bits per byte, lowest first; return it and the offset of the next field."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("an integer has no end")
