"""A network of given sizes with random weights, as an integer program: what is laid out where only sizes are known.

Weights are normally distributed and quantised channel by channel to a width, activations to the same width by scales that fit
random inputs, as the quantiser does it with a model's own. The seed decides everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import RecipeError
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
    Round,
    Rounding,
    Shape,
    Softmax,
    Sum,
    Table,
)

SAMPLES = 24
"""Random inputs by which the scales of activations are chosen."""
LEAKY_SLOPE, LEAKY_SHIFT = 3, 5
EPSILON = 1e-5
"""That a LayerNormalization has by default."""
_FUNCTIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


class Sketch:
    """A program in the making. Each method adds an operation on a named tensor and gives its result's name."""

    def __init__(
        self, seed: int, bits: int, rounding: Rounding = "half_even", name: str = "sketch", samples: int = SAMPLES
    ) -> None:
        self.bits = bits
        self.tensors: dict[str, Codes] = {}
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._rounding: Rounding = rounding
        self._operations: list[Operation] = []
        self.inputs: list[str] = []
        self._known: dict[str, Integers] = {}
        self._samples = samples

    def program(self, *outputs: str) -> IntegerProgram:
        roundings = dict.fromkeys(self.inputs, self._rounding)
        return IntegerProgram(self._name, tuple(self.inputs), outputs, self.tensors, tuple(self._operations), roundings, {})

    def input(self, shape: Shape, bits: int = 0) -> str:
        half = 1 << (bits or self.bits) - 1
        name = self._tensor("x", shape, 1 - (bits or self.bits), -half, half - 1)
        self.inputs.append(name)
        spread = self._rng.normal(0, half / 2.5, (self._samples, *self.tensors[name].shape))
        self._known[name] = np.clip(np.rint(spread), -half, half - 1).astype(np.int64)
        return name

    def dense(self, source: str, outs: int, bits: int = 0) -> str:
        known, bits = self.tensors[source], bits or self.bits
        weight, bias = self._weights((outs, known.shape[-1]), source, bits)
        low, high = _reach(weight, bias, known)
        result = self._tensor("d", (*known.shape[:-1], outs), known.exponent - bits + 1, low, high)
        return self._add(Dense(f"dense_{result}", source, result, weight, bias))

    def conv(
        self, source: str, outs: int, kernel: Shape, strides: Shape | None = None, pads: Shape | None = None, groups: int = 1,
        bits: int = 0,
    ) -> str:  # fmt: skip
        """Without `pads` half the kernel lies around the image."""
        known, rank, bits = self.tensors[source], len(kernel), bits or self.bits
        strides = strides or (1,) * rank
        pads = tuple(size // 2 for size in kernel) * 2 if pads is None else pads
        weight, bias = self._weights((outs, known.shape[0] // groups, *kernel), source, bits)
        low, high = _reach(weight, bias, known)
        space = [(s + pads[a] + pads[a + rank] - kernel[a]) // strides[a] + 1 for a, s in enumerate(known.shape[1:])]
        result = self._tensor("c", (outs, *space), known.exponent - bits + 1, low, high)
        return self._add(Conv(f"conv_{result}", source, result, weight, bias, strides, pads, groups))

    def relu(self, source: str) -> str:
        known = self.tensors[source]
        result = self._tensor("r", known.shape, known.exponent, max(known.low, 0), max(known.high, 0), known.divisor)
        return self._add(Clip(f"relu_{result}", source, result, 0, None))

    def leaky(self, source: str) -> str:
        known = self.tensors[source]
        ends = min(known.low * LEAKY_SLOPE, 0), max(known.high << LEAKY_SHIFT, 0)
        result = self._tensor("l", known.shape, known.exponent - LEAKY_SHIFT, *ends, known.divisor)
        return self._add(Leaky(f"leaky_{result}", source, result, LEAKY_SLOPE, LEAKY_SHIFT))

    def round(self, source: str, signed: bool, bits: int = 0) -> str:
        """To `bits`, by the least power of two with which no sample saturates."""
        known, bits = self.tensors[source], bits or self.bits
        reach = int(np.abs(self._values(source)).max(initial=1)) // known.divisor
        half = 1 << bits - 1
        exponent = known.exponent + max(0, reach.bit_length() - bits + signed)
        low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
        result = self._tensor("q", known.shape, exponent, low, high)
        return self._add(Round(f"round_{result}", source, result, self._rounding))

    def table(self, source: str, function: Literal["Sigmoid", "Gelu"] = "Sigmoid") -> str:
        """A sigmoid; beyond 12 bits the function by straight lines."""
        from edgesdk_converters.integer_curves import TABLE_BITS
        from edgesdk_converters.integer_tables import drawn

        known = self.tensors[source]
        if known.bits > TABLE_BITS:
            curve, made = drawn(f"curve_{source}", known, f"f{len(self.tensors)}", function, _FUNCTIONS[function], 1 - self.bits)
            self.tensors[made.name] = made
            return self._add(curve)
        reach = np.arange(known.low, known.high + 1) * known.step
        scale = 1 << self.bits - 1
        values = np.clip(np.rint(scale / (1 + np.exp(-8 * reach))), 0, scale - 1).astype(np.int64)
        result = self._tensor("f", known.shape, 1 - self.bits, int(values.min()), int(values.max()))
        return self._add(Table(f"table_{result}", source, result, "sigmoid", values))

    def layer_norm(self, source: str) -> str:
        """With gains around 1 and biases around 0, for results that a width reaching 4 deviations holds."""
        from edgesdk_converters.integer_norm import INSIDE_BITS, normalising

        known = self.tensors[source]
        count, half = known.shape[-1], 1 << self.bits - 1
        gain = np.clip(np.rint(self._rng.normal(half / 2, half / 8, count)), 1, half - 1).astype(np.int64)
        bias = np.rint(self._rng.normal(0, half / 8, count)).astype(np.int64)
        node, result, reach = f"norm_{source}", f"n{len(self.tensors)}", 3 - self.bits
        operation, made, inside = normalising(node, known, result, (gain, 2 - self.bits), (bias, reach), EPSILON, reach)
        if inside > INSIDE_BITS:
            raise RecipeError(f"{self._name}: a LayerNormalization needs {inside} bits inside; allowed: {INSIDE_BITS}")
        self.tensors[result] = made
        return self._add(operation)

    def softmax(self, source: str) -> str:
        from edgesdk_converters.integer_tables import GUARD_BITS, powers

        known, shift = self.tensors[source], self.bits
        values = powers(known, shift + math.ceil(math.log2(max(2, known.shape[-1]))) + GUARD_BITS)
        result = self._tensor("e", known.shape, -shift, 0, (1 << shift) - 1)
        return self._add(Softmax(f"softmax_{result}", source, result, values, shift))

    def pool(self, source: str, kernel: Shape, strides: Shape | None = None, pads: Shape | None = None) -> str:
        return self._pool(source, "max", kernel, strides or kernel, pads)

    def mean(self, source: str, kernel: Shape, strides: Shape | None = None) -> str:
        return self._pool(source, "sum", kernel, strides or kernel, None)

    def flatten(self, source: str) -> str:
        known = self.tensors[source]
        if len(known.shape) == 1:
            return source
        result = self._tensor("m", (known.size,), known.exponent, known.low, known.high, known.divisor)
        return self._add(Move(f"flatten_{result}", (source,), (1,), result, np.arange(known.size)))

    def turned(self, source: str) -> str:
        """Rows as columns."""
        known = self.tensors[source]
        index = np.arange(known.size).reshape(known.shape).T.copy()
        result = self._tensor("m", index.shape, known.exponent, known.low, known.high, known.divisor)
        return self._add(Move(f"turned_{result}", (source,), (1,), result, index))

    def add(self, sources: Sequence[str]) -> str:
        known = [self.tensors[name] for name in sources]
        exponent = min(one.exponent for one in known)
        factors = tuple(1 << one.exponent - exponent for one in known)
        low = sum(one.low * factor for one, factor in zip(known, factors, strict=True))
        high = sum(one.high * factor for one, factor in zip(known, factors, strict=True))
        result = self._tensor("s", known[0].shape, exponent, low, high)
        return self._add(Sum(f"add_{result}", tuple(sources), factors, result))

    def concat(self, sources: Sequence[str]) -> str:
        known = [self.tensors[name] for name in sources]
        exponent = min(one.exponent for one in known)
        factors = tuple(1 << one.exponent - exponent for one in known)
        begins = np.cumsum([0, *(one.size for one in known)])
        index = np.concatenate([np.arange(b, b + k.size).reshape(k.shape) for b, k in zip(begins, known, strict=False)])
        ends = [end * factor for one, factor in zip(known, factors, strict=True) for end in (one.low, one.high)]
        result = self._tensor("j", index.shape, exponent, min(ends), max(ends))
        return self._add(Move(f"concat_{result}", tuple(sources), factors, result, index))

    def argmax(self, source: str) -> str:
        known = self.tensors[source]
        result = self._tensor("i", (1,), 0, 0, known.shape[-1] - 1)
        return self._add(ArgMax(f"argmax_{result}", source, result, -1, True))

    def _pool(self, source: str, kind: Literal["max", "sum"], kernel: Shape, strides: Shape, pads: Shape | None) -> str:
        known, size, rank = self.tensors[source], math.prod(kernel), len(kernel)
        two = (size & -size).bit_length() - 1
        divisor, drop, count = (1, 0, 1) if kind == "max" else (size >> two, two, size)
        around = pads or (0,) * 2 * rank
        space = [(s + around[a] + around[a + rank] - kernel[a]) // strides[a] + 1 for a, s in enumerate(known.shape[1:])]
        ends = known.low * count, known.high * count
        result = self._tensor("p", (known.shape[0], *space), known.exponent - drop, *ends, known.divisor * divisor)
        return self._add(Pool(f"pool_{result}", source, result, kind, kernel, strides, around))

    def _weights(self, shape: Shape, source: str, bits: int) -> tuple[Integers, Integers]:
        """Weights and biases at the scale of the narrowest channel: each a number of `bits` times a power of two."""
        values: NDArray[np.float64] = self._rng.normal(0, 1, shape)
        most = np.abs(values).reshape(len(values), -1).max(axis=1)
        top = max(1, (1 << bits - 1) - 1)
        steps = np.ceil(np.log2(most / top))
        shifts = (steps - steps.min()).astype(np.int64).reshape(-1, *(1,) * (len(shape) - 1))
        codes = np.rint(values / 2.0 ** steps.reshape(shifts.shape)).astype(np.int64)
        spread = float(np.abs(self._values(source)).mean()) * math.sqrt(math.prod(shape[1:])) / 4
        bias = np.rint(self._rng.normal(0, spread, len(values)) / 2.0**steps).astype(np.int64)
        return codes << shifts, bias << shifts.reshape(-1)

    def _values(self, name: str) -> Integers:
        """A tensor's codes for the sampled inputs."""
        if name not in self._known:
            pending = tuple(one for one in self._operations if one.result not in self._known)
            results = tuple(one.result for one in pending)
            self._known |= IntegerProgram("", tuple(self._known), results, self.tensors, pending, {}, {}).run(self._known)
        return self._known[name]

    def _tensor(self, kind: str, shape: Sequence[int], exponent: int, low: int, high: int, divisor: int = 1) -> str:
        if min(shape, default=1) < 1:
            raise RecipeError(f"{self._name}: a window is larger than what it moves over, which leaves {tuple(shape)} elements")
        name = f"{kind}{len(self.tensors)}"
        self.tensors[name] = Codes(name, tuple(int(size) for size in shape), exponent, int(low), int(high), divisor)
        return name

    def _add(self, operation: Operation) -> str:
        self._operations.append(operation)
        return operation.result


def _reach(weight: Integers, bias: Integers, source: Codes) -> tuple[int, int]:
    """The least and the greatest sum that can occur, zeros around an image included."""
    flat = weight.reshape(len(weight), -1)
    low, high = min(source.low, 0), max(source.high, 0)
    above, below = np.maximum(flat, 0).sum(axis=1), np.minimum(flat, 0).sum(axis=1)
    return int((bias + above * low + below * high).min()), int((bias + above * high + below * low).max())
