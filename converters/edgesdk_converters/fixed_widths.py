"""Widths and binary points of tensors in fixed point: what covers a range, and how many bits each tensor is given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model import Model

Array = NDArray[Any]
MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "MaxPool", "Slice", "Split", "Gather",
    "Expand", "Tile", "Concat", "DepthToSpace", "SpaceToDepth", "GlobalMaxPool", "ReduceMax",
)  # fmt: skip
"""Operators whose outputs are some of their inputs' values: nothing is rounded behind them."""
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")
SUMS = ("Add", "Sub")
EXACT_BITS = 24
"""Of the significand of float32: sums of integers up to this width come out exact when they are computed in it."""


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


def tensor_bits(model: Model, nodes: Collection[str], bits: int, widths: Mapping[str, int]) -> dict[str, int]:
    """Of every tensor, how wide it is where it is rounded.

    What a node of `widths` computes has its width, and so has an activation function behind it that has none of its own. What
    no chosen node computes, such as an input, has that of the widest of those that read it.
    """
    found: dict[str, int] = {}
    asked: dict[str, int] = {}
    chosen = set(nodes)
    widths = of_both(model, widths)
    for node in model.proto.graph.node:
        follows = node.op_type in (*ACTIVATIONS, *MOVES) and node.input and node.input[0] in found
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


def of_both(model: Model, widths: Mapping[str, int]) -> Mapping[str, int]:
    """Widths of nodes, those of a Mul by stored values that is one with the Add behind it included."""
    graph = model.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    products = {node.output[0]: node for node in graph.node
                if node.op_type == "Mul" and readers[node.output[0]] == 1 and stored.intersection(node.input)}  # fmt: skip
    partners = {products[name].name: widths[node.name] for node in graph.node
                if node.name in widths and node.op_type in SUMS and stored.intersection(node.input)
                for name in node.input if name in products}  # fmt: skip
    return partners | dict(widths)
