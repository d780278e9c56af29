"""Weight-only integers: weights are stored in few bits, activations stay in float.

MatMul and Gemm can become MatMulNBits (8 or 4 bits), which reads the packed weights as it multiplies. Elsewhere operators stay
and their weights are unpacked before them, which makes the file smaller and nothing else: by a DequantizeLinear from 8 or 4
bits, by integer arithmetic from any other width (packing.md). ONNX Runtime does that once, as it loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra, PassError
from .graph import fresh_names
from .model import Model
from .packing import GROUP, pack

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
SMALLEST = 256
"""Elements below which a weight is left in float: scales and a node more would eat what is saved."""
SMALLEST_UNPACKED = 1024
"""The same where it takes ten nodes to unpack."""
THIN = 32
"""Weights of an output channel below which each weighs too much for few bits: their rounding errors do not average out."""
INT4_OPSET, INT4_IR = 21, 10
_SHARES = tuple(1 - 0.025 * step for step in range(17))


@dataclass(frozen=True)
class Coded:
    """Integer codes of a weight and their scales: value = code * scale, one scale for each row of the last axis."""

    codes: Array
    scales: Array


def weight_only(
    model: Model, bits: int, *, packed: bool = True, block: int = 32, keep: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[onnx.ModelProto, str]:
    """The graph with stored weights of `bits` (2 to 8; with `packed` 8 or 4), and a note of what was done.

    MatMul and Gemm (alpha = beta = 1, no transA) with constant weights: com.microsoft MatMulNBits, symmetric, one scale for
    each `block` inputs of an output; without `packed` they are stored like convolutions. Conv and ConvTranspose: one scale
    an output channel; those with fewer than THIN weights a channel (depthwise ones) keep 8 bits at least. Scales are those
    with the least squared error. Raises PassError where the opset that 4-bit storage needs (21) cannot be reached.
    """
    proto = model.copy_proto()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    wanted = set(only or codable(model, bits)) - set(keep)
    chosen = [node for node in proto.graph.node if node.name in wanted and _weight(node, stored, bits) is not None]
    dense = [node for node in chosen if packed and node.op_type in ("MatMul", "Gemm")]
    behind = [node for node in chosen if node not in dense]
    if behind and bits == 4 and model.opset < INT4_OPSET:
        return weight_only(_raised(model), bits, packed=packed, block=block, keep=keep, only=only)
    for node in dense:
        _to_nbits(proto.graph, node, numpy_helper.to_array(stored[node.input[1]]), bits, block)
    shared: dict[str, str] = {}
    fresh = fresh_names(proto)
    thin = 0
    for node in behind:
        name = node.input[1]
        weight, axis = numpy_helper.to_array(stored[name]), 0 if node.op_type == "Conv" or _transposed(node) else 1
        own = 8 if weight.size < THIN * weight.shape[axis] else bits
        # ONNX Runtime fails on 8-bit integers that two layers share where it changes their sign at loading
        key = fresh(f"{name}/own") if own == 8 and name in shared else name
        if key not in shared:
            thin += own != bits
            behind_what = _behind_dequantize if own in (4, 8) else _behind_arithmetic
            shared[key] = behind_what(proto.graph, key, weight, own, axis)
        node.input[1] = shared[key]
    if dense:
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    if behind and bits == 4:
        proto.ir_version = max(proto.ir_version, INT4_IR)
    _drop_unused(proto.graph)
    told = [f"{len(dense)} layers as MatMulNBits with weights of {bits} bits"] if dense else []
    if behind:
        wider = f" ({thin} thin ones in 8)" if thin else ""
        told.append(f"{len(behind)} layers with weights stored in {bits} bits{wider}, which saves file size alone")
    return proto, ", ".join(told)


def codable(model: Model, bits: int) -> list[str]:
    """Names of the nodes whose weights can be stored in so many bits, and are large enough to be worth it."""
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    return [node.name for node in model.proto.graph.node if _weight(node, stored, bits) is not None]


def _weight(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto], bits: int) -> onnx.TensorProto | None:
    """The stored weight of a node that can be coded, None for others."""
    smallest = SMALLEST if bits in (4, 8) else SMALLEST_UNPACKED
    if len(node.input) < 2 or node.input[1] not in stored:
        return None
    tensor = stored[node.input[1]]
    if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < smallest:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return tensor
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    if len(tensor.dims) == 2 and (node.op_type == "MatMul" or (node.op_type == "Gemm" and plain)):
        return tensor
    return None


def coded(rows: Array, bits: int) -> Coded:
    """Symmetric codes of each row (last axis) of a float array, with the scale of the least squared error among 17.

    Codes lie in -2**(bits-1) .. 2**(bits-1) - 1. Clipping the few largest values costs less than the coarser step that they
    force on the rest (Banner et al. 2019, arXiv 1810.05723).
    """
    top = 2 ** (bits - 1) - 1
    values = rows.astype(np.float64)
    peak = np.abs(values).max(axis=-1, keepdims=True)
    peak = np.where(peak > 0, peak, 1.0)
    best = np.full(peak.shape, np.inf)
    scales = np.zeros_like(peak)
    codes = np.zeros(values.shape, dtype=np.int8)
    for share in _SHARES:
        scale = (peak * share / top).astype(np.float32).astype(np.float64)
        trial = np.clip(np.round(values / scale), -top - 1, top)
        error = np.square(trial * scale - values).sum(axis=-1, keepdims=True)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        codes = np.where(better, trial.astype(np.int8), codes)
    return Coded(codes, scales[..., 0].astype(np.float32))


def _to_nbits(graph: onnx.GraphProto, node: onnx.NodeProto, weight: Array, bits: int, block: int) -> None:
    """Replaces a MatMul or Gemm by MatMulNBits (and an Add for its bias), in place."""
    rows = weight if _transposed(node) else weight.T  # (N, K)
    outputs, inner = rows.shape
    blocks = -(-inner // block)
    padded = np.zeros((outputs, blocks * block), dtype=np.float32)
    padded[:, :inner] = rows
    made = coded(padded.reshape(outputs, blocks, block), bits)
    zero = 2 ** (bits - 1)
    codes = (made.codes.astype(np.int16) + zero).astype(np.uint8)
    packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    name = f"{node.name}/weight{bits}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(packed), name))
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(made.scales.reshape(-1)), f"{name}/scale"))
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    result = node.output[0]
    product = f"{result}/product" if bias else result
    position = next(index for index, other in enumerate(graph.node) if other is node or other.name == node.name)
    multiply = helper.make_node(
        "MatMulNBits", [node.input[0], name, f"{name}/scale"], [product], name=node.name, domain="com.microsoft",
        K=inner, N=outputs, bits=bits, block_size=block,
    )  # fmt: skip
    graph.node[position].CopyFrom(multiply)
    if bias:
        known = next((info for info in (*graph.value_info, *graph.output) if info.name == result), None)
        if known is not None:
            graph.value_info.add().CopyFrom(known)
            graph.value_info[-1].name = product
        graph.node.insert(position + 1, helper.make_node("Add", [product, bias], [result], name=f"{node.name}/bias"))


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm's weight is (outputs, inputs)."""
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def _behind_dequantize(graph: onnx.GraphProto, name: str, weight: Array, bits: int, axis: int) -> str:
    """Stores a weight as integers behind a DequantizeLinear; the name of what that gives."""
    moved = np.moveaxis(weight, axis, 0)
    made = coded(moved.reshape(len(moved), -1), bits)
    codes = np.ascontiguousarray(np.moveaxis(made.codes.reshape(moved.shape), 0, axis))
    integers, scale, result = f"{name}/int{bits}", f"{name}/int{bits}/scale", f"{name}/float"
    inputs = [integers, scale]
    if bits == 8:
        graph.initializer.append(numpy_helper.from_array(codes, integers))
        # with a scale a channel ONNX Runtime's sign change at loading needs the zeros spelt out
        inputs.append(f"{name}/int8/zero")
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(made.scales), np.int8), inputs[-1]))
    else:
        flat = codes.reshape(-1).astype(np.int16) & 0xF
        flat = np.append(flat, np.zeros(flat.size % 2, dtype=np.int16))
        packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
        graph.initializer.append(
            onnx.TensorProto(name=integers, data_type=TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes())
        )
    graph.initializer.append(numpy_helper.from_array(made.scales, scale))
    back = helper.make_node("DequantizeLinear", inputs, [result], name=f"{name}/dequantize", axis=axis)
    graph.node.insert(0, back)
    return result


