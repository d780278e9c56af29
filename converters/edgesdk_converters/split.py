"""Split: where a model can be cut, what would cross there, and the head and tail that a cut makes.

A plain cut: head and tail hold the model's own nodes and weights, so that one after the other they compute what the model does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .cost import layers
from .dataflow import Dataflow, reads_of, static_shape
from .errors import MissingExtra, ModelError
from .model import Model, Step

try:
    import onnx
    import onnx.inliner
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

_FLOATS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
"""Bits of the types that can be quantised for the way."""
_INDICES = ("int32", "int64", "string", "bool")
"""Types of stored tensors that are no parameters: shapes, axes, integer biases; as `cost` counts."""


@dataclass(frozen=True)
class Cut:
    """A place where a model falls in two: the tensors that cross, and what stands on either side.

    `operators` are those that make the tensors; `bytes` is their size as they are; `nodes` do not count stored tensors.
    Constants that both sides need are counted on both.
    """

    tensors: tuple[str, ...]
    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    head_macs: int
    tail_macs: int
    head_params: int
    tail_params: int
    head_nodes: int
    tail_nodes: int

    @property
    def elements(self) -> int:
        """Number of values that cross."""
        return sum(math.prod(shape) for shape in self.shapes)

    def bytes_at(self, bits: int) -> int:
        """Bytes that cross with `bits` for each float; each tensor is packed by itself. Other types cross as they are."""
        whole = self.bytes
        for dtype, shape in zip(self.dtypes, self.shapes, strict=True):
            if dtype in _FLOATS:
                whole += math.ceil(math.prod(shape) * bits / 8) - math.prod(shape) * _FLOATS[dtype] // 8
        return whole


def cuts(model: Model, *, pairs: bool = False) -> tuple[Cut, ...]:
    """Every tensor inside the model through which all paths from its inputs to its outputs go, in the order of the graph.

    With `pairs` also every two tensors that cross together. The tail needs nothing else, no input of the model either, and the
    head gives nothing else, no output of the model either. Constants are no obstacle, each side has those that it needs.
    Raises ModelError where costs are not known, as where shapes are not static, and for more pairs than anyone reads.
    """
    weighed = _Weighed(model)
    flow = weighed.flow
    found = [((position, position), weighed.single(name, position)) for name, position in flow.single.items()]
    if pairs:
        for a, b, place in list(flow.pairs()):  # all of them first: too many is an error
            found.append(((flow.position[b], flow.position[a]), weighed.pair(a, b, place)))
    return tuple(cut for _, cut in sorted(found, key=lambda one: (one[0], len(one[1].tensors))))


def extremes(model: Model) -> tuple[Cut, Cut]:
    """What no cut is, to compare with: offload (the inputs cross, all is tail) and local (the outputs cross, all is head)."""
    return _Weighed(model).extremes()


def front(found: Sequence[Cut]) -> tuple[Cut, ...]:
    """The cuts that no other beats, least head first: more work in the head, fewer bytes. Of equals the last."""
    best: list[Cut] = []
    ranked = sorted(enumerate(found), key=lambda one: (one[1].head_macs, one[1].bytes, len(one[1].tensors), -one[0]))
    for _, cut in ranked:
        if not best or cut.bytes < best[-1].bytes:
            best.append(cut)
    return tuple(best)


def split(model: Model, tensors: str | Sequence[str]) -> tuple[Model, Model]:
    """Head and tail: the head gives the tensors and nothing else, the tail takes them and gives the model's outputs.

    Raises ModelError where something else would cross as well, and says what, and where one can cut instead.
    """
    names = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    flow = Dataflow(model.proto)
    _check(model, flow, names)
    place = flow.place(*names)
    types = {info.name: info for info in model.proto.graph.value_info}
    crossing = [types[name] for name in names]
    graph = model.proto.graph
    parts = (
        ("head", place, graph.input, crossing),
        ("tail", ~place & (1 << flow.end + 1) - 1, crossing, graph.output),
    )
    made = []
    for part, positions, inputs, outputs in parts:
        proto = _part(model.proto, flow, positions, inputs, outputs)
        note = f"{len(proto.graph.node)} of {len(graph.node)} nodes"
        made.append(model.changed(proto, Step("split", {"at": list(names), "part": part}, note)))
    return made[0], made[1]


def _part(
    whole: onnx.ModelProto,
    flow: Dataflow,
    positions: int,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """The nodes at these positions, and the constants that they need."""
    proto = onnx.ModelProto()
    for field, value in whole.ListFields():
        if field.name not in ("graph", "functions"):
            getattr(proto, field.name).extend(value) if field.is_repeated else setattr(proto, field.name, value)
    old, new = whole.graph, proto.graph
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.extend(old.metadata_props)
    new.input.extend(inputs)
    new.output.extend(outputs)
    computed = {index for position, index in enumerate(flow.order) if positions >> position & 1}
    here = {info.name for info in inputs} | {name for index in computed for name in flow.nodes[index].output}
    for index, node in enumerate(old.node):
        if index in flow.of_shape and flow.needed(index) & positions and node.input[0] not in here:
            shape = flow.types[node.input[0]].shape or ()
            new.node.append(static_shape(node, shape))
        elif index in computed or (index in flow.constant and flow.needed(index) & positions):
            new.node.append(node)
    made = {name for node in new.node for name in node.output}
    apart = {info.name for info in new.output}
    new.value_info.extend(info for info in old.value_info if info.name in made - apart)
    new.initializer.extend(tensor for tensor in old.initializer if flow.readers.get(tensor.name, 0) & positions)
    stored = {tensor.name for tensor in new.initializer}
    new.quantization_annotation.extend(a for a in old.quantization_annotation if a.tensor_name in made | stored | here)
    proto.functions.extend(_called(whole.functions, proto))
    return proto


def _called(functions: Sequence[onnx.FunctionProto], part: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The functions that a part calls, those that these call included."""
    called = {(node.domain, node.op_type) for node in graphs.nodes(part)}
    for _ in functions:
        for function in functions:
            if (function.domain, function.name) in called:
                called |= {(node.domain, node.op_type) for node in _within(function.node)}
    return [function for function in functions if (function.domain, function.name) in called]


