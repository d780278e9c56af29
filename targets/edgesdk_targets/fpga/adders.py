"""Adders of shifted terms, each with its exact range: the growing table from which an adder graph is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk_converters.integer_program import Integers

CONSTANT = -1
"""As an operand: no term but the `constant` that stands beside it."""


@dataclass(frozen=True)
class Adder:
    """(left << left_shift) + (right << right_shift), or minus. Operands count the inputs first, then the adders.

    An operand CONSTANT is `constant`, its shift 0. `low` and `high` are both reached; `depth` is 1 or more. `bits` is what it
    costs: low bits that only one operand has are wires.
    """

    left: int
    left_shift: int
    right: int
    right_shift: int
    subtract: bool
    constant: int
    low: int
    high: int
    depth: int
    bits: int


def width(low: int, high: int) -> int:
    """Bits of the narrowest integer that holds low to high, a sign bit only where low is negative; at least 1."""
    if low < 0:
        return max((-low - 1).bit_length(), max(high, 0).bit_length()) + 1
    return max(1, high.bit_length())


class Adders:
    """Inputs, and adders over them. A term is an index: of an input, or behind those of an adder."""

    def __init__(self, lows: Integers, highs: Integers) -> None:
        self.inputs = len(lows)
        self.adders: list[Adder] = []
        self._lows, self._highs = np.asarray(lows, np.int64), np.asarray(highs, np.int64)
        self._weights = list(np.eye(self.inputs, dtype=np.int64))
        self._ranges = [(int(low), int(high)) for low, high in zip(lows, highs, strict=True)]
        self._constants = [0] * self.inputs
        self._known: dict[tuple[int, int, int, int, bool, int], int] = {}
        self._bounds = np.zeros((2, max(64, 2 * self.inputs)))
        self._bounds[0, : self.inputs], self._bounds[1, : self.inputs] = self._lows, self._highs

    def __len__(self) -> int:
        return len(self._ranges)

    def range_of(self, term: int) -> tuple[int, int]:
        return self._ranges[term]

    def depth_of(self, term: int) -> int:
        return 0 if term < self.inputs else self.adders[term - self.inputs].depth

    def top_of(self, term: int) -> int:
        """Bits of a term."""
        return width(*self._ranges[term])

    def add(self, left: int, left_shift: int, right: int, right_shift: int, subtract: bool, constant: int = 0) -> int:
        """The term of an adder; one that is there already is not made again."""
        key = (left, left_shift, right, right_shift, subtract, constant)
        if key in self._known:
            return self._known[key]
        sign = -1 if subtract else 1
        weights, offset = np.zeros(self.inputs, np.int64), 0
        for term, shift, factor in ((left, left_shift, 1), (right, right_shift, sign)):
            if term == CONSTANT:
                offset += factor * constant
            else:
                weights = weights + factor * (self._weights[term] << shift)
                offset += factor * (self._constants[term] << shift)
        ends = np.where(weights > 0, self._lows, self._highs) * weights, np.where(weights > 0, self._highs, self._lows) * weights
        low, high = int(ends[0].sum()) + offset, int(ends[1].sum()) + offset
        depth = 1 + max(self.depth_of(term) for term in (left, right) if term != CONSTANT)
        bits = self._bits(left, left_shift, right, right_shift, subtract, constant, width(low, high))
        self.adders.append(Adder(*key, low, high, depth, bits))
        self._weights.append(weights)
        self._constants.append(offset)
        self._ranges.append((low, high))
        self._known[key] = term = len(self._ranges) - 1
        if term == self._bounds.shape[1]:
            self._bounds = np.concatenate([self._bounds, np.zeros_like(self._bounds)], axis=1)
        self._bounds[:, term] = low, high
        return term

    def _bits(self, left: int, left_shift: int, right: int, right_shift: int, subtract: bool, constant: int, out: int) -> int:
        """Of the carry chain: from the higher of the lowest bits on, or all where the term that starts lower is subtracted."""
        low_zeros = (constant & -constant).bit_length() - 1
        first = low_zeros if left == CONSTANT else left_shift
        second = low_zeros if right == CONSTANT else right_shift
        if subtract and second < first:
            return out - second
        lower = (left, left_shift) if first <= second else (right, right_shift)
        low, high = (constant, constant) if lower[0] == CONSTANT else self._ranges[lower[0]]
        if not subtract and low >= 0 and (high << lower[1]) < 1 << max(first, second):
            return 0  # the two stand side by side
        return max(1, out - max(first, second))

    def costs(self, lower: Integers, higher: Integers, shift: Integers, subtract: Integers) -> Integers:
        """About the bits of adders lower +- (higher << shift), vectorised; at least 1. Correlated operands may need fewer."""
        scale = 2.0**shift
        low, high = self._bounds[0, higher] * scale, self._bounds[1, higher] * scale
        low, high = (
            np.where(subtract, -high, low) + self._bounds[0, lower],
            np.where(subtract, -low, high) + self._bounds[1, lower],
        )
        out = np.ceil(np.log2(np.maximum(np.maximum(-low, high + 1), 1))) + (low < 0)
        return np.asarray(np.maximum(1, out - shift), np.int64)

    def cost(self, lower: int, higher: int, shift: int, subtract: int) -> int:
        """`costs` of one."""
        low, high = self._ranges[higher]
        start, end = self._ranges[lower]
        low, high = (
            (start - (high << shift), end - (low << shift)) if subtract else (start + (low << shift), end + (high << shift))
        )
        return max(1, max(-low - 1, high, 0).bit_length() + (low < 0) - shift)

    def opposite(self, term: int) -> int | None:
        """A term of minus the value and no greater depth, or None where all that is summed is positive."""
        if term < self.inputs:
            return None
        a = self.adders[term - self.inputs]
        if a.subtract:
            return self.add(a.right, a.right_shift, a.left, a.left_shift, True, a.constant)
        if CONSTANT in (a.left, a.right):
            other, shift = (a.right, a.right_shift) if a.left == CONSTANT else (a.left, a.left_shift)
            return self.add(CONSTANT, 0, other, shift, True, -a.constant)
        for one, one_shift, two, two_shift in (
            (a.left, a.left_shift, a.right, a.right_shift),
            (a.right, a.right_shift, a.left, a.left_shift),
        ):
            turned = self.opposite(one)
            if turned is not None:
                return self.add(turned, one_shift, two, two_shift, True)
        return None

    def needed(self, terms: Sequence[int]) -> Iterator[int]:
        """Indices of the adders on which terms depend, in order."""
        used = [False] * len(self.adders)
        waiting = [term - self.inputs for term in terms if term >= self.inputs]
        while waiting:
            index = waiting.pop()
            if not used[index]:
                used[index] = True
                a = self.adders[index]
                waiting += [term - self.inputs for term in (a.left, a.right) if term >= self.inputs]
        return (index for index, is_used in enumerate(used) if is_used)
