"""What a fixed-point network computes, as integer operations and nothing else: what every generator of logic starts from.

A tensor carries integer codes; code * 2**exponent / divisor is its value. Between two roundings sums are as wide as they can
get, so that nothing is lost that the graph does not say is lost. `run` is the reference that all later levels (C++, Verilog,
netlist) equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .integer_curves import Curve as Curve
from .integer_curves import Integers as Integers
from .integer_curves import LayerNorm as LayerNorm

Shape: TypeAlias = tuple[int, ...]
Rounding = Literal["half_even", "half_up", "truncate"]
EXACT_IN_DOUBLE = 2**53
AT_ONCE = 2**22
"""Elements that a run lays out side by side for one operation."""


@dataclass(frozen=True)
class Codes:
    """A tensor of integers from `low` to `high`, both reachable as far as is known. `shape` is without the batch axis."""

    name: str
    shape: Shape
    exponent: int
    low: int
    high: int
    divisor: int = 1

    @property
    def signed(self) -> bool:
        return self.low < 0

    @property
    def bits(self) -> int:
        """Of the narrowest integer that holds all codes, its sign included where there is one; at least 1."""
        if self.signed:
            return max((-self.low - 1).bit_length(), max(self.high, 0).bit_length()) + 1
        return max(1, self.high.bit_length())

    @property
    def step(self) -> float:
        """The value of code 1."""
        return 2.0**self.exponent / self.divisor

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Dense:
    """result[..., o] = bias[o] + sum over i of weight[o, i] * source[..., i]; `weight` (outs, ins), `bias` (outs,), int64."""

    node: str
    source: str
    result: str
    weight: Integers
    bias: Integers


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution of (channels, *space), one or two dimensions of space. `weight` int64 (outs, ins / groups, *kernel).

    `pads` as ONNX has them: all begins, then all ends; what lies outside is zero. No dilation.
    """

    node: str
    source: str
    result: str
    weight: Integers
    bias: Integers
    strides: Shape
    pads: Shape
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Pool:
    """`max` or `sum` over a window of (channels, *space); a maximum passes over what lies outside, a sum has no pads.

    An average is a sum whose result has the window's size in its divisor or exponent.
    """

    node: str
    source: str
    result: str
    kind: Literal["max", "sum"]
    kernel: Shape
    strides: Shape
    pads: Shape


@dataclass(frozen=True, eq=False)
class Sum:
    """result = constant + sum of source * factor, shapes broadcast as in numpy. Factors bring all to one exponent."""

    node: str
    sources: tuple[str, ...]
    factors: tuple[int, ...]
    result: str
    constant: Integers | None = None


@dataclass(frozen=True, eq=False)
class Scale:
    """result = source * constant, the constant broadcast as in numpy."""

    node: str
    source: str
    result: str
    constant: Integers


@dataclass(frozen=True, eq=False)
class Product:
    """result = left * right, both computed; `matmul`: numpy's matrix product of them."""

    node: str
    left: str
    right: str
    result: str
    matmul: bool = False


@dataclass(frozen=True, eq=False)
class Clip:
    """Codes below `low` become `low`, those above `high` become `high` (codes of the source). ReLU: low 0, no high."""

    node: str
    source: str
    result: str
    low: int | None
    high: int | None


@dataclass(frozen=True, eq=False)
class Leaky:
    """Codes below zero times `slope`, others times 2**`shift`."""

    node: str
    source: str
    result: str
    slope: int
    shift: int


@dataclass(frozen=True, eq=False)
class Round:
    """To the result's exponent, by the one stated rounding, then into its low..high (saturating)."""

    node: str
    source: str
    result: str
    rounding: Rounding


@dataclass(frozen=True, eq=False)
class Table:
    """result = values[source - low of source]: a function of one narrow code, rounded once."""

    node: str
    source: str
    result: str
    function: str
    values: Integers


@dataclass(frozen=True, eq=False)
class Move:
    """Elements of the sources, each source's codes multiplied by its factor, in another order.

    `index` has the result's shape and counts through all sources, flattened and one behind the other; -1 is a zero.
    """

    node: str
    sources: tuple[str, ...]
    factors: tuple[int, ...]
    result: str
    index: Integers


@dataclass(frozen=True, eq=False)
class ArgMax:
    """The place of the greatest code along an axis (of the shape without batch), of equal ones the first."""

    node: str
    source: str
    result: str
    axis: int
    keepdims: bool


@dataclass(frozen=True, eq=False)
class Softmax:
    """Along the last axis: e = values[max - code], result = (e * 2**shift + half) // sum of e, saturating at the result's high.

    `values` is exp(-d * step) for d = 0, 1, ... in fixed point (Edge-MoE's softmax, arXiv 2305.18691, with its maximum known
    before); beyond the table's end it is 0. `shift` is minus the exponent of the result.
    """

    node: str
    source: str
    result: str
    values: Integers
    shift: int


