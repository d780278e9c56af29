"""to_torch: an ONNX graph as a torch module through which gradients flow, and its trained weights back into the graph.

Stored weights become real modules (Conv, Linear, BatchNorm, LayerNorm) or parameters, each known by the name of its
initialiser; everything else is a function of torch_operators. What follows from stored constants and static shapes alone is
computed while the program is made. Pairs of QuantizeLinear and DequantizeLinear become fake quantisation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, ModelError, Unsupported
from .model import Model, Step

try:
    import onnx
    from onnx import helper, inliner, numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error
try:
    import torch
    from torch import Tensor, nn
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

from .torch_operators import KNOWN_INPUTS, OPERATORS, Known, Operator, Value
from .torch_operators.layers import pads, spatial
from .torch_operators.quantised import RANGES, fake_quantise, limits

CLAIMED = frozenset(OPERATORS) | {"Constant", "If"}
"""Operators that to_torch takes, of the standard domain; If where its condition is known."""
_LEARNED: Mapping[str, Sequence[int]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Einsum": (0, 1, 2),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "PRelu": (1,), "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "Gather": (0,),
}  # fmt: skip
"""Inputs that are weights where they are stored."""
_SUMMED = ("Add", "Mul")
"""Operators whose stored inputs are weights (biases, positions, scales) unless they are a single number."""
_PASSED_ON = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast", "Flatten")
_STATISTICS = (3, 4)
"""Inputs of BatchNormalization that training moves without gradients."""


@dataclass(frozen=True)
class Held:
    """Where an initialiser lives in the module, and how it is written there: as it is, transposed, or before rounding."""

    path: str
    turned: bool = False
    rounding: tuple[Operator, Known, Known | None] | None = None


@dataclass(frozen=True)
class Call:
    """One step of the program: what is called, with which values, and what it gives."""

    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str = ""
    function: Callable[..., Any] | None = None
    known: tuple[int, ...] = ()


class TorchModel(nn.Module):
    """A graph as a program over its values. `forward` takes the inputs in the signature's order and gives the output, or a tuple.

    torch.export takes it, where the shapes are static.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.names = tuple(spec.name for spec in model.signature.inputs)
        self.results = tuple(spec.name for spec in model.signature.outputs)
        self.calls: list[Call] = []
        self.held: dict[str, Held] = {}
        self.known: dict[str, Known] = {}
        self.slots: dict[str, str] = {}
        """Values that are parameters or buffers of this module: where they are."""

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if len(inputs) != len(self.names):
            raise ValueError(f"{len(inputs)} inputs were given; the model has {len(self.names)}: {', '.join(self.names)}")
        values: dict[str, Value] = dict(zip(self.names, inputs, strict=True))
        for call in self.calls:
            given = [self._value(values, name, index in call.known) for index, name in enumerate(call.inputs)]
            found = self._run(call, given)
            for name, value in zip(call.outputs, found if isinstance(found, tuple) else (found,), strict=False):
                values[name] = value
        outputs = tuple(self._tensor(values, name) for name in self.results)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, call: Call, given: list[Value | None]) -> Any:
        if call.module:
            return self.get_submodule(call.module)(given[0])
        assert call.function is not None
        return call.function(call.operator, *given)

    def _value(self, values: Mapping[str, Value], name: str, known: bool) -> Value | None:
        if not name:
            return None
        return values.get(name, self.known.get(name)) if known else self._tensor(values, name)

    def _tensor(self, values: Mapping[str, Value], name: str) -> Tensor:
        if name in self.slots and name not in values:
            slot = self.slots[name]
            return self.get_parameter(slot) if slot in self._parameters else self.get_buffer(slot)
        value = values[name] if name in values else self.known[name]
        return value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))

    def weights(self) -> dict[str, NDArray[Any]]:
        """The stored tensors of the graph as they are now, by initialiser; integers rounded with the scales they came with."""
        found = {}
        for name, held in self.held.items():
            place, _, leaf = held.path.rpartition(".")
            values = getattr(self.get_submodule(place), leaf).detach().cpu().numpy().copy()  # training goes on
            if held.turned:
                values = np.ascontiguousarray(values.T)
            if held.rounding is not None:
                values = _rounded(values, *held.rounding)
            found[name] = values
        return found


