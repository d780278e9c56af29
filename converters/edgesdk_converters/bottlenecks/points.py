"""Operating points: a tail that takes the first few channels of a bottleneck, so that fewer bytes cross than were learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .. import graph as graphs
from ..bottleneck import ENDING
from ..errors import MissingExtra, ModelError
from ..model import Model, Step
from ..payload import ENDING as PAYLOAD

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error


def width_of(point: int, coded: Sequence[int], bits: int) -> int:
    """How long the second axis of what crosses is at an operating point: in channels, or in bytes where codes are packed."""
    if bits in (8, 32):
        return point
    return math.ceil(point * math.prod(coded[2:]) * bits / 8)


def narrowed(tail: Model, point: int, coded: Sequence[int], bits: int) -> Model:
    """The tail of a network with a bottleneck of shape `coded`, for its first `point` channels: the others are zero.

    Its input has the name that it had, and the first part of it along the second axis. Raises ModelError for more channels than
    there are.
    """
    if not 1 <= point <= coded[1]:
        raise ModelError(f"an operating point of {point} channels; the bottleneck has {coded[1]}")
    proto = tail.copy_proto()
    graph = proto.graph
    name = graph.input[0].name
    kind = graph.input[0].type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim]
    kept = width_of(point, coded, bits)
    missing = [dims[0], dims[1] - kept, *dims[2:]]
    fresh = graphs.fresh_names(proto)
    whole, rest = fresh(f"{name}/whole"), fresh(f"{name}/rest")
    _read(graph, name, whole)
    if missing[1]:
        filled = np.zeros(missing, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if bits < 32:
            filled[...] = _nothing(coded, bits)[-missing[1] :].reshape(1, -1) if bits < 8 else 1 << bits - 1
        graph.initializer.append(numpy_helper.from_array(filled, rest))
        graph.node.insert(0, helper.make_node("Concat", [name, rest], [whole], name=whole, axis=1))
    else:
        graph.node.insert(0, helper.make_node("Identity", [name], [whole], name=whole))
    kind.shape.dim[1].dim_value = kept
    if bits < 8 and point < coded[1] and point * math.prod(coded[2:]) * bits % 8:
        _mask(graph, name.removesuffix(PAYLOAD) + "/restored", point, coded, fresh)
    graph.value_info.append(helper.make_tensor_value_info(whole, kind.elem_type, dims))
    return tail.changed(proto, Step("operating point", {"channels": point}, f"the first {point} of {coded[1]} channels cross"))


def _nothing(coded: Sequence[int], bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of a payload in which each code says zero."""
    code, count = 1 << bits - 1, math.prod(coded)
    stream = np.tile(np.array([code >> place & 1 for place in range(bits)], np.uint8), count)
    return np.packbits(stream, bitorder="little")


def _mask(graph: onnx.GraphProto, restored: str, point: int, coded: Sequence[int], fresh: Callable[[str], str]) -> None:
    """The last byte of a narrow payload holds bits of the next channel: they are multiplied by zero."""
    made = next((node for node in graph.node if restored in node.output), None)
    if made is None:
        raise ModelError(f"{restored!r} is no tensor of the tail: it has no payload of a bottleneck ({ENDING})")
    masked, mask = fresh(f"{restored}/masked"), fresh(f"{restored}/mask")
    _read(graph, restored, masked)
    kept = (np.arange(coded[1]) < point).astype(np.float32).reshape(1, -1, *[1] * (len(coded) - 2))
    graph.initializer.append(numpy_helper.from_array(kept, mask))
    place = list(graph.node).index(made) + 1
    graph.node.insert(place, helper.make_node("Mul", [restored, mask], [masked], name=masked))
    graph.value_info.append(helper.make_tensor_value_info(masked, TensorProto.FLOAT, list(coded)))


def _read(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
