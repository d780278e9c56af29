"""Fixed point: every stored value is an integer of a chosen width times a power of two, and rounding is written out.

What hardware without a multiplier for scales computes: scaling is a shift. The graph stays plain ONNX, in the form that qonnx
calls QCDQ (quantise, clip, dequantise): ONNX Runtime runs it, and a generator of logic can read widths, binary points and
roundings off it. Sums are exact: biases lie on the grid of their products.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, PassError
from .fixed_weights import Weight, channel_axis, fitting, reach, summed, weighed
from .fixed_widths import ACTIVATIONS, EXACT_BITS, MOVES, SUMS, Format, covering, of_both, tensor_bits
from .integer_tables import FUNCTIONS
from .model import Model

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
Rounding = Literal["half_even", "half_up", "truncate"]
_ORDERS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout")
"""Those of them that keep every value once, so that it makes no difference whether it is rounded before or behind."""
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_OTHER_INTEGERS = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm")
_BEFORE_ROUNDING = ("Mul", "Add", "Floor", "Clip")
"""Operators in which rounding is written out before a QuantizeLinear."""
_WITH_CONSTANTS = ("Mul", "PRelu")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NEEDS_ROUNDING = (*FUNCTIONS, "Softmax", "LayerNormalization")
"""Operators whose integer forms give a rounded result alone: an activation function behind them is rounded on its own."""
LONG_OPSET = 21
ADDED_BITS = 8
"""That what a LayerNormalization adds has beyond its results."""
SLOPE_BITS = 8
"""Significant bits of the slope of a LeakyRelu."""
FINER_BITS = 4
"""That a stored summand has beyond the grid of what it is added to: it is off by a 32nd of a step at most."""


def roundable(model: Model) -> list[str]:
    """Names of the nodes that fixed point can round: all but those that move values and those that are rounded already."""
    nodes = model.proto.graph.node
    done = _rounded_already(model)
    rounds = {name for node in nodes if node.op_type in _ROUNDING for name in node.output}
    return [
        node.name
        for node in nodes
        if node.op_type not in MOVES
        and not rounds & set(node.output)
        and not (node.op_type not in WEIGHTED and done.issuperset(node.output))
    ]


def _rounded_already(model: Model) -> set[str]:
    """Tensors that nothing reads but the nodes of an earlier rounding."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    done: set[str] = set()
    for node in reversed(model.proto.graph.node):
        for name in node.output:
            following = readers.get(name, [])
            steps = [other.op_type == "QuantizeLinear" or (other.op_type in _BEFORE_ROUNDING and other.output[0] in done)
                     for other in following]  # fmt: skip
            if steps and all(steps):
                done.add(name)
    return done


def fixed_point(
    model: Model,
    ranges: Mapping[str, tuple[float, float]],
    nodes: Collection[str],
    *,
    bits: int,
    rounding: Rounding,
    per_channel: bool = False,
    widths: Mapping[str, int] | None = None,
    inputs: Mapping[str, int] | None = None,
) -> tuple[onnx.ModelProto, str]:
    """The graph with the outputs, weights and inputs of the named nodes in fixed point, and a note of what was done.

    Activations: one format a tensor, unsigned where nothing is negative, covering its (low, high) of `ranges`; values beyond
    saturate. An activation function is rounded with what it follows, and so is a stored summand, with the products that it is
    added to. Weights and factors: one signed format a tensor, or with `per_channel` one an output channel, rounded to the
    nearest code, ties to even. Biases and summands: on the grid of the products, or finer than what they are added to.
    `rounding` is that of activations. `widths` are bits of single nodes, where they are not `bits`: see `tensor_bits`; `inputs`
    those of inputs of the model: see `wider_inputs`. The slope of a LeakyRelu becomes a fraction of 8 significant bits over a
    power of two. Bounds of a Clip are rounded as its results are, which changes none of those. Raises PassError for Gemm with
    alpha or beta other than 1, and where 9 to 16 bits need an opset (21) that cannot be reached.
    """
    foreign = next((node for node in model.proto.graph.node if node.op_type in _OTHER_INTEGERS), None)
    if foreign is not None:
        raise PassError(
            "quantize", f"{foreign.op_type} computes on integers already, in a form that is not fixed point",
            "begin with the float model", node=foreign.name,
        )  # fmt: skip
    most = max([bits, *(widths or {}).values(), *(inputs or {}).values()])
    if most > 8 and model.opset < LONG_OPSET:
        model = _raised(model, most)
    builder = _Builder(model, ranges, frozenset(nodes), bits, rounding, per_channel, widths or {}, inputs or {})
    return builder.build()


