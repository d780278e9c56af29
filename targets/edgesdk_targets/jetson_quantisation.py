"""TensorRT's rules for explicit quantisation, checked on the Q/DQ graph before anything travels: one small rule each, in a table.

Sources: NVIDIA, TensorRT documentation, "Working with Quantized Types" and "Explicit Quantization" (TensorRT 10), and
onnx/onnx-tensorrt docs/operators.md of the 10.x branches; each rule says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .jetson_support import Problem

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from edgesdk_converters.graph import ValueType
    from edgesdk_converters.model import Model

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_TYPES = "TensorRT documentation, Working with Quantized Types"
_EXPLICIT = "TensorRT documentation, Explicit Quantization"
_PARSER = "onnx/onnx-tensorrt docs/operators.md, QuantizeLinear and DequantizeLinear"


@dataclass(frozen=True)
class Around:
    """A graph as the rules see it: who makes a value, who reads it, what is stored."""

    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    stored: dict[str, onnx.TensorProto]
    types: dict[str, ValueType]
    outputs: frozenset[str]

    def array(self, name: str) -> NDArray[Any] | None:
        """A stored value, None where it is computed."""
        from onnx import numpy_helper

        if name in self.stored:
            return np.asarray(numpy_helper.to_array(self.stored[name]))
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
            return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))
        return None

    def constant(self, name: str) -> bool:
        """Whether a value is stored, or a Q, DQ or Q-DQ of what is stored."""
        while name in self.makers and self.makers[name].op_type in _PAIR:
            name = self.makers[name].input[0]
        return name in self.stored or (name in self.makers and self.makers[name].op_type == "Constant")

    def rank(self, name: str) -> int | None:
        """Number of axes of a value, None where it is not known."""
        kind = self.types.get(name)
        return None if kind is None or kind.shape is None else len(kind.shape)


@dataclass(frozen=True)
class Rule:
    """What TensorRT demands of a node; `broken` says how the node breaks it, empty where it does not."""

    name: str
    demands: str
    source: str
    operators: tuple[str, ...]
    broken: Callable[[onnx.NodeProto, Around], str]


def violations(model: Model) -> list[Problem]:
    """Everything about the quantised parts of a model that TensorRT is documented to refuse; empty for none."""
    around = _around(model)
    found = []
    for node in model.proto.graph.node:
        for rule in RULES:
            if node.op_type in rule.operators:
                how = rule.broken(node, around)
                if how:
                    found.append(Problem(node.name or node.output[0], node.op_type, f"{how}; {rule.demands} ({rule.name})"))
    return found


def audit(model: Model) -> dict[str, int]:
    """How many weighted layers get both data and weights from a DequantizeLinear ("int8"), and how many do not ("float")."""
    around = _around(model)
    counts = {"int8": 0, "float": 0}
    for node in model.proto.graph.node:
        if node.op_type in WEIGHTED:
            both = all(name in around.makers and around.makers[name].op_type == "DequantizeLinear" for name in node.input[:2])
            counts["int8" if both else "float"] += 1
    return counts


def _around(model: Model) -> Around:
    from edgesdk_converters import graph as graphs

    graph = model.proto.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Around(
        {name: node for node in graph.node for name in node.output},
        readers,
        {tensor.name: tensor for tensor in graph.initializer},
        graphs.value_types(graph),
        frozenset(output.name for output in graph.output),
    )


def _integers(node: onnx.NodeProto, around: Around) -> str:
    """Name of the quantised side of a Q or DQ."""
    return str(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])


def _type(node: onnx.NodeProto, around: Around) -> str:
    from edgesdk_converters.graph import type_name

    name = _integers(node, around)
    kind = around.types.get(name)
    if kind is None or kind.elem_type == 0:
        zero = around.stored.get(node.input[2]) if len(node.input) > 2 else None
        return type_name(zero.data_type) if zero is not None else "UINT8" if node.op_type == "QuantizeLinear" else ""
    return type_name(kind.elem_type)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _only_int8(node: onnx.NodeProto, around: Around) -> str:
    got = _type(node, around)
    if not got or got == "INT8" or (got == "INT4" and around.constant(_integers(node, around))):
        return ""
    if got == "INT32" and node.op_type == "DequantizeLinear":
        return ""  # a bias: it has a rule of its own
    return f"it holds {got.lower()}"


def _no_quantised_bias(node: onnx.NodeProto, around: Around) -> str:
    if node.op_type == "DequantizeLinear":
        return "it is an int32 bias" if _type(node, around) == "INT32" else ""
    maker = around.makers.get(node.input[2]) if len(node.input) > 2 else None
    return f"its bias comes from a {maker.op_type}" if maker is not None and maker.op_type in _PAIR else ""


def _zero_point(node: onnx.NodeProto, around: Around) -> str:
    if len(node.input) < 3 or not node.input[2]:
        return ""
    zero = around.array(node.input[2])
    if zero is None:
        return "its zero point is computed"
    return "" if not zero.any() else f"its zero point is {zero.ravel()[np.flatnonzero(zero.ravel())[0]]}"


def _scale_is_constant(node: onnx.NodeProto, around: Around) -> str:
    return "" if around.array(node.input[1]) is not None else "its scale is computed"


def _scale_is_positive(node: onnx.NodeProto, around: Around) -> str:
    scale = around.array(node.input[1])
    if scale is None or (np.isfinite(scale).all() and (scale > 0).all()):
        return ""
    return "a scale of it is not a positive number"


def _activations_per_tensor(node: onnx.NodeProto, around: Around) -> str:
    scale = around.array(node.input[1])
    if scale is None or scale.size == 1 or around.constant(_integers(node, around)) or around.constant(node.input[0]):
        return ""
    return f"it has {scale.size} scales for an activation"


def _weights_per_output_channel(node: onnx.NodeProto, around: Around) -> str:
    scale = around.array(node.input[1])
    if scale is None or scale.size == 1 or not around.constant(node.input[0]) or _attribute(node, "block_size", 0):
        return ""
    rank = around.rank(node.input[0])
    axis = _attribute(node, "axis", 1)
    axis = axis + rank if axis < 0 and rank is not None else axis
    for reader in _through_pairs(node, around):
        wanted = _output_axis(reader, around, node)
        if wanted is not None and axis != wanted:
            return f"its scales lie along axis {axis}, the output channels of {reader.name or reader.op_type} along {wanted}"
    return ""


def _scales_fit(node: onnx.NodeProto, around: Around) -> str:
    scale, kind = around.array(node.input[1]), around.types.get(node.input[0])
    if scale is None or scale.size == 1 or kind is None or kind.shape is None or _attribute(node, "block_size", 0):
        return ""
    axis = _attribute(node, "axis", 1)
    size = kind.shape[axis] if -len(kind.shape) <= axis < len(kind.shape) else None
    return "" if size == scale.size else f"it has {scale.size} scales for an axis of {size}"


def _blocks(node: onnx.NodeProto, around: Around) -> str:
    block = _attribute(node, "block_size", 0)
    if not block:
        return ""
    got = _type(node, around)
    return "" if got == "INT4" and block in (64, 128) else f"it has blocks of {block} {got.lower()}"


def _dequantised(node: onnx.NodeProto, around: Around) -> str:
    name = node.output[0]
    others = [reader for reader in around.readers.get(name, []) if reader.op_type != "DequantizeLinear"]
    if others:
        return f"{others[0].name or others[0].op_type} reads the integers themselves"
    return ""


def _data_and_weights(node: onnx.NodeProto, around: Around) -> str:
    data, weight = (around.makers.get(name) for name in node.input[:2])
    from_pair = [maker is not None and maker.op_type == "DequantizeLinear" for maker in (data, weight)]
    if not from_pair[1] or from_pair[0]:
        return ""
    assert weight is not None
    if _type(weight, around) == "INT4" or not around.constant(node.input[1]):
        return ""
    return "its weights are int8, its data are not"


def _integer_operator(node: onnx.NodeProto, around: Around) -> str:
    return f"TensorRT has no {node.op_type}"


def _through_pairs(node: onnx.NodeProto, around: Around) -> Iterator[onnx.NodeProto]:
    """The layers that read a weight, behind the Q and DQ in between."""
    for reader in around.readers.get(node.output[0], []):
        if reader.op_type in _PAIR:
            yield from _through_pairs(reader, around)
        else:
            yield reader


def _output_axis(reader: onnx.NodeProto, around: Around, weight: onnx.NodeProto) -> int | None:
    """The axis of output channels in a layer's weight, None where the value is no weight of a layer."""
    if reader.op_type == "Conv":
        return 0
    if reader.op_type == "ConvTranspose":
        return 1
    if reader.op_type == "Gemm":
        return 0 if _attribute(reader, "transB", 0) else 1
    if reader.op_type == "MatMul":
        rank = around.rank(weight.input[0])
        return None if rank is None else rank - 1
    return None


