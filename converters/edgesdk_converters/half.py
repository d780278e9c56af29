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

from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .observe import extremes
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
_SUMS = {"ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSum", "GlobalAveragePool", "AveragePool", "CumSum"}
_SQUARES = {
    "ReduceSumSquare", "ReduceL2", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
    "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "LpPool", "GlobalLpPool",
}  # fmt: skip


@dataclass(frozen=True)
class Half:
    """fp32 to fp16 where it is safe; inputs and outputs of the model keep their types.

    A node stays in fp32 when its operator has no fp16 form; when a tensor it touches comes within a factor `headroom` of
    65504 on the calibration data; when it sums (or sums squares) so many values that the partial sum might; when a
    constant of it would overflow, vanish or lose more than 1 % of its norm; when it feeds a logarithm that matrix work
    follows; or when it sits inside If, Loop or Scan, whose
    activations cannot be observed. A stretch of fp16 without any matrix work in it is left in fp32: the casts would cost
    more than it saves.
    """

    name: ClassVar[str] = "half"
    headroom: float = 4.0

    def __post_init__(self) -> None:
        if not 1 <= self.headroom < math.inf:
            raise PassError(self.name, f"headroom is {self.headroom}; allowed: 1 or more")

    def __call__(self, model: Model, given: Given) -> Model:
        given.progress("reading activation ranges")
        ranges = extremes(model, given.train, given.progress)
        graph_model = ir.serde.deserialize_model(model.copy_proto())
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph_model)
        graph = graph_model.graph
        opset = model.opset
        reasons: dict[str, int] = {}
        half: set[ir.Node] = set()
        front = _front_end(graph)
        for node in graph:
            reason = self._reason(node, opset, ranges) if node not in front else "feeding a logarithm"
            if reason is None:
                half.add(node)
            elif reason:
                reasons[reason] = reasons.get(reason, 0) + 1
        islands = _islands(half)
        half -= islands
        inside = sum(1 for node in graph_model.graph.all_nodes() if node.graph is not graph)
        if inside:
            reasons["inside If, Loop or Scan"] = inside
        _rewrite(graph, half, opset)
        total = sum(1 for _ in graph_model.graph.all_nodes())
        kept = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        note = f"{len(half)} nodes in fp16, ranges from {len(given.train)} of {given.train.origin}"
        if kept:
            note += f"; in fp32: {kept}"
        proto = ir.serde.serialize_model(graph_model)
        if not half:
            note = f"no node of {total} could go to fp16: {kept or 'no matrix work in the main graph'}"
        try:
            return model.changed(proto, Step(self.name, {"headroom": self.headroom}, note))
        except ModelError as error:
            raise PassError(self.name, f"the fp16 model is not valid: {error.message}", "use --precision fp32") from error

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
            elif not max(map(abs, ranges[value.name])) <= limit:  # NaN is no proof of safety
                return f"with activations above {limit:,.0f}"
        if _may_divide_by_nothing(node, ranges):
            return "that divide by values below fp16's normal range"
        source = node.inputs[0]
        if source is not None and source.name in ranges and source.shape is not None:
            peak = max(map(abs, ranges[source.name]))
            count = _reduced(node, source) if node.op_type in _SUMS or node.op_type in _SQUARES else 0
            power = 2 if node.op_type in _SQUARES else 1
            if peak > 0 and count * peak**power > limit:
                return "whose partial sums may overflow"
            if node.op_type == "Pow" and peak > 1:
                exponent = node.inputs[1].const_value if node.inputs[1] is not None else None
                largest = float(np.abs(exponent.numpy()).max()) if exponent is not None else math.inf
                if largest * math.log(peak) > math.log(limit):
                    return "whose powers may overflow"
        return None


