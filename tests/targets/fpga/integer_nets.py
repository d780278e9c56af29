"""Integer programs for the tests of FPGA flows, made operation by operation; ranges follow by interval arithmetic."""

from __future__ import annotations

import math

import numpy as np

from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Codes,
    Conv,
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
    Sum,
    Table,
)


class Net:
    """A program in the making. Each method adds an operation on a named tensor and gives its result's name."""

    def __init__(self, seed: int = 0, bits: int = 6, rounding: Rounding = "half_even") -> None:
        self.rng = np.random.default_rng(seed)
        self.bits = bits
        self.rounding: Rounding = rounding
        self.tensors: dict[str, Codes] = {}
        self.operations: list[Operation] = []
        self.inputs: list[str] = []

    def program(self, *outputs: str) -> IntegerProgram:
        roundings = dict.fromkeys(self.inputs, self.rounding)
        return IntegerProgram("net", tuple(self.inputs), outputs, self.tensors, tuple(self.operations), roundings, {})

    def constants(self, shape: Shape, bits: int | None = None) -> Integers:
        half = 1 << (bits or self.bits) - 1
        return self.rng.integers(-half, half, shape)

    def _tensor(self, kind: str, shape: Shape, exponent: int, low: int, high: int, divisor: int = 1) -> str:
        name = f"{kind}{len(self.tensors)}"
        self.tensors[name] = Codes(name, tuple(int(size) for size in shape), exponent, int(low), int(high), divisor)
        return name

    def input(self, shape: Shape, bits: int | None = None, exponent: int = -4) -> str:
        half = 1 << (bits or self.bits) - 1
        self.inputs.append(self._tensor("x", shape, exponent, -half, half - 1))
        return self.inputs[-1]

    def dense(self, source: str, outs: int) -> str:
        known = self.tensors[source]
        weight, bias = self.constants((outs, known.shape[-1])), self.constants((outs,), 2 * self.bits)
        low, high = _reach(weight, bias, known.low, known.high)
        result = self._tensor("d", (*known.shape[:-1], outs), known.exponent - self.bits + 1, low, high)
        self.operations.append(Dense(f"fc_{result}", source, result, weight, bias))
        return result

    def conv(
        self, source: str, outs: int, kernel: Shape, strides: Shape | None = None, pads: Shape | None = None, groups: int = 1
    ) -> str:
        known, rank = self.tensors[source], len(kernel)
        strides, pads = strides or (1,) * rank, pads or (0,) * 2 * rank
        weight, bias = self.constants((outs, known.shape[0] // groups, *kernel)), self.constants((outs,), 2 * self.bits)
        low, high = _reach(weight, bias, min(known.low, 0), max(known.high, 0))
        shape = (outs, *_out(known.shape[1:], kernel, strides, pads))
        result = self._tensor("c", shape, known.exponent - self.bits + 1, low, high)
        self.operations.append(Conv(f"conv_{result}", source, result, weight, bias, strides, pads, groups))
        return result

    def relu(self, source: str, high: int | None = None) -> str:
        return self.clip(source, 0, high)

    def clip(self, source: str, low: int | None, high: int | None) -> str:
        known = self.tensors[source]
        ends = [min(max(end, end if low is None else low), end if high is None else high) for end in (known.low, known.high)]
        ends[1] = ends[1] if high is None else min(max(known.high, low or known.high), high)
        result = self._tensor("r", known.shape, known.exponent, ends[0], ends[1], known.divisor)
        self.operations.append(Clip(f"clip_{result}", source, result, low, high))
        return result

    def round(
        self, source: str, bits: int | None = None, drop: int | None = None, low: int | None = None, high: int | None = None,
        signed: bool = False, rounding: Rounding | None = None,
    ) -> str:  # fmt: skip
        """To `bits` after dropping `drop` bits, by default so few that some results saturate."""
        known, bits = self.tensors[source], bits or self.bits
        half = 1 << bits - 1
        least, most = (-half, half - 1) if signed else (0, 2 * half - 1)
        if drop is None:
            drop = max(0, max(-known.low, known.high).bit_length() - bits - 2)
        low, high = least if low is None else low, most if high is None else high
        result = self._tensor("q", known.shape, known.exponent + drop, low, high)
        self.operations.append(Round(f"quant_{result}", source, result, rounding or self.rounding))
        return result

    def pool(self, source: str, kernel: Shape, strides: Shape | None = None, pads: Shape | None = None) -> str:
        return self._pool(source, "max", kernel, strides, pads, 1, 0)

    def mean(self, source: str, kernel: Shape, strides: Shape | None = None) -> str:
        size = math.prod(kernel)
        two = (size & -size).bit_length() - 1
        return self._pool(source, "sum", kernel, strides, None, size >> two, two)

    def total(self, source: str, kernel: Shape, strides: Shape | None = None) -> str:
        return self._pool(source, "sum", kernel, strides, None, 1, 0)

    def _pool(
        self, source: str, kind: str, kernel: Shape, strides: Shape | None, pads: Shape | None, divisor: int, drop: int
    ) -> str:
        known = self.tensors[source]
        strides, pads = strides or kernel, pads or (0,) * 2 * len(kernel)
        count = 1 if kind == "max" else math.prod(kernel)
        shape = (known.shape[0], *_out(known.shape[1:], kernel, strides, pads))
        result = self._tensor("p", shape, known.exponent - drop, known.low * count, known.high * count, divisor)
        self.operations.append(Pool(f"pool_{result}", source, result, kind, kernel, strides, pads))  # type: ignore[arg-type]
        return result

    def move(self, sources: list[str], index: Integers) -> str:
        known = [self.tensors[name] for name in sources]
        exponent = min(one.exponent for one in known)
        factors = [1 << one.exponent - exponent for one in known]
        ends = [end * factor for one, factor in zip(known, factors, strict=True) for end in (one.low, one.high)]
        ends += [0] if (index < 0).any() else []
        result = self._tensor("m", index.shape, exponent, min(ends), max(ends), known[0].divisor)
        self.operations.append(Move(f"move_{result}", tuple(sources), tuple(factors), result, index))
        return result

    def flatten(self, source: str) -> str:
        return self.move([source], np.arange(self.tensors[source].size))

    def concat(self, sources: list[str]) -> str:
        shapes = [self.tensors[name].shape for name in sources]
        begins = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        parts = [np.arange(b, b + math.prod(s)).reshape(s) for b, s in zip(begins, shapes, strict=False)]
        return self.move(sources, np.concatenate(parts))

    def sum(self, sources: list[str], signs: list[int], constant: Integers | None = None) -> str:
        known = [self.tensors[name] for name in sources]
        exponent = min(one.exponent for one in known)
        factors = [sign << one.exponent - exponent for one, sign in zip(known, signs, strict=True)]
        ends = [sorted((one.low * factor, one.high * factor)) for one, factor in zip(known, factors, strict=True)]
        low, high = (sum(end[place] for end in ends) for place in (0, 1))
        if constant is not None:
            low, high = low + int(constant.min()), high + int(constant.max())
        result = self._tensor("s", known[0].shape, exponent, low, high)
        self.operations.append(Sum(f"add_{result}", tuple(sources), tuple(factors), result, constant))
        return result

    def scale(self, source: str, constant: Integers) -> str:
        known = self.tensors[source]
        ends = np.array([known.low * constant, known.high * constant])
        result = self._tensor("l", known.shape, known.exponent - 3, ends.min(), ends.max())
        self.operations.append(Scale(f"scale_{result}", source, result, constant))
        return result

    def product(self, left: str, right: str) -> str:
        a, b = self.tensors[left], self.tensors[right]
        ends = [one * other for one in (a.low, a.high) for other in (b.low, b.high)]
        result = self._tensor("t", a.shape, a.exponent + b.exponent, min(ends), max(ends))
        self.operations.append(Product(f"mul_{result}", left, right, result))
        return result

    def leaky(self, source: str, slope: int = 3, shift: int = 5) -> str:
        known = self.tensors[source]
        result = self._tensor("y", known.shape, known.exponent - shift, min(known.low * slope, 0), max(known.high << shift, 0))
        self.operations.append(Leaky(f"leaky_{result}", source, result, slope, shift))
        return result

    def argmax(self, source: str) -> str:
        known = self.tensors[source]
        result = self._tensor("i", (1,), 0, 0, known.shape[-1] - 1)
        self.operations.append(ArgMax(f"argmax_{result}", source, result, -1, True))
        return result

    def table(self, source: str) -> str:
        known = self.tensors[source]
        values = np.arange(known.low, known.high + 1) ** 2 % 7 - 3
        result = self._tensor("f", known.shape, -2, -3, 3)
        self.operations.append(Table(f"table_{result}", source, result, "sigmoid", values))
        return result


def _reach(weight: Integers, bias: Integers, low: int, high: int) -> tuple[int, int]:
    flat = weight.reshape(len(weight), -1)
    least, most = np.minimum(flat * low, flat * high).sum(axis=1), np.maximum(flat * low, flat * high).sum(axis=1)
    return int((least + bias).min()), int((most + bias).max())


def _out(space: Shape, kernel: Shape, strides: Shape, pads: Shape) -> Shape:
    rank = len(kernel)
    return tuple((size + pads[a] + pads[a + rank] - kernel[a]) // strides[a] + 1 for a, size in enumerate(space))


def dense_net(sizes: tuple[int, ...], bits: int, rounding: Rounding) -> IntegerProgram:
    """Dense layers with ReLU and a rounding behind each, the last one signed."""
    net = Net(bits, bits, rounding)
    last = net.input(sizes[:1])
    for outs in sizes[1:-1]:
        last = net.round(net.relu(net.dense(last, outs)))
    return net.program(net.round(net.dense(last, sizes[-1]), signed=True))


def conv_net(bits: int = 6, rounding: Rounding = "half_even") -> IntegerProgram:
    """What front ends misread: asymmetric pads, ReLU6's bound, a flatten behind channels; a depthwise layer and a residual sum,
    a concatenation, maxima over padded windows, and a mean over 12 elements whose rounding comes behind a flatten."""
    net = Net(1, bits, rounding)
    first = net.conv(net.input((2, 7, 8)), 4, (3, 3), (2, 1), (0, 2, 1, 1))
    high = 6 << -net.tensors[first].exponent
    first = net.round(net.relu(first, high), drop=max(0, high.bit_length() - bits), rounding=rounding)
    second = net.round(net.conv(first, 4, (3, 3), pads=(1, 1, 1, 1), groups=4), signed=True)
    third = net.round(net.relu(net.sum([first, second], [1, 1])), drop=1)
    joined = net.concat([third, net.round(net.conv(third, 2, (1, 1)), signed=True)])
    pooled = net.pool(joined, (2, 2), pads=(0, 0, 1, 1))
    means = net.flatten(net.mean(pooled, tuple(net.tensors[pooled].shape[1:])))
    return net.program(net.round(net.dense(net.round(means, drop=1, signed=True), 5), bits + 4, signed=True))


def clipped_net() -> IntegerProgram:
    """Bounds that are no type's limits, all three roundings, and sums, products, scales and slopes."""
    net = Net(2)
    x, z = net.input((8,)), net.input((12,), 5, -2)
    a = net.round(net.clip(net.dense(x, 12), -700, 900), 8, drop=3, signed=True)
    b = net.round(net.sum([a, z], [1, -1], net.constants((12,), 5)), 8, drop=1, low=0, high=100, rounding="half_up")
    c = net.round(net.scale(b, net.constants((12,), 5)), 8, low=-40, high=127, rounding="truncate")
    d = net.round(net.leaky(net.sum([b, c, a], [-1, -1, -1])), 8, low=-127, high=127)
    e = net.round(net.product(d, c), 9, low=3, high=300, rounding="half_up")
    return net.program(net.clip(net.dense(e, 5), -9000, -30), d)


def moved_net() -> IntegerProgram:
    """Dense layers along the last axis, of rows and behind channels, 1-D convolutions with asymmetric pads, zeros around, a
    part cut out, a table, a maximum over padded windows, a sum over windows."""
    net = Net(3)
    rows = net.round(net.relu(net.dense(net.input((9, 6)), 7)))
    columns = net.move([rows], np.arange(63).reshape(9, 7).T.copy())
    index = np.full((7, 13), -1)
    index[:, 3:12] = np.arange(63).reshape(7, 9)
    wide = net.move([columns], index)
    line = net.round(net.conv(wide, 4, (3,), (2,), (2, 1)), signed=True)
    size = net.tensors[line].shape[1]
    line = net.round(net.dense(net.table(line), size), signed=True)
    cut = net.move([line], np.arange(4 * size).reshape(4, size)[:, 1:-1])
    top = net.pool(cut, (2,), pads=(1, 0))
    return net.program(net.dense(net.flatten(net.total(top, (2,))), 3))
