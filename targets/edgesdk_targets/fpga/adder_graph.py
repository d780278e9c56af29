"""A constant integer matrix as a graph of shifts and adders that rows share: products without multipliers.

`subexpressions` takes out what occurs twice; what is left of a row is summed narrow terms first, as Huffman's tree has it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.integer_program import Integers

from .adders import CONSTANT, Adder, Adders, width
from .subexpressions import UNBOUNDED, Search, decoded, signed_digits

BLOCK_DIGITS = 48_000
"""Signed digits that are searched together; a larger matrix is cut into blocks of columns and rows."""
BLOCK_ROWS = 128


@dataclass(frozen=True)
class Output:
    """source << shift, or minus that; a source CONSTANT is a row that depends on no input: `constant` is its value."""

    source: int
    shift: int
    negated: bool
    constant: int
    low: int
    high: int


@dataclass(frozen=True)
class AdderGraph:
    """Sums of inputs that lie between `lows` and `highs`; each adder stands behind its operands."""

    lows: tuple[int, ...]
    highs: tuple[int, ...]
    adders: tuple[Adder, ...]
    outputs: tuple[Output, ...]

    @property
    def inputs(self) -> int:
        return len(self.lows)

    @property
    def depth(self) -> int:
        """Most adders one behind the other; a negated output is one more."""
        return max((self.depth_of(output.source) + output.negated for output in self.outputs), default=0)

    @property
    def adder_bits(self) -> int:
        """Of all adders and negations: about their lookup tables."""
        return sum(adder.bits for adder in self.adders) + sum(width(o.low, o.high) - o.shift for o in self.outputs if o.negated)

    def depth_of(self, operand: int) -> int:
        return 0 if operand < self.inputs else self.adders[operand - self.inputs].depth


def evaluate(graph: AdderGraph, values: Integers) -> Integers:
    """Outputs (outs, ...) of input codes (ins, ...), int64."""
    known: list[Integers] = list(np.asarray(values, np.int64))
    for adder in graph.adders:
        left = adder.constant if adder.left == CONSTANT else known[adder.left] << adder.left_shift
        right = adder.constant if adder.right == CONSTANT else known[adder.right] << adder.right_shift
        known.append(np.asarray(left - right if adder.subtract else left + right))
    found = np.zeros((len(graph.outputs), *np.shape(values)[1:]), np.int64)
    for row, output in enumerate(graph.outputs):
        value = output.constant if output.source == CONSTANT else known[output.source] << output.shift
        found[row] = -value if output.negated else value
    return found


def minimal_depth(matrix: Integers, bias: Integers | None = None) -> int:
    """Levels of adders that the signed digits of the widest row need, without sharing; one more where all are negative."""
    matrix = np.asarray(matrix, np.int64)
    constants = np.zeros(len(matrix), np.int64) if bias is None else np.asarray(bias, np.int64)
    return max((_levels(load) + below for load, below in zip(*_loads(signed_digits(matrix), constants), strict=True)), default=0)


def solve(matrix: Integers, lows: Integers, highs: Integers, depth_slack: int = -1, bias: Integers | None = None) -> AdderGraph:
    """The graph of matrix @ x + bias for `matrix` (outs, ins) and codes x between `lows` and `highs` (ins,).

    Its depth is at most `minimal_depth` + `depth_slack`; unbounded for a negative slack. Rows that are equal up to sign and
    shift are summed once.
    """
    matrix = np.asarray(matrix, np.int64)
    if matrix.ndim != 2 or np.shape(lows) != (matrix.shape[1],) or np.shape(highs) != (matrix.shape[1],):
        raise ValueError(f"a matrix {matrix.shape} with {np.shape(lows)} lows and {np.shape(highs)} highs")
    constants = np.zeros(len(matrix), np.int64) if bias is None else np.asarray(bias, np.int64)
    adders = Adders(np.asarray(lows, np.int64), np.asarray(highs, np.int64))
    kept, sources = _distinct(matrix, constants)
    digits = signed_digits(np.array([row[:-1] for row in kept], np.int64).reshape(len(kept), matrix.shape[1]))
    offsets = np.array([row[-1] for row in kept], np.int64)
    loads, below = _loads(digits, offsets)
    levels = max((_levels(load) + more for load, more in zip(loads, below, strict=True)), default=0) + depth_slack
    limits = [UNBOUNDED if depth_slack < 0 else 1 << (levels - more) for more in below]
    ends = []
    for first in range(0, len(kept), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        terms = _searched(adders, digits[:, rows], loads, limits, rows)
        for row, codes in enumerate(terms, first):
            ends.append(_summed(adders, codes, int(offsets[row]), loads[row], limits[row]))
    return _graph(adders, ends, sources, len(matrix))


def _levels(load: int) -> int:
    return max(0, load - 1).bit_length()


def _loads(digits: NDArray[np.int8], offsets: Integers) -> tuple[list[int], list[int]]:
    """Terms of each row, the constant counted; 1 for a row that has no positive one, else 0."""
    loads = np.abs(digits).sum(axis=(0, 2), dtype=np.int64) + (offsets != 0)
    positive = (digits > 0).any(axis=(0, 2)) | (offsets != 0)  # a constant is written with either sign
    return loads.tolist(), (~positive & (loads > 0)).astype(int).tolist()


def _distinct(matrix: Integers, constants: Integers) -> tuple[list[Integers], list[tuple[int, int, bool]]]:
    """Rows (weights and constant) of which no two are equal up to sign and shift; for each of all rows which, and how."""
    kept: list[Integers] = []
    places: dict[bytes, tuple[int, bool]] = {}
    sources = []
    for row in np.concatenate([matrix, constants[:, None]], axis=1):
        if not row[:-1].any():
            sources.append((CONSTANT, int(row[-1]), False))
            continue
        bits = int(np.bitwise_or.reduce(row))
        shift = (bits & -bits).bit_length() - 1
        odd = row >> shift
        place, negated = places.setdefault(odd.tobytes(), (len(kept), False))
        if place == len(kept):
            kept.append(odd)
            places.setdefault((-odd).tobytes(), (place, True))
        sources.append((place, shift, negated))
    return kept, sources


def _searched(adders: Adders, digits: NDArray[np.int8], loads: list[int], limits: list[int], rows: slice) -> list[Integers]:
    """Rows of terms after the search, in blocks of columns of about BLOCK_DIGITS digits."""
    per_column = np.abs(digits).sum(axis=(0, 1), dtype=np.int64)
    blocks = np.cumsum(per_column) // max(BLOCK_DIGITS, 1)
    parts: list[list[Integers]] = [[] for _ in range(digits.shape[1])]
    mine, bounds = loads[rows], limits[rows]
    for block in range(int(blocks.max(initial=-1)) + 1):
        columns = np.flatnonzero((blocks == block) & (per_column > 0))
        for row, codes in enumerate(Search(adders, digits[:, :, columns], columns, mine, bounds).run()):
            parts[row].append(codes)
    loads[rows] = mine
    return [np.concatenate([np.zeros(0, np.int64), *part]) for part in parts]


def _summed(adders: Adders, codes: Integers, constant: int, load: int, limit: int) -> tuple[int, int, bool]:
    """Term, shift and sign of a row's sum: the two that end lowest are added first, as long as the depth allows it."""
    heap = []
    for code in codes.tolist():
        term, shift, negative = decoded(code)
        heap.append((adders.top_of(term) + shift, shift, term, negative))
    if constant:
        heap.append((abs(constant).bit_length(), 0, CONSTANT, False))
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap), heapq.heappop(heap)
        growth = _growth(adders, pair[0][2], pair[1][2])
        if load + growth > limit:  # then the two shallowest always fit
            heap = sorted([*heap, *pair], key=lambda entry: (_depth(adders, entry[2]), entry))
            pair = heap[0], heap[1]
            heap = heap[2:]
            heapq.heapify(heap)
            growth = _growth(adders, pair[0][2], pair[1][2])
        load += growth
        term, shift, negative = _joined(adders, pair[0][1:], pair[1][1:], constant, last=not heap)
        heapq.heappush(heap, (adders.top_of(term) + shift, shift, term, negative))
    _, shift, term, negative = heap[0]
    turned = adders.opposite(term) if negative else None
    return (term, shift, negative) if turned is None else (turned, shift, False)


