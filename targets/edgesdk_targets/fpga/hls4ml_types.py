"""Layers and types for hls4ml, as data: what its front ends would hand over, with an exact type for every number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.integer_program import Codes, Integers, Rounding, Shape

ROUNDINGS: Mapping[Rounding, str] = {"half_even": "RND_CONV", "half_up": "RND", "truncate": "TRN"}


@dataclass(frozen=True)
class Fixed:
    """A type of hls4ml: `bits`, of which `integer_bits` (with the sign) stand before the point; either may exceed the other."""

    bits: int
    integer_bits: int
    signed: bool
    rounding: Rounding = "truncate"
    saturation: Literal["WRAP", "SAT", "SAT_SYM"] = "WRAP"

    def __str__(self) -> str:
        plain = self.rounding == "truncate" and self.saturation == "WRAP"
        modes = "" if plain else f",{ROUNDINGS[self.rounding]},{self.saturation}"
        return f"{'' if self.signed else 'u'}fixed<{self.bits},{self.integer_bits}{modes}>"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest code."""
        if not self.signed:
            return 0, (1 << self.bits) - 1
        return -(1 << self.bits - 1) + (self.saturation == "SAT_SYM"), (1 << self.bits - 1) - 1


def fixed_for(low: int, high: int, exponent: int) -> Fixed:
    """The narrowest type that holds all codes from low to high at 2**exponent."""
    codes = Codes("", (), exponent, low, high)
    return Fixed(codes.bits, codes.bits + exponent, codes.signed)


@dataclass(frozen=True, eq=False)
class HlsLayer:
    """One layer: `attributes` as a front end gives them; `precision` by hls4ml's names (result, accum, weight …).

    `products` are (n_in, n_out) of hls4ml's rule for reuse factors, None where a layer has none.
    """

    name: str
    node: str
    attributes: Mapping[str, Any]
    precision: Mapping[str, Fixed]
    products: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """hls4ml's class name."""
        return str(self.attributes["class_name"])


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output: element p of the layer's flat tensor of `shape` is element `order[p]` of the program's flat tensor."""

    tensor: Codes
    layer: str
    shape: Shape
    order: Integers

    def given(self, codes: Integers) -> NDArray[np.float64]:
        """What the compiled C++ takes, (batch, elements), of the program's codes with a batch axis in front."""
        laid = codes.reshape(len(codes), -1)[:, self.order].astype(np.float64)
        return np.ascontiguousarray(np.ldexp(laid, self.tensor.exponent))

    def taken(self, values: NDArray[np.float64]) -> Integers:
        """The program's codes of what the compiled C++ gave, (batch, elements)."""
        codes = np.empty(values.shape, np.int64)
        codes[:, self.order] = np.ldexp(values, -self.tensor.exponent).astype(np.int64)
        return codes.reshape(len(values), *self.tensor.shape)


@dataclass(frozen=True, eq=False)
class Layers:
    """A network for hls4ml; `notes` say what was made of operations that it does not have."""

    layers: tuple[HlsLayer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor as a layer gives it: whole numbers `low` to `high` times 2**exponent, element p being the program's `order[p]`."""

    layer: str
    shape: Shape
    order: Integers
    low: int
    high: int
    exponent: int

    @property
    def fixed(self) -> Fixed:
        return fixed_for(self.low, self.high, self.exponent)


@dataclass(frozen=True)
class Cast:
    """Roundings and clips behind a value, as one: to 2**exponent, then into low..high, which only what `clips` exceeds.

    `result` is the tensor behind the last of them.
    """

    result: str
    exponent: int
    rounding: Rounding
    low: int
    high: int
    clips_low: bool = False
    clips_high: bool = False

    def bounded(self, low: int | None, high: int | None) -> Cast:
        """With one more clip, as IntegerProgram's Clip does it: first from below, then from above."""
        least, most = (end if low is None else max(end, low) for end in (self.low, self.high))
        least, most = (end if high is None else min(end, high) for end in (least, most))
        clips_low = self.clips_low or (low is not None and low > self.low)
        clips_high = self.clips_high or (high is not None and high < self.high)
        return replace(self, low=least, high=most, clips_low=clips_low, clips_high=clips_high)


def values_of(codes: Integers, exponent: int) -> NDArray[np.float64]:
    """codes * 2**exponent, exactly."""
    return np.ldexp(codes.astype(np.float64), exponent)


def fixed_of(codes: Integers, exponent: int) -> Fixed:
    """The narrowest type for some constants, of two bits at least: oneAPI has no single one."""
    narrow = fixed_for(int(codes.min()), int(codes.max()), exponent)
    return narrow if narrow.bits > 1 else Fixed(2, 2 + exponent, narrow.signed)


def channels_last(shape: Shape) -> Integers:
    """For each flat place with channels last the flat place with channels first, of a tensor (channels, *space)."""
    return np.moveaxis(np.arange(math.prod(shape)).reshape(shape), 0, -1).reshape(-1)
