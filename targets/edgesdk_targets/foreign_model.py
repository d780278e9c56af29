"""What an ONNX file from elsewhere may not hold, found in its bytes: tensors that lie in other files, and compiled engines.

A walk over the protobuf encoding (protobuf.dev, Encoding) by the field numbers of onnx.proto, in whatever order and form the
fields come. Standard library only: a board has no onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgesdk_converters.errors import DeviceError, ModelError

COMPILED = (b"EPContext",)
"""Operators that are no operators, but code for an accelerator or the path of it."""
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_INSIDE: tuple[dict[int, int], ...] = (
    {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},  # ModelProto
    {1: _NODE, 5: _TENSOR, 15: _SPARSE},  # GraphProto
    {5: _ATTRIBUTE},  # NodeProto
    {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},  # AttributeProto
    {},  # TensorProto
    {1: _TENSOR, 2: _TENSOR},  # SparseTensorProto
    {7: _NODE, 11: _ATTRIBUTE},  # FunctionProto
    {1: _GRAPH, 2: _GRAPH},  # TrainingInfoProto
)
"""Message by field number, for each message that can hold a tensor or a node."""
_OP_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 4, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64
_MOST_FIELDS = 3_000_000
Field = tuple[int, int, int, int]


def check(data: memoryview) -> None:
    """Raise DeviceError for a model that reaches beyond its own bytes, ModelError for what is no ONNX file."""
    if bytes(data[4:8]) == b"ORTM":
        raise _refused("ONNX Runtime's own format")
    waiting, count = [(_MODEL, 0, len(data), 0)], 0
    while waiting:
        kind, begin, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ModelError(f"the model has graphs in graphs {depth} deep", "export it again")
        for number, wire, value, stop in _fields(data, begin, end):
            count += 1
            if count > _MOST_FIELDS:
                raise ModelError(f"the model has more than {_MOST_FIELDS} fields", "simplify it")
            inside = _INSIDE[kind].get(number)
            if inside is not None and wire == _BYTES:
                waiting.append((inside, value, stop, depth + 1))
            elif kind == _TENSOR and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                raise _refused("tensors that lie in other files")
            elif kind == _NODE and number == _OP_TYPE and bytes(data[value:stop]) in COMPILED:
                raise _refused("a compiled engine")


def _refused(told: str) -> DeviceError:
    return DeviceError(f"the model holds {told}, which is not taken from elsewhere", "export it as one ONNX file")


def _fields(data: memoryview, begin: int, end: int) -> Iterator[Field]:
    """Number, wire type, and value of each field of a message; of bytes where they begin and end."""
    while begin < end:
        tag, begin = _varint(data, begin, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, begin = _varint(data, begin, end)
            yield number, wire, value, begin
            continue
        if wire == _BYTES:
            length, begin = _varint(data, begin, end)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ModelError(f"the model is no ONNX file: field {number} has wire type {wire}", "export it again")
        if length > end - begin:
            raise ModelError("the model is no ONNX file: a field is longer than what holds it", "export it again")
        yield number, wire, begin, begin + length
        begin += length


def _varint(data: memoryview, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ModelError("the model is no ONNX file: a number has no end", "export it again")