def _depth(adders: Adders, term: int) -> int:
    return 0 if term == CONSTANT else adders.depth_of(term)


def _growth(adders: Adders, one: int, two: int) -> int:
    depths = _depth(adders, one), _depth(adders, two)
    return (2 << max(depths)) - (1 << depths[0]) - (1 << depths[1])


def _joined(
    adders: Adders, one: tuple[int, int, bool], two: tuple[int, int, bool], constant: int, last: bool
) -> tuple[int, int, bool]:
    """(shift, term, negative) twice -> term, shift and sign of the sum. The lower is not subtracted, unless it is the last."""
    if CONSTANT in (one[1], two[1]):
        shift, term, negative = two if one[1] == CONSTANT else one
        down = min(shift, (constant & -constant).bit_length() - 1)
        if negative:
            return adders.add(CONSTANT, 0, term, shift - down, True, constant >> down), down, False
        return adders.add(term, shift - down, CONSTANT, 0, False, constant >> down), down, False
    (shift, lower, negative), (above, higher, other) = sorted((one, two))
    if last and negative and not other:
        return adders.add(higher, above - shift, lower, 0, True), shift, False
    return adders.add(lower, 0, higher, above - shift, negative != other), shift, negative


def _graph(adders: Adders, ends: list[tuple[int, int, bool]], sources: list[tuple[int, int, bool]], outs: int) -> AdderGraph:
    """Only what outputs need, renumbered."""
    inputs = adders.inputs
    outputs = []
    for place, shift, negated in sources:
        if place == CONSTANT:
            outputs.append(Output(CONSTANT, 0, False, shift, shift, shift))
            continue
        term, below, turned = ends[place]
        low, high = (value << (shift + below) for value in adders.range_of(term))
        turned = turned != negated
        outputs.append(Output(term, shift + below, turned, 0, -high if turned else low, -low if turned else high))
    index = {CONSTANT: CONSTANT, **{term: term for term in range(inputs)}}
    kept: list[Adder] = []
    for number in adders.needed([output.source for output in outputs]):
        adder = adders.adders[number]
        index[inputs + number] = inputs + len(kept)
        kept.append(replace(adder, left=index[adder.left], right=index[adder.right]))
    lows, highs = zip(*(adders.range_of(term) for term in range(inputs)), strict=True) if inputs else ((), ())
    return AdderGraph(lows, highs, tuple(kept), tuple(replace(output, source=index[output.source]) for output in outputs))
