"""Half: fp16 in the graph itself, with everything that comes near fp16's limits kept in fp32.

ONNX Runtime on a CPU computes fp16 graphs in fp32 inside, so an overflow on the device does not show here. What is safe is
therefore judged from the activations' ranges, not from the CPU's result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .calibration import activation_ranges
from .errors import MissingExtra, PassError
from .model import Model, Step
from .passes import Given

try:
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
except ImportError as _error:
    raise MissingExtra("convert", "onnx-ir") from _error

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14

_WORK = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
_SUMS = {"ReduceSum": 1, "ReduceMean": 1, "ReduceL1": 1, "GlobalAveragePool": 1, "AveragePool": 1, "CumSum": 1}
_SQUARES = {
    "ReduceSumSquare", "ReduceL2", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
    "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN",
}  # fmt: skip


@dataclass(frozen=True)
class Half:
    """fp32 to fp16 where it is safe; inputs and outputs of the model keep their types.

    A node stays in fp32 when its operator has no fp16 form; when a tensor it touches comes within a factor `headroom` of
    65504 on the calibration data; when it sums (or sums squares) so many values that the partial sum might; when a
    constant of it would overflow, vanish or lose more than 1 % of its norm; or when it sits inside If, Loop or Scan, whose
    activations cannot be observed. A stretch of fp16 without any matrix work in it is left in fp32: the casts would cost
    more than it saves.
    """

    name: ClassVar[str] = "half"
    headroom: float = 4.0

    def __post_init__(self) -> None:
        if self.headroom < 1:
            raise PassError(self.name, f"headroom is {self.headroom}; allowed: 1 or more")

    def __call__(self, model: Model, given: Given) -> Model:
        given.progress("reading activation ranges")
        ranges = activation_ranges(model, given.train)
        graph_model = ir.serde.deserialize_model(model.copy_proto())
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph_model)
        graph = graph_model.graph
        opset = model.opset
        reasons: dict[str, int] = {}
        half: set[ir.Node] = set()
        for node in graph:
            reason = self._reason(node, opset, ranges)
            if reason is None:
                half.add(node)
            elif reason:
                reasons[reason] = reasons.get(reason, 0) + 1
        islands = _islands(half)
        half -= islands
        inside = sum(1 for node in graph_model.graph.all_nodes() if node.graph is not graph)
        if inside:
            reasons["inside If, Loop or Scan"] = inside
        _rewrite(graph, half)
        total = sum(1 for _ in graph_model.graph.all_nodes())
        kept = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        note = f"{len(half)} nodes in fp16, ranges from {len(given.train)} of {given.train.origin}"
        if kept:
            note += f"; in fp32: {kept}"
        proto = ir.serde.serialize_model(graph_model)
        if not half:
            note = f"no node of {total} could go to fp16: {kept or 'no matrix work in the main graph'}"
        return model.changed(proto, Step(self.name, {"headroom": self.headroom}, note))

    def _reason(self, node: ir.Node, opset: int, ranges: dict[str, tuple[float, float]]) -> str | None:
        """Why a node stays in fp32: None = it need not, "" = it has no floats at all."""
        if any(
            isinstance(a, ir.Attr) and a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            return "with a subgraph"
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == ir.DataType.FLOAT]
        if not floats:
            return ""
        if not _has_half_form(node, opset):
            return "without an fp16 form"
        limit = FP16_MAX / self.headroom
        for value in floats:
            if value.is_initializer():
                problem = _constant_problem(value, limit)
                if problem:
                    return problem
            elif value.name not in ranges:
                return "with a range that was not seen"
            elif max(map(abs, ranges[value.name])) > limit:
                return f"with activations above {limit:,.0f}"
        source = node.inputs[0]
        if source is not None and source.name in ranges and source.shape is not None:
            peak = max(map(abs, ranges[source.name]))
            count = _reduced(node, source)
            power = 2 if node.op_type in _SQUARES else 1
            if (node.op_type in _SUMS or node.op_type in _SQUARES) and count * peak**power > limit:
                return "whose partial sums may overflow"
            if node.op_type == "Pow" and peak > 1:
                exponent = node.inputs[1].const_value if node.inputs[1] is not None else None
                largest = float(np.abs(exponent.numpy()).max()) if exponent is not None else math.inf
                if largest * math.log(peak) > math.log(limit):
                    return "whose powers may overflow"
        return None


def _has_half_form(node: ir.Node, opset: int) -> bool:
    """Whether the operator's schema takes float16 for all its float32 inputs and outputs, the outputs' following the inputs'."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    bound = {_formal(schema.inputs, i) for i, v in enumerate(node.inputs) if v is not None and v.dtype == ir.DataType.FLOAT}
    flexible = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    changing = bound & flexible
    outputs = {_formal(schema.outputs, i) for i, v in enumerate(node.outputs) if v.dtype == ir.DataType.FLOAT}
    return bool(changing) and outputs <= changing


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    return str(parameters[min(index, len(parameters) - 1)].type_str)