def to_torch(model: Model) -> TorchModel:
    """The model as a torch module in evaluation mode, its parameters requiring gradients.

    Raises Unsupported, with node and operator, for what it does not claim, before any work is done.
    """
    proto = model.copy_proto()
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    for node in graphs.nodes(proto):
        if node.domain not in ("", "ai.onnx") or node.op_type not in CLAIMED:
            raise Unsupported(
                "torch", graphs.node_label(node), node.op_type, f"to_torch knows {len(CLAIMED)} operators, not this one",
                "express it by others, or take a road without training",
            )  # fmt: skip
    made = _Builder(model, proto).build()
    return made.eval()


def with_weights(model: Model, weights: Mapping[str, NDArray[Any]], step: Step) -> Model:
    """The model with stored tensors replaced by name. What has not changed keeps its bytes. Raises ModelError for a misfit."""
    proto = model.copy_proto()
    stored = {tensor.name: tensor for _, tensor in graphs.tensors(proto)}
    for name, values in weights.items():
        if name not in stored:
            raise ModelError(f"there is no stored tensor {name!r} in {model.name} to take new values")
        before = numpy_helper.to_array(stored[name])
        if before.shape != values.shape or before.dtype != values.dtype:
            told = f"{values.dtype} {list(values.shape)}, it is {before.dtype} {list(before.shape)}"
            raise ModelError(f"tensor {name!r} of {model.name} cannot become {told}")
        if not np.array_equal(before, values):
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return model.changed(proto, step)


def _rounded(values: NDArray[Any], op: Operator, scale: Known, zero: Known | None) -> NDArray[Any]:
    kind = np.dtype(np.int32) if zero is None else zero.dtype
    axis = op.get("axis", 1)
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[axis] = -1
    step = scale.reshape(shape) if scale.size > 1 else scale.reshape(())
    middle: Any = 0 if zero is None else zero.reshape(shape).astype(np.int64) if zero.size > 1 else int(zero.reshape(-1)[0])
    low, high = limits(op, getattr(torch, kind.name))
    return np.asarray(np.clip(np.rint(values.astype(np.float64) / step) + middle, low, high).astype(kind))


