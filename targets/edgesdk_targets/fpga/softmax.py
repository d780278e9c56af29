"""Softmax as the integer program has it: the greatest code first, powers from a table, and a pipelined restoring division."""

from __future__ import annotations

import numpy as np

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import Softmax

from .arithmetic import Arithmetic
from .verilog import Signal, constant, slice_of


def softmax(do: Arithmetic, signals: list[Signal], greatest: Signal, op: Softmax, high: int) -> list[Signal]:
    """(e * 2**shift + total // 2) // total, at most `high`, for each of a row; e = values[greatest - code], 0 beyond its end.

    Raises Unsupported for a table that starts with 0: the total might be 0 then.
    """
    if op.values[0] <= 0:
        raise Unsupported("fpga", op.node, "Softmax", f"its table starts with {op.values[0]}; the power of 0 has to be above 0")
    values = [*op.values.tolist(), 0]
    powers = []
    for signal in signals:
        below = do.difference(greatest, signal)
        below = do.known_in(below, 0, max(0, below.high))
        below = do.clipped(below, 0, len(op.values))
        powers.append(do.looked_up(below, lambda distance: values[distance]))
    count = len(powers)
    total = do.sums(np.ones((1, count), np.int64), np.zeros(1, np.int64), powers)[0]
    total = do.known_in(total, max(int(op.values[0]), total.low), total.high)  # one of them is the greatest itself
    return [do.clipped(_ratio(do, power, total, op.shift), 0, high) for power in powers]


def _ratio(do: Arithmetic, part: Signal, total: Signal, shift: int) -> Signal:
    """part / total in units of 2**-shift, rounded half up, for 0 <= part <= total.

    (part * 2**shift + total // 2) // total == (part * 2**(shift + 1) // total + 1) // 2, for an odd total too: no tie exists
    then. So this divides bit by bit, one bit longer: subtract if it can be, double what is left.
    """
    digits: list[Signal] = []
    rest = part
    for _ in range(shift + 2):
        less = do.difference(rest, total)
        fits = (
            do.net.put((less,), 0.0, 0, 1, lambda s: f"~{slice_of(s, 1, s.bits - 1)}")
            if less.low < 0 <= less.high
            else (constant(int(less.low >= 0)))
        )
        digits.append(fits)
        rest = do.shifted(do.choose(fits, less, rest, 0, max(0, total.high - 1)), 1)
    quotient = do.joined(digits)
    last = do.known_in(quotient, 0, 1)
    down = do.shifted(quotient, -1)
    return do.add(down, 0, last, 0, False, down.low + last.low, min(down.high + last.high, 1 << shift), shift + 1)
