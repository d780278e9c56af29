"""Puts an encoder, a payload and a decoder into a graph, in the place of what was before the cut or behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import graph as graphs
from ..bottleneck import ENDING
from ..errors import MissingExtra, PassError
from ..model import Model
from ..payload import pack
from .design import steps

try:
    import onnx
    from onnx import helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

_FAILURES = (RuntimeError, ValueError, onnx.checker.ValidationError)


@dataclass(frozen=True)
class Parts:
    """What is joined: `front` (None where the encoder reads the input), encoder, decoder, and the rest behind the cut."""

    front: Model | None
    encoder: Model
    decoder: Model
    rest: Model


def raised(model: Model, opset: int, what: str) -> Model:
    """The model at this opset or newer. Raises PassError where it cannot be raised."""
    if model.opset >= opset:
        return model
    try:
        return model.changed(version_converter.convert_version(model.copy_proto(), opset))
    except _FAILURES as error:
        told = f"{what} has opset {model.opset} and cannot be raised to {opset}: {' '.join(str(error).split())[:200]}"
        raise PassError("bottleneck", told, f"export the model again with opset {opset} or newer") from error


def joined(whole: Model, parts: Parts, at: str, bits: int) -> tuple[onnx.ModelProto, str]:
    """One graph with the signature of `whole`, and the name of the tensor that crosses in it."""
    proto = whole.copy_proto()
    graph = proto.graph
    kept = [parts.rest] if parts.front is None else [parts.front, parts.rest]
    versions = {
        entry.domain: entry.version for part in (*kept, parts.encoder, parts.decoder) for entry in part.proto.opset_import
    }
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    proto.ir_version = max(part.proto.ir_version for part in (*kept, parts.encoder, parts.decoder))
    for cleared in (graph.node, graph.initializer, graph.value_info):
        del cleared[:]
    rest = parts.rest.copy_proto()
    coded, decoded = f"{at}{ENDING}", f"{at}{ENDING}/decoded"
    for inner in graphs.all_graphs(rest):
        for node in inner.node:
            node.input[:] = [decoded if name == at else name for name in node.input]
    source = at if parts.front is not None else graph.input[0].name
    if parts.front is not None:
        _take(graph, parts.front.copy_proto().graph)
    _take(graph, _within(parts.encoder, f"{at}{ENDING}/encoder/", source, coded))
    _take(graph, _within(parts.decoder, f"{at}{ENDING}/decoder/", coded, decoded))
    _take(graph, rest.graph)
    shape = parts.encoder.signature.outputs[0].shape
    graph.value_info.append(helper.make_tensor_value_info(coded, onnx.TensorProto.FLOAT, list(shape)))
    if bits == 32:
        return proto, coded
    scale, zero = steps(bits)
    return proto, pack(proto, coded, bits, np.float32(scale), zero, [int(dim) for dim in shape])


def _take(graph: onnx.GraphProto, part: onnx.GraphProto) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    graph.initializer.extend(tensor for tensor in part.initializer if tensor.name not in stored)
    graph.node.extend(node for node in part.node if not made & set(node.output))


def _within(part: Model, prefix: str, given: str, result: str) -> onnx.GraphProto:
    """The graph of a part that has one input and one output, these renamed, all else with a prefix."""
    graph = part.copy_proto().graph
    names = {graph.input[0].name: given, graph.output[0].name: result, "": ""}
    if graph.output[0].name == graph.input[0].name:
        raise PassError("bottleneck", "an encoder or decoder that does nothing", "give modules that compute something")
    _rename(graph, names, prefix)
    return graph


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str) -> None:
    def new(values: Sequence[str]) -> list[str]:
        return [names.get(name, f"{prefix}{name}") for name in values]

    for tensor in graph.initializer:
        (tensor.name,) = new([tensor.name])
    for node in graph.node:
        node.name = f"{prefix}{node.name}"
        node.input[:], node.output[:] = new(node.input), new(node.output)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _rename(inner, names, prefix)
