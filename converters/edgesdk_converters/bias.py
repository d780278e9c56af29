"""Bias correction: what rounding the weights adds to the mean of each output channel is taken off its bias.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721, in its empirical
form: the mean error is taken on sample inputs, of each layer on what it is really given in the quantised network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Samples
from .errors import MissingExtra
from .model import Model
from .passes import silent
from .reference import Reference

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]


def corrected(model: Model, quantised: Model, samples: Samples, progress: Callable[[str], None] = silent) -> onnx.ModelProto:
    """The float `model` with biases moved against the mean error of its weights' rounding in `quantised`.

    Layers are matched by node name; Conv and Gemm with or without bias, and MatMul followed by the Add of a stored vector.
    Quantise the result again in the same way: activations and weights get the same codes, and the means are right.
    """
    errors = mean_errors(model, quantised, samples, progress)
    proto = model.copy_proto()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in list(proto.graph.node):
        shift = errors.get(node.name)
        if shift is None:
            continue
        place = _bias_slot(node, stored, users, len(shift))
        if place is None:
            continue
        holder, index = place
        old = numpy_helper.to_array(stored[holder.input[index]]) if index < len(holder.input) and holder.input[index] else None
        moved = (0 if old is None else old) - (shift if old is None else shift.reshape(old.shape))
        name = f"{node.name}/corrected_bias"
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(moved, dtype=np.float32), name))
        if index < len(holder.input):
            holder.input[index] = name
        else:
            holder.input.append(name)
    used = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)
    return proto


def mean_errors(model: Model, quantised: Model, samples: Samples, progress: Callable[[str], None] = silent) -> dict[str, Array]:
    """Mean over samples and positions of (layer with rounded weights - layer as it is), per output channel, by node name.

    Each layer gets what the float network gives it: errors of earlier layers are corrected there, and do not count twice.
    """
    rounded = _rounded_weights(model, quantised, next(iter(samples)))
    proto = model.copy_proto()
    kept = {output.name for output in proto.graph.output}
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in (*proto.graph.value_info, *proto.graph.output)}
    wanted: list[str] = []
    added: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        rank = ranks.get(node.output[0], 0)
        if node.name not in rounded or rank < 2:
            continue
        name = f"{node.name}/rounded"
        shadow = onnx.NodeProto()
        shadow.CopyFrom(node)
        shadow.name, shadow.output[0], shadow.input[1] = name, name, f"{name}/weight"
        proto.graph.initializer.append(numpy_helper.from_array(rounded[node.name], f"{name}/weight"))
        channel = 1 if node.op_type == "Conv" else rank - 1
        axes = [axis for axis in range(rank) if axis != channel]
        added.append(shadow)
        added.append(helper.make_node("Sub", [name, node.output[0]], [f"{name}/error"]))
        added.append(_mean(proto, f"{name}/error", f"{name}/mean", axes))
        proto.graph.output.append(helper.make_tensor_value_info(f"{name}/mean", TensorProto.FLOAT, None))
        wanted.append(node.name)
    if not wanted:
        return {}
    proto.graph.node.extend(added)
    reference = Reference(model.changed(proto))
    sums: dict[str, Array] = {}
    for index, sample in enumerate(samples):
        if index and index % 50 == 0:
            progress(f"correcting biases: sample {index} of {len(samples)}")
        for name, value in reference.run(sample).items():
            if name not in kept:
                sums[name] = sums.get(name, 0) + value.astype(np.float64)
    return {name: (sums[f"{name}/rounded/mean"] / len(samples)).astype(np.float32).reshape(-1) for name in wanted}


def _rounded_weights(model: Model, quantised: Model, sample: dict[str, Array]) -> dict[str, Array]:
    """The weights that the quantised graph multiplies with, as floats, by the name of the node they belong to.

    A Gemm's factor alpha, which quantisation may have moved into the weights, is taken out of them again.
    """
    stored = {tensor.name for tensor in model.proto.graph.initializer}
    floats = {node.name: node for node in model.proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    sources = {}
    factors: dict[str, float] = {}
    for node in quantised.proto.graph.node:
        original = floats.get(node.name)
        same = original is not None and original.op_type == node.op_type
        if same and original is not None and original.input[1] in stored and node.input[1] != original.input[1]:
            sources[node.name] = node.input[1]
            factors[node.name] = _alpha(node) / _alpha(original)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.proto.graph.initializer}
    computed = sorted({name for name in sources.values() if name not in constants})
    constants |= Reference(quantised, computed).run(sample) if computed else {}
    return {node: (factors[node] * constants[name]).astype(np.float32) for node, name in sources.items()}


def _alpha(node: onnx.NodeProto) -> float:
    return next((float(a.f) for a in node.attribute if node.op_type == "Gemm" and a.name == "alpha"), 1.0)


def _mean(proto: onnx.ModelProto, source: str, result: str, axes: list[int]) -> onnx.NodeProto:
    """A ReduceMean in the form of the model's opset."""
    opset = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 18:
        return helper.make_node("ReduceMean", [source], [result], axes=axes, keepdims=0)
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(axes, dtype=np.int64), f"{result}/axes"))
    return helper.make_node("ReduceMean", [source, f"{result}/axes"], [result], keepdims=0)


def _bias_slot(
    node: onnx.NodeProto, stored: dict[str, onnx.TensorProto], users: dict[str, list[onnx.NodeProto]], channels: int
) -> tuple[onnx.NodeProto, int] | None:
    """The node and input that hold a layer's bias, or may; None where there is no place for one."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attributes.get("beta", 1.0) == 1.0):
        if len(node.input) < 3 or not node.input[2]:
            return node, 2
        found = stored.get(node.input[2])
        return (node, 2) if found is not None and int(np.prod(found.dims)) == channels else None
    followers = users.get(node.output[0], [])
    if node.op_type == "MatMul" and len(followers) == 1 and followers[0].op_type == "Add":
        for index, name in enumerate(followers[0].input):
            if name in stored and int(np.prod(stored[name].dims)) == channels:
                return followers[0], index
    return None
