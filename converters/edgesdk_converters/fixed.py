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
from .model import Model

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
Rounding = Literal["half_even", "half_up", "truncate"]
MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "MaxPool", "Slice", "Split", "Gather",
    "Expand", "Tile", "Concat", "DepthToSpace", "SpaceToDepth", "GlobalMaxPool", "ReduceMax",
)  # fmt: skip
"""Operators whose outputs are some of their inputs' values: nothing is rounded behind them."""
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_OTHER_INTEGERS = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm")
_BEFORE_ROUNDING = ("Mul", "Add", "Floor", "Clip")
"""Operators in which rounding is written out before a QuantizeLinear."""
_WITH_CONSTANTS = ("Add", "Sub", "Mul", "PRelu")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
EXACT_BITS = 24
"""Of the significand of float32: sums of integers up to this width come out exact when they are computed in it."""
LONG_OPSET = 21
ADDED_BITS = 8
"""That what a LayerNormalization adds has beyond its results."""
SLOPE_BITS = 8
"""Significant bits of the slope of a LeakyRelu."""


@dataclass(frozen=True)
class Format:
    """`bits` wide codes, signed or not; value = code * 2**exponent."""

    bits: int
    exponent: int
    signed: bool

    @property
    def low(self) -> int:
        """The least code."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def high(self) -> int:
        """The greatest code."""
        return (1 << self.bits - self.signed) - 1

    @property
    def step(self) -> float:
        """The value of code 1."""
        return 2.0**self.exponent

    @property
    def container(self) -> Any:
        """The numpy type that codes are stored in."""
        small, large = (np.int8, np.int16) if self.signed else (np.uint8, np.uint16)
        return small if self.bits <= 8 else large


def covering(low: float, high: float, bits: int) -> Format:
    """The format with the smallest step whose codes reach from low to high; unsigned where nothing is negative."""
    signed = low < 0
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    reach = max(high / top, -low / (top + 1), 2.0**-100)
    exponent = math.ceil(math.log2(reach))
    if 2.0 ** (exponent - 1) >= reach:  # log2 rounds up just above a power of two
        exponent -= 1
    return Format(bits, exponent, signed)


def best(values: Array, bits: int) -> Format:
    """The signed format of least squared rounding error on stored values: that which covers them or one of two finer ones."""
    whole = covering(min(float(values.min()), -(2.0**-100)), float(values.max()), bits)
    tried = [Format(bits, whole.exponent - less, True) for less in range(3)]
    exact = values.astype(np.float64)
    return min(tried, key=lambda f: float(np.square(codes(values, f) * f.step - exact).sum()))


def codes(values: Array, form: Format) -> Array:
    """Integers nearest to values / step, ties to even, clipped; int64."""
    return np.clip(np.rint(values.astype(np.float64) / form.step), form.low, form.high).astype(np.int64)


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
) -> tuple[onnx.ModelProto, str]:
    """The graph with the outputs, weights and inputs of the named nodes in fixed point, and a note of what was done.

    Activations: one format a tensor, unsigned where nothing is negative, covering its (low, high) of `ranges`; values beyond
    saturate. An activation function is rounded with what it follows. Weights and constants: one signed format a tensor, or
    with `per_channel` one an output channel, rounded to the nearest code, ties to even. Biases: on the grid of the products.
    `rounding` is that of activations. `widths` are bits of single nodes, where they are not `bits`: see `tensor_bits`. The
    slope of a LeakyRelu becomes a fraction of 8 significant bits over a power of two. Raises PassError for Gemm with alpha or
    beta other than 1, and where 9 to 16 bits need an opset (21) that cannot be reached.
    """
    foreign = next((node for node in model.proto.graph.node if node.op_type in _OTHER_INTEGERS), None)
    if foreign is not None:
        raise PassError(
            "quantize", f"{foreign.op_type} computes on integers already, in a form that is not fixed point",
            "begin with the float model", node=foreign.name,
        )  # fmt: skip
    most = max([bits, *(widths or {}).values()])
    if most > 8 and model.opset < LONG_OPSET:
        model = _raised(model, most)
    builder = _Builder(model, ranges, frozenset(nodes), bits, rounding, per_channel, widths or {})
    return builder.build()


def tensor_bits(model: Model, nodes: Collection[str], bits: int, widths: Mapping[str, int]) -> dict[str, int]:
    """Of every tensor, how wide it is where it is rounded.

    What a node of `widths` computes has its width, and so has an activation function behind it that has none of its own. What
    no chosen node computes, such as an input, has that of the widest of those that read it.
    """
    found: dict[str, int] = {}
    asked: dict[str, int] = {}
    chosen = set(nodes)
    for node in model.proto.graph.node:
        follows = node.op_type in (*_ACTIVATIONS, *MOVES) and node.input and node.input[0] in found
        own = widths.get(node.name, found[node.input[0]] if follows else bits)
        if follows or (node.name in chosen and node.op_type not in MOVES):
            found.update(dict.fromkeys(node.output, own))
    for node in reversed(model.proto.graph.node):
        if node.name in chosen and node.op_type not in MOVES:
            wanted = widths.get(node.name, bits)
        else:
            wanted = max((asked.get(name, 0) for name in node.output), default=0)
        for name in node.input:
            asked[name] = max(asked.get(name, 0), wanted)
    return {name: wide for name, wide in asked.items() if wide} | found


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
    ) -> None:
        self.per_channel = per_channel
        self.widths = widths
        self.tensor_bits = tensor_bits(model, chosen, bits, widths)
        self.slopes: list[str] = []
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

    def build(self) -> tuple[onnx.ModelProto, str]:
        rounded = self._rounded()
        self.formats = {name: covering(*self.ranges[name], self.tensor_bits.get(name, self.bits)) for name in rounded}
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

    def _root(self, name: str) -> str:
        """The tensor whose values a chain of moves hands on; itself where it ends at several."""
        while name in self.makers and self.makers[name].op_type in MOVES and self.makers[name].op_type != "Concat":
            name = self.makers[name].input[0]
        return name

    def _on_grid(self, name: str) -> bool:
        """Whether a tensor was made of integers by an earlier pass."""
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def _before_activation(self, name: str) -> bool:
        """Whether a tensor only goes into one activation function that is rounded itself."""
        readers = self.readers.get(name, [])
        if name in self.outputs or name not in self.makers or len(readers) != 1:
            return False
        return readers[0].op_type in _ACTIVATIONS and readers[0].name in self.chosen and readers[0].input[0] == name

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
        bits = self.widths.get(node.name, self.bits)
        heavy = node.op_type in WEIGHTED
        places = range(2) if heavy else range(len(node.input)) if node.op_type in _WITH_CONSTANTS else ()
        formats: list[Format | None] = []
        weight: _Weight | None = None
        for index in places:
            name = node.input[index]
            if name in self.stored and self.stored[name].data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(self.stored[name])
                axis = _channel_axis(node, values.ndim) if heavy and index == 1 and self.per_channel else None
                weight = _weight(values, bits, axis)
                container = Format(bits, 0, True).container
                # ONNX Runtime fails on integers that two nodes share where it changes their sign at loading
                own = name if len(self.readers[name]) == 1 else f"{name}@{node.name}"
                node.input[index] = self._stored(own, weight.codes.astype(container), weight.exponents, axis)
            else:
                formats.append(self.formats.get(self._root(name)))
        known = [form for form in formats if form is not None]
        if heavy and len(known) == len(formats):
            self._sum(node, known, weight)

    def _normalisation(self, node: onnx.NodeProto) -> None:
        """Puts the scale of a LayerNormalization on a grid as a weight, and what it adds on one so fine that little is lost."""
        bits = self.widths.get(node.name, self.bits)
        for index, wide in ((1, bits), (2, min(bits + ADDED_BITS, EXACT_BITS))):
            name = node.input[index] if index < len(node.input) else ""
            if name in self.stored and self.stored[name].data_type == TensorProto.FLOAT:
                held = _weight(numpy_helper.to_array(self.stored[name]), wide, None)
                container = Format(wide, 0, True).container if index == 1 else np.int32
                own = name if len(self.readers[name]) == 1 else f"{name}@{node.name}"
                node.input[index] = self._stored(own, held.codes.astype(container), held.exponents, None)

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

    def _sum(self, node: onnx.NodeProto, activations: list[Format], weight: _Weight | None) -> None:
        """Puts the bias on the grid of the products, and notes how wide the sums of the layer can get."""
        reach = [max(-form.low, form.high) for form in activations]
        exponents = np.asarray(sum(form.exponent for form in activations))
        if weight is not None:
            exponents = exponents + weight.exponents
        greatest = np.zeros(exponents.shape)  # in codes of the products, for each channel with a scale of its own
        if len(node.input) > 2 and node.input[2] in self.stored:
            values = numpy_helper.to_array(self.stored[node.input[2]])
            if exponents.ndim:  # a Gemm may add one number to all channels, or a matrix
                values = np.broadcast_to(values, (*values.shape[:-1], len(exponents)))
            # A coarser power of two lies on the grid too; beyond 24 bits float32 could not hold the bias itself.
            peaks = np.abs(values).astype(np.float64)
            peaks = peaks.reshape(-1, len(exponents)).max(axis=0) if exponents.ndim else peaks.max(initial=0)
            fits = np.where(peaks > 0, np.ceil(np.log2(np.where(peaks > 0, peaks, 1.0))) - EXACT_BITS + 1, exponents)
            places = np.maximum(exponents, fits).astype(np.int64)
            held = np.rint(values / np.exp2(places.astype(np.float64))).astype(np.int32)
            axis = held.ndim - 1 if places.ndim else None
            node.input[2] = self._stored(f"{node.input[2]}@{node.name}", held, places, axis)
            wide = np.abs(held) * np.exp2((places - exponents).astype(np.float64))
            greatest = greatest + (wide.reshape(-1, len(exponents)).max(axis=0) if exponents.ndim else wide.max(initial=0))
        if weight is not None:
            sums = np.abs(weight.codes).sum(axis=_summed(node, weight.codes.ndim))
            greatest = greatest + (sums if exponents.ndim else sums.max(initial=0)) * reach[0]
        else:
            shape = self.types[node.input[0]].shape if node.input[0] in self.types else None
            if not shape or not isinstance(shape[-1], int):
                return
            greatest = greatest + shape[-1] * reach[0] * reach[1]
        self.widest = max(self.widest, math.ceil(math.log2(float(greatest.max(initial=0)) + 1)) + 1)
        if greatest.max(initial=0) > 2**EXACT_BITS:
            self.inexact.append(node.name)

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
        apart = f" ({_few([f'{name} {wide}' for name, wide in self.widths.items()])})" if self.widths else ""
        told = f"{self.bits} bits{apart}, {self.rounding.replace('_', ' ')}; sums of up to {self.widest} bits"
        if self.inexact:
            told += (
                f", more than the {EXACT_BITS} that float32 sums exactly, in {_few(self.inexact)}: "
                "the last bit may differ from integer logic"
            )
        if self.slopes:
            told += f"; slopes rounded to {SLOPE_BITS} bits: {_few(self.slopes)}"
        return told


def _few(told: Sequence[str]) -> str:
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


@dataclass(frozen=True)
class _Weight:
    """A stored tensor: integer codes, and the exponents of their steps: one, or one for each output channel."""

    codes: Array
    exponents: Array


def _weight(values: Array, bits: int, axis: int | None) -> _Weight:
    if not values.size:
        return _Weight(values.astype(np.int64), np.asarray(0))
    if axis is None:
        form = best(values, bits)
        return _Weight(codes(values, form), np.asarray(form.exponent))
    rows = np.moveaxis(values, axis, 0)
    forms = [best(row, bits) for row in rows]
    held = np.stack([codes(row, form) for row, form in zip(rows, forms, strict=True)])
    return _Weight(np.moveaxis(held, 0, axis), np.array([form.exponent for form in forms]))


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of output channels in a layer's weight; None where it has none for all of them (grouped deconvolution)."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)):
        return 0
    return rank - 1 if node.op_type in ("Gemm", "MatMul") and rank == 2 else None


def _summed(node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    """Axes of a weight whose products go into one sum."""
    if node.op_type == "Conv":
        return tuple(range(1, rank))
    if node.op_type == "ConvTranspose":
        return (0, *range(2, rank))
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return (1,)
    return (max(0, rank - 2),)


def _raised(model: Model, bits: int) -> Model:
    try:
        return model.changed(version_converter.convert_version(model.copy_proto(), LONG_OPSET))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise PassError(
            "quantize", f"codes of {bits} bits need opset {LONG_OPSET}, which the model cannot be raised to: {error}",
            "take 8 bits or fewer, or export the model again with opset 21",
        ) from error  # fmt: skip