RULES: tuple[Rule, ...] = (
    Rule("int8", "quantised values are int8, or int4 for stored weights", _TYPES, _PAIR, _only_int8),
    Rule("symmetric", "the zero point is a constant 0", _TYPES, _PAIR, _zero_point),
    Rule("constant-scale", "scales are stored, not computed", _PARSER, _PAIR, _scale_is_constant),
    Rule("positive-scale", "scales are positive and finite", _PARSER, _PAIR, _scale_is_positive),
    Rule("activations-per-tensor", "an activation has one scale", _TYPES, _PAIR, _activations_per_tensor),
    Rule("output-channels", "weights have one scale, or one an output channel", _TYPES, _PAIR, _weights_per_output_channel),
    Rule("scale-count", "there is one scale for each index of the axis", _PARSER, _PAIR, _scales_fit),
    Rule("blocks", "only int4 weights have blocks, of 64 or 128", _TYPES, _PAIR, _blocks),
    Rule("float-bias", "biases stay in float", _PARSER, ("DequantizeLinear", *WEIGHTED), _no_quantised_bias),
    Rule("pairs", "a DequantizeLinear follows every QuantizeLinear", _EXPLICIT, ("QuantizeLinear",), _dequantised),
    Rule("both-sides", "a layer with int8 weights gets int8 data", _EXPLICIT, WEIGHTED, _data_and_weights),
    Rule(
        "no-integer-operators", "quantisation is said by QuantizeLinear and DequantizeLinear", _EXPLICIT,
        ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "QLinearAdd"),
        _integer_operator,
    ),
)  # fmt: skip
