"""Batch norm merged into the layer before it: onnxslim does so behind convolutions, this does so behind dense layers too.

Fixed point needs it: the statistics are floats, and a sum that is rounded once before and once behind them loses twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra
from .graph import fresh_names
from .model import Model, Step

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]


def merged(model: Model, keep: Collection[str] = ()) -> Model:
    """The model with each BatchNormalization that alone reads a Gemm, MatMul or Conv with stored float32 weights merged into it.

    Nodes keep their names, the merged results those of the norms. A Gemm with factors, or whose bias is a matrix, stays as it
    is, and so do a MatMul of more than two axes, whose last axis is not that of the channels, and norms named in `keep`.
    """
    proto = model.copy_proto()
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in (*graph.value_info, *graph.output)}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    fresh = fresh_names(proto)
    count = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization" and node.name not in keep]:
        layer, name = makers.get(norm.input[0]), norm.input[0]
        if layer is None or readers[name] != 1 or name in outputs or [out for out in norm.output[1:] if out]:
            continue
        if not _mergeable(layer, ranks.get(name, 0), stored) or not all(_is_float(stored.get(part)) for part in norm.input[1:]):
            continue
        _merge(layer, norm, stored, fresh)
        graph.initializer.extend(stored[part] for part in layer.input[1:3])
        graph.node.remove(norm)
        count += 1
    if not count:
        return model
    read = {name for node in graph.node for name in node.input} | outputs
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model.changed(proto, Step("merge batch norm", note=f"{count} into the layers before them"))


def _is_float(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT


def _mergeable(layer: onnx.NodeProto, rank: int, stored: dict[str, onnx.TensorProto]) -> bool:
    if layer.op_type not in ("Gemm", "MatMul", "Conv") or not _is_float(stored.get(layer.input[1])):
        return False
    if layer.op_type == "MatMul":
        return rank == 2 and len(stored[layer.input[1]].dims) == 2
    if any(a.name in ("alpha", "beta") and a.f != 1.0 for a in layer.attribute):
        return False
    bias = stored.get(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
    if bias is None:
        return len(layer.input) < 3 or not layer.input[2]
    return _is_float(bias) and max(bias.dims[:-1], default=1) == 1


def _merge(layer: onnx.NodeProto, norm: onnx.NodeProto, stored: dict[str, onnx.TensorProto], fresh: Callable[[str], str]) -> None:
    """Changes the layer in place; its new weights and bias are added to `stored`."""
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = (numpy_helper.to_array(stored[name]).astype(np.float64) for name in norm.input[1:5])
    factor = gamma / np.sqrt(variance + epsilon)
    weight = numpy_helper.to_array(stored[layer.input[1]]).astype(np.float64)
    turned = layer.op_type == "Conv" or any(a.name == "transB" and a.i for a in layer.attribute)
    weight = weight * (factor.reshape(-1, *(1,) * (weight.ndim - 1)) if turned else factor)
    bias = np.zeros(len(factor))
    if len(layer.input) > 2 and layer.input[2]:
        bias = np.broadcast_to(numpy_helper.to_array(stored[layer.input[2]]).reshape(-1), bias.shape)
    bias = (bias - mean) * factor + beta
    names = [fresh(f"{layer.input[1]}/merged"), fresh(f"{norm.output[0]}/bias")]
    for name, values in zip(names, (weight, bias), strict=True):
        stored[name] = numpy_helper.from_array(values.astype(np.float32), name)
    made = helper.make_node("Gemm" if layer.op_type == "MatMul" else layer.op_type, [layer.input[0], *names], [norm.output[0]],
                            name=layer.name)  # fmt: skip
    made.attribute.extend(layer.attribute)
    layer.CopyFrom(made)
