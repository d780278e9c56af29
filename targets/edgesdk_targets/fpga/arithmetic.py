"""Operations on signals, each put into a netlist: sums, products, comparisons, choices, limits, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgesdk_converters.errors import DoesNotFit
from edgesdk_converters.integer_program import Curve, Integers

from .adder_graph import AdderGraph, solve
from .adders import CONSTANT, width
from .verilog import Netlist, Signal, adder_delay, constant, literal, slice_of

CHOICE_DELAY = 0.5
"""Levels of a two-way choice: one lookup table and its way."""
WIDEST_BITS = 62
"""Of a sum: the search for shared terms computes in int64."""


class Arithmetic:
    """What operations are made of. Adder graphs of equal matrices over equal ranges are searched once."""

    def __init__(self, net: Netlist, depth_slack: int) -> None:
        self.net = net
        self._depth_slack = depth_slack
        self._graphs: dict[tuple[bytes, ...], AdderGraph] = {}

    def sums(self, matrix: Integers, bias: Integers, signals: Sequence[Signal], multiply: bool = False) -> list[Signal]:
        """matrix @ signals + bias by shared adders, or with `multiply` one multiplier for each weight that is no power of 2."""
        columns: dict[str, int] = {}
        offsets = np.array(bias, np.int64)
        used: list[Signal] = []
        place = []
        for signal in signals:
            if not signal.is_constant and signal.name not in columns:
                columns[signal.name] = len(used)
                used.append(signal)
            place.append(columns.get(signal.name, -1))
        weights = np.zeros((len(matrix), len(used)), np.int64)
        for column, (signal, at) in enumerate(zip(signals, place, strict=True)):
            if at < 0:
                offsets += matrix[:, column] * signal.low
            else:
                weights[:, at] += matrix[:, column]
        most = np.abs(weights).astype(float) @ np.array([max(-s.low, s.high) for s in used], float) + np.abs(offsets)
        if most.max(initial=0.0) >= 2.0**WIDEST_BITS:
            need = int(np.ceil(np.log2(most.max()))) + 1
            raise DoesNotFit("a sum in a kernel", need, WIDEST_BITS, "bits", "use narrower codes or weights")
        if multiply:
            return [self._multiplied(row, int(offset), used) for row, offset in zip(weights, offsets, strict=True)]
        return self._emit(self._graph(weights, offsets, used), used)

    def _graph(self, weights: Integers, offsets: Integers, signals: Sequence[Signal]) -> AdderGraph:
        lows, highs = np.array([(s.low, s.high) for s in signals], np.int64).reshape(-1, 2).T.copy()
        key = (repr(weights.shape).encode(), weights.tobytes(), offsets.tobytes(), lows.tobytes(), highs.tobytes())
        if key not in self._graphs:
            self._graphs[key] = solve(weights, lows, highs, self._depth_slack, offsets)
        return self._graphs[key]

    def _emit(self, graph: AdderGraph, signals: Sequence[Signal]) -> list[Signal]:
        known = list(signals)
        for a in graph.adders:
            left = constant(a.constant) if a.left == CONSTANT else known[a.left]
            right = constant(a.constant) if a.right == CONSTANT else known[a.right]
            known.append(self.add(left, a.left_shift, right, a.right_shift, a.subtract, a.low, a.high, a.bits))
        found = []
        for output in graph.outputs:
            if output.source == CONSTANT:
                found.append(constant(output.constant))
                continue
            signal = self.shifted(known[output.source], output.shift)
            found.append(self.minus(signal) if output.negated else signal)
        return found

    def _multiplied(self, row: Integers, offset: int, signals: Sequence[Signal]) -> Signal:
        parts, factors = [], []
        for weight, signal in zip(row.tolist(), signals, strict=True):
            size = abs(weight)
            if size & (size - 1) == 0:
                parts.append(signal)
                factors.append(weight)
            else:
                parts.append(self.product(signal, constant(weight)))
                factors.append(1)
        return self.sums(np.array([factors], np.int64).reshape(1, -1), np.array([offset]), parts)[0]

    def add(
        self, left: Signal, left_shift: int, right: Signal, right_shift: int, subtract: bool, low: int, high: int, cost_bits: int
    ) -> Signal:
        """(left << left_shift) +- (right << right_shift), one of the shifts 0, known to lie in low..high."""
        out = width(low, high)
        self.net.adders += cost_bits > 0 and low != high
        self.net.adder_bits += cost_bits if low != high else 0
        sign = "-" if subtract else "+"

        def text(one: Signal, two: Signal) -> str:
            if subtract and right_shift < left_shift:
                return f"{{{_shifted_text(one, left_shift, out)}}} - {slice_of(two, out)}"
            (below, above, start) = (one, two, right_shift) if left_shift == 0 else (two, one, left_shift)
            if start >= out:
                return slice_of(below, out)
            if start == 0:
                return f"{slice_of(one, out)} {sign} {slice_of(two, out)}"
            upper = slice_of(above, out - start)
            if cost_bits:
                upper = f"{slice_of(below, out - start, start)} {sign} {upper}"
            return f"{{{upper}, {slice_of(below, start)}}}"

        return self.net.put((left, right), adder_delay(cost_bits) if cost_bits else 0.0, low, high, text)

    def shifted(self, signal: Signal, shift: int) -> Signal:
        """signal << shift; a negative shift drops bits (towards minus infinity). Wires only."""
        if shift == 0 or signal.is_constant:
            return signal if shift == 0 else constant(signal.low << shift if shift > 0 else signal.low >> -shift)
        if shift > 0:
            low, high = signal.low << shift, signal.high << shift
            return self.net.put((signal,), 0.0, low, high, lambda s: f"{{{_shifted_text(s, shift, width(low, high))}}}")
        low, high = signal.low >> -shift, signal.high >> -shift
        return self.net.put((signal,), 0.0, low, high, lambda s: slice_of(s, width(low, high), -shift))

    def minus(self, signal: Signal) -> Signal:
        bits = width(-signal.high, -signal.low)
        return self.add(constant(0), 0, signal, 0, True, -signal.high, -signal.low, bits)

    def difference(self, left: Signal, right: Signal) -> Signal:
        """left - right."""
        if left == right:
            return constant(0)
        low, high = left.low - right.high, left.high - right.low
        return self.add(left, 0, right, 0, True, low, high, width(low, high))

    def product(self, left: Signal, right: Signal) -> Signal:
        """By a multiplier: Verilog's *."""
        ends = [one * two for one in (left.low, left.high) for two in (right.low, right.high)]
        low, high = min(ends), max(ends)
        if low == high:
            return constant(low)
        out = width(low, high)
        bits = max(out, left.bits + 1, right.bits + 1)  # a sign bit for each, which a synthesis tool takes off again
        self.net.multipliers += 1
        whole = self.net.put(
            (left, right), 2 * adder_delay(out), *_all_of(bits),
            lambda one, two: f"$signed({slice_of(one, bits)}) * $signed({slice_of(two, bits)})",
        )  # fmt: skip
        return self.net.put((whole,), 0.0, low, high, lambda s: slice_of(s, out))

    def choose(self, condition: Signal, yes: Signal, no: Signal, low: int | None = None, high: int | None = None) -> Signal:
        """condition ? yes : no, where known to lie in low..high."""
        if condition.is_constant:
            return yes if condition.low else no
        low = min(yes.low, no.low) if low is None else low
        high = max(yes.high, no.high) if high is None else high
        bits = width(low, high)
        return self.net.put(
            (condition, yes, no), CHOICE_DELAY, low, high, lambda c, y, n: f"{c.name} ? {slice_of(y, bits)} : {slice_of(n, bits)}"
        )

    def is_less(self, left: Signal, right: Signal) -> Signal:
        """left < right, as 0 or 1."""
        if left.high < right.low or left.low >= right.high:
            return constant(int(left.high < right.low))
        if right.low == right.high == 0:
            return self.net.put((left,), 0.0, 0, 1, lambda s: f"{s.name}[{s.bits - 1}]")
        bits = width(min(left.low, right.low), max(left.high, right.high))
        is_signed = min(left.low, right.low) < 0

        def text(one: Signal, two: Signal) -> str:
            texts = slice_of(one, bits), slice_of(two, bits)
            return f"$signed({texts[0]}) < $signed({texts[1]})" if is_signed else f"{texts[0]} < {texts[1]}"

        self.net.adders += 1
        self.net.adder_bits += bits
        return self.net.put((left, right), adder_delay(bits), 0, 1, text)

    def greater(self, left: Signal, right: Signal) -> Signal:
        if left.low >= right.high or right.low >= left.high:
            return left if left.low >= right.high else right
        low, high = max(left.low, right.low), max(left.high, right.high)
        return self.choose(self.is_less(left, right), right, left, low, high)

    def clipped(self, signal: Signal, low: int, high: int) -> Signal:
        """min(max(signal, low), high)."""
        low = min(low, high)
        if signal.is_constant:
            return constant(min(max(signal.low, low), high))
        if signal.low < low:
            signal = self.choose(self._falls_below(signal, low), constant(low), signal, low, max(low, signal.high))
        if signal.high > high:
            signal = self.choose(self.exceeds(signal, high), constant(high), signal, min(signal.low, high), high)
        return signal

    def known_in(self, signal: Signal, low: int, high: int) -> Signal:
        """The lowest bits of a signal: its value where it is known to lie in low..high."""
        if (low, high) == (signal.low, signal.high):
            return signal
        if signal.is_constant:
            return constant(signal.low & ((1 << width(low, high)) - 1) if low >= 0 else signal.low)
        return self.net.put((signal,), 0.0, low, high, lambda s: slice_of(s, width(low, high)))

    def joined(self, bits: Sequence[Signal]) -> Signal:
        """Bits side by side, the most significant first."""
        low = sum(bit.low << place for place, bit in enumerate(reversed(bits)))
        high = sum(bit.high << place for place, bit in enumerate(reversed(bits)))
        count = width(low, high)
        kept = bits[len(bits) - count :]
        return self.net.put(kept, 0.0, low, high, lambda *parts: f"{{{', '.join(slice_of(part, 1) for part in parts)}}}")

    def _falls_below(self, signal: Signal, low: int) -> Signal:
        """signal < low; of minus a power of two, a sign without a 1 for each bit behind it."""
        start, top = max(0, -low - 1).bit_length(), signal.bits - 1
        if low >= 0 or -low & (-low - 1) or signal.high < low:
            return self.is_less(signal, constant(low))
        return self.net.put((signal,), CHOICE_DELAY, 0, 1, lambda s: f"{s.name}[{top}] & ~(&{slice_of(s, top - start, start)})")

    def exceeds(self, signal: Signal, high: int) -> Signal:
        """signal > high; of a power of two less one, an OR of the bits above."""
        if high >= 0 and high & (high + 1) == 0 and signal.high > high:
            start, top = high.bit_length(), signal.bits - (signal.low < 0)
            sign = f"~{{}}[{signal.bits - 1}] & " if signal.low < 0 else ""
            return self.net.put(
                (signal,), CHOICE_DELAY, 0, 1, lambda s: sign.format(s.name) + f"(|{slice_of(s, top - start, start)})"
            )
        return self.is_less(constant(high), signal)

    def bit(self, signal: Signal, place: int) -> Signal:
        """One bit of a signal, as 0 or 1."""
        if signal.is_constant:
            return constant((signal.low >> place) & 1)
        return self.net.put((signal,), 0.0, 0, 1, lambda s: slice_of(s, 1, place))

    def curve(self, signal: Signal, op: Curve) -> Signal:
        """A function by straight lines, as `Curve.of` has it."""
        is_negative = self.is_less(signal, constant(0))
        most = max(-signal.low, signal.high)
        whole = self.choose(is_negative, self.minus(signal), signal, 0, most) if signal.low < 0 else signal
        cell = self.clipped(self.shifted(whole, -op.shift), 0, len(op.base) - 1)
        found = self.looked_up(cell, lambda place: int(op.base[place]))
        if op.shift:
            slope = self.looked_up(cell, lambda place: int(op.slope[place]))
            part = self.known_in(whole, 0, min(whole.high, (1 << op.shift) - 1))
            found = self.total([found, self.product(slope, part)], [1 << op.shift, 1])
        if op.odd:
            found = self.choose(is_negative, self.minus(found), found)
        return self.total([self.clipped(signal, 0, max(signal.high, 0)), found], [op.ramp, 1], op.offset)

    def total(self, signals: Sequence[Signal], factors: Sequence[int], offset: int = 0) -> Signal:
        """Of signals times constants, and a constant."""
        return self.sums(np.array([factors], np.int64), np.array([offset], np.int64), signals)[0]

    def leaky(self, signal: Signal, slope: int, shift: int) -> Signal:
        """signal * slope below zero, signal << shift from zero on."""
        negative = self.is_less(signal, constant(0))
        up = self.shifted(signal, shift)
        if signal.low >= 0:
            return up
        scaled = self.sums(np.array([[slope]], np.int64), np.zeros(1, np.int64), (signal,))[0]
        ends = [signal.low * slope, min(signal.high, -1) * slope, *([0, up.high] if signal.high >= 0 else [])]
        return self.choose(negative, scaled, up, min(ends), max(ends))

    def looked_up(self, signal: Signal, values: Callable[[int], int]) -> Signal:
        """A function of a signal's code, as a table of its whole range."""
        codes = range(signal.low, signal.high + 1)
        entries = [(code, values(code)) for code in codes]
        low, high = min(value for _, value in entries), max(value for _, value in entries)
        if low == high:
            return constant(low)
        bits = width(low, high)
        table = self.net.table(bits, entries, signal.bits)
        self.net.lookup_bits += bits << signal.bits
        return self.net.put((signal,), CHOICE_DELAY * max(1, signal.bits - 5), low, high, lambda s: f"{table}({s.name})")


def _all_of(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _shifted_text(signal: Signal, shift: int, bits: int) -> str:
    """Pieces of a concatenation: the lowest `bits` of signal << shift."""
    return f"{slice_of(signal, bits - shift)}, {literal(0, shift)}" if bits > shift else literal(0, bits)
