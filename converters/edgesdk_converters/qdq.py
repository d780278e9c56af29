"""Integer forms of a float graph by ONNX Runtime's own quantiser, given the ranges of its activations.

Static: QuantizeLinear/DequantizeLinear pairs (QDQ) or integer operators (QOperator). Dynamic: ranges are taken at run time.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import MissingExtra
from .graph import fresh_names, graphs

try:
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
except ImportError as _error:
    raise MissingExtra("cpu", "onnxruntime") from _error

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape",
    "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Split", "Resize", "Slice",
)  # fmt: skip
"""Operators that ONNX Runtime's CPU computes on integers: between two quantised layers they need no way back to float."""


_OWN_NAMES = re.compile(r"_(scale|zero_point|quantized|(Dequantize|Quantize)Linear(_Input|_Output)?)(_scale)?(_\d+)?$")
AVERAGES = ("AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class Form:
    """How one flavour writes integers: types of activations and weights, and the options of the quantiser underneath."""

    activation: QuantType
    weight: QuantType
    operators: tuple[str, ...] = (*WEIGHTED, *BETWEEN)
    qdq: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def symmetric(self) -> bool:
        """Whether activations are centred on zero."""
        return bool(self.options.get("ActivationSymmetric"))


FORMS: Mapping[str, Form] = {
    "u8s8": Form(QuantType.QUInt8, QuantType.QInt8),
    "s8s8": Form(QuantType.QInt8, QuantType.QInt8),
    # Weights are stored as int8 behind a DequantizeLinear, which TensorRT 10 reads; a pair around fp32 weights would make the
    # file as large as the float one. Only inputs of weighted layers and of residual sums are quantised: TensorRT fuses the rest.
    "tensorrt": Form(
        QuantType.QInt8,
        QuantType.QInt8,
        (*WEIGHTED, "Add", "GlobalAveragePool", "AveragePool", "MaxPool", "Concat"),
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "QDQKeepRemovableActivations": True,
        },
    ),
    # There is no QLinearConvTranspose.
    "qoperator": Form(
        QuantType.QUInt8, QuantType.QInt8, tuple(kind for kind in (*WEIGHTED, *BETWEEN) if kind != "ConvTranspose"), qdq=False
    ),
}


class _Quantizer(QDQQuantizer):  # type: ignore[misc]
    """Leaves the tensors of `floats` alone, whoever reads them; gives averages a scale of their own.

    The average of many values has a smaller range than they: with their scale a pooled feature would be a few steps high.
    """

    floats: frozenset[str] = frozenset()
    averages: frozenset[str] = frozenset()

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.floats:
            super().quantize_activation_tensor(tensor_name)

    def try_replacing_upstream_output(self, upstream_output_name: str, output_name: str) -> bool:
        """Drops a Relu whose clipping the integers behind it do; where none are behind it, it stays."""
        return output_name not in self.floats and bool(super().try_replacing_upstream_output(upstream_output_name, output_name))

    def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
        if output_name in self.averages:
            self.quantize_activation_tensor(output_name)
        elif output_name not in self.floats:
            super().quantize_output_same_as_input(output_name, input_name, node_name)


