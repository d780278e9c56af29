"""Finds what the rows of a constant matrix have in common: two-term sums a +- (b << d) that occur more than once.

Every weight becomes canonical signed digits (Reitwiesner 1960: no two neighbours, fewest digits), so a row is a sum of
shifted, signed terms. The pattern that would save most becomes a term of its own wherever it occurs, again and again (Hartley:
Subexpression sharing in filters using canonic signed digit multipliers, TCAS-II 43, 1996; here weighted by an adder's width).

A pattern's count only falls while others are taken out, so an old count is an upper bound: it is counted again when its turn
comes, and not before. Digits of a term in all rows are one long integer: counting is shift, AND and population count.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.integer_program import Integers

from .adders import Adders

UNBOUNDED = 1 << 62
_SHIFT_BITS = 6
_TERM_BITS = 24


def signed_digits(matrix: Integers) -> NDArray[np.int8]:
    """Canonical signed digits, (digits, *matrix.shape), the least first."""
    left = np.array(matrix, np.int64)
    planes = []
    while left.any():
        digit = np.where(left & 1, 2 - (left & 3), 0)
        planes.append(digit.astype(np.int8))
        left = (left - digit) >> 1
    return np.stack(planes) if planes else np.zeros((0, *left.shape), np.int8)


def term_codes(terms: Integers, shifts: Integers, negative: Integers) -> Integers:
    """Signed, shifted terms as one integer each."""
    return np.asarray(((terms << _SHIFT_BITS) | shifts) << 1 | negative, np.int64)


def decoded(code: int) -> tuple[int, int, bool]:
    """Term, shift and sign of a code of `term_codes`."""
    return code >> (_SHIFT_BITS + 1), (code >> 1) & ((1 << _SHIFT_BITS) - 1), bool(code & 1)


class Search:
    """Rows as sums of terms of `adders`; `loads` are the rows' sums of 2**depth of their terms, `limits` what those may reach.

    A row of load n can be summed in ceil(log2 n) levels of adders (Kraft's inequality), so limits bound the depth.
    """

    def __init__(self, adders: Adders, digits: NDArray[np.int8], columns: Integers, loads: list[int], limits: list[int]) -> None:
        self._adders, self._digits, self._columns = adders, digits, columns
        self._loads, self._limits = loads, limits
        self._lane = 2 * max(1, len(digits))  # a row's bits, and as many free ones above, so that shifts stay in their row
        shifts, rows, places = np.nonzero(digits)
        negative = (digits[shifts, rows, places] < 0).astype(np.int64)
        terms = columns[places]
        codes = term_codes(terms, shifts, negative)
        self.rows = [codes[rows == row] for row in range(digits.shape[1])]
        self._digits_of: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for term, shift, row, sign in zip(terms.tolist(), shifts.tolist(), rows.tolist(), negative.tolist(), strict=True):
            self._flip(term, row * self._lane + shift, sign)
        self._waiting: dict[int, list[int]] = {}
        self._levels: list[int] = []

    def run(self) -> list[Integers]:
        """Takes out patterns until none occurs twice; the rows that are left, as codes of terms."""
        self._count_all()
        while self._levels:
            level = -self._levels[0]
            patterns = self._waiting[level]
            if not patterns:
                heapq.heappop(self._levels)
                del self._waiting[level]
                continue
            self._try(patterns.pop(), level)
        return self.rows

    def _count_all(self) -> None:
        """Patterns of pairs of inputs: sums over shifts of products of digits, of their sizes and of themselves."""
        signed = self._digits.astype(np.float32)
        sizes = np.abs(signed)
        for shift in range(len(signed)):
            both = np.zeros((signed.shape[2],) * 2, np.float32)
            balance = both.copy()
            for low in range(len(signed) - shift):
                both += sizes[low].T @ sizes[low + shift]
                balance += signed[low].T @ signed[low + shift]
            for subtract, counts in enumerate(((both + balance) / 2, (both - balance) / 2)):
                lower, higher = np.nonzero(counts >= 2 if shift else np.triu(counts, 1) >= 2)
                count = counts[lower, higher].astype(np.int64)
                self._push(
                    self._columns[lower], self._columns[higher], np.full_like(lower, shift), np.full_like(lower, subtract), count
                )

    def _push(self, lower: Integers, higher: Integers, shift: Integers, subtract: Integers, count: Integers) -> None:
        if len(count) == 0:
            return
        levels = (count - 1) * self._adders.costs(lower, higher, shift, subtract)
        patterns = (((lower << _TERM_BITS | higher) << _SHIFT_BITS) | shift) << 1 | subtract
        order = np.argsort(levels, kind="stable")
        levels, patterns = levels[order], patterns[order]
        starts = np.flatnonzero(np.diff(levels, prepend=-1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(levels)], strict=True):
            self._at(int(levels[start])).extend(patterns[start:end].tolist())

    def _at(self, level: int) -> list[int]:
        if level not in self._waiting:
            self._waiting[level] = []
            heapq.heappush(self._levels, -level)
        return self._waiting[level]

    def _flip(self, term: int, place: int, negative: int) -> None:
        digits = self._digits_of[negative]
        digits[term] = digits.get(term, 0) ^ (1 << place)

    def _try(self, pattern: int, level: int) -> None:
        """Takes the pattern out if it still saves what its level says; otherwise it waits at its new level, or is dropped."""
        subtract, shift = pattern & 1, (pattern >> 1) & ((1 << _SHIFT_BITS) - 1)
        higher = (pattern >> (_SHIFT_BITS + 1)) & ((1 << _TERM_BITS) - 1)
        lower = pattern >> (_SHIFT_BITS + 1 + _TERM_BITS)
        positive, negative = self._digits_of
        plus, minus = positive.get(lower, 0), negative.get(lower, 0)
        above, below = positive.get(higher, 0) >> shift, negative.get(higher, 0) >> shift
        found = (plus & below) | (minus & above) if subtract else (plus & above) | (minus & below)
        count = found.bit_count()
        if count < 2:
            return
        cost = self._adders.cost(lower, higher, shift, subtract)
        if (count - 1) * cost >= level:  # more than the level where pairs overlap or rows are at their limit
            places, growth = self._places(lower, higher, shift, found)
            count = len(places)
            if count >= 2 and (count - 1) * cost >= level:
                self._take(lower, higher, shift, subtract, [(place, int(minus >> place & 1)) for place in places], growth)
                return
        if count >= 2:
            self._at((count - 1) * cost).append(pattern)

    def _places(self, lower: int, higher: int, shift: int, found: int) -> tuple[list[int], int]:
        """Where the pattern occurs without overlap and within the rows' limits; by how much it raises a row's load."""
        depths = self._adders.depth_of(lower), self._adders.depth_of(higher)
        growth = (2 << max(depths)) - (1 << depths[0]) - (1 << depths[1])
        places: list[int] = []
        raised: dict[int, int] = {}
        taken: set[int] = set()
        while found:
            bit = found & -found
            found ^= bit
            place = bit.bit_length() - 1
            row = place // self._lane
            load = raised.get(row, self._loads[row]) + growth
            if place not in taken and load <= self._limits[row]:
                raised[row] = load
                places.append(place)
                if lower == higher:
                    taken.add(place + shift)
        return places, growth

    def _take(self, lower: int, higher: int, shift: int, subtract: int, places: list[tuple[int, int]], growth: int) -> None:
        term = self._adders.add(lower, 0, higher, shift, bool(subtract))
        for place, negative in places:
            row, low = divmod(place, self._lane)
            other = negative ^ subtract
            self._flip(lower, place, negative)
            self._flip(higher, place + shift, other)
            self._flip(term, place, negative)
            gone = [(lower << _SHIFT_BITS | low) << 1 | negative, (higher << _SHIFT_BITS | low + shift) << 1 | other]
            codes = self.rows[row]
            kept = codes[(codes != gone[0]) & (codes != gone[1])]
            self.rows[row] = np.append(kept, (term << _SHIFT_BITS | low) << 1 | negative)
            self._loads[row] += growth
        self._count_new(term, places)

    def _count_new(self, term: int, places: list[tuple[int, int]]) -> None:
        """Patterns of a new term: what stands beside it, by its place and sign relative to the term's, more than once."""
        beside = []
        span = 1 << _SHIFT_BITS
        for place, negative in places:
            row, low = divmod(place, self._lane)
            codes = self.rows[row]
            others, shifts, signs = codes >> (_SHIFT_BITS + 1), (codes >> 1) & (span - 1), (codes & 1) ^ negative
            beside.append(((others * (2 * span) + shifts - low + span) << 1) | signs)
        keys, count = np.unique(np.concatenate(beside), return_counts=True)
        keys, count = keys[count >= 2], count[count >= 2]
        others, distance, subtract = keys // (4 * span), (keys >> 1) % (2 * span) - span, keys & 1
        mine = (others != term) | (distance > 0)  # a pair of two of the new term is seen from both sides
        others, distance, subtract, count = others[mine], distance[mine], subtract[mine], count[mine]
        first = (distance > 0) | ((distance == 0) & (others > term))
        lower, higher = np.where(first, term, others), np.where(first, others, term)
        self._push(lower, higher, np.abs(distance), subtract, count)
