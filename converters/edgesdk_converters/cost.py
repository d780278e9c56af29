"""What a model costs before it runs anywhere: one Layer a node, with MACs, parameters and bytes.

Layers are what every estimator reads. They come from a Model or from a layer list in JSON (published networks whose
weights are not at hand); kinds and counting rules are the same for both: one MAC is one multiply and one add, bias not
counted; parameters are weights and biases; bytes are those of tensors that have batch dimensions as the model fixes them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import onnx

    from .graph import ValueType
    from .model import Model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One operation. `kind` is what estimators group by; shapes include the batch axis where the model has one."""

    name: str
    op: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    in_shapes: tuple[Shape, ...] = ()
    out_shapes: tuple[Shape, ...] = ()
    kernel: Shape = ()
    stride: Shape = ()
    dilation: Shape = ()
    groups: int = 1
    macs: int = 0
    params: int = 0
    elem_ops: int = 0
    weight_bytes: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Totals:
    """Sums over layers, and the largest sum of tensors that must be alive at once (activations, not weights)."""

    macs: int
    params: int
    weight_bytes: int
    peak_activation_bytes: int
    by_kind: dict[str, int] = field(default_factory=dict)


_KINDS = {
    "Conv": "conv", "ConvInteger": "conv", "QLinearConv": "conv", "FusedConv": "conv", "ConvTranspose": "deconv",
    "Gemm": "fc", "MatMul": "matmul", "MatMulInteger": "matmul", "QLinearMatMul": "matmul", "Einsum": "matmul",
    "MatMulNBits": "fc", "Attention": "mha", "MultiHeadAttention": "mha", "LSTM": "rnn", "GRU": "rnn", "RNN": "rnn",
    "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "pool", "GlobalMaxPool": "pool", "LpPool": "pool",
    "ReduceMean": "pool", "ReduceSum": "pool", "ReduceMax": "pool", "ReduceMin": "pool", "ReduceL2": "pool",
    "Add": "eltwise", "Sub": "eltwise", "Mul": "eltwise", "Div": "eltwise", "Max": "eltwise", "Min": "eltwise",
    "Sum": "eltwise", "Pow": "eltwise", "Where": "eltwise", "Mean": "eltwise",
    "BatchNormalization": "norm", "LayerNormalization": "norm", "InstanceNormalization": "norm", "LRN": "norm",
    "GroupNormalization": "norm", "LpNormalization": "norm", "RMSNormalization": "norm",
    "Softmax": "softmax", "LogSoftmax": "softmax", "Concat": "concat", "Slice": "slice", "Split": "slice",
    "Gather": "slice", "GatherElements": "slice", "GatherND": "slice", "Transpose": "permute", "Reshape": "reshape",
    "Flatten": "reshape", "Squeeze": "reshape", "Unsqueeze": "reshape", "Identity": "reshape", "Dropout": "reshape",
    "Pad": "pad", "Resize": "interp", "Upsample": "interp", "Constant": "const", "ConstantOfShape": "const",
    "Shape": "const", "Range": "const", "Cast": "cast", "QuantizeLinear": "cast", "DequantizeLinear": "cast",
    "NonMaxSuppression": "detpost", "TopK": "detpost", "If": "control", "Loop": "control", "Scan": "control",
}  # fmt: skip
_FREE = {"reshape", "const", "control"}
_WORKERS = {op for op, kind in _KINDS.items() if kind in ("conv", "deconv", "fc", "matmul", "mha", "rnn")}


def layers(model: Model) -> tuple[Layer, ...]:
    """One Layer for each node, in execution order. Of `If` the dearer branch is counted; a `Loop` body once.

    Raises ModelError where a shape is not static: costs of unknown sizes cannot be known.
    """
    from . import graph as graphs

    if model.proto.functions:
        import onnx.inliner

        model = model.changed(onnx.inliner.inline_local_functions(model.copy_proto()))
    return tuple(_graph_layers(model.proto.graph, graphs.value_types(model.proto.graph), set(), set()))