def static(
    proto: onnx.ModelProto,
    form: Form,
    ranges: Mapping[str, tuple[float, float]],
    nodes: Sequence[str],
    *,
    reduce_range: bool,
    floats: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with the named nodes on integers; takes the proto over.

    `ranges` maps tensors to (low, high), 0 between them. Tensors of `floats` are not rounded (in QDQ forms). With
    `reduce_range` weights have 7 bits: on x86 CPUs without VNNI sums of two products u8 x s8 saturate at 16 bits otherwise.
    """
    renamed = _settle(proto)
    names = _node_names(proto)
    ranges = {renamed.get(name, name): ends for name, ends in ranges.items()}
    shapes = {info.name: info.type for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
    known = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in sorted(ranges.items())}
    common: tuple[Any, ...] = (form.weight, form.activation, known, list(nodes), [], list(form.operators), dict(form.options))
    with _quiet(), _inferred(proto):
        if form.qdq:
            quantizer = _Quantizer(proto, True, reduce_range, *common)
            quantizer.floats = frozenset(renamed.get(name, name) for name in floats)
            quantizer.averages = frozenset(n.output[0] for n in proto.graph.node if n.op_type in AVERAGES)
        else:
            quantizer = ONNXQuantizer(proto, True, reduce_range, QuantizationMode.QLinearOps, True, *common)
        quantizer.quantize_model()
        if not form.qdq:
            _tell_shapes(quantizer.model.model, shapes, form.activation)
        quantizer.model.topological_sort()
    return _cleaned(quantizer.model.model, names)


def _settle(proto: onnx.ModelProto) -> Mapping[str, str]:
    """Gives the graph the form that the quantiser underneath expects, and does not check; new names of tensors by their old ones.

    Every reader of a stored tensor has one of its own: of shared biases it makes copies under names that may be taken, and ONNX
    Runtime fails on shared integers where it changes their sign at loading. A Gemm has a vector as bias and no factors: it
    fails at other shapes and applies beta twice. Nothing has a name that it gives itself, as it does where it was here before.
    """
    renamed = _set_apart(proto)
    fresh = fresh_names(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    read: set[str] = set()
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name in stored and stored[name].data_type == onnx.TensorProto.FLOAT and name in read:
                own = onnx.TensorProto.FromString(stored[name].SerializeToString())
                own.name = node.input[place] = fresh(f"{name}/own")
                proto.graph.initializer.append(own)
                stored[own.name] = proto.graph.initializer[-1]
            read.add(name)
    for place, node in reversed(list(enumerate(proto.graph.node))):
        if node.op_type == "Gemm":
            _settle_gemm(proto, place, stored, fresh)
    return renamed


def _set_apart(proto: onnx.ModelProto) -> Mapping[str, str]:
    """Renames inner tensors that are named as the quantiser underneath does; new names by old ones."""
    fresh = fresh_names(proto)
    fixed = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    names = [name for node in proto.graph.node for name in node.output] + [tensor.name for tensor in proto.graph.initializer]
    renamed = {name: fresh(f"{name}/before") for name in names if _OWN_NAMES.search(name) and name not in fixed}
    for node in (node for part in graphs(proto.graph) for node in part.node):
        for named in (node.input, node.output):
            for place, name in enumerate(named):
                named[place] = renamed.get(name, name)
    for held in (*proto.graph.initializer, *proto.graph.value_info):
        held.name = renamed.get(held.name, held.name)
    return renamed


def _settle_gemm(proto: onnx.ModelProto, place: int, stored: Mapping[str, onnx.TensorProto], fresh: Callable[[str], str]) -> None:
    """Moves the factors of the Gemm at a place into its stored tensors; makes its bias a vector, or an Add after it."""
    node = proto.graph.node[place]
    options = {attribute.name: attribute for attribute in node.attribute}
    weight, bias = (stored.get(name) for name in (*node.input[1:3], "", "")[:2])
    for factor, tensor in (("alpha", weight), ("beta", bias)):
        if factor in options and tensor is not None:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(options[factor].f * values, values.dtype), tensor.name))
            options[factor].f = 1.0
    if len(node.input) < 3 and "beta" in options:
        options["beta"].f = 1.0
    if bias is None or weight is None:
        return
    turned = "transB" in options and options["transB"].i
    values = numpy_helper.to_array(bias)
    if max(values.shape[:-1], default=1) == 1:
        row = np.broadcast_to(values.reshape(-1), (weight.dims[0 if turned else 1],))
        bias.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(row), bias.name))
        return
    product = fresh(f"{node.output[0]}/product")
    add = onnx.helper.make_node("Add", [product, bias.name], [node.output[0]], name=fresh(f"{node.name}/bias"))
    node.output[0] = product
    del node.input[2:]
    proto.graph.node.insert(place + 1, add)


def _tell_shapes(proto: onnx.ModelProto, types: Mapping[str, onnx.TypeProto], kind: QuantType) -> None:
    """Says what ONNX cannot infer: the shapes that ONNX Runtime's own integer operators give."""
    ending = "_quantized"
    for name in (name for node in proto.graph.node for name in node.output):
        float_type = types.get(name.removesuffix(ending))
        if name.endswith(ending) and float_type is not None:
            info = onnx.ValueInfoProto(name=name, type=float_type)
            info.type.tensor_type.elem_type = kind.tensor_type
            proto.graph.value_info.append(info)


def dynamic(proto: onnx.ModelProto, nodes: Sequence[str], *, reduce_range: bool) -> onnx.ModelProto:
    """The graph with int8 weights in the named Gemm and MatMul nodes, whose inputs are quantised as they come.

    Takes the proto over. The quantiser first turns every Gemm into a MatMul named after it and an Add.
    Convolutions stay in float: ONNX Runtime's ConvInteger is several times slower than its float Conv.
    """
    _settle(proto)
    names = _node_names(proto)
    options = {"MatMulConstBOnly": True}
    with _quiet(), _inferred(proto):
        quantizer = ONNXQuantizer(
            proto, True, reduce_range, QuantizationMode.IntegerOps, False, QuantType.QInt8, QuantType.QUInt8, None,
            [*nodes, *(f"{name}_MatMul" for name in nodes)], [], ["MatMul"], options,
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return _cleaned(quantizer.model.model, names)


def _node_names(proto: onnx.ModelProto) -> Mapping[str, str]:
    """The first output of each node, by its name."""
    return {node.name: node.output[0] for node in proto.graph.node}


def _cleaned(proto: onnx.ModelProto, before: Mapping[str, str]) -> onnx.ModelProto:
    """Without what the quantiser leaves: its mark, stale types, zero points of biases, initialisers that nothing reads.

    New nodes that it names as nodes of the graph `before` are named otherwise: ONNX Runtime wants names that are unique.
    """
    fresh, taken = fresh_names(proto), set()
    for node in sorted(proto.graph.node, key=lambda node: before.get(node.name) != node.output[0]):
        if node.name in taken:
            node.name = fresh(node.name)
        taken.add(node.name)
    marks = [entry for entry in proto.metadata_props if entry.key != "onnx.infer"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(marks)
    made = {name for node in proto.graph.node for name in node.output}
    infos = [info for info in proto.graph.value_info if info.name in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(infos)
    biases = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT32}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in biases:
            del node.input[2:]  # zeros, which are the default: they would take as many bytes as the biases
    used = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    kept = sorted((tensor for tensor in proto.graph.initializer if tensor.name in used), key=lambda tensor: tensor.name)
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)
    return proto


@contextmanager
def _inferred(proto: onnx.ModelProto) -> Iterator[None]:
    """Marks the graph as shape-inferred, which it is, so that the quantiser does not write it to disk to do so again."""
    proto.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    yield


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser talks to the root logger; what matters of it is in our own notes and errors."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