def _within(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes, and those in their subgraphs."""
    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    return [node for inner in graphs.graphs(graph) for node in inner.node]


def _check(model: Model, flow: Dataflow, names: tuple[str, ...]) -> None:
    """Raise ModelError unless these tensors are what crosses a place, all of it and nothing else."""
    if not names or len(set(names)) < len(names):
        raise ModelError(f"a cut is at one or more different tensors; got {', '.join(map(repr, names)) or 'none'}")
    for name in names:
        _check_one(model, flow, name)
    crossing = flow.crossing(flow.place(*names))
    others = [name for name in crossing if name not in names]
    idle = [name for name in names if name not in crossing]
    if not others and not idle:
        return
    told = ", ".join(map(repr, names))
    if idle:
        rest = [name for name in names if name in crossing]
        reason = f"nothing behind the cut reads {idle[0]!r}" + (f": {', '.join(map(repr, rest))} would do" if not others else "")
    else:
        reason = f"{others[0]!r} would cross too: {_reader(flow, others[0], names)} behind the cut"
        reason += f", and {len(others) - 1} more tensors are needed" if len(others) > 1 else ""
    hint = _nearest(flow, names)
    if not idle and len(crossing) == 2 and all(map(flow.can_cross, crossing)):
        hint += f"; or cut at both {crossing[0]!r} and {crossing[1]!r}"
    raise ModelError(f"{told} is no cut of {model.name}: {reason}", hint)


def _check_one(model: Model, flow: Dataflow, name: str) -> None:
    """Raise ModelError where a name is none of a tensor that could cross at all."""
    if flow.can_cross(name):
        return
    close = ""
    if name in flow.inputs:
        reason = "is an input: all would be tail"
    elif name in flow.outputs:
        reason = "is an output: all would be head" if len(flow.outputs) == 1 else "is an output, and the head gives none"
    elif name in flow.constants:
        reason = "is constant: it depends on no input, so nothing needs to cross"
    elif name in flow.position:
        kind = flow.types.get(name)
        got = "random" if kind is not None and kind.shape is not None else "no tensor of known rank"
        got = "text or empty" if kind is not None and kind.shape is not None and flow.sourced(name) else got
        reason = f"cannot cross: it is {got}"
    elif any(name in node.output for node in flow.nodes):
        reason = "is needed by no output"
    elif any(name in node.output for graph in graphs.graphs(model.proto.graph) for node in graph.node):
        reason = "is inside a subgraph (If, Loop, Scan); a cut is in the main graph"
    else:
        reason = "is no tensor of it"
        similar = difflib.get_close_matches(name, flow.single, 3)
        close = f"the most alike: {', '.join(map(repr, similar))}; " if similar else ""
    raise ModelError(
        f"{name!r} is no place to cut {model.name}: it {reason.removeprefix('it ')}", close + _nearest(flow, (name,))
    )


def _reader(flow: Dataflow, name: str, names: tuple[str, ...]) -> str:
    """Who reads a value behind a cut."""
    waiting = flow.readers[name] & ~flow.place(*names)
    first = (waiting & -waiting).bit_length() - 1
    if first == flow.end:
        return "it is an output, needed"
    return f"node {graphs.node_label(flow.nodes[flow.order[first]])!r} reads it"


def _nearest(flow: Dataflow, names: tuple[str, ...]) -> str:
    """Where one can cut instead: the nearest cuts at one tensor before and behind."""
    if not flow.single:
        return "no tensor crosses alone here; edgesdk cuts MODEL --fold --pairs lists pairs that do"
    at = [flow.position[name] for name in names if name in flow.position]
    listed = list(flow.single.items())
    if not at:
        near = [listed[0][0], listed[-1][0]] if len(listed) > 1 else [listed[0][0]]
        return f"cut between {near[0]!r} and {near[-1]!r}: edgesdk cuts MODEL --fold lists where"
    before = [name for name, position in listed if position < min(at)][-1:]
    behind = [name for name, position in listed if position > max(at)][:1]
    told = [*(f"{name!r} before it" for name in before), *(f"{name!r} behind it" for name in behind)]
    return f"the nearest cuts are {' and '.join(told)}" if told else "edgesdk cuts MODEL --fold lists where one can cut"


# --- what stands on either side --------------------------------------------------------------------------

Weights = NDArray[np.int64]
"""MACs, parameters, nodes."""


@dataclass(frozen=True)
class _Constant:
    """A constant node or stored tensor: what it weighs, and the first, last and all positions that need it."""

    weights: Weights
    first: int
    last: int
    needed: int


class _Weighed:
    """A model's dataflow with the cost of everything in it, so that the cost of a part is a difference of sums."""

    def __init__(self, model: Model) -> None:
        self.flow = flow = Dataflow(model.proto)
        macs = _macs(model, flow)
        functions = {(function.domain, function.name): function for function in model.proto.functions}
        held = [_held(node, functions) for node in flow.nodes]
        self.constants: list[_Constant] = []
        for index in flow.constant:
            node = flow.nodes[index]
            params = self._parameters(node.output[0]) if node.op_type == "Constant" else held[index]
            self._constant(flow.needed(index), macs[index], params, 1)
        for name in flow.stored:
            self._constant(flow.readers.get(name, 0), 0, self._parameters(name), 0)
        size = flow.end + 2
        self.data = np.zeros((size, 3), np.int64)
        for position, index in enumerate(flow.order):
            self.data[position] = (macs[index], held[index], 1)
        first, last = self.data.copy(), self.data.copy()
        for constant in self.constants:
            first[constant.first] += constant.weights
            last[constant.last] += constant.weights
        self.heads = np.concatenate([np.zeros((1, 3), np.int64), first.cumsum(axis=0)])
        """What a head weighs that is all positions below a number."""
        self.tails = np.concatenate([last[::-1].cumsum(axis=0)[::-1], np.zeros((1, 3), np.int64)])
        """What a tail weighs that is all positions from a number on."""

    def _parameters(self, name: str) -> int:
        kind = self.flow.types.get(name)
        return 0 if kind is None or graphs.numpy_name(kind.elem_type) in _INDICES else kind.elements or 0

    def _constant(self, needed: int, macs: int, params: int, nodes: int) -> None:
        if needed:
            first, last = (needed & -needed).bit_length() - 1, needed.bit_length() - 1
            self.constants.append(_Constant(np.array([macs, params, nodes], np.int64), first, last, needed))

    def single(self, name: str, position: int) -> Cut:
        return self._cut((name,), self.heads[position + 1], self.tails[position + 1])

    def pair(self, a: str, b: str, place: int) -> Cut:
        """The head may leave nodes out that stand before its last: what lies between neighbouring cuts is added one by one."""
        whole = ((place + 1) & ~place).bit_length() - 1  # positions below it are all in the head
        end = place.bit_length()
        head, tail = self.heads[whole].copy(), self.tails[end].copy()
        between = place >> whole
        taken = np.unpackbits(np.frombuffer(between.to_bytes(end - whole + 7 >> 3, "little"), np.uint8), bitorder="little")
        inside = taken[: end - whole].astype(np.int64)
        head += inside @ self.data[whole:end]
        tail += (1 - inside) @ self.data[whole:end]
        for constant in self.constants:
            if constant.first >= whole and constant.needed & place:
                head += constant.weights
            if constant.last < end and constant.needed & ~place:
                tail += constant.weights
        return self._cut((a, b), head, tail)

    def extremes(self) -> tuple[Cut, Cut]:
        offload = self._cut(tuple(self.flow.inputs), self.heads[0], self.tails[0])
        return offload, self._cut(tuple(self.flow.outputs), self.heads[self.flow.end + 2], self.tails[self.flow.end + 2])

    def _cut(self, names: tuple[str, ...], head: Weights, tail: Weights) -> Cut:
        flow = self.flow
        kinds = [flow.types[name] for name in names]
        dtypes = tuple(graphs.numpy_name(kind.elem_type) for kind in kinds)
        shapes = tuple(tuple(int(dim) if isinstance(dim, int) else 0 for dim in kind.shape or ()) for kind in kinds)
        nodes = [flow.nodes[flow.order[flow.position[name]]].op_type if name in flow.position else "" for name in names]
        return Cut(
            names, tuple(nodes), dtypes, shapes, sum(kind.nbytes or 0 for kind in kinds),
            int(head[0]), int(tail[0]), int(head[1]), int(tail[1]), int(head[2]), int(tail[2]),
        )  # fmt: skip


def _macs(model: Model, flow: Dataflow) -> list[int]:
    """MACs of each node, those of its subgraphs and of the function that it calls included."""
    if model.proto.functions:
        model = model.changed(onnx.inliner.inline_local_functions(model.copy_proto()))
    try:
        rows = iter(layers(model))
    except ModelError as error:
        if not model.signature.is_static:
            raise
        raise ModelError(
            error.message,
            "fold the model first (edgesdk plan --fold, edgesdk cuts --fold): it may be in a branch that is never taken",
        ) from error
    nodes = model.proto.graph.node
    sums = []
    for node in nodes:
        macs = 0
        for row in rows if node.op_type != "Constant" else ():  # of which there are no layers
            macs += row.macs
            if row.outputs == tuple(name for name in node.output if name):
                break  # layers of subgraphs come first
        sums.append(macs)
    owner = {name: index for index, node in enumerate(flow.nodes) for name in node.output if name}
    found = [0] * len(flow.nodes)
    for node, macs in zip(reversed(nodes), reversed(sums), strict=True):
        index = next((owner[name] for name in node.output if name in owner), None)
        if index is not None:  # nodes of a function belong to the call that reads, in the end, what they make
            found[index] += macs
            for name in reads_of(node):
                owner.setdefault(name, index)
    return found


def _held(node: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> int:
    """Parameters inside a node: in its subgraphs, whichever of them is taken, and in the function that it calls."""
    inner = [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else a.graphs)]
    body = functions.get((node.domain, node.op_type))
    nodes = [below for graph in inner for below in graph.node] + (list(body.node) if body is not None else [])
    stored = [tensor for graph in inner for tensor in graph.initializer]
    stored += [a.t for below in nodes if below.op_type == "Constant" for a in below.attribute if a.HasField("t")]
    own: int = sum(math.prod(t.dims) for t in stored if graphs.numpy_name(t.data_type) not in _INDICES)
    return own + sum(_held(below, functions) for below in nodes)
