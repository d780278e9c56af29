"""An integer program while it is being read off a graph: what is known of each tensor so far, and how to refuse a node."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, Unsupported
from .fixed_widths import EXACT_BITS
from .integer_program import Codes, Integers, Move, Operation, Rounding, Shape, read
from .model import Model

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
Known = Literal["codes", "constant", "stored", "nothing"]
TARGET = "fpga"
FIXED_HINT = "export the float model with --precision fixed, or with --set quantize.flavour=fixed"
OTHERWISE = "change the model there, or split it and keep that part elsewhere"
WIDEST_BITS = 60
"""Of codes: so much less than int64 has that a rounding can double them and add its divisor."""
NARROW_CONSTANT_BITS = 16
"""Significant bits that stored floats may have in common and still be taken as they are: as many as the widest weights have."""
EXACT = 2**EXACT_BITS


@dataclass(frozen=True, eq=False)
class Constant:
    """Stored values: codes * 2**exponents; the exponents broadcast against the codes, which have the graph's shape."""

    codes: Integers
    exponents: Integers

    def aligned(self) -> tuple[Integers, int] | None:
        """All on the coarsest grid that holds them, or None where that takes more than 60 bits."""
        exponents = np.broadcast_to(self.exponents, self.codes.shape)
        used = self.codes != 0
        if not used.any():
            return np.zeros(self.codes.shape, np.int64), 0
        zeros = trailing_zeros(self.codes)
        grid = int((exponents + zeros)[used].min())
        shifts = np.where(used, exponents + zeros - grid, 0)
        odd = self.codes >> np.where(used, zeros, 0)
        if float(np.abs(odd * np.exp2(shifts.astype(np.float64))).max()) >= 2.0**WIDEST_BITS:
            return None
        return odd << shifts, grid


def trailing_zeros(codes: Integers) -> Integers:
    """How often each code can be halved; 0 for 0."""
    lowest = np.where(codes == 0, 1, codes & -codes)
    return np.asarray(np.log2(lowest.astype(np.float64)), np.int64)


@dataclass(frozen=True)
class Rounded:
    """A rounding that the graph spells out by several nodes: from `source` to `result`, in a format."""

    node: str
    source: str
    rounding: Rounding
    result: str
    exponent: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Reach:
    """How far sums can get on the grids they really lie on, channel by channel: what decides whether float32 holds them."""

    exponents: Integers
    reach: NDArray[np.float64]


