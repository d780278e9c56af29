"""How a tensor travels between the stages of a design: in beats of some elements each, pixel after pixel.

A beat is `lanes` neighbouring channels of one position (a pixel, a token, or all of a vector), the first least significant, each
in two's complement of the narrowest width (without sign where no code is negative). Positions come in raster order. Handshake:
a beat passes in every clock cycle in which both `valid` and `ready` are high; `valid` and the data stay until then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgesdk_converters.integer_program import Codes, Integers, Shape


@dataclass(frozen=True, eq=False)
class Stream:
    """`order` (positions, channels) says which element of the flattened tensor travels where; `lanes` divides the channels.

    `codes` are those of the elements; its shape is the tensor's.
    """

    codes: Codes
    order: Integers
    lanes: int

    def __post_init__(self) -> None:
        if self.channels % self.lanes:
            raise ValueError(f"{self.lanes} lanes do not divide {self.channels} channels of {self.codes.name}")

    @property
    def positions(self) -> int:
        return int(self.order.shape[0])

    @property
    def channels(self) -> int:
        return int(self.order.shape[1])

    @property
    def folds(self) -> int:
        """Beats of a position."""
        return self.channels // self.lanes

    @property
    def beats(self) -> int:
        """Of one inference."""
        return self.positions * self.folds

    @property
    def width(self) -> int:
        """Bits of a beat."""
        return self.lanes * self.codes.bits

    def with_lanes(self, lanes: int) -> Stream:
        return replace(self, lanes=lanes)

    def as_vector(self) -> Stream:
        """All positions as channels of one: what a layer behind a flatten sees."""
        return replace(self, order=self.order.reshape(1, -1))

    def renamed(self, codes: Codes, index: Integers) -> Stream | None:
        """As another tensor whose element i is this one's element index[i]; None where that is no mere change of names."""
        flat = index.reshape(-1)
        if flat.size != self.order.size or not np.array_equal(np.sort(flat), np.arange(flat.size)):
            return None
        place = np.empty_like(flat)
        place[flat] = np.arange(flat.size)
        named = replace(self.codes, name=codes.name, shape=codes.shape)
        return replace(self, codes=named, order=place[self.order])

    def pack(self, values: Integers) -> Integers:
        """(n, *shape) codes -> (n, beats, lanes), as they travel."""
        flat: Integers = values.reshape(len(values), -1)[:, self.order.reshape(-1)]
        return flat.reshape(len(values), self.beats, self.lanes)

    def unpack(self, beats: Integers) -> Integers:
        """(n, beats, lanes) -> (n, *shape)."""
        flat = np.empty((len(beats), self.order.size), np.int64)
        flat[:, self.order.reshape(-1)] = beats.reshape(len(beats), -1)
        return flat.reshape(len(beats), *self.codes.shape)


def channels_first(shape: Shape) -> Integers:
    """Order of (channels, *space), pixel after pixel; of (channels,) all at once."""
    order: Integers = np.arange(math.prod(shape), dtype=np.int64).reshape(shape[0] if shape else 1, -1).T
    return order


def channels_last(shape: Shape) -> Integers:
    """Order of (*tokens, features), token after token."""
    return np.arange(math.prod(shape), dtype=np.int64).reshape(-1, shape[-1])


def bits_for(count: int) -> int:
    """Bits of a counter from 0 to count - 1, at least 1."""
    return max(1, (count - 1).bit_length())


def levels(count: int) -> int:
    """Of a tree of pairs over `count` leaves."""
    return (count - 1).bit_length()


def divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