def _constant_problem(value: ir.Value, limit: float) -> str:
    tensor = value.const_value
    if tensor is None:
        return "with a constant that is not stored"
    data = tensor.numpy().astype(np.float64)
    finite = data[np.isfinite(data)]
    if finite.size and np.abs(finite).max() > limit:
        return f"with constants above {limit:,.0f}"
    with np.errstate(over="ignore"):
        rounded = finite.astype(np.float16).astype(np.float64)
    tiny = np.abs(finite[finite != 0])
    if finite.size <= 16 and tiny.size and tiny.min() < FP16_SMALLEST_NORMAL:
        return "with constants below fp16's normal range"
    if finite.size and np.linalg.norm(finite - rounded) > 0.01 * np.linalg.norm(finite):
        return "with weights too small for fp16"
    return ""


def _reduced(node: ir.Node, source: ir.Value) -> int:
    """How many values one output of a reduction sums up: an upper bound."""
    shape = [dim if isinstance(dim, int) else 1 for dim in source.shape or ()]
    if node.op_type in ("GlobalAveragePool", "InstanceNormalization"):
        return math.prod(shape[2:])
    if node.op_type == "AveragePool":
        return math.prod(node.attributes["kernel_shape"].as_ints())
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        return math.prod(shape[axis:])
    if node.op_type == "LRN":
        return node.attributes["size"].as_int()
    produced = node.outputs[0].shape
    left = math.prod(dim if isinstance(dim, int) else 1 for dim in produced or ())
    return max(1, math.prod(shape) // max(1, left)) if node.op_type != "CumSum" else max(shape or [1])


def _neighbours(node: ir.Node, among: set[ir.Node]) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer in among and value is not None and value.dtype == ir.DataType.FLOAT:
            yield producer
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            yield from (user for user, _ in value.uses() if user in among)


def _islands(half: set[ir.Node]) -> set[ir.Node]:
    """Connected stretches of fp16 nodes in which no node does matrix work."""
    islands: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    for start in half:
        if start in seen:
            continue
        stretch, todo = {start}, [start]
        while todo:
            for other in _neighbours(todo.pop(), half):
                if other not in stretch:
                    stretch.add(other)
                    todo.append(other)
        seen |= stretch
        if not any(node.op_type in _WORK for node in stretch):
            islands |= stretch
    return islands


def _rewrite(graph: ir.Graph, half: set[ir.Node]) -> None:
    """Give the chosen nodes fp16 inputs and outputs, with casts where they meet the rest."""
    down: dict[ir.Value, ir.Value] = {}
    opset = graph.opset_imports.get("", 0)
    for node in list(graph):
        if node not in half:
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        flexible = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or _formal(schema.inputs, index) not in flexible:
                continue
            if value.producer() in half:
                continue  # becomes fp16 at its producer
            if value not in down:
                down[value] = _half_constant(graph, value) if value.is_initializer() else _cast(graph, node, value)
            node.replace_input_with(index, down[value])
    graph_outputs = list(graph.outputs)
    for node in list(graph):
        if node not in half:
            continue
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            outside = [(user, index) for user, index in value.uses() if user not in half and user.op_type != "Cast"]
            outside += [(u, i) for u, i in value.uses() if u not in half and u.op_type == "Cast"]
            is_output = value in graph_outputs
            value.dtype = ir.DataType.FLOAT16
            if not outside and not is_output:
                continue
            back = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, num_outputs=1)
            wide = back.outputs[0]
            wide.dtype, wide.shape = ir.DataType.FLOAT, value.shape
            graph.insert_after(node, back)
            for user, index in outside:
                user.replace_input_with(index, wide)
            name = value.name
            if is_output:
                value.name, wide.name = f"{name}/fp16", name
                for index, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[index] = wide
            else:
                wide.name = f"{name}/fp32"
            back.name = f"{wide.name}/cast"
    for value in down:
        if value.is_initializer() and not value.uses() and value.name is not None:
            graph.initializers.pop(value.name)


def _half_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None  # _constant_problem refused it otherwise
    with np.errstate(over="ignore"):
        data = tensor.numpy().astype(np.float16)
    made = ir.Value(
        name=f"{value.name}/fp16",
        shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(data, name=f"{value.name}/fp16"),
    )
    graph.register_initializer(made)
    return made


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """A cast to fp16, placed right after the value's producer (or first in the graph)."""
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, num_outputs=1, name=f"{value.name}/fp16/cast")
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = f"{value.name}/fp16", ir.DataType.FLOAT16, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return made