def total(records: Iterable[Layer]) -> Totals:
    """Sums over layers; liveness is followed by tensor names where the layers carry them."""
    records = tuple(records)
    by_kind: dict[str, int] = {}
    for layer in records:
        if layer.macs:
            by_kind[layer.kind] = by_kind.get(layer.kind, 0) + layer.macs
    return Totals(
        macs=sum(layer.macs for layer in records),
        params=sum(layer.params for layer in records),
        weight_bytes=sum(layer.weight_bytes for layer in records),
        peak_activation_bytes=_peak(records),
        by_kind=by_kind,
    )


def integer_share(records: Iterable[Layer]) -> float:
    """Share of all MACs that are done on integers: between quantised tensors, or in an integer operator; 0..1."""
    records = tuple(records)
    dequantised = {name for layer in records if layer.op == "DequantizeLinear" for name in layer.outputs}
    quantised = {name for layer in records if layer.op == "QuantizeLinear" for name in layer.inputs}
    weights_alone = not quantised
    whole = sum(layer.macs for layer in records)
    if not whole:
        return 0.0
    done = 0
    for layer in records:
        between = bool(layer.inputs) and not weights_alone and all(name in dequantised for name in layer.inputs)
        if layer.macs and (between or layer.op.startswith("QLinear") or layer.op.endswith("Integer") or layer.op == "QGemm"):
            done += layer.macs
    return done / whole


