"""Operations of an integer program as signals of a netlist, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Conv,
    Curve,
    Dense,
    IntegerProgram,
    Integers,
    Leaky,
    Move,
    Operation,
    Pool,
    Product,
    Round,
    Rounding,
    Scale,
    Shape,
    Softmax,
    Sum,
    Table,
    read,
    windows,
)  # fmt: skip

from .arithmetic import Arithmetic
from .division import divided, rounded_one
from .softmax import softmax
from .verilog import Signal, constant

Elements: TypeAlias = NDArray[np.object_]
"""Signals in a tensor's shape."""


def elements(signals: Sequence[Signal], shape: Shape) -> Elements:
    """Signals in C order as an array of that shape."""
    found = np.empty(len(signals), object)
    found[:] = signals
    return found.reshape(shape)


class Lowering:
    """Each operation as signals; `known` holds those of every tensor so far."""

    def __init__(self, program: IntegerProgram, arithmetic: Arithmetic, multipliers: frozenset[str]) -> None:
        self.known: dict[str, Elements] = {}
        self._tensors = program.tensors
        self._do = arithmetic
        self._multipliers = multipliers
        self._only_use = _only_uses(program)
        self._late: dict[str, Clip] = {}
        self._halves: set[str] = set()
        self._methods: dict[type, Callable[[Any], Elements | list[Signal]]] = {
            Dense: self._dense, Conv: self._conv, Pool: self._pool, Sum: self._sum, Scale: self._scale, Product: self._product,
            Clip: self._clip, Leaky: self._leaky, Round: self._round, Table: self._table, Move: self._move,
            ArgMax: self._argmax, Softmax: self._softmax, Curve: self._curve,
        }  # fmt: skip

    def lower(self, operation: Operation) -> None:
        found = self._methods[type(operation)](operation)
        shape = self._tensors[operation.result].shape
        self.known[operation.result] = elements(list(np.asarray(found, object).reshape(-1)), shape)

    def _rows(self, weight: Integers, bias: Integers, signals: Any, node: str = "") -> list[Signal]:
        return self._do.sums(weight, bias, list(signals), multiply=node in self._multipliers)

    def _one(self, factors: list[int], constant_: int, signals: list[Signal]) -> Signal:
        return self._rows(np.array([factors], np.int64), np.array([constant_], np.int64), signals)[0]

    def _half(self, result: str) -> int:
        """What a sum's bias may take over of the half-up rounding to a shorter code that alone follows it; 0 for nothing."""
        use = self._only_use.get(result)
        if isinstance(use, Clip) and self._is_late(use):
            use = self._only_use[use.result]
        if not isinstance(use, Round) or use.rounding != "half_up":
            return 0
        whole = self._whole(use)
        if whole & (whole - 1) or whole == 1 or self._up(use):
            return 0
        self._halves.add(use.result)
        return whole // 2

    def _whole(self, op: Round) -> int:
        source, result = self._tensors[op.source], self._tensors[op.result]
        return source.divisor << max(0, result.exponent - source.exponent)

    def _up(self, op: Round) -> int:
        """By how much codes go up before they are divided."""
        return max(0, self._tensors[op.source].exponent - self._tensors[op.result].exponent)

    def _is_late(self, op: Clip) -> bool:
        """Rounding keeps order, so limits may be applied behind it, where codes are shorter."""
        return isinstance(self._only_use.get(op.result), Round) and (op.low is None or op.high is None or op.low <= op.high)

    def _dense(self, op: Dense) -> list[Signal]:
        source = self.known[op.source].reshape(-1, op.weight.shape[1])
        bias = op.bias + self._half(op.result)
        return [signal for row in source for signal in self._rows(op.weight, bias, row, op.node)]

    def _conv(self, op: Conv) -> Elements:
        kernel_shape = op.weight.shape[2:]
        view = self._windows(op.source, kernel_shape, op.strides, op.pads, 0)
        outs, group_ins = len(op.weight) // op.groups, op.weight.shape[1]
        space = view.shape[1 : 1 + len(kernel_shape)]
        bias = op.bias + self._half(op.result)
        found = np.empty((len(op.weight), *space), object)
        for position in np.ndindex(*space):
            for group in range(op.groups):
                rows = slice(group * outs, (group + 1) * outs)
                ins, to = (slice(group * group_ins, (group + 1) * group_ins), *position), (rows, *position)
                found[to] = self._rows(op.weight[rows].reshape(outs, -1), bias[rows], view[ins].reshape(-1), op.node)
        return found

    def _windows(self, source: str, kernel_shape: Any, strides: Any, pads: Any, outside: int) -> Elements:
        """(channels, *out, *kernel) of signals."""
        signals = self.known[source]
        places = np.arange(1, signals.size + 1).reshape(1, *signals.shape)
        every = elements([constant(outside), *signals.reshape(-1)], (-1,))
        found: Elements = every[windows(places, kernel_shape, strides, pads, 0)[0]]
        return found

    def _pool(self, op: Pool) -> list[Signal]:
        view = self._windows(op.source, op.kernel, op.strides, op.pads, self._tensors[op.source].low)
        size = int(np.prod(op.kernel))
        found = []
        for window in view.reshape(-1, size):
            found.append(self._one([1] * size, 0, list(window)) if op.kind == "sum" else self._greatest(list(window)))
        return found

    def _greatest(self, signals: list[Signal]) -> Signal:
        while len(signals) > 1:
            pairs = [self._do.greater(one, two) for one, two in zip(signals[::2], signals[1::2], strict=False)]
            signals = pairs + ([signals[-1]] if len(signals) % 2 else [])
        return signals[0]

    def _sum(self, op: Sum) -> list[Signal]:
        shape = self._tensors[op.result].shape
        sources = [np.broadcast_to(self.known[source], shape).reshape(-1) for source in op.sources]
        constants = np.zeros(shape, np.int64) if op.constant is None else np.broadcast_to(op.constant, shape)
        parts = zip(*sources, constants.reshape(-1).tolist(), strict=True)
        return [self._one(list(op.factors), part[-1], list(part[:-1])) for part in parts]

    def _scale(self, op: Scale) -> list[Signal]:
        """Products of one element with several constants share what they can."""
        shape = self._tensors[op.result].shape
        source = self.known[op.source]
        places = np.broadcast_to(np.arange(source.size).reshape(source.shape), shape).reshape(-1)
        factors = np.broadcast_to(op.constant, shape).reshape(-1)
        found = np.empty(len(places), object)
        for place, signal in enumerate(source.reshape(-1)):
            mine = np.flatnonzero(places == place)
            found[mine] = self._rows(factors[mine][:, None], np.zeros(len(mine), np.int64), [signal])
        return list(found)

    def _product(self, op: Product) -> list[Signal]:
        left, right = self.known[op.left], self.known[op.right]
        if not op.matmul:
            shape = self._tensors[op.result].shape
            pairs = zip(np.broadcast_to(left, shape).reshape(-1), np.broadcast_to(right, shape).reshape(-1), strict=True)
            return [self._do.product(one, two) for one, two in pairs]
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left, right = (np.broadcast_to(side, batch + side.shape[-2:]).reshape((-1, *side.shape[-2:])) for side in (left, right))
        found = []
        for one, two in zip(left, right, strict=True):
            for row in one:
                for column in two.T:
                    products = [self._do.product(a, b) for a, b in zip(row, column, strict=True)]
                    found.append(self._one([1] * len(products), 0, products))
        return found

    def _clip(self, op: Clip) -> Elements | list[Signal]:
        if self._is_late(op):
            self._late[op.result] = op
            return self.known[op.source]
        source = self._tensors[op.source]
        low, high = source.low if op.low is None else op.low, source.high if op.high is None else op.high
        return [self._do.clipped(signal, low, high) for signal in self.known[op.source].reshape(-1)]

    def _leaky(self, op: Leaky) -> list[Signal]:
        return [self._do.leaky(signal, op.slope, op.shift) for signal in self.known[op.source].reshape(-1)]

    def _round(self, op: Round) -> list[Signal]:
        whole, up = self._whole(op), self._up(op)
        low, high = self._tensors[op.result].low, self._tensors[op.result].high
        if op.source in self._late:
            clip = self._late[op.source]
            least, most = (
                None if end is None else min(max(rounded_one(end << up, whole, op.rounding), low), high)
                for end in (clip.low, clip.high)
            )
            low, high = low if least is None else least, high if most is None else most
        rounding: Rounding = "truncate" if op.result in self._halves else op.rounding
        signals = [self._do.shifted(signal, up) for signal in self.known[op.source].reshape(-1)]
        return [divided(self._do, signal, whole, rounding, low, high) for signal in signals]

    def _table(self, op: Table) -> list[Signal]:
        low, values = self._tensors[op.source].low, op.values.tolist()
        return [self._do.looked_up(signal, lambda code: values[code - low]) for signal in self.known[op.source].reshape(-1)]

    def _curve(self, op: Curve) -> list[Signal]:
        return [self._do.curve(signal, op) for signal in self.known[op.source].reshape(-1)]

    def _move(self, op: Move) -> list[Signal]:
        signals: list[Signal] = []
        for source, factor in zip(op.sources, op.factors, strict=True):
            signals += [self._one([factor], 0, [signal]) for signal in self.known[source].reshape(-1)]
        return [constant(0) if place < 0 else signals[place] for place in op.index.reshape(-1).tolist()]

    def _argmax(self, op: ArgMax) -> list[Signal]:
        source = np.moveaxis(self.known[op.source], op.axis, -1)
        return [self._first_greatest(list(row)) for row in source.reshape(-1, source.shape[-1])]

    def _first_greatest(self, signals: list[Signal]) -> Signal:
        """The index of the greatest, of equal ones the first: a later one wins only where it is greater."""
        leaders = [(signal, constant(place)) for place, signal in enumerate(signals)]
        while len(leaders) > 1:
            following = []
            for (one, first), (two, second) in zip(leaders[::2], leaders[1::2], strict=False):
                is_later = self._do.is_less(one, two)
                following.append((self._do.greater(one, two), self._do.choose(is_later, second, first)))
            leaders = following + ([leaders[-1]] if len(leaders) % 2 else [])
        return leaders[0][1]

    def _softmax(self, op: Softmax) -> list[Signal]:
        source = self.known[op.source]
        rows = source.reshape(-1, source.shape[-1])
        high = self._tensors[op.result].high
        return [signal for row in rows for signal in softmax(self._do, list(row), self._greatest(list(row)), op, high)]


def _only_uses(program: IntegerProgram) -> dict[str, Operation]:
    """For each tensor that one operation alone reads, and nobody outside, that operation."""
    uses: dict[str, list[Operation | None]] = {name: [None] for name in program.outputs}
    for operation in program.operations:
        for name in read(operation):
            uses.setdefault(name, []).append(operation)
    return {name: readers[0] for name, readers in uses.items() if len(readers) == 1 and readers[0] is not None}