class _Builder:
    """Makes a TorchModel of a graph, node by node."""

    def __init__(self, model: Model, proto: onnx.ModelProto) -> None:
        self.made = TorchModel(model)
        self.proto = proto
        self.opset = model.opset
        self.types = graphs.value_types(proto.graph)
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.nodes = list(proto.graph.node)
        self.learned: set[str] = set()
        self.readers: Counter[str] = Counter()
        self.renamed: dict[str, str] = {}

    def build(self) -> TorchModel:
        self.made.known.update(self.stored)
        self._inline()
        self._find_learned()
        for node in self._paired():
            self._add(node)
        for name in (*self.made.results, *(name for call in self.made.calls for name in call.inputs)):
            self._slot(name)
        return self.made

    def _inline(self) -> None:
        """Replaces every If by the branch that its condition chooses, and computes what is known already."""
        done: list[onnx.NodeProto] = []
        left = list(self.nodes)
        known = self.made.known
        while left:
            node = left.pop(0)
            if node.op_type == "If":
                if node.input[0] not in known:
                    raise Unsupported(
                        "torch", graphs.node_label(node), "If", "its condition is not known before the model runs",
                        "make the inputs that decide it constants (--constant), and fold",
                    )  # fmt: skip
                chosen = "then_branch" if bool(known[node.input[0]].reshape(-1)[0]) else "else_branch"
                branch = next(attribute.g for attribute in node.attribute if attribute.name == chosen)
                known.update({tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer})
                self.stored.update({tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer})
                ends = [
                    helper.make_node("Identity", [inner.name], [outer])
                    for inner, outer in zip(branch.output, node.output, strict=True)
                ]
                left = [*branch.node, *ends, *left]
                continue
            if node.op_type == "Constant":
                known[node.output[0]] = _constant(node)
            elif node.op_type in ("Shape", "Size") and self._static(node.input[0]) is not None:
                shape = np.array(self._static(node.input[0]), np.int64)
                options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
                part = shape[slice(options.get("start", 0), options.get("end"))]
                known[node.output[0]] = part if node.op_type == "Shape" else np.array(shape.prod(), np.int64)
            elif self._computable(node):
                for name, value in zip(node.output, _computed(node, known, self.opset), strict=True):
                    known[name] = value
            else:
                done.append(node)
        self.nodes = done

    def _static(self, name: str) -> list[int] | None:
        kind = self.types.get(name)
        if name in self.made.known:
            return list(self.made.known[name].shape)
        if kind is None or kind.shape is None or not all(isinstance(size, int) for size in kind.shape):
            return None
        return [int(size) for size in kind.shape]

    def _computable(self, node: onnx.NodeProto) -> bool:
        """Whether it is known before the model runs: integers always, floats where no weight is in them."""
        inputs = [name for name in node.input if name]
        if not inputs or any(name not in self.made.known for name in inputs):
            return False
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return False
        return all(self.made.known[name].dtype.kind != "f" or self.made.known[name].size == 1 for name in inputs)

    def _find_learned(self) -> None:
        wanted: set[str] = set()
        for node in reversed(self.nodes):
            for index, name in enumerate(node.input):
                self.readers[name] += 1
                weight = index in _LEARNED.get(node.op_type, ())
                several = name in self.stored and self.stored[name].size > 1
                if (
                    weight
                    or (node.op_type in _SUMMED and several)
                    or (index == 0 and node.op_type in _PASSED_ON and node.output[0] in wanted)
                ):
                    wanted.add(name)
        wanted -= {node.input[i] for node in self.nodes if node.op_type == "BatchNormalization" for i in _STATISTICS}
        self.learned = {name for name in wanted if name in self.stored and self.stored[name].dtype.kind == "f"}

    def _paired(self) -> Iterator[onnx.NodeProto]:
        """The nodes, with every QuantizeLinear that only DequantizeLinears of the same scale read joined with them."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        joined: set[str] = set()
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" and self._fakeable(node):
                clip = self._clip_after(node, readers)
                codes = node if clip is None else clip
                pairs = readers.get(codes.output[0], [])
                free = codes.output[0] not in self.made.results and node.output[0] not in self.made.results
                if pairs and free and all(self._same_steps(node, pair) for pair in pairs):
                    fake = helper.make_node("FakeQuantise", node.input, [pairs[0].output[0]], name=node.name)
                    fake.attribute.extend(node.attribute)
                    if clip is not None:
                        for name, bound in zip(("low", "high"), clip.input[1:], strict=True):
                            fake.attribute.append(helper.make_attribute(name, int(self.made.known[bound].reshape(-1)[0])))
                    joined.update(pair.output[0] for pair in pairs)
                    joined.update([codes.output[0]] if clip is not None else [])
                    yield fake
                    for pair in pairs[1:]:
                        yield helper.make_node("Identity", [pairs[0].output[0]], [pair.output[0]])
                    continue
            if node.output[0] not in joined:
                yield node

    def _clip_after(self, node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
        """The Clip that narrows the codes of a QuantizeLinear to fewer bits, where it is their only reader."""
        found = readers.get(node.output[0], [])
        if len(found) != 1 or found[0].op_type != "Clip" or len(found[0].input) != 3:
            return None
        return found[0] if all(name in self.made.known for name in found[0].input[1:]) else None

    def _fakeable(self, node: onnx.NodeProto) -> bool:
        kind = (
            self.made.known[node.input[2]].dtype
            if len(node.input) > 2 and node.input[2] in self.made.known
            else np.dtype(np.uint8)
        )
        return all(name in self.made.known for name in node.input[1:] if name) and str(kind) in {str(k)[6:] for k in RANGES}

    def _same_steps(self, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
        if second.op_type != "DequantizeLinear" or len(first.input) != len(second.input):
            return False
        return all(
            b in self.made.known and np.array_equal(self.made.known[a], self.made.known[b])
            for a, b in zip(first.input[1:], second.input[1:], strict=True)
        )

    def _add(self, node: onnx.NodeProto) -> None:
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        op = Operator(node.op_type, self.opset, attributes, len(node.output))
        if node.op_type == "FakeQuantise":
            self._call(op, node, _fake)
        elif node.op_type == "DequantizeLinear" and self._holds_integers(node):
            self._rounded_weight(op, node)
        elif node.op_type in _MODULES and (module := _MODULES[node.op_type](self, op, node)) is not None:
            name = f"{_identifier(node.name or node.op_type)}_{len(self.made.calls)}"
            self.made.add_module(name, module)
            self._claim(node, name, module)
            self.made.calls.append(Call(op, (node.input[0],), tuple(node.output), name))
        else:
            self._call(op, node, OPERATORS[node.op_type])

    def _call(self, op: Operator, node: onnx.NodeProto, function: Callable[..., Any]) -> None:
        known = KNOWN_INPUTS.get(node.op_type, ())
        self.made.calls.append(Call(op, tuple(node.input), tuple(node.output), "", function, known))

    def _holds_integers(self, node: onnx.NodeProto) -> bool:
        values = self.stored.get(node.input[0])
        if values is None or not all(name in self.made.known for name in node.input[1:] if name):
            return False
        block = any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)
        return values.dtype in (np.int8, np.uint8, np.int16, np.int32) and not block and self.readers[node.input[0]] == 1

    def _rounded_weight(self, op: Operator, node: onnx.NodeProto) -> None:
        """A weight stored in integers: learned before rounding, rounded with the same steps each time it is used."""
        values, scale = self.stored[node.input[0]], self.made.known[node.input[1]]
        zero = self.made.known[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        floats = OPERATORS["DequantizeLinear"](
            op, *(None if v is None else torch.as_tensor(np.array(v)) for v in (values, scale, zero))
        )
        name = _identifier(f"{node.input[0]}_{len(self.made.calls)}")
        self.made.register_parameter(name, nn.Parameter(floats))
        self.made.slots[f"{node.input[0]}/float"] = name
        marked = zero if zero is not None else np.zeros((), values.dtype)
        if values.dtype != np.int32 and not marked.any() and values.dtype.kind == "i":  # as many bits as it has now, no more
            widest = int(np.abs(values.astype(np.int64)).max(initial=1))
            op = Operator(op.kind, op.opset, {**op.attributes, "low": -widest, "high": widest}, op.outputs)
        self.made.held[node.input[0]] = Held(name, rounding=(op, scale, marked))
        self.made.known[f"{node.input[0]}/zero"] = marked
        inputs = (f"{node.input[0]}/float", node.input[1], f"{node.input[0]}/zero")
        self.made.calls.append(Call(op, inputs, tuple(node.output), "", _fake))

    def _claim(self, node: onnx.NodeProto, path: str, module: nn.Module) -> None:
        """Says which initialisers a module holds."""
        leaves = {"BatchNormalization": ("weight", "bias", "running_mean", "running_var")}.get(node.op_type, ("weight", "bias"))
        for name, leaf in zip(node.input[1:], leaves, strict=False):
            if name:
                turned = leaf == "weight" and isinstance(module, nn.Linear) and not _turned_in_graph(node)
                self.made.held[name] = Held(f"{path}.{leaf}", turned)

    def _slot(self, name: str) -> None:
        """Registers a stored value that is used as it is: a parameter where it is a weight, else a buffer."""
        made = self.made
        if not name or name in made.slots or name not in made.known:
            return
        values = made.known[name]
        place = _identifier(f"{name}_{len(made.slots)}")
        tensor = torch.as_tensor(np.array(values)) if values.dtype.kind in "fiub" else None
        if tensor is None:
            raise ModelError(f"stored tensor {name!r} has {values.dtype}, which torch does not have")
        if name in self.learned:
            made.register_parameter(place, nn.Parameter(tensor))
            made.held[name] = Held(place)
        else:
            made.register_buffer(place, tensor, persistent=False)
        made.slots[name] = place

    # --- modules -------------------------------------------------------------------------------------

    def own(self, *names: str) -> list[Tensor] | None:
        """Stored weights that nothing else reads, as tensors; None where one is not so."""
        if any(name not in self.learned or self.readers[name] != 1 for name in names):
            return None
        return [torch.as_tensor(np.array(self.stored[name])) for name in names]


def _conv(builder: _Builder, op: Operator, node: onnx.NodeProto) -> nn.Module | None:
    weights = builder.own(*node.input[1:])
    if weights is None or weights[0].ndim not in (3, 4, 5):
        return None
    rank = weights[0].ndim - 2
    sizes = builder._static(node.input[0])
    kernel = list(weights[0].shape[2:])
    if sizes is None and op.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return None
    before, after = pads(op, (sizes or [0] * (rank + 2))[2:], kernel)
    if before != after:
        return None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    groups = op.get("group", 1)
    module: Any = kind(
        weights[0].shape[1] * groups, weights[0].shape[0], kernel, spatial(op, "strides", rank), before,  # type: ignore[arg-type]
        spatial(op, "dilations", rank), groups, bias=len(weights) > 1,  # type: ignore[arg-type]
    )  # fmt: skip
    return _filled(module, weight=weights[0], bias=weights[1] if len(weights) > 1 else None)


def _batch_norm(builder: _Builder, op: Operator, node: onnx.NodeProto) -> nn.Module | None:
    weights, shape = builder.own(*node.input[1:3]), builder._static(node.input[0])
    statistics = [builder.stored.get(name) for name in node.input[3:5]]
    if weights is None or shape is None or op.get("training_mode", 0) or any(value is None for value in statistics):
        return None
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(shape))
    if kind is None or len({value.dtype for value in weights}) > 1:
        return None
    module = kind(len(weights[0]), op.get("epsilon", 1e-5), 1 - op.get("momentum", 0.9))
    mean, variance = (torch.as_tensor(np.array(value)) for value in statistics)
    return _filled(module, weight=weights[0], bias=weights[1], running_mean=mean, running_var=variance)


def _turned_in_graph(node: onnx.NodeProto) -> bool:
    """Whether a Gemm's weight is stored as torch stores it."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _linear(builder: _Builder, op: Operator, node: onnx.NodeProto) -> nn.Module | None:
    weights = builder.own(*node.input[1:])
    if weights is None or weights[0].ndim != 2 or op.get("transA", 0):
        return None
    if op.get("alpha", 1.0) != 1.0 or op.get("beta", 1.0) != 1.0:
        return None
    weight = weights[0] if _turned_in_graph(node) else weights[0].T.contiguous()
    if len(weights) > 1 and weights[1].shape != weight.shape[:1]:
        return None
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=len(weights) > 1)
    return _filled(module, weight=weight, bias=weights[1] if len(weights) > 1 else None)