def load_layers(path: str | os.PathLike[str]) -> tuple[Layer, ...]:
    """Layers from a JSON layer list: {"layers": [{name, op, kind, in_shapes, out_shapes, kernel, …}]}, shapes without batch.

    Raises ModelError for a file that is no such list.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(_from_entry(entry, 1 if data.get("int8") else 4) for entry in data["layers"])
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is no layer list: {type(error).__name__} {error}", "expected {'layers': [...]}") from error
    if not found:
        raise ModelError(f"{path} is an empty layer list", "expected {'layers': [...]} with at least one layer")
    for layer in found:
        counts = (layer.macs, layer.params, layer.elem_ops, layer.weight_bytes, layer.in_bytes, layer.out_bytes)
        if min(counts) < 0:
            raise ModelError(
                f"{path} is no layer list: layer {layer.name!r} has a negative count; allowed: 0 or more", "correct the list"
            )
    return found


def _from_entry(entry: dict[str, Any], item_bytes: int) -> Layer:
    def shapes(name: str) -> tuple[Shape, ...]:
        return tuple(tuple(int(dim) for dim in shape) for shape in entry.get(name, ()))

    def sizes(name: str) -> Shape:
        value = entry.get(name, ())
        return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)

    quantised = bool(entry.get("int8")) and int(entry.get("macs", 0)) > 0
    return Layer(
        name=str(entry["name"]),
        op=str(entry.get("op", "")),
        kind=str(entry["kind"]),
        inputs=tuple(map(str, entry.get("inputs", ()))),
        outputs=tuple(map(str, entry.get("outputs", ()))),
        in_shapes=shapes("in_shapes"),
        out_shapes=shapes("out_shapes"),
        kernel=sizes("kernel"),
        stride=sizes("stride"),
        dilation=sizes("dilation"),
        groups=int(entry.get("groups", 1)),
        macs=int(entry.get("macs", 0)),
        params=int(entry.get("params", 0)),
        elem_ops=int(entry.get("elem_ops", 0)),
        weight_bytes=int(entry.get("weight_bytes_fp32", 0)) * (item_bytes if quantised else 4) // 4,
        in_bytes=int(entry.get("in_bytes_fp32", 0)),
        out_bytes=int(entry.get("out_bytes_fp32", 0)),
        dtype="int8" if quantised else "float32",
    )


def _graph_layers(graph: onnx.GraphProto, types: dict[str, ValueType], outer: set[str], counted: set[str]) -> list[Layer]:
    """Layers of one graph; `outer` are constants it may take from outside, `counted` those that a layer has paid for."""
    from . import graph as graphs

    constants = outer | {tensor.name for tensor in graph.initializer}
    records: list[Layer] = []
    for node in graph.node:
        branches = []
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                paid = set(counted)
                rows = _graph_layers(inner, types | graphs.value_types(inner), constants, paid)
                branches.append((rows, paid))
        if branches:
            rows, paid = max(branches, key=lambda branch: sum(row.macs for row in branch[0]))
            records.extend(rows)
            counted |= paid
        if node.op_type == "Constant":
            constants.add(node.output[0])
            continue
        records.append(_node_layer(node, types, constants, counted))
    return records


def _node_layer(node: onnx.NodeProto, types: dict[str, ValueType], constants: set[str], counted: set[str]) -> Layer:
    from . import graph as graphs

    def static(name: str) -> Shape:
        kind = types.get(name)
        if kind is not None and kind.elements is not None:
            return tuple(int(dim) for dim in kind.shape or ())
        if (kind is None or kind.shape is None) and node.op_type not in _WORKERS:
            return ()  # an unused mask, the output of an If with unlike branches: it costs nothing that is counted
        shown = "x".join(map(str, kind.shape)) if kind is not None and kind.shape is not None else "unknown rank"
        raise ModelError(
            f"value {name!r} of node {graphs.node_label(node)!r} has no static shape ({shown})",
            "give --shape INPUT=1x3x224x224 for every dynamic input",
        )

    def size(name: str) -> int:
        kind = types.get(name)
        return (kind.nbytes or 0) if kind is not None else 0

    weights = [name for name in node.input if name in constants]
    data = [name for name in node.input if name and name not in constants]
    fresh = [name for name in weights if name not in counted]
    counted.update(fresh)
    in_shapes = tuple(static(name) for name in node.input if name)
    out_shapes = tuple(static(name) for name in node.output if name)
    attributes = {a.name: a for a in node.attribute}

    def ints(name: str) -> Shape:
        return tuple(attributes[name].ints) if name in attributes else ()

    groups = attributes["group"].i if "group" in attributes else 1
    kind, macs, kernel = _work(node, static, in_shapes, out_shapes, groups, ints("kernel_shape"), attributes)
    first = types.get(data[0] if data else (node.output[0] if node.output else ""))
    heavy = macs > 0 or kind == "norm"
    return Layer(
        name=graphs.node_label(node),
        op=node.op_type,
        kind=kind,
        inputs=tuple(data),
        outputs=tuple(name for name in node.output if name),
        in_shapes=tuple(static(name) for name in data),
        out_shapes=out_shapes,
        kernel=kernel,
        stride=ints("strides") or ((1,) * len(kernel) if kernel else ()),
        dilation=ints("dilations") or ((1,) * len(kernel) if kernel else ()),
        groups=groups,
        macs=macs,
        params=sum(types[name].elements or 0 for name in fresh if name in types and _is_parameter(types[name])),
        elem_ops=0 if heavy or kind in _FREE else sum(math.prod(shape) for shape in out_shapes),
        weight_bytes=sum(size(name) for name in fresh),
        in_bytes=0 if kind in _FREE else sum(size(name) for name in data),
        out_bytes=0 if kind in _FREE else sum(size(name) for name in node.output if name),
        dtype=graphs.numpy_name(first.elem_type) if first is not None else "float32",
    )


def _is_parameter(kind: ValueType) -> bool:
    return kind.elem_type not in (6, 7, 8, 9)  # int32, int64, string, bool: shapes, axes and indices


def _work(
    node: onnx.NodeProto,
    static: Any,
    in_shapes: Sequence[Shape],
    out_shapes: Sequence[Shape],
    groups: int,
    kernel: Shape,
    attributes: dict[str, onnx.AttributeProto],
) -> tuple[str, int, Shape]:
    """Kind, MACs and kernel of one node."""
    op = node.op_type
    kind = _KINDS.get(op, "act" if op in _ACTIVATIONS else "other")
    if op in ("Conv", "ConvInteger", "QLinearConv", "FusedConv"):
        weight = static(node.input[3 if op == "QLinearConv" else 1])
        kernel = weight[2:]
        macs = math.prod(out_shapes[0]) * math.prod(weight[1:])
        in_channels = weight[1] * groups
        if groups > 1:
            kind = "dwconv" if groups == in_channels else "groupconv"
        elif math.prod(kernel) == 1:
            kind = "conv1x1"
        return kind, macs, kernel
    if op == "ConvTranspose":
        weight = static(node.input[1])
        return kind, math.prod(in_shapes[0]) * math.prod(weight[1:]), weight[2:]
    if op == "Gemm":
        a = static(node.input[0])
        inner = a[0] if "transA" in attributes and attributes["transA"].i else a[-1]
        return kind, math.prod(out_shapes[0]) * inner, ()
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        a = static(node.input[0])
        if op == "MatMul" and len(static(node.input[1])) == 2:
            kind = "gemm"
        return kind, math.prod(out_shapes[0]) * a[-1], ()
    if op == "Einsum":
        letters: dict[str, int] = {}
        terms = attributes["equation"].s.decode().replace(" ", "").split("->")[0].split(",")
        for term, shape in zip(terms, in_shapes, strict=False):
            head, dots, tail = term.partition("...")
            extra = len(shape) - len(head) - len(tail) if dots else 0  # axes that the ellipsis stands for, from the right
            for letter, size in zip([*head, *(f"...{i}" for i in range(extra, 0, -1)), *tail], shape, strict=False):
                letters[letter] = max(size, letters.get(letter, 1))
        return kind, math.prod(letters.values()) if len(terms) > 1 else 0, ()
    if op == "Attention":
        query, key, value = (static(name) for name in node.input[:3])
        past = static(node.input[4])[2] if len(node.input) > 4 and node.input[4] else 0
        if len(query) == 4:  # batch, heads, sequence, head size
            return kind, math.prod(query[:3]) * (key[2] + past) * (query[3] + value[3]), ()
        heads, kv_heads = attributes["q_num_heads"].i, attributes["kv_num_heads"].i
        width = query[2] + heads * (value[2] // kv_heads)
        return kind, math.prod(query[:2]) * (key[1] + past) * width, ()
    if op == "MatMulNBits":
        return kind, math.prod(out_shapes[0]) * attributes["K"].i, ()
    if op in ("LSTM", "GRU", "RNN"):
        steps_batch = math.prod(in_shapes[0][:2])
        weight, recurrent = static(node.input[1]), static(node.input[2])
        return kind, steps_batch * (math.prod(weight) + math.prod(recurrent)), ()
    return kind, 0, kernel


_ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Gelu", "Erf",
    "Softplus", "Softsign", "Mish", "Celu", "ThresholdedRelu", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Swish",
    "QuickGelu", "FastGelu", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign",
}  # fmt: skip


def _peak(records: Sequence[Layer]) -> int:
    """A reshape's output is its input's memory; what nothing reads (an output of the model) lives to the end."""
    root: dict[str, str] = {}
    last_use: dict[str, int] = {}
    for index, layer in enumerate(records):
        if layer.kind == "reshape" and layer.inputs:
            root.update((name, root.get(layer.inputs[0], layer.inputs[0])) for name in layer.outputs)
        for name in layer.inputs:
            last_use[root.get(name, name)] = index
    for name in {name for layer in records for name in layer.outputs} - {name for layer in records for name in layer.inputs}:
        last_use[root.get(name, name)] = len(records)
    seen: set[str] = set()
    alive: dict[str, int] = {}
    peak = 0
    for index, layer in enumerate(records):
        for names, shapes, size in (
            (layer.inputs, layer.in_shapes, layer.in_bytes),  # unseen ones are inputs of the model
            (layer.outputs, layer.out_shapes, layer.out_bytes),
        ):
            for name, share in zip(names, _shares(names, shapes, size), strict=True):
                if name not in seen and name not in root:
                    alive[name] = share
                seen.add(name)
        peak = max(peak, sum(alive.values()))
        for name in [n for n in alive if last_use.get(n, len(records)) <= index]:
            del alive[name]
    return peak


def _shares(names: Sequence[str], shapes: Sequence[Shape], size: int) -> list[int]:
    """`size` bytes divided among tensors by their numbers of elements."""
    if len(names) != len(shapes):
        return [size // max(1, len(names))] * len(names)
    elements = [math.prod(shape) for shape in shapes]
    return [size * count // max(1, sum(elements)) for count in elements]
