"""Questions asked of an ONNX graph: its nodes, tensors and types, subgraphs included. Only `store_constants` changes a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx

from .signature import Dim

ROTATION = "/rotate"
"""How the names of nodes end that turn what a layer reads, by the pass rotate: their matrices are no weights."""


@dataclass(frozen=True)
class ValueType:
    """Element type (onnx.TensorProto.DataType) and shape of a value; shape None where the rank is unknown."""

    elem_type: int
    shape: tuple[Dim, ...] | None

    @property
    def elements(self) -> int | None:
        """Number of elements, None where a dimension is not fixed."""
        if self.shape is None:
            return None
        sizes = [dim for dim in self.shape if isinstance(dim, int)]
        return math.prod(sizes) if len(sizes) == len(self.shape) else None

    @property
    def nbytes(self) -> int | None:
        """Size in bytes, None where a dimension is not fixed."""
        count = self.elements
        return None if count is None else math.ceil(count * item_bits(self.elem_type) / 8)


_NAMES: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT8E8M0": 8,
    "UINT2": 2, "INT2": 2,
}  # fmt: skip


def item_bits(elem_type: int) -> int:
    """Bits of one element as ONNX stores it; 0 for strings and unknown types."""
    return _BITS.get(type_name(elem_type), 0)


def type_name(elem_type: int) -> str:
    """ONNX's name of an element type, e.g. FLOAT16."""
    return _NAMES.get(elem_type, "?")


def numpy_name(elem_type: int) -> str:
    """numpy's name of an element type, e.g. float16; ONNX's own name in lower case where numpy has none."""
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    name = type_name(elem_type)
    return names.get(name, name.lower())


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every subgraph in it, outermost first."""
    yield graph
    yield from _subgraphs(attribute for node in graph.node for attribute in node.attribute)


def all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph of the model: the main one, training graphs, and all subgraphs, those of local functions included."""
    yield from graphs(model.graph)
    for training in model.training_info:
        yield from graphs(training.initialization)
        yield from graphs(training.algorithm)
    for function in model.functions:
        yield from _subgraphs(attribute for node in function.node for attribute in node.attribute)
        yield from _subgraphs(function.attribute_proto)


def _subgraphs(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    """Subgraphs by the fields that hold them: the declared attribute type of an untrusted file may lie."""
    for attribute in attributes:
        if attribute.HasField("g"):
            yield from graphs(attribute.g)
        for inner in attribute.graphs:
            yield from graphs(inner)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, those of subgraphs and local functions included."""
    for graph in all_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def fresh_names(model: onnx.ModelProto) -> Callable[[str], str]:
    """A function from a wished name to one that no value or node of the model has, nor an earlier answer."""
    taken = {name for node in nodes(model) for name in (*node.input, *node.output, node.name)}
    taken |= {name for graph in all_graphs(model) for name in (tensor.name for tensor in graph.initializer)}

    def fresh(wished: str) -> str:
        found, count = wished, 0
        while found in taken:
            count += 1
            found = f"{wished}/{count}"
        taken.add(found)
        return found

    return fresh


def store_constants(graph: onnx.GraphProto) -> bool:
    """Makes initialisers of the Constant nodes of one graph that hold a tensor; whether there were any."""
    outputs = {output.name for output in graph.output}
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    constants = [node for node in constants if node.output[0] not in outputs]
    for node in constants:
        graph.initializer.append(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    stored = {node.output[0] for node in constants}
    kept = [info for info in graph.value_info if info.name not in stored]
    if len(kept) < len(graph.value_info):
        copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
        del graph.value_info[:]
        graph.value_info.extend(copies)
    return bool(constants)


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor stored in the model, wherever ONNX can store one, with a name that a message can use."""
    for graph in all_graphs(model):
        for tensor in graph.initializer:
            yield tensor.name, tensor
        for sparse in graph.sparse_initializer:
            yield from _parts(sparse.values.name, sparse)
    for node in nodes(model):
        for attribute in node.attribute:
            yield from _held(f"attribute {attribute.name} of node {node_label(node)}", attribute)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _held(f"default of attribute {attribute.name} of function {function.name}", attribute)


def _held(label: str, attribute: onnx.AttributeProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    if attribute.HasField("t"):
        yield label, attribute.t
    for tensor in attribute.tensors:
        yield label, tensor
    for sparse in [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors]:
        yield from _parts(label, sparse)


def _parts(label: str, sparse: onnx.SparseTensorProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield label, sparse.values
    yield f"indices of {label}", sparse.indices


def node_label(node: onnx.NodeProto) -> str:
    """How messages name a node: its name, or its operator and first output where it has none."""
    return node.name or f"{node.op_type}->{node.output[0] if node.output else '?'}"


def value_type(info: onnx.ValueInfoProto) -> ValueType:
    """Type and shape of a value info; a dimension without value or name is `?`."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return ValueType(tensor.elem_type, None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        dims.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?")
    return ValueType(tensor.elem_type, tuple(dims))


def value_types(graph: onnx.GraphProto) -> dict[str, ValueType]:
    """Types of all values of one graph that are known: inputs, outputs, inferred values, initialisers."""
    types = {info.name: value_type(info) for info in (*graph.input, *graph.output, *graph.value_info)}
    for tensor in graph.initializer:
        types[tensor.name] = ValueType(tensor.data_type, tuple(tensor.dims))
    return types


def free_values(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph uses but does not define: what a subgraph takes from outside."""
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    used: set[str] = set()
    for node in graph.node:
        used.update(name for name in node.input if name)
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
                used.update(free_values(inner))
        defined.update(node.output)
    used.update(value.name for value in graph.output)
    return used - defined


def opset(model: onnx.ModelProto, domain: str = "") -> int:
    """The version of an operator set that the model imports; 0 where it does not."""
    names = {"", "ai.onnx"} if domain == "" else {domain}
    return max((int(entry.version) for entry in model.opset_import if entry.domain in names), default=0)
