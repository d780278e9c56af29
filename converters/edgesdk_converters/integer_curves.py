"""Operations of an integer program that come near a function and do not hit it: straight lines between the entries of a table.

After Edge-MoE (arXiv 2305.18691): GELU is ReLU and a small even function, of which only the fraction is stored; layer
normalisation takes mean and variance from one pass over a row. What is written here is what logic computes, to the bit; how far
it is from the function itself stands with each operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

TABLE_BITS = 12
"""Of the widest code that a table is indexed by, beyond which functions with a symmetry are drawn by straight lines."""
RAMPS = ("Gelu", "HardSwish", "Softplus")
"""ReLU and an even function: f(x) = max(x, 0) + f(-|x|)."""
TURNED: Mapping[str, float] = {"Tanh": 0.0, "Erf": 0.0, "Softsign": 0.0, "Sigmoid": 0.5, "HardSigmoid": 0.5}
"""A number and an odd function."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A function of one code: result = `ramp` * max(code, 0) + `offset` + d, d of the code's size, negated below zero if `odd`.

    d = `base`[c] * 2**`shift` + `slope`[c] * t, where c = size >> `shift`, at most the last entry, and t is what that drops.
    The last slope is 0. `error` is the greatest distance from ONNX Runtime's float over all codes, in steps of the
    rounding behind.
    """

    node: str
    source: str
    result: str
    function: str
    base: Integers
    slope: Integers
    shift: int
    ramp: int
    offset: int
    odd: bool
    error: float

    def of(self, codes: Integers) -> Integers:
        """Result codes."""
        size = np.abs(codes)
        cell = np.minimum(size >> self.shift, len(self.base) - 1)
        found = (self.base[cell] << self.shift) + self.slope[cell] * (size & ((1 << self.shift) - 1))
        if self.odd:
            found = np.where(codes < 0, -found, found)
        return np.asarray(self.ramp * np.maximum(codes, 0) + self.offset + found, np.int64)


@dataclass(frozen=True, eq=False)
class InverseRoot:
    """1 / sqrt(m) for m from 1 to 4, in steps of 2**-`bits`, by straight lines: `base` and the drop to the next entry, `fall`.

    There are 3 * 2**`cell_bits` entries, and `part_bits` of m below those that choose the entry count.
    """

    base: Integers
    fall: Integers
    cell_bits: int
    part_bits: int
    bits: int

    @classmethod
    def of(cls, cell_bits: int, part_bits: int, bits: int) -> InverseRoot:
        """The entries, rounded to the nearest."""
        ends = 1 + np.arange(3 * 2**cell_bits + 1) / 2.0**cell_bits
        values = np.rint(2.0**bits / np.sqrt(ends)).astype(np.int64)
        return cls(values[:-1], values[:-1] - values[1:], cell_bits, part_bits, bits)

    @property
    def error(self) -> float:
        """The most by which a result exceeds the root or falls short of it, relative to it.

        Between entries h apart a chord lies above by at most h**2 / 8 * 3 / 4 * m**-2.5, the cut of m adds a half of its step,
        the rounded entries and the cut product one and a half steps of a result that is at least a half.
        """
        return 3 / 32 * 4.0**-self.cell_bits + 0.5 * 2.0 ** -(self.cell_bits + self.part_bits) + 3 * 2.0**-self.bits


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Along the last axis, of n codes: result = (z * gain << up) + bias, z = (code - mean) / sqrt(variance + epsilon).

    With the sums s of the codes and q of their squares, n * n * (variance + epsilon) is n * q - s * s and a constant. Both are
    taken 2**(2 * `finer`) times as large: w = (n * q - s * s << 2 * finer) + `added`. For the greatest k with 4**k <= w, z in
    steps of 2**-`bits` is ((n * code - s) * root) >> (root.bits + k - finer - bits), where root is that of w / 4**k, of which the
    bits below 4**-`top` are no part: w < 4**(top + 1). `epsilon` is ONNX's; `error` the most by which a result differs from
    exact arithmetic, in steps of the rounding behind.
    """

    node: str
    source: str
    result: str
    gain: Integers
    bias: Integers
    up: int
    root: InverseRoot
    bits: int
    finer: int
    added: int
    top: int
    greatest: int
    epsilon: float
    error: float

    @property
    def least_shift(self) -> int:
        """Of the product of a distance from the mean and a root, when k is 0."""
        return self.root.bits - self.finer - self.bits

    def of(self, codes: Integers) -> Integers:
        """Result codes."""
        count = codes.shape[-1]
        total = codes.sum(axis=-1, keepdims=True)
        spread = count * (codes * codes).sum(axis=-1, keepdims=True) - total * total
        wide = (spread << 2 * self.finer) + self.added
        place, whole = np.zeros_like(wide), wide
        for step in reversed(range(self.top.bit_length())):
            fits = whole < 1 << 2 * (self.top + 1 - (1 << step))
            whole = np.where(fits, whole << (2 << step), whole)
            place = place + (fits << step)
        table, below = self.root, 2 * self.top - self.root.cell_bits
        cell = (whole >> below) - (1 << table.cell_bits)
        part = (whole >> below - table.part_bits) & ((1 << table.part_bits) - 1)
        root = table.base[cell] - (table.fall[cell] * part >> table.part_bits)
        normal = (count * codes - total) * root >> self.least_shift + self.top - place
        return np.asarray((normal * self.gain << self.up) + self.bias, np.int64)