class Draft:
    """Tensors by their names in the graph, and the operations so far.

    A tensor of the program has the graph's shape without its first axis if that is 1, which is the batch; a tensor that has
    lost its batch axis in the graph (tokens in front of a Gemm, say) keeps all its axes: both have the same elements.
    """

    def __init__(self, model: Model) -> None:
        self.proto = model.copy_proto()
        graphs.store_constants(self.proto.graph)
        self.opset = model.opset
        self.nodes = list(self.proto.graph.node)
        self.outputs = [output.name for output in self.proto.graph.output]
        self.types = graphs.value_types(self.proto.graph)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.stored: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.constants: dict[str, Constant] = {}
        self.known: dict[str, Codes] = {}
        self.roundings: dict[str, list[Rounded]] = {}
        self.tensors: dict[str, Codes] = {}
        self.operations: list[Operation] = []
        self.exact: dict[str, bool] = {}
        self.reaches: dict[str, Reach] = {}
        self.origins: dict[str, str] = {}
        self.notes: list[str] = []
        self._fresh = graphs.fresh_names(self.proto)

    # --- questions

    def refuse(self, node: onnx.NodeProto, reason: str, hint: str = OTHERWISE) -> Unsupported:
        """The error that says why a node cannot be done."""
        return Unsupported(TARGET, graphs.node_label(node), node.op_type, reason, hint)

    def shape(self, node: onnx.NodeProto, name: str) -> Shape:
        """The graph's shape of a tensor, which has to be static."""
        kind = self.types.get(name)
        if kind is None or kind.shape is None:
            raise self.refuse(node, f"the shape of {name!r} is not known", self.static_hint())
        if not all(isinstance(size, int) for size in kind.shape):
            shown = "x".join(map(str, kind.shape))
            raise self.refuse(node, f"{name!r} has the dynamic shape {shown}; logic has a fixed one", self.static_hint())
        return tuple(int(size) for size in kind.shape)

    def static_hint(self) -> str:
        """The options that make the shapes of inputs static; logic takes one inference at a time."""
        asked = []
        for info in self.proto.graph.input:
            shape = self.types[info.name].shape if info.name not in self.stored else None
            if shape and not all(isinstance(size, int) for size in shape):
                asked.append(f"--shape {info.name}=" + "x".join(["1", *(str(size) for size in shape[1:])]))
        return f"give {' '.join(asked)}" if asked else "give --shape INPUT=1x..."

    def source(self, node: onnx.NodeProto, index: int = 0) -> Codes:
        """The computed codes that a node reads at one place."""
        name = node.input[index]
        if name in self.known:
            return self.known[name]
        if self.constant(node, index) is not None:
            raise self.refuse(node, f"it computes on stored values alone ({name!r})", "let the fold pass compute them")
        kind = self.types.get(name)
        if kind is not None and graphs.type_name(kind.elem_type) not in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"):
            raise self.refuse(
                node, f"it computes on {name!r} of type {graphs.type_name(kind.elem_type)}; allowed: rounded values"
            )
        raise self.refuse(node, f"its input {name!r} is float: it was rounded nowhere", FIXED_HINT)

    def constant(self, node: onnx.NodeProto, index: int) -> Constant | None:
        """The stored values that a node reads at one place, None where it reads none or computed ones.

        Stored floats are taken as they are where they have at most 16 bits in common.
        """
        name = node.input[index] if index < len(node.input) else ""
        if name in self.constants:
            return self.constants[name]
        if name not in self.stored or self.stored[name].dtype.kind != "f":
            return None
        found = dyadic(self.stored[name])
        if found is None:
            what = "number" if self.stored[name].size == 1 else "tensor"
            raise self.refuse(node, f"its stored {what} {name!r} is float: it was rounded nowhere", FIXED_HINT)
        return found

    def ints(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """Stored whole numbers that a node reads as an option; None where it has no such input."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        if name not in self.stored:
            raise self.refuse(node, f"its option {name!r} is computed; allowed: stored values", "let the fold pass compute them")
        return [int(value) for value in self.stored[name].ravel()]

    def aligned(self, node: onnx.NodeProto, constant: Constant) -> tuple[Integers, int]:
        found = constant.aligned()
        if found is None:
            raise self.refuse(
                node, f"its stored values take more than {WIDEST_BITS} bits on one grid", "drop channels that are dead"
            )
        return found

    # --- answers

    def fresh(self, wished: str) -> str:
        return self._fresh(wished)

    def add(self, node: onnx.NodeProto, operation: Operation, codes: Codes, *, computes: bool = False) -> Codes:
        """Puts an operation behind the others; `computes`: float32 may have to round what comes of it."""
        if max(-codes.low, codes.high) >= 2**WIDEST_BITS:
            wide = max(-codes.low, codes.high).bit_length() + 1
            raise self.refuse(node, f"its results take {wide} bits; allowed: {WIDEST_BITS}", "give it fewer bits")
        self.operations.append(operation)
        self.tensors[codes.name] = codes
        if computes:
            self.origins[codes.name] = operation.node
        else:
            found = [self.origins[name] for name in read(operation) if name in self.origins]
            if found:
                self.origins[codes.name] = found[0]
        return codes

    def moved(self, node: onnx.NodeProto, source: Codes, index: Integers, result: str, shape: Shape) -> Codes:
        """The elements of one tensor in another order; the tensor itself where nothing changes."""
        flat = np.asarray(index, np.int64).reshape(shape)
        same = flat.size == source.size and np.array_equal(flat.ravel(), np.arange(source.size))
        if same and shape == source.shape:
            return source
        padded = bool((flat < 0).any())
        low, high = (min(source.low, 0), max(source.high, 0)) if padded else (source.low, source.high)
        codes = replace(source, name=result, shape=shape, low=low, high=high)
        if source.name in self.reaches:
            self.reaches[result] = self.reaches[source.name]
        return self.add(node, Move(graphs.node_label(node), (source.name,), (1,), result, flat), codes)

    def reshaped(self, node: onnx.NodeProto, source: Codes, shape: Shape) -> Codes:
        """Under a name of its own, unless it has that shape."""
        if source.shape == shape:
            return source
        return self.moved(node, source, np.arange(source.size), self.fresh(f"{source.name}/reshaped"), shape)

    def reach(self, codes: Codes) -> Reach:
        found = self.reaches.get(codes.name)
        return found or Reach(np.array([codes.exponent]), np.array([float(max(-codes.low, codes.high))]))

    def held(self, label: str, fits: bool) -> None:
        """Notes whether float32 holds exactly what a node computes."""
        self.exact[label] = self.exact.get(label, True) and fits

    def only_rounded(self, node: onnx.NodeProto) -> list[Rounded]:
        """The roundings of a node's result, which nothing else may read: it is no number of few bits before."""
        name = node.output[0]
        found = self.roundings.get(name, [])
        if self.readers.get(name) or name in self.outputs or not found:
            reason = "its result is rounded nowhere" if not found else "its result is read before it is rounded"
            raise self.refuse(node, f"{reason}; as a table it needs a stated format behind it", FIXED_HINT)
        return found


def inner(shape: Shape) -> Shape:
    """A shape of the graph without its batch axis."""
    return shape[1:] if shape and shape[0] == 1 else shape


def unled(values: Array, rank: int) -> Array:
    """Without axes of one in front, down to a rank: so that it broadcasts behind a batch axis."""
    while values.ndim > rank and values.shape[0] == 1:
        values = values[0]
    return values


def dyadic(values: Array) -> Constant | None:
    """Floats as codes of at most 16 bits times one power of two, None where they are no such numbers."""
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        return None
    peak = float(np.abs(exact).max(initial=0))
    if peak == 0:
        return Constant(np.zeros(values.shape, np.int64), np.asarray(0))
    grid = math.frexp(peak)[1] - NARROW_CONSTANT_BITS
    scaled = np.ldexp(exact, -grid)
    if not np.array_equal(scaled, np.rint(scaled)):
        return None
    return Constant(scaled.astype(np.int64), np.asarray(grid))


def power_of_two(value: float) -> int | None:
    """The exponent of a positive power of two."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else None


def options(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def used(names: Iterable[str], makers: Mapping[str, onnx.NodeProto], roundings: Mapping[str, Rounded]) -> set[str]:
    """Tensors that take part in computing the named ones; a rounding is one step from its result to its source."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not name:
            continue
        found.add(name)
        if name in roundings:
            waiting.append(roundings[name].source)
        elif name in makers:
            waiting.extend(makers[name].input)
    return found