def _behind_arithmetic(graph: onnx.GraphProto, name: str, weight: Array, bits: int, axis: int) -> str:
    """Stores a weight as packed integers and unpacks them with operators of opset 13; the name of what that gives.

    Codes are stored unsigned, 2**(bits-1) above their value. Value i of a group of 8 lies in two neighbouring bytes at most.
    """
    moved = np.moveaxis(weight, axis, 0)
    made = coded(moved.reshape(len(moved), -1), bits)
    values = np.moveaxis(made.codes.reshape(moved.shape), 0, axis).astype(np.int16) + 2 ** (bits - 1)
    data = np.frombuffer(pack(values, bits), dtype=np.uint8).reshape(-1, bits)
    first = np.arange(GROUP) * bits
    below = np.minimum(first // 8 + 1, bits - 1)
    around = [1] * weight.ndim
    around[axis] = -1
    stored = {tensor.name for tensor in graph.initializer}

    def tensor(key: str, array: Any) -> str:
        if key not in stored:
            stored.add(key)
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), key))
        return key

    own, common = f"{name}/int{bits}", f"unpack{bits}"
    made_nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        result = f"{own}/{len(made_nodes)}"
        made_nodes.append(helper.make_node(kind, inputs, [result], name=result, **attributes))
        return result

    packed = node("Cast", [tensor(own, data)], to=TensorProto.INT32)
    low = node("Gather", [packed, tensor(f"{common}/byte", first // 8)], axis=1)
    high = node("Gather", [packed, tensor(f"{common}/next", below)], axis=1)
    high = node("Mul", [high, tensor(f"{common}/256", np.array(256, np.int32))])
    word = node("Add", [low, high])
    shifted = node("Div", [word, tensor(f"{common}/shift", (1 << (first % 8)).astype(np.int32))])
    whole = node("Mod", [shifted, tensor(f"{common}/range", np.array(2**bits, np.int32))])
    signed = node("Sub", [whole, tensor(f"{common}/zero", np.array(2 ** (bits - 1), np.int32))])
    flat = node("Reshape", [signed, tensor("unpack/flat", np.array([-1], np.int64))])
    if data.size * 8 // bits != weight.size:
        bounds = [tensor("unpack/begin", np.array([0], np.int64)), tensor(f"{own}/count", np.array([weight.size], np.int64))]
        flat = node("Slice", [flat, *bounds])
    shaped = node("Reshape", [flat, tensor(f"{own}/shape", np.array(weight.shape, np.int64))])
    floats = node("Cast", [shaped], to=TensorProto.FLOAT)
    result = node("Mul", [floats, tensor(f"{own}/scale", made.scales.reshape(around))])
    for place, each in enumerate(made_nodes):
        graph.node.insert(place, each)
    return result


def _raised(model: Model) -> Model:
    try:
        return model.changed(version_converter.convert_version(model.copy_proto(), INT4_OPSET))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise PassError(
            "quantize", f"weights stored in 4 bits need opset {INT4_OPSET}, which the model cannot be raised to: {error}",
            "take --precision w8, or export the model again with opset 21",
        ) from error  # fmt: skip


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= {name for inner in attribute.g.node for name in inner.input}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