def _front_end(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that feed a Log which matrix work follows: the spectrogram of an audio network, say.

    A logarithm turns the absolute rounding of small values into large errors, whatever their range.
    """
    working: set[ir.Node] = set()
    for node in reversed(graph):
        users = {user for value in node.outputs for user, _ in value.uses()}
        if node.op_type in _WORK or users & working:
            working.add(node)
    front: set[ir.Node] = set()
    for node in reversed(graph):
        users = {user for value in node.outputs for user, _ in value.uses()}
        if (node.op_type == "Log" and users & working) or users & front:
            front.add(node)
    return front


def _has_half_form(node: ir.Node, opset: int) -> bool:
    """Whether the operator's schema takes float16 for float32 inputs, and its float32 outputs then follow them."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if _is_widening(node):
        return True
    reduction = node.attributes.get("reduction")
    if node.op_type.startswith("Scatter") and reduction is not None and reduction.as_string() != "none":
        return False  # the schema allows it; runtimes do not
    if node.op_type == "MeanVarianceNormalization":
        return False  # its definition in ONNX has a float32 constant, and cannot be inferred in fp16
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    changing = {_formal(schema.inputs, index) for index in _half_slots(node, opset)}
    outputs = {_formal(schema.outputs, i) for i, v in enumerate(node.outputs) if v.dtype == ir.DataType.FLOAT}
    return bool(changing) and outputs <= changing


def _is_widening(node: ir.Node) -> bool:
    """A Cast of something else to float32, which can go to float16 straight away."""
    source = node.inputs[0] if node.op_type == "Cast" and node.domain in ("", "ai.onnx") else None
    to_float = source is not None and node.outputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return to_float and source is not None and source.dtype not in (None, ir.DataType.FLOAT, ir.DataType.STRING)


def _half_slots(node: ir.Node, opset: int) -> set[int]:
    """Indices of the float32 inputs that the operator's schema takes as float16 too (a Resize's scales, say, it does not)."""
    if _is_widening(node):
        return set()
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    flexible = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    floats = [i for i, v in enumerate(node.inputs) if v is not None and v.dtype == ir.DataType.FLOAT]
    return {index for index in floats if _formal(schema.inputs, index) in flexible}


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    return str(parameters[min(index, len(parameters) - 1)].type_str)


def _may_divide_by_nothing(node: ir.Node, ranges: dict[str, tuple[float, float]]) -> bool:
    """Whether a divisor, which fp16 would round to zero or coarsely, comes as close to zero as fp16's normal range ends."""
    slot = {"Div": 1, "Reciprocal": 0}.get(node.op_type)
    divisor = node.inputs[slot] if slot is not None else None
    if divisor is None or divisor.dtype != ir.DataType.FLOAT:
        return False
    if divisor.const_value is not None:
        data = np.abs(divisor.const_value.numpy())
        return bool(data.size and data.min() < FP16_SMALLEST_NORMAL)
    low, high = ranges[divisor.name or ""]
    return (0 <= low < FP16_SMALLEST_NORMAL) or (-FP16_SMALLEST_NORMAL < high <= 0)


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


def _reduced(node: ir.Node, source: ir.Value) -> float:
    """How many values one output of a reduction sums up: an upper bound, infinite where a summed axis is dynamic."""
    if node.op_type == "AveragePool" or (node.op_type == "LpPool" and "kernel_shape" in node.attributes):
        return math.prod(node.attributes["kernel_shape"].as_ints())
    if node.op_type == "LRN":
        return node.attributes["size"].as_int()
    rank = len(source.shape or ())
    axes: Sequence[int] = range(rank)
    if node.op_type in ("GlobalAveragePool", "GlobalLpPool", "InstanceNormalization"):
        axes = range(2, rank)
    elif node.op_type == "GroupNormalization":
        axes = range(1, rank)
    elif node.op_type in ("LayerNormalization", "RMSNormalization"):
        axes = range((node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % rank, rank)
    elif node.op_type == "LpNormalization":
        axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else -1]
    elif "axes" in node.attributes:
        axes = node.attributes["axes"].as_ints()
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        given = node.inputs[1].const_value
        axes = [int(axis) for axis in given.numpy().reshape(-1)] if given is not None and given.size else axes
    sizes = [source.shape[axis] for axis in axes] if source.shape is not None else []
    return math.prod(size if isinstance(size, int) else math.inf for size in sizes)


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


def _rewrite(graph: ir.Graph, half: set[ir.Node], opset: int) -> None:
    """Give the chosen nodes fp16 inputs and outputs, with casts where they meet the rest."""
    down: dict[ir.Value, ir.Value] = {}
    slots = {node: _half_slots(node, opset) for node in half}  # before any value changes its type
    taken = {value.name for node in graph.all_nodes() for value in node.outputs} | {v.name for v in graph.inputs}
    taken |= set(graph.initializers)

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for node in list(graph):
        if node not in half:
            continue
        if _is_widening(node):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
            continue
        for index in sorted(slots[node]):
            value = node.inputs[index]
            assert value is not None  # it has a type
            if value.producer() in half:
                continue  # becomes fp16 at its producer
            if value not in down:
                made = fresh(f"{value.name}/fp16")
                down[value] = _half_constant(graph, value, made) if value.is_initializer() else _cast(graph, value, made)
            node.replace_input_with(index, down[value])
    graph_outputs = list(graph.outputs)
    for node in list(graph):
        if node not in half:
            continue
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            outside = [(u, i) for u, i in value.uses() if u not in half or (not _is_widening(u) and i not in slots[u])]
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
                value.name, wide.name = fresh(f"{name}/fp16"), name
                for index, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[index] = wide
            else:
                wide.name = fresh(f"{name}/fp32")
            back.name = f"{wide.name}/cast"
    for value in down:
        if value.is_initializer() and not value.uses() and not value.is_graph_output() and value.name is not None:
            graph.initializers.pop(value.name)


def _half_constant(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None  # _constant_problem refused it otherwise
    with np.errstate(over="ignore"):
        data = tensor.numpy().astype(np.float16)
    made = ir.Value(
        name=name,
        shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(data, name=name),
    )
    graph.register_initializer(made)
    return made


def _cast(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """A cast to fp16, placed right after the value's producer (or first in the graph)."""
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, num_outputs=1, name=f"{name}/cast")
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = name, ir.DataType.FLOAT16, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return made
