"""Layer normalisation and GELU that a graph spells out, as older exporters do, each as one node again.

Fixed point needs it: rounded step by step, a variance, its root or the square root of two would lose what the whole keeps.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra
from .graph import fresh_names
from .model import Model, Step

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
OPSETS = {"LayerNormalization": 17, "Gelu": 20}
"""The first with these operators."""
CLIP_OPSET = 12
"""The first whose Clip takes what it does from inputs, for every type of number."""
CLOSE = 1e-4
"""How far, relative to it, a stored number may be from the square root of two: half floats are."""


def joined(model: Model, keep: Collection[str] = ()) -> Model:
    """The model with each of these chains as one node, which has the name of the chain's last node and its result:

    ReduceMean, Sub, Pow or Mul, ReduceMean, Add, Sqrt, Div[, Mul[, Add]] over the last axis: LayerNormalization;
    Div or Mul by the square root of two or its inverse, Erf, Add 1, Mul, Mul by a half: Gelu.
    Chains of which something else is read, and those with a node named in `keep`, stay, and so do all of an operator that the
    model's opset does not have where it cannot be raised. Max and Min of a stored number become the Clip that they are.
    """
    model = _bounded(model, keep)
    for kind in OPSETS:
        chains = _chains(model, kind, keep)
        raised = _raised(model, OPSETS[kind]) if chains else None
        if raised is not None:
            model = _rewritten(raised, chains if raised is model else _chains(raised, kind, keep))
    return model


def _bounded(model: Model, keep: Collection[str]) -> Model:
    """The model with Max and Min of a tensor and one stored number as Clip."""
    if model.opset < CLIP_OPSET:
        return model
    proto = model.copy_proto()
    graph = _Graph(model)
    fresh = fresh_names(proto)
    count = 0
    for node in proto.graph.node:
        if node.op_type not in ("Max", "Min") or node.name in keep or len(node.input) != 2:
            continue
        held = [graph.values(name) for name in node.input]
        bounds = [values for values in held if values is not None and values.size == 1 and values.dtype == np.float32]
        source = [name for name, values in zip(node.input, held, strict=True) if values is None]
        if len(bounds) != 1 or len(source) != 1 or bounds[0].ndim > graph.ranks.get(source[0], 0):
            continue
        bound = fresh(f"{node.output[0]}/bound")
        proto.graph.initializer.append(numpy_helper.from_array(bounds[0].reshape(()), bound))
        read = [source[0], bound] if node.op_type == "Max" else [source[0], "", bound]
        node.CopyFrom(helper.make_node("Clip", read, list(node.output), name=node.name))
        count += 1
    return model.changed(proto, Step("join Clip", note=f"{count} Max or Min, each a Clip now")) if count else model


def _rewritten(model: Model, chains: list[_Chain]) -> Model:
    proto = model.copy_proto()
    graph = proto.graph
    fresh = fresh_names(proto)
    for chain in chains:
        gone = {name for node in chain.nodes for name in node.output}
        last = chain.nodes[-1]
        at = next(place for place, node in enumerate(graph.node) if last.output[0] in node.output)
        read = [chain.source]
        for wished, values in chain.stored.items():
            read.append(fresh(f"{last.output[0]}/{wished}"))
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), read[-1]))
        made = helper.make_node(chain.kind, read, [last.output[0]], name=last.name, **chain.options)
        graph.node.insert(at, made)
        for node in [node for node in graph.node if node is not graph.node[at] and gone.intersection(node.output)]:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model.changed(proto, Step(f"join {chains[0].kind}", note=f"{len(chains)} spelt out, each one node now"))


@dataclass(frozen=True)
class _Chain:
    """Nodes in order, what they read, and the node that they are: stored inputs by name, options."""

    kind: str
    nodes: tuple[onnx.NodeProto, ...]
    source: str
    stored: dict[str, Array]
    options: dict[str, Any]


class _Graph:
    """Who makes and who reads what, and what is stored."""

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.outputs = {output.name for output in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        infos = (*graph.value_info, *graph.input, *graph.output)
        self.ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in infos}
        self.sizes = {info.name: info.type.tensor_type.shape.dim[-1].dim_value for info in infos if self.ranks[info.name]}

    def values(self, name: str) -> Array | None:
        """Stored numbers, also those of a Constant node."""
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Constant":
            return None
        held = next((a.t for a in maker.attribute if a.name == "value"), None)
        return None if held is None else numpy_helper.to_array(held)

    def only_reader(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, if it is of that kind and nobody else sees the tensor."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.outputs
        return readers[0] if alone and readers[0].op_type == kind else None

    def is_mean(self, node: onnx.NodeProto | None) -> bool:
        """Whether it takes the mean over the last axis, and keeps that."""
        rank = 0 if node is None else self.ranks.get(node.input[0], 0)
        if node is None or node.op_type != "ReduceMean" or not rank:
            return False
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        stored = self.values(node.input[1]) if len(node.input) > 1 else None
        axes = given.get("axes", [] if stored is None else [int(one) for one in stored.ravel()])
        return len(axes) == 1 and axes[0] % rank == rank - 1 and bool(given.get("keepdims", 1))

    def beside(self, node: onnx.NodeProto, name: str) -> Array | None:
        """The stored values that a node takes beside a tensor."""
        others = [one for one in node.input if one != name]
        return self.values(others[0]) if len(node.input) == 2 and len(others) == 1 else None


def _chains(model: Model, kind: str, keep: Collection[str]) -> list[_Chain]:
    graph = _Graph(model)
    begins, find = {"LayerNormalization": ("Div", _layer_norm), "Gelu": ("Erf", _gelu)}[kind]
    found = [find(graph, node) for node in model.proto.graph.node if node.op_type == begins]
    return [chain for chain in found if chain is not None and not any(node.name in keep for node in chain.nodes)]


def _gelu(graph: _Graph, erf: onnx.NodeProto) -> _Chain | None:
    """x * (1 + erf(x / sqrt(2))) / 2, whatever order the factors come in."""
    scaled = graph.makers.get(erf.input[0])
    if scaled is None or scaled.op_type not in ("Div", "Mul"):
        return None
    source = next((name for name in scaled.input if graph.values(name) is None), None)
    if source is None or (scaled.op_type == "Div" and source != scaled.input[0]):
        return None
    root = math.sqrt(2) if scaled.op_type == "Div" else math.sqrt(0.5)
    add = graph.only_reader(erf.output[0], "Add")
    if add is None or not _is_number(graph.beside(scaled, source), root) or not _is_number(graph.beside(add, erf.output[0]), 1):
        return None
    first = graph.only_reader(add.output[0], "Mul")
    second = None if first is None else graph.only_reader(first.output[0], "Mul")
    if first is None or second is None:
        return None
    others = [[name for name in node.input if name != last] for node, last in ((first, add.output[0]), (second, first.output[0]))]
    if sorted(len(names) for names in others) != [1, 1]:
        return None
    (one,), (two,) = others
    halves = [name for name in (one, two) if _is_number(graph.values(name), 0.5)]
    alone = graph.only_reader(scaled.output[0], "Erf") is not None
    if len(halves) != 1 or source not in (one, two) or not alone:
        return None
    return _Chain("Gelu", (scaled, erf, add, first, second), str(source), {}, {})


def _is_number(values: Array | None, wanted: float) -> bool:
    return values is not None and values.size == 1 and abs(float(values.ravel()[0]) / wanted - 1) < CLOSE


def _layer_norm(graph: _Graph, div: onnx.NodeProto) -> _Chain | None:
    """The chain whose quotient this is."""
    before = _before(graph, div)
    if before is None:
        return None
    nodes, source, epsilon = before
    size, rank = graph.sizes.get(source, 0), graph.ranks[source]
    stored: dict[str, Array] = {"scale": np.ones(size, np.float32)}
    nodes = [*nodes, div]
    mul = graph.only_reader(div.output[0], "Mul")
    held = None if mul is None else graph.beside(mul, div.output[0])
    if mul is not None and held is not None and _is_row(held, size, rank):
        nodes, stored["scale"] = [*nodes, mul], np.broadcast_to(held.reshape(-1), (size,))
    add = graph.only_reader(nodes[-1].output[0], "Add")
    held = None if add is None else graph.beside(add, nodes[-1].output[0])
    if add is not None and held is not None and _is_row(held, size, rank):
        nodes, stored["added"] = [*nodes, add], np.broadcast_to(held.reshape(-1), (size,))
    return _Chain("LayerNormalization", tuple(nodes), source, stored, {"axis": -1, "epsilon": epsilon}) if size else None


def _before(graph: _Graph, div: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str, float] | None:
    """What leads to a quotient of distances from a mean and their deviation: the nodes, their source, epsilon."""
    makers = graph.makers
    sub, root = makers.get(div.input[0]), makers.get(div.input[1])
    if sub is None or sub.op_type != "Sub" or root is None or root.op_type != "Sqrt":
        return None
    add = makers.get(root.input[0])
    if add is None or add.op_type != "Add":
        return None
    variance = next((makers[name] for name in add.input if graph.is_mean(makers.get(name))), None)
    epsilon = None if variance is None else graph.beside(add, variance.output[0])
    square = None if variance is None else makers.get(variance.input[0])
    mean = makers.get(sub.input[1])
    if variance is None or epsilon is None or epsilon.size != 1 or square is None or mean is None:
        return None
    if not _is_square(graph, square, sub.output[0]) or not graph.is_mean(mean) or mean.input[0] != sub.input[0]:
        return None
    nodes = [mean, sub, square, variance, add, root]
    readers = {id(reader) for reader in graph.readers.get(sub.output[0], [])}
    seen_once = all(len(graph.readers[node.output[0]]) == 1 for node in (mean, square, variance, add, root))
    outside = any(node.output[0] in graph.outputs for node in nodes)
    if outside or not seen_once or readers != {id(square), id(div)}:
        return None
    return nodes, str(sub.input[0]), float(epsilon.ravel()[0])


def _is_square(graph: _Graph, node: onnx.NodeProto, name: str) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [name, name]
    power: Array | None = graph.beside(node, name) if node.op_type == "Pow" and node.input[0] == name else None
    return power is not None and power.size == 1 and float(power.ravel()[0]) == 2.0


def _is_row(values: Array, size: int, rank: int) -> bool:
    """Whether stored values differ along the last axis alone, and give what they meet no more axes than its `rank`."""
    one_row = values.size == 1 or values.size == size == values.shape[-1]
    return values.dtype == np.float32 and values.ndim <= rank and one_row


def _raised(model: Model, opset: int) -> Model | None:
    """The model at an opset that has the operator, itself where it is there already, None where it cannot be raised."""
    if model.opset >= opset:
        return model
    try:
        return model.changed(version_converter.convert_version(model.copy_proto(), opset))
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return None