def _layer_norm(builder: _Builder, op: Operator, node: onnx.NodeProto) -> nn.Module | None:
    weights, shape = builder.own(*node.input[1:]), builder._static(node.input[0])
    if weights is None or shape is None or len(node.output) > 1:
        return None
    axis = op.get("axis", -1)
    if list(weights[0].shape) != shape[axis:] or any(weight.shape != weights[0].shape for weight in weights):
        return None
    module = nn.LayerNorm(shape[axis:], op.get("epsilon", 1e-5), bias=len(weights) > 1)
    return _filled(module, weight=weights[0], bias=weights[1] if len(weights) > 1 else None)


_MODULES: Mapping[str, Callable[[_Builder, Operator, onnx.NodeProto], nn.Module | None]] = {
    "Conv": _conv, "BatchNormalization": _batch_norm, "Gemm": _linear, "MatMul": _linear, "LayerNormalization": _layer_norm,
}  # fmt: skip


def _filled(module: nn.Module, **values: Tensor | None) -> nn.Module:
    """The module with these tensors in it, in their own type."""
    for name, value in values.items():
        if value is not None:
            if name in module._parameters:
                module.register_parameter(name, nn.Parameter(value))
            else:
                module.register_buffer(name, value)
    return module


def _fake(op: Operator, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    return fake_quantise(op, x, scale, zero, torch.uint8 if zero is None else zero.dtype)


def _computed(node: onnx.NodeProto, known: Mapping[str, Known], opset: int) -> list[Known]:
    """What a node gives on known inputs, by ONNX's reference implementation."""
    inputs = [name for name in dict.fromkeys(node.input) if name]
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape) for n in inputs]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    proto = helper.make_model(
        helper.make_graph([node], "one", infos, outputs), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    found = ReferenceEvaluator(proto).run(None, {name: known[name] for name in inputs})
    return [np.asarray(value) for value in found]


def _constant(node: onnx.NodeProto) -> Known:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}.get(
        attribute.name
    )
    if kind is None:
        raise Unsupported("torch", graphs.node_label(node), "Constant", f"its value is given as {attribute.name}")
    return np.array(value, kind)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode() for item in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _identifier(name: str) -> str:
    """A name that torch takes for a module or parameter."""
    return "".join(letter if letter.isalnum() else "_" for letter in name) or "unnamed"