@dataclass(frozen=True)
class _Grid:
    """Where results lie that are not rounded themselves: exponents, and the greatest code, each one or one a channel.

    Both broadcast against the tensor.
    """

    exponents: Array
    greatest: Array


class _Builder:
    """One conversion: formats are fixed on the float graph first, then nodes are written anew in order."""

    def __init__(
        self,
        model: Model,
        ranges: Mapping[str, tuple[float, float]],
        chosen: frozenset[str],
        bits: int,
        rounding: Rounding,
        per_channel: bool,
        widths: Mapping[str, int],
        inputs: Mapping[str, int],
    ) -> None:
        self.per_channel = per_channel
        self.told_widths = {**widths, **inputs}
        self.widths = of_both(model, widths)
        self.tensor_bits = {**tensor_bits(model, chosen, bits, widths), **inputs}
        self.slopes: list[str] = []
        self.grids: dict[str, _Grid] = {}
        self.proto = model.copy_proto()
        self.graph = self.proto.graph
        self.ranges, self.chosen, self.bits, self.rounding = ranges, chosen, bits, rounding
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.types = graphs.value_types(self.graph)
        self.outputs = {output.name for output in self.graph.output}
        self.done = _rounded_already(model)
        self.formats: dict[str, Format] = {}
        self.made: list[onnx.NodeProto] = []
        self.widest = 0
        self.inexact: list[str] = []
        self.dead: list[str] = []

    def build(self) -> tuple[onnx.ModelProto, str]:
        rounded = self._rounded()
        self.formats = {name: covering(*self._range(name), self.tensor_bits.get(name, self.bits)) for name in rounded}
        renamed: dict[str, str] = {}
        for name in (info.name for info in self.graph.input):
            if name in rounded:
                renamed[name] = f"{name}/fixed"
                self.formats[renamed[name]] = self.formats[name]
                self._quantise(name, renamed[name], self.formats[name])
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
            if node.name in self.chosen:
                self._constants(node)
            raw = [f"{name}/wide" if name in rounded else name for name in node.output]
            done = onnx.NodeProto()
            done.CopyFrom(node)
            del done.output[:]
            done.output.extend(raw)
            self.made.append(done)
            for name, wide in zip(node.output, raw, strict=True):
                if name in rounded:
                    self._told(name, wide)
                    self._quantise(wide, name, self.formats[name])
        del self.graph.node[:]
        self.graph.node.extend(self.made)
        self._tidy()
        return self.proto, self._note()

    def _told(self, name: str, wide: str) -> None:
        """Says of a tensor's new name what is known of the old one: what foreign operators give nobody can infer."""
        known = next((info for info in self.graph.value_info if info.name == name), None)
        if known is not None:
            self.graph.value_info.add().CopyFrom(known)
            self.graph.value_info[-1].name = wide

    def _rounded(self) -> set[str]:
        """Names of the float tensors that are rounded: what chosen nodes compute, and what they read from elsewhere."""
        found = set()
        for node in self.graph.node:
            if node.name not in self.chosen or node.op_type in MOVES:
                continue
            for name in node.output:
                if name in self.ranges and name not in self.done and not self._before_activation(name):
                    found.add(name)
            for name in node.input:
                root = self._root(name)
                if root in self.ranges and not self._before_activation(root) and not self._on_grid(root):
                    found.add(root)
        return found

    def _range(self, name: str) -> tuple[float, float]:
        """What a tensor's format covers; of one that was zero on all samples, what the tensor that it is made of covers.

        What is rounded in front of a Relu or Clip need not reach beyond what that lets through.
        """
        following, last = self._behind_orders(name)
        if following is not None and following.op_type in ("Relu", "Clip") and following.input[0] == last:
            name = following.output[0] if following.output[0] in self.ranges else name
        source, (low, high) = name, self.ranges[name]
        if low or high:
            return low, high
        self.dead.append(name)
        while not (low or high) and source in self.makers:
            source = next((one for one in self.makers[source].input if one in self.ranges), "")
            low, high = self.ranges.get(source, (0.0, 0.0))
        wide = max(high, -low) or 1.0
        return (0.0 if self.makers[name].op_type == "Relu" else -wide, wide) if name in self.makers else (-wide, wide)

    def _root(self, name: str) -> str:
        """The tensor whose values a chain of moves hands on; itself where it ends at several."""
        while name in self.makers and self.makers[name].op_type in MOVES and self.makers[name].op_type != "Concat":
            name = self.makers[name].input[0]
        return name

    def _on_grid(self, name: str) -> bool:
        """Whether a tensor was made of integers by an earlier pass."""
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def _before_activation(self, name: str) -> bool:
        """Whether a tensor only goes into one activation function that is rounded itself, or, of products, into one sum."""
        maker = self.makers.get(name)
        following, name = self._behind_orders(name)
        if maker is None or following is None:
            return False
        if following.op_type in ACTIVATIONS:
            return bool(following.input[0] == name) and maker.op_type not in _NEEDS_ROUNDING
        if name not in maker.output:
            return False
        multiplies = maker.op_type in (*WEIGHTED, "Mul") and any(self._is_float(part) for part in maker.input[:2])
        added = following.op_type in SUMS and any(self._is_float(part) for part in following.input)
        return multiplies and added and maker.name in self.chosen

    def _behind_orders(self, name: str) -> tuple[onnx.NodeProto | None, str]:
        """The chosen node that alone reads a tensor, behind those that keep every value once, if any; and what it reads."""
        readers = self.readers.get(name, [])
        while len(readers) == 1 and readers[0].op_type in _ORDERS and name not in self.outputs and readers[0].input[0] == name:
            name = readers[0].output[0]
            readers = self.readers.get(name, [])
        alone = name not in self.outputs and len(readers) == 1 and readers[0].name in self.chosen
        return (readers[0] if alone else None), name

    def _is_float(self, name: str) -> bool:
        return name in self.stored and self.stored[name].data_type == TensorProto.FLOAT

    def _quantise(self, source: str, result: str, form: Format) -> None:
        """Nodes that round `source` to `form`, saturating, and give it back as float."""
        kind = np.dtype(form.container)
        # Its own zero point: ONNX Runtime fails on shared ones where it changes their sign at loading.
        zero = self._tensor(f"{result}/zero", np.zeros((), kind))
        full = form.bits in (8, 16)
        step = self._tensor(f"fixed/two_to_{form.exponent}", np.array(form.step, np.float32))
        if self.rounding == "half_even":
            divisor = step
            if not full and form.bits > 8:  # ONNX Runtime clips no 16-bit integers; on the grid, clipping first is the same
                bounds = [self._tensor(f"{result}/{end}", np.array(code * form.step, np.float32))
                          for end, code in (("low", form.low), ("high", form.high))]  # fmt: skip
                source = self._node("Clip", [source, *bounds], f"{result}/clipped")
        else:
            inverse = self._tensor(f"fixed/two_to_{-form.exponent}", np.array(2.0**-form.exponent, np.float32))
            source = self._node("Mul", [source, inverse], f"{result}/scaled")
            if self.rounding == "half_up":
                source = self._node("Add", [source, self._tensor("fixed/half", np.array(0.5, np.float32))], f"{result}/raised")
            source = self._node("Floor", [source], f"{result}/whole")
            bounds = [self._tensor(f"fixed/code_{code}", np.array(code, np.float32)) for code in (form.low, form.high)]
            source = self._node("Clip", [source, *bounds], f"{result}/clipped")
            divisor = self._tensor("fixed/two_to_0", np.array(1.0, np.float32))
        held = self._node("QuantizeLinear", [source, divisor, zero], f"{result}/code")
        if self.rounding == "half_even" and not full and form.bits < 8:
            limits = [self._tensor(f"fixed/{kind.name}_{code}", np.array(code, kind)) for code in (form.low, form.high)]
            held = self._node("Clip", [held, *limits], f"{result}/clipped")
        self._node("DequantizeLinear", [held, step, zero], result)

    def _constants(self, node: onnx.NodeProto) -> None:
        """Replaces the stored float inputs of a chosen node by codes behind a DequantizeLinear."""
        if node.op_type == "Gemm" and any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute):
            raise PassError(
                "quantize",
                f"Gemm {node.name} scales by alpha or beta, which fixed point cannot",
                "fold the factor into its weights",
            )
        if node.op_type == "LeakyRelu":
            self._slope(node)
        if node.op_type == "LayerNormalization":
            self._normalisation(node)
        if node.op_type == "Clip":
            self._bounds(node)
        if node.op_type in SUMS:
            self._summand(node)
        bits = self.widths.get(node.name, self.bits)
        heavy = node.op_type in WEIGHTED
        places = range(2) if heavy else range(len(node.input)) if node.op_type in _WITH_CONSTANTS else ()
        formats: list[Format | None] = []
        weight: Weight | None = None
        for index in places:
            name = node.input[index]
            if self._is_float(name):
                values = numpy_helper.to_array(self.stored[name])
                axis = channel_axis(node, values.shape) if self.per_channel and (index == 1 or not heavy) else None
                weight = weighed(values, bits, axis)
                container = Format(bits, 0, True).container
                # ONNX Runtime fails on integers that two nodes share where it changes their sign at loading
                own = name if len(self.readers[name]) == 1 else f"{name}@{node.name}"
                node.input[index] = self._stored(own, weight.codes.astype(container), weight.exponents, axis)
            else:
                formats.append(self.formats.get(self._root(name)))
        known = [form for form in formats if form is not None]
        if heavy and len(known) == len(formats):
            self._sum(node, known, weight)
        elif node.op_type == "Mul" and weight is not None and len(known) == 1:
            exponents = weight.exponents
            if exponents.ndim:
                exponents = exponents.reshape([-1 if size > 1 else 1 for size in weight.codes.shape])
            self.grids[node.output[0]] = _Grid(exponents + known[0].exponent, np.abs(weight.codes) * reach(known[0]))

    def _normalisation(self, node: onnx.NodeProto) -> None:
        """Puts the scale of a LayerNormalization on a grid as a weight, and what it adds on one so fine that little is lost."""
        bits = self.widths.get(node.name, self.bits)
        for index, wide in ((1, bits), (2, min(bits + ADDED_BITS, EXACT_BITS))):
            name = node.input[index] if index < len(node.input) else ""
            if name in self.stored and self.stored[name].data_type == TensorProto.FLOAT:
                held = weighed(numpy_helper.to_array(self.stored[name]), wide, None)
                container = Format(wide, 0, True).container if index == 1 else np.int32
                own = name if len(self.readers[name]) == 1 else f"{name}@{node.name}"
                node.input[index] = self._stored(own, held.codes.astype(container), held.exponents, None)

    def _bounds(self, node: onnx.NodeProto) -> None:
        """Puts the bounds of a Clip on the grid of its results: rounding is monotone, so that these stay what they were."""
        form = self.formats.get(node.output[0])
        for index in range(1, len(node.input)):
            name = node.input[index]
            if form is None or not self._is_float(name):
                continue
            scaled = float(numpy_helper.to_array(self.stored[name])) / form.step
            scaled = min(max(scaled, -(2.0**EXACT_BITS)), 2.0**EXACT_BITS)
            halves = {"half_even": round(scaled), "half_up": math.floor(scaled + 0.5), "truncate": math.floor(scaled)}
            code = halves[self.rounding]
            if abs(code) < 2**EXACT_BITS and code != scaled:
                end = ("low", "high")[index - 1]
                node.input[index] = self._tensor(f"{node.output[0]}/{end}_bound", np.array(code * form.step, np.float32))

    def _summand(self, node: onnx.NodeProto) -> None:
        """Puts a stored summand on the grid of the products that it is added to, or on one finer than what is rounded."""
        held = [index for index, name in enumerate(node.input) if self._is_float(name)]
        if len(held) != 1:
            return
        name, source = node.input[held[0]], node.input[1 - held[0]]
        values = numpy_helper.to_array(self.stored[name])
        grid = None if source in self.formats else self.grids.get(source.removesuffix("/wide"))  # rounded in between, or not
        if grid is None:
            form = self.formats.get(self._root(source))
            exponent = -EXACT_BITS if form is None else form.exponent - FINER_BITS
            grid = _Grid(np.asarray(exponent), np.zeros(()))
        places = grid.exponents
        if places.ndim:
            values = np.broadcast_to(values, np.broadcast_shapes(values.shape, places.shape))
        axis = next((axis for axis in range(-places.ndim, 0) if places.shape[axis] > 1), None)
        peaks = np.abs(values).astype(np.float64)
        others = tuple(one for one in range(-values.ndim, 0) if one != axis)
        peaks = peaks.max(axis=others, initial=0) if axis is not None else peaks.max(initial=0)
        places = np.maximum(places.ravel() if axis is not None else places.max(), fitting(peaks, places))
        steps = np.exp2(places.astype(np.float64))
        if axis is not None:
            steps = steps.reshape(-1, *(1,) * (-axis - 1))
        codes_held = np.rint(values / steps).astype(np.int32)
        own = name if len(self.readers[name]) == 1 else f"{name}@{node.name}"
        node.input[held[0]] = self._stored(own, codes_held, places, None if axis is None else values.ndim + axis)
        if grid.greatest.any():
            self._widen(node.name, grid.greatest + np.abs(codes_held) * steps * np.exp2(-grid.exponents.astype(np.float64)))

    def _widen(self, node: str, greatest: Array) -> None:
        """Notes how wide sums get."""
        most = float(greatest.max(initial=0))
        self.widest = max(self.widest, math.ceil(math.log2(most + 1)) + 1)
        if most > 2**EXACT_BITS:
            self.inexact.append(node)

    def _slope(self, node: onnx.NodeProto) -> None:
        """Makes the slope of a LeakyRelu a fraction that logic multiplies by: a few bits over a power of two."""
        held = next((a for a in node.attribute if a.name == "alpha"), None)
        if held is None:
            held = node.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, f=0.01)
        denominator = 2.0 ** (SLOPE_BITS - math.frexp(held.f)[1])
        if held.f * denominator != round(held.f * denominator):
            slope = round(held.f * denominator) / denominator
            self.slopes.append(f"{node.name} {held.f:.6g} to {slope:.6g}")
            held.f = slope

    def _sum(self, node: onnx.NodeProto, activations: list[Format], weight: Weight | None) -> None:
        """Puts the bias on the grid of the products, and notes how wide the sums of the layer can get."""
        reaches = [reach(form) for form in activations]
        exponents = np.asarray(sum(form.exponent for form in activations))
        if weight is not None:
            exponents = exponents + weight.exponents
            sums = np.abs(weight.codes).sum(axis=summed(node, weight.codes.ndim))
            greatest = (sums if exponents.ndim else np.asarray(sums.max(initial=0))) * float(reaches[0])
        else:
            shape = self.types[node.input[0]].shape if node.input[0] in self.types else None
            known = bool(shape) and isinstance(shape[-1], int) if shape else False
            greatest = np.asarray(float(shape[-1]) * reaches[0] * reaches[1] if known and shape else 0.0)
        if len(node.input) > 2 and node.input[2] in self.stored:
            values = numpy_helper.to_array(self.stored[node.input[2]])
            if exponents.ndim:  # a Gemm may add one number to all channels, or a matrix
                values = np.broadcast_to(values, (*values.shape[:-1], len(exponents)))
            peaks = np.abs(values).astype(np.float64)
            peaks = peaks.reshape(-1, len(exponents)).max(axis=0) if exponents.ndim else peaks.max(initial=0)
            places = np.maximum(exponents, fitting(peaks, exponents))
            held = np.rint(values / np.exp2(places.astype(np.float64))).astype(np.int32)
            axis = held.ndim - 1 if places.ndim else None
            node.input[2] = self._stored(f"{node.input[2]}@{node.name}", held, places, axis)
            wide = np.abs(held) * np.exp2((places - exponents).astype(np.float64))
            greatest = greatest + (wide.reshape(-1, len(exponents)).max(axis=0) if exponents.ndim else wide.max(initial=0))
        row = (-1, *(1,) * (weight.codes.ndim - 2)) if node.op_type == "Conv" and weight is not None and exponents.ndim else (-1,)
        grid = (
            one.reshape(row) if one.ndim else one for one in (exponents, np.asarray(greatest))
        )  # channels are the second axis
        self.grids[node.output[0]] = _Grid(*grid)
        self._widen(node.name, greatest)

    def _stored(self, name: str, held: Array, exponents: Array, axis: int | None) -> str:
        result = f"{name}/fixed"
        if result not in self.types:
            self.types[result] = graphs.ValueType(TensorProto.FLOAT, tuple(held.shape))
            if axis is None:
                scale = self._tensor(f"fixed/two_to_{int(exponents)}", np.array(2.0 ** int(exponents), np.float32))
            else:
                scale = self._tensor(f"{name}/scale", np.exp2(exponents.astype(np.float64)).astype(np.float32))
            code, attributes = self._tensor(f"{name}/code", held), {}
            inputs = [code, scale]
            if axis is not None:  # with a scale a channel ONNX Runtime's sign change at loading needs the zeros spelt out
                attributes = {"axis": axis}
                inputs.append(self._tensor(f"{name}/zero", np.zeros(len(exponents), held.dtype)))
            self._node("DequantizeLinear", inputs, result, **attributes)
        return result

    def _tensor(self, name: str, values: Array) -> str:
        if name not in self.stored:
            self.stored[name] = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
            self.graph.initializer.append(self.stored[name])
        return name

    def _node(self, kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        self.made.append(helper.make_node(kind, inputs, [result], name=f"{result}:{kind}", **attributes))
        return result

    def _tidy(self) -> None:
        """Drops what nothing reads, and the types of tensors that have gone."""
        read = {name for part in graphs.graphs(self.graph) for node in part.node for name in node.input} | self.outputs
        kept = [TensorProto.FromString(t.SerializeToString()) for t in self.graph.initializer if t.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _note(self) -> str:
        apart = f" ({_few([f'{name} {wide}' for name, wide in self.told_widths.items()])})" if self.told_widths else ""
        told = f"{self.bits} bits{apart}, {self.rounding.replace('_', ' ')}; sums of up to {self.widest} bits"
        if self.inexact:
            told += (
                f", more than the {EXACT_BITS} that float32 sums exactly, in {_few(self.inexact)}: "
                "the last bit may differ from integer logic"
            )
        if self.dead:
            told += f"; zero on all samples, so that their ranges are guesses: {_few(sorted(self.dead))}; give others"
        if self.slopes:
            told += f"; slopes rounded to {SLOPE_BITS} bits: {_few(self.slopes)}"
        return told


def _few(told: Sequence[str]) -> str:
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


def _raised(model: Model, bits: int) -> Model:
    try:
        return model.changed(version_converter.convert_version(model.copy_proto(), LONG_OPSET))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise PassError(
            "quantize", f"codes of {bits} bits need opset {LONG_OPSET}, which the model cannot be raised to: {error}",
            "take 8 bits or fewer, or export the model again with opset 21",
        ) from error  # fmt: skip
