"""Operators that hand elements on: which goes where, by running the node itself on counted elements."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from . import integer_layers as layers
from .errors import MissingExtra
from .graph import node_label
from .integer_draft import Array, Constant, Draft, Reach, inner, options
from .integer_program import Codes, Move
from .model import Model
from .reference import Reference

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

OPERATORS = (
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Concat", "Pad", "Identity", "Dropout",
    "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "GatherElements", "GatherND",
)  # fmt: skip
_COUNTED = 2**24
"""Elements of a tensor that float32 can count."""


def move(draft: Draft, node: onnx.NodeProto) -> None:
    """Operators that hand elements on: the node itself, run on counted elements, says which goes where."""
    given = options(node)
    if node.op_type == "Resize" and given.get("mode", b"nearest") != b"nearest":
        raise draft.refuse(node, f"mode {given['mode'].decode()}; allowed: nearest", "resize by nearest")
    if node.op_type == "Pad":
        if draft.opset < 11:
            raise draft.refuse(node, f"it is that of opset {draft.opset}; allowed: 11 or newer", "export the model again")
        value = draft.constant(node, 2)
        if value is not None and value.codes.any():
            raise draft.refuse(node, "it pads by a value that is not zero; allowed: 0")
    carried = [index for index, name in enumerate(node.input) if name and (index == 0 or node.op_type == "Concat")]
    stored = {index: found for index in carried if (found := draft.constant(node, index)) is not None}
    sources = {index: draft.source(node, index) for index in carried if index not in stored}
    begins, count = {}, 0
    for index in (*sources, *stored):  # stored elements are counted behind the computed ones
        begins[index] = count
        count += sources[index].size if index in sources else stored[index].codes.size
    computed = sum(codes.size for codes in sources.values())
    codes = np.concatenate([*(found.codes.ravel() for found in stored.values()), np.zeros(1, np.int64)])
    exponents = np.concatenate([*(np.broadcast_to(found.exponents, found.codes.shape).ravel() for found in stored.values()),
                                np.zeros(1, np.int64)])  # fmt: skip
    for result, order in _orders(draft, node, begins, count).items():
        behind = np.where(order >= computed, order - computed, -1)
        if not sources:
            draft.constants[result] = Constant(codes[behind], exponents[behind])
        elif len(sources) == 1 and not stored:
            (source,) = sources.values()
            draft.known[result] = draft.moved(node, source, order, result, inner(tuple(order.shape)))
        else:
            held = Constant(codes[behind], exponents[behind]) if stored else None
            _gathered(draft, node, list(sources.values()), np.where(order < computed, order, -1), held, result)


def _orders(draft: Draft, node: onnx.NodeProto, begins: Mapping[int, int], count: int) -> dict[str, Array]:
    """For each result the places its elements come from, -1 for a zero, counted through all that it carries."""
    if count >= _COUNTED:
        raise draft.refuse(node, f"it moves {count} elements; allowed: {_COUNTED - 1}")
    one = onnx.NodeProto()
    one.CopyFrom(node)
    feeds: dict[str, Array] = {}
    options_of = {}
    for index, name in enumerate(node.input):
        if index in begins:
            shape = draft.shape(node, name)
            one.input[index] = f"moved{index}"
            feeds[one.input[index]] = (np.arange(math.prod(shape)) + begins[index]).astype(np.float32).reshape(shape)
        elif name and name not in draft.stored:
            raise draft.refuse(node, f"its option {name!r} is computed; allowed: stored values", "let the fold pass compute them")
        elif name:
            options_of[name] = draft.stored[name]
    if node.op_type == "Pad" and options(node).get("mode", b"constant") == b"constant":
        one.input.extend([""] * (3 - len(one.input)))
        one.input[2] = "outside"
        options_of["outside"] = np.array(-1, np.float32)
    if node.op_type == "Dropout":
        one = helper.make_node("Identity", [one.input[0]], [node.output[0]])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in feeds.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, draft.shape(node, name)) for name in one.output if name]
    tensors = [numpy_helper.from_array(array, name) for name, array in options_of.items() if name in one.input]
    graph = helper.make_graph([one], "one", ends, results, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", draft.opset)], ir_version=10)
    found = Reference(Model.from_proto(proto, "one")).run(feeds)
    return {name: found[name].astype(np.int64) for name in one.output if name}


def _gathered(
    draft: Draft, node: onnx.NodeProto, sources: list[Codes], order: Array, stored: Constant | None, result: str
) -> None:
    """Elements of several tensors on the finest of their grids; stored ones are zeros first, to which they are added."""
    shape = inner(tuple(order.shape))
    exponent = min(codes.exponent for codes in sources)
    divisor = int(np.lcm.reduce([codes.divisor for codes in sources]))
    factors = tuple((divisor // codes.divisor) << (codes.exponent - exponent) for codes in sources)
    ends = [end * factor for codes, factor in zip(sources, factors, strict=True) for end in (codes.low, codes.high)]
    ends += [0] if (order < 0).any() else []
    name = result if stored is None else draft.fresh(f"{result}/moved")
    made = Codes(name, shape, exponent, min(ends), max(ends), divisor)
    reaches = [draft.reach(codes) for codes in sources]
    draft.reaches[name] = Reach(
        np.concatenate([one.exponents for one in reaches]), np.concatenate([one.reach for one in reaches])
    )
    operation = Move(node_label(node), tuple(codes.name for codes in sources), factors, name, order.reshape(shape))
    draft.known[result] = draft.add(node, operation, made)
    if stored is not None:
        layers.total(draft, node, [(made, 1)], stored, result)
