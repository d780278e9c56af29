"""Codes divided by a constant and rounded as the program states it, for every code of their range exactly."""

from __future__ import annotations

import numpy as np

from edgesdk_converters.errors import DoesNotFit
from edgesdk_converters.integer_program import Rounding

from .adders import width
from .arithmetic import CHOICE_DELAY, WIDEST_BITS, Arithmetic
from .verilog import Signal, constant, slice_of


def divided(do: Arithmetic, signal: Signal, whole: int, rounding: Rounding, low: int, high: int) -> Signal:
    """signal / whole rounded, then saturated to low..high."""
    if whole == 1:
        return do.clipped(signal, low, high)
    if signal.is_constant:
        return constant(min(max(rounded_one(signal.low, whole, rounding), low), high))
    if whole & (whole - 1) == 0:
        return do.clipped(_halved(do, signal, whole.bit_length() - 1, rounding), low, high)
    return do.clipped(_quotient(do, signal, whole, rounding), low, high)


def _halved(do: Arithmetic, signal: Signal, shift: int, rounding: Rounding) -> Signal:
    down = do.shifted(signal, -shift)
    if rounding == "truncate":
        return down

    def text(s: Signal) -> str:
        half = slice_of(s, 1, shift - 1)
        if rounding == "half_up":
            return half
        odd = slice_of(s, 1, shift)
        return f"{half} & ({odd} | (|{slice_of(s, shift - 1)}))" if shift > 1 else f"{half} & {odd}"

    up = do.net.put((signal,), 0.0 if rounding == "half_up" else CHOICE_DELAY, 0, 1, text)
    ends = rounded_one(signal.low, 1 << shift, rounding), rounded_one(signal.high, 1 << shift, rounding)
    if down.is_constant and ends[0] == ends[1]:
        return constant(ends[0])
    return do.add(down, 0, up, 0, False, *ends, width(*ends))


def _quotient(do: Arithmetic, signal: Signal, whole: int, rounding: Rounding) -> Signal:
    """By multiplying and shifting, exact for every code of the range.

    n = numerator - its least multiple, 0 <= n <= reach. With m = ceil(2**s / d) and e = m d - 2**s, n m / 2**s exceeds
    n / d by n e / (d 2**s), which is less than 1 / d, the distance to the next quotient, if reach e < 2**s (Granlund and
    Montgomery: Division by invariant integers using multiplication, PLDI 1994). The same bound puts the fraction of an
    exact quotient below 2**s / d, and that of any other at or above it, so a tie shows in the fraction.
    """
    factor, offset, divisor = 1, 0, whole
    if rounding != "truncate":
        factor, offset, divisor = (1, whole // 2, whole) if whole % 2 == 0 else (2, whole, 2 * whole)
    first = (factor * signal.low + offset) // divisor
    reach = factor * signal.high + offset - first * divisor
    shift = 0
    while reach * (-(-(1 << shift) // divisor) * divisor - (1 << shift)) >= 1 << shift:
        shift += 1
    multiplier = -(-(1 << shift) // divisor)
    need = (factor * max(-signal.low, signal.high) * multiplier).bit_length() + 2
    if need > WIDEST_BITS:
        raise DoesNotFit(f"a division by {whole} in a kernel", need, WIDEST_BITS, "bits", "use narrower codes")
    bias = (offset - first * divisor) * multiplier + (first << shift)
    scaled = do.sums(np.array([[factor * multiplier]], np.int64), np.array([bias], np.int64), (signal,))[0]
    quotient = do.shifted(scaled, -shift)
    if rounding != "half_even" or whole % 2:
        return quotient
    tied = ((1 << shift) - 1) // divisor
    fraction = do.net.put((scaled,), 0.0, 0, (1 << shift) - 1, lambda s: slice_of(s, shift))
    not_tied = do.is_less(constant(tied), fraction)
    down = do.net.put((not_tied, quotient), CHOICE_DELAY, 0, 1, lambda n, q: f"~{slice_of(n, 1)} & {slice_of(q, 1)}")
    ends = rounded_one(signal.low, whole, rounding), rounded_one(signal.high, whole, rounding)
    return do.add(quotient, 0, down, 0, True, *ends, width(*ends))


def rounded_one(value: int, whole: int, rounding: Rounding) -> int:
    down, rest = divmod(value, whole)
    if rounding == "truncate":
        return down
    up = 2 * rest > whole or (2 * rest == whole and (rounding == "half_up" or down % 2 == 1))
    return down + up