Operation: TypeAlias = (
    Dense | Conv | Pool | Sum | Scale | Product | Clip | Leaky | Round | Table | Move | ArgMax | Softmax | Curve | LayerNorm
)


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """Operations in execution order over named tensors. Inputs and outputs are codes; `encode` and `decode` are the host's part.

    `roundings` says how each input's values become codes. `exact` tells for each node that sums, scales or multiplies whether
    float32 does so exactly, so that ONNX Runtime has to agree to the bit, as long as all nodes before it are exact too.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Codes]
    operations: tuple[Operation, ...]
    roundings: Mapping[str, Rounding]
    exact: Mapping[str, bool]
    notes: tuple[str, ...] = ()

    def encode(self, values: Mapping[str, NDArray[Any]]) -> dict[str, Integers]:
        """Input codes of input values (with a batch axis in front), rounded and saturated as the graph does."""
        return {name: self._encoded(name, values[name]) for name in self.inputs}

    def decode(self, codes: Mapping[str, Integers]) -> dict[str, NDArray[np.float32]]:
        """Values of output codes."""
        return {name: (codes[name] * self.tensors[name].step).astype(np.float32) for name in self.outputs}

    def run(self, codes: Mapping[str, Integers], keep: bool = False) -> dict[str, Integers]:
        """Output codes of input codes, both int64 with a batch axis in front; with `keep` those of every tensor."""
        held = {name: np.asarray(codes[name], np.int64) for name in self.inputs}
        batch, few = len(held[self.inputs[0]]), self._few()
        kept = tuple(self.tensors) if keep else self.outputs
        parts = [self._run({name: array[start : start + few] for name, array in held.items()}, kept)
                 for start in range(0, max(batch, 1), few)]  # fmt: skip
        return {name: np.concatenate([part[name] for part in parts]) for name in kept}

    def _run(self, known: dict[str, Integers], kept: tuple[str, ...]) -> dict[str, Integers]:
        last = {name: index for index, operation in enumerate(self.operations) for name in read(operation)}
        for index, operation in enumerate(self.operations):
            known[operation.result] = _RUN[type(operation)](operation, known, self.tensors)
            for name in read(operation):
                if last[name] == index and name not in kept:
                    known.pop(name, None)
        return {name: known[name] for name in kept}

    def _few(self) -> int:
        """How many inputs at once keep what an operation lays out in memory within bounds."""
        most = max((codes.size for codes in self.tensors.values()), default=1)
        for operation in self.operations:
            if isinstance(operation, Conv):
                most = max(
                    most,
                    self.tensors[operation.result].size // len(operation.weight) * operation.weight[0].size * operation.groups,
                )
        return max(1, AT_ONCE // most)

    def _encoded(self, name: str, values: NDArray[Any]) -> Integers:
        tensor = self.tensors[name]
        scaled = np.asarray(values, np.float32) * np.float32(1 / tensor.step)  # a power of two: exact
        rounding = self.roundings[name]
        # The half is added in float32, as the graph does it: just below a half that gives the next whole number.
        half = np.float32(0.5 if rounding == "half_up" else 0.0)
        whole = np.rint(scaled) if rounding == "half_even" else np.floor(scaled + half)
        return np.asarray(np.clip(whole, tensor.low, tensor.high), np.int64)


def read(operation: Operation) -> tuple[str, ...]:
    """Names of the tensors that an operation reads."""
    if isinstance(operation, (Sum, Move)):
        return operation.sources
    return (operation.left, operation.right) if isinstance(operation, Product) else (operation.source,)


def rounded(codes: Integers, shift: int, divisor: int, rounding: Rounding) -> Integers:
    """codes / divisor * 2**-shift as integers; a negative shift multiplies."""
    if shift < 0:
        codes, shift = codes << -shift, 0
    whole = divisor << shift
    if whole == 1:
        return codes
    if rounding == "truncate":
        return codes // whole
    if rounding == "half_up":
        return (2 * codes + whole) // (2 * whole)
    down, rest = codes // whole, codes % whole
    up = (2 * rest > whole) | ((2 * rest == whole) & (down % 2 == 1))
    return np.asarray(down + up, np.int64)


def windows(source: Integers, kernel: Shape, strides: Shape, pads: Shape, outside: int) -> Integers:
    """(batch, channels, *space) -> (batch, channels, *out, *kernel)."""
    rank = len(kernel)
    around = [(0, 0), (0, 0), *((pads[axis], pads[axis + rank]) for axis in range(rank))]
    padded = np.pad(source, around, constant_values=outside)
    axes = tuple(range(2, 2 + rank))
    view = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=axes)
    steps = (slice(None), slice(None), *(slice(None, None, stride) for stride in strides))
    return np.asarray(view[steps])


def _product(left: Integers, right: Integers, greatest: int) -> Integers:
    """Matrix product; in float64, which is exact below 2**53 and many times as fast, where sums stay below that."""
    if greatest < EXACT_IN_DOUBLE:
        exact: Integers = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
        return exact
    return np.asarray(np.matmul(left, right), np.int64)


def _reach(tensor: Codes) -> int:
    return max(-tensor.low, tensor.high)


def _dense(op: Dense, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    greatest = _reach(tensors[op.source]) * int(np.abs(op.weight).sum(axis=1).max(initial=0))
    return _product(known[op.source], op.weight.T, greatest) + op.bias


def _conv(op: Conv, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    kernel = op.weight.shape[2:]
    view = windows(known[op.source], kernel, op.strides, op.pads, 0)
    batch, channels, out = view.shape[0], view.shape[1], view.shape[2 : 2 + len(kernel)]
    outs, group_ins = op.weight.shape[0] // op.groups, channels // op.groups
    greatest = _reach(tensors[op.source]) * int(np.abs(op.weight).reshape(len(op.weight), -1).sum(axis=1).max(initial=0))
    parts = []
    for group in range(op.groups):
        mine = np.moveaxis(view[:, group * group_ins : (group + 1) * group_ins], 1, 1 + len(kernel))
        flat = mine.reshape(batch, *out, -1)
        weight = op.weight[group * outs : (group + 1) * outs].reshape(outs, -1)
        parts.append(_product(flat, weight.T, greatest))
    return np.moveaxis(np.concatenate(parts, axis=-1) + op.bias, -1, 1)


def _pool(op: Pool, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    view = windows(known[op.source], op.kernel, op.strides, op.pads, tensors[op.source].low)
    axes = tuple(range(-len(op.kernel), 0))
    return np.asarray(view.max(axis=axes) if op.kind == "max" else view.sum(axis=axes), np.int64)


def _widened(values: Integers, rank: int) -> Integers:
    """With axes of one behind the batch axis, so that shapes without batch broadcast as numpy has it."""
    return values.reshape(values.shape[0], *(1,) * (rank - values.ndim + 1), *values.shape[1:])


def _sum(op: Sum, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    rank = len(tensors[op.result].shape)
    total: Integers = np.zeros((1,) * (rank + 1), np.int64)
    for name, factor in zip(op.sources, op.factors, strict=True):
        total = total + _widened(known[name], rank) * factor
    return total if op.constant is None else total + op.constant


def _scale(op: Scale, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    return _widened(known[op.source], len(tensors[op.result].shape)) * op.constant


def _two(op: Product, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    left, right = known[op.left], known[op.right]
    if op.matmul:
        greatest = _reach(tensors[op.left]) * _reach(tensors[op.right]) * left.shape[-1]
        return _product(left, right, greatest)
    rank = len(tensors[op.result].shape)
    return _widened(left, rank) * _widened(right, rank)


def _clip(op: Clip, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    found = known[op.source]
    found = found if op.low is None else np.maximum(found, op.low)
    return found if op.high is None else np.minimum(found, op.high)


def _leaky(op: Leaky, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    found = known[op.source]
    return np.where(found < 0, found * op.slope, found << op.shift)


def _round(op: Round, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    source, result = tensors[op.source], tensors[op.result]
    whole = rounded(known[op.source], result.exponent - source.exponent, source.divisor, op.rounding)
    return np.clip(whole, result.low, result.high)


def _table(op: Table, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    return op.values[known[op.source] - tensors[op.source].low]


def _move(op: Move, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    batch = known[op.sources[0]].shape[0]
    parts = [known[name].reshape(batch, -1) * factor for name, factor in zip(op.sources, op.factors, strict=True)]
    whole = np.concatenate([*parts, np.zeros((batch, 1), np.int64)], axis=1)  # the last is what -1 takes
    return whole[:, op.index]


def _argmax(op: ArgMax, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    axis = op.axis % len(tensors[op.source].shape) + 1
    found = np.asarray(known[op.source].argmax(axis=axis), np.int64)
    return np.expand_dims(found, axis) if op.keepdims else found


def _softmax(op: Softmax, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    codes = known[op.source]
    below = np.minimum(codes.max(axis=-1, keepdims=True) - codes, len(op.values))
    powers = np.append(op.values, 0)[below]
    total = powers.sum(axis=-1, keepdims=True)
    return np.asarray(np.minimum(((powers << op.shift) + total // 2) // total, tensors[op.result].high), np.int64)


def _near(op: Curve | LayerNorm, known: Mapping[str, Integers], tensors: Mapping[str, Codes]) -> Integers:
    return op.of(known[op.source])


_RUN: dict[type, Callable[[Any, Mapping[str, Integers], Mapping[str, Codes]], Integers]] = {
    Dense: _dense, Conv: _conv, Pool: _pool, Sum: _sum, Scale: _scale, Product: _two, Clip: _clip, Leaky: _leaky, Round: _round,
    Table: _table, Move: _move, ArgMax: _argmax, Softmax: _softmax, Curve: _near,
    LayerNorm: _near,
}  # fmt: skip
