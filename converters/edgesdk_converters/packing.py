"""Sub-byte packing: integers of 1 to 16 bits as bytes, without padding between them. packing.md beside this file is the format.

Needs numpy alone, so that a device can unpack too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError

Array = NDArray[Any]
GROUP = 8
"""Values that share whole bytes: 8 values of n bits are n bytes."""
WIDEST = 16


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take: whole groups of 8, the last one filled up."""
    _check(bits)
    return -(-count // GROUP) * bits


def pack(codes: Array, bits: int) -> bytes:
    """The integers of an array in C order, each as its lowest `bits` bits, negative ones in two's complement.

    Raises ModelError for values that do not fit: allowed is -2**(bits-1) to 2**bits - 1, with either sign or none.
    """
    _check(bits)
    values = np.asarray(codes)
    if values.dtype.kind not in "iu":
        raise ModelError(f"cannot pack values of type {values.dtype}; allowed: integers")
    flat = values.reshape(-1).astype(np.int64)
    if flat.size:
        low, high = int(flat.min()), int(flat.max())
        allowed = 2 ** (bits - 1) - 1 if low < 0 else 2**bits - 1
        if low < -(2 ** (bits - 1)) or high > allowed:
            raise ModelError(f"values {low} to {high} do not fit in {bits} bits; allowed: {-(2 ** (bits - 1))} to {allowed}")
    filled = np.zeros(-(-flat.size // GROUP) * GROUP, dtype=np.int64)
    filled[: flat.size] = flat
    places = (filled[:, None] >> np.arange(bits)) & 1
    return np.packbits(places.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack(data: bytes | bytearray | memoryview, bits: int, count: int, *, signed: bool) -> Array:
    """The first `count` values of packed bytes: int16 where `signed` (int32 from 16 bits on if not), shape (count,).

    Raises ModelError unless `data` has exactly the bytes of `count` values, and zeros after the last one.
    """
    if count < 0:
        raise ModelError(f"cannot unpack {count} values; allowed: 0 or more")
    needed = packed_bytes(count, bits)
    if len(data) != needed:
        raise ModelError(f"{count} values of {bits} bits take {needed} bytes; these are {len(data)}")
    places = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").reshape(-1, bits)
    if places[count:].any():
        raise ModelError(f"the bits after value {count} are not zero: the data is damaged, or of another width than {bits}")
    weights = 1 << np.arange(bits, dtype=np.int64)
    if signed:
        weights[-1] = -weights[-1]
    values = places[:count].astype(np.int64) @ weights
    return values.astype(np.int16 if signed or bits < WIDEST else np.int32)


def _check(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise ModelError(f"cannot pack into {bits} bits; allowed: 1 to {WIDEST}")
