"""Layer normalisation as a stage: sums of a row while it comes, one root, then the row again from a queue, scaled and shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgesdk_converters.integer_program import Codes, IntegerProgram, Integers, LayerNorm

from .arithmetic import Arithmetic
from .kernel import Kernel, KernelOptions, assembled
from .lowering import Elements, elements
from .schedule import QUEUE_DELAY
from .segments import Segment
from .stage import Body, Counts, Stage, Timing, one_by_one
from .stream import Stream, bits_for, divisors
from .verilog import Signal, constant
from .verilog_text import CLOCK, concatenated, link, wires

PER_LANE = 3
"""Multipliers of a lane: of the square, of the root, of the gain. Two more are there for a row."""
SPARE_BEATS = 4
"""In the queue, beyond a row and what comes while its root is found: a row then never waits for the one before it."""


@dataclass(frozen=True, eq=False)
class _Row:
    """What is known of the numbers inside: `count` codes of a row, `lanes` of them at a time."""

    op: LayerNorm
    source: Codes
    count: int
    lanes: int

    @property
    def folds(self) -> int:
        return self.count // self.lanes

    @property
    def values(self) -> Codes:
        """Of a beat."""
        return replace(self.source, shape=(self.lanes,))

    def sums(self, name: str, count: int) -> Codes:
        """A sum of `count` codes and one of their squares."""
        most = max(-self.source.low, self.source.high) ** 2
        return Codes(name, (2,), 0, min(count * self.source.low, 0), count * max(most, self.source.high))

    @property
    def found(self) -> tuple[Codes, Codes, Codes]:
        """Of a row: its sum, the root, the power of two that goes with it."""
        total = Codes("total", (1,), 0, self.count * self.source.low, self.count * self.source.high)
        root = Codes("root", (1,), 0, 0, 1 << self.op.root.bits)
        return total, root, Codes("place", (1,), 0, 0, self.op.top)


def normalised(
    name: str, segment: Segment, stream: Stream, program: IntegerProgram, pace: int, multipliers: int, kernels: KernelOptions
) -> Stage:
    """A LayerNorm and what follows it, a row in `folds` cycles: as few lanes as keep `pace`, within half of the multipliers."""
    op = segment.first
    assert isinstance(op, LayerNorm)
    stream = stream.with_lanes(_lanes(stream, max(pace, stream.beats), multipliers))
    row = _Row(op, stream.codes, stream.channels, stream.lanes)
    result = replace(program.tensors[op.result], shape=(row.lanes,))
    body = Body(name, kernels)
    body.place("edgesdk_fork", "split", {"COUNT": 2}, CLOCK | {
        "s_valid": "s0_valid", "s_ready": "s0_ready", "m_valid": "f_valid", "m_ready": "f_ready",
    })  # fmt: skip
    declared = "    wire [1:0] f_valid, f_ready;\n"
    for place, net in enumerate(("sent", "kept")):
        declared += wires(net, stream.width)
        declared += f"    assign {net}_valid = f_valid[{place}];\n    assign f_ready[{place}] = {net}_ready;\n"
        declared += f"    assign {net}_data = s0_data;\n"
    body.text = declared + body.text
    body.net = "sent"
    body.pipeline(_sums(row, f"{name}_part_kernel", kernels), "part", "part_")
    if row.folds > 1:
        _summed_up(body, row)
    body.pipeline(_root(row, f"{name}_row_kernel", kernels), "row", "row_")
    _repeated(body, row, stream)
    body.pipeline(_applied(row, f"{name}_normal_kernel", result, kernels), "normal", "normal_")
    codes = program.tensors[op.result]
    after = body.chain(segment.chain, Stream(codes, stream.order, row.lanes), program)
    timing = Timing((one_by_one(stream.positions),), row.folds, 1, 0)
    about = f"a row of {row.count} in {row.folds} cycles, {row.lanes} lanes"
    return body.finished(about, segment.operations, [stream], after, "normalised", stream.beats, timing)


def _lanes(stream: Stream, pace: int, multipliers: int) -> int:
    affordable = [lanes for lanes in divisors(stream.channels) if lanes == 1 or PER_LANE * lanes <= multipliers // 2]
    return next((lanes for lanes in affordable if stream.positions * stream.channels // lanes <= pace), affordable[-1])


def _summed_up(body: Body, row: _Row) -> None:
    """Over all beats of a row."""
    part, whole = row.sums("part", row.lanes), row.sums("whole", row.count)
    wide = 2 * part.bits
    body.text += wires("numbered", wide, True) + f"    wire [{bits_for(row.folds) - 1}:0] unused_numbered;\n"
    body.place("edgesdk_count", "numbers", _counted(wide, row), CLOCK | link("s", "part") | link("m", "numbered", True) | {
        "m_number": "unused_numbered",
    })  # fmt: skip
    body.net = "numbered"
    given = {"LANES": 2, "WIDTH": part.bits, "SIGNED": int(part.signed), "MAX": 0, "OUT": whole.bits}
    body.part("edgesdk_accumulate", "accumulate", given, "whole", 2 * whole.bits, 1, flags_in=True)
    body.library.add("edgesdk_combine")
    body.counts += Counts(2, 2 * whole.bits, 2 * whole.bits)


def _repeated(body: Body, row: _Row, stream: Stream) -> None:
    """The beats of a row from a queue, each beside what was found of the row and, where there are several, its number."""
    depth = 1 << bits_for(row.folds + body.delay + QUEUE_DELAY + SPARE_BEATS)
    body.text += wires("held", stream.width)
    given = {"WIDTH": stream.width, "DEPTH": depth, "ABITS": bits_for(depth)}
    body.place("edgesdk_fifo", "row_fifo", given, CLOCK | link("s", "kept") | link("m", "held"))
    body.counts += Counts(register_bits=stream.width, fifo_bits=stream.width * depth)
    found = sum(codes.bits for codes in row.found)
    beat, parts, is_last, at = "held", ["held_data"], "", "row"
    if row.folds > 1:
        # A pipeline stands still while its end waits for the last beat of a row: what is found leaves it at once.
        rows = 1 << bits_for(2 + -(-body.delay // row.folds))
        body.text += wires("root", found)
        given = {"WIDTH": found, "DEPTH": rows, "ABITS": bits_for(rows)}
        body.place("edgesdk_fifo", "root_fifo", given, CLOCK | link("s", "row") | link("m", "root"))
        body.counts += Counts(register_bits=found, fifo_bits=found * rows)
        body.delay += QUEUE_DELAY
        at = "root"
        beat, parts, is_last = "beat", ["beat_data", "beat_number"], " && beat_last"
        body.text += wires("beat", stream.width, True) + f"    wire [{bits_for(row.folds) - 1}:0] beat_number;\n"
        body.text += "    wire unused_beat = &{1'b0, beat_first};\n"
        body.place("edgesdk_count", "beats", _counted(stream.width, row), CLOCK | link("s", "held") | link("m", "beat", True) | {
            "m_number": "beat_number",
        })  # fmt: skip
    body.text += wires("all", stream.width + (bits_for(row.folds) if row.folds > 1 else 0) + found)
    body.text += f"    assign all_valid = {beat}_valid && {at}_valid;\n    assign {beat}_ready = all_ready && {at}_valid;\n"
    body.text += f"    assign {at}_ready = all_ready && {beat}_valid{is_last};\n"
    body.text += f"    assign all_data = {concatenated([*parts, f'{at}_data'])};\n"
    body.net = "all"


def _counted(width: int, row: _Row) -> dict[str, int | str]:
    return {"WIDTH": width, "COUNT": row.folds, "CBITS": bits_for(row.folds)}


def _sums(row: _Row, name: str, kernels: KernelOptions) -> Kernel:
    """Of a beat: the sum of its codes and that of their squares."""

    def compute(do: Arithmetic, sources: Sequence[Elements]) -> list[Elements]:
        do.net.begin("t0", "squares")
        values = list(sources[0])
        most = max(-row.source.low, row.source.high) ** 2
        squares = [do.known_in(do.product(value, value), 0, most) for value in values]
        do.net.begin("t1", "sums")
        ones = [1] * row.lanes
        return [elements([do.total(values, ones), do.total(squares, ones)], (2,))]

    return assembled(name, "sums of a beat, II = 1", [row.values], [row.sums("part", row.lanes)], compute, kernels)


def _root(row: _Row, name: str, kernels: KernelOptions) -> Kernel:
    """Of a row: from its sums its sum, the root of LayerNorm.of, and the power of two that goes with it."""
    op, count = row.op, row.count

    def compute(do: Arithmetic, sources: Sequence[Elements]) -> list[Elements]:
        total, _, _ = row.found
        do.net.begin("t0", "n * n * (variance + epsilon)")
        most = max(-row.source.low, row.source.high)
        summed = do.known_in(sources[0][0], total.low, total.high)
        squares = do.known_in(sources[0][1], 0, count * most * most)
        square = do.known_in(do.product(summed, summed), 0, (count * most) ** 2)
        spread = do.total([squares, square], [count, -1])
        spread = do.known_in(spread, 0, count * count * (row.source.high - row.source.low) ** 2 // 4)
        wide = do.total([spread], [1 << 2 * op.finer], op.added)
        do.net.begin("t1", "from 4**top on")
        bits = []
        for step in reversed(range(op.top.bit_length())):
            below = (1 << 2 * (op.top + 1 - (1 << step))) - 1
            stays = do.exceeds(wide, below)
            up = do.shifted(do.known_in(wide, 0, min(below, wide.high)), 2 << step)
            wide = do.choose(stays, wide, up, 0, (1 << 2 * op.top + 2) - 1)
            bits.append(do.total([stays], [-1], 1))
        wide = do.known_in(wide, 1 << 2 * op.top, (1 << 2 * op.top + 2) - 1)
        do.net.begin("t2", f"1 / sqrt by {len(op.root.base)} entries")
        return [elements([one], (1,)) for one in (summed, _inverse_root(do, wide, op), _place(do, bits, op.top))]

    return assembled(name, "the root of a row, II = 1", [row.sums("whole", count)], row.found, compute, kernels)


def _inverse_root(do: Arithmetic, wide: Signal, op: LayerNorm) -> Signal:
    """Of a number from 4**top to 4**(top + 1), as InverseRoot has it."""
    table, below = op.root, 2 * op.top - op.root.cell_bits
    first = 1 << table.cell_bits
    cell = do.known_in(do.shifted(wide, -below), first, 4 * first - 1)
    part = do.known_in(do.shifted(wide, table.part_bits - below), 0, (1 << table.part_bits) - 1)
    base = do.looked_up(cell, lambda place: int(table.base[place - first]))
    fall = do.looked_up(cell, lambda place: int(table.fall[place - first]))
    less = do.shifted(do.product(fall, part), -table.part_bits)
    return do.known_in(do.difference(base, less), 0, 1 << table.bits)


def _place(do: Arithmetic, bits: Sequence[Signal], top: int) -> Signal:
    """top less what has been shifted."""
    if not bits:
        return constant(top)
    return do.known_in(do.total([do.joined(bits)], [-1], top), 0, top)


def _applied(row: _Row, name: str, result: Codes, kernels: KernelOptions) -> Kernel:
    """Of a beat and what was found of its row: the results."""
    op = row.op
    gains, biases = (values.reshape(row.folds, row.lanes) for values in (op.gain, op.bias))
    number = Codes("number", (1,), 0, 0, row.folds - 1)
    inputs = [row.values, *([number] if row.folds > 1 else []), *row.found]

    def compute(do: Arithmetic, sources: Sequence[Elements]) -> list[Elements]:
        *before, total, root, place = sources
        at = before[1][0] if row.folds > 1 else constant(0)
        results = []
        for lane, value in enumerate(before[0]):
            do.net.begin(f"t{lane}", f"lane {lane}")
            far = row.count * (row.source.high - row.source.low)
            distance = do.known_in(do.total([value, total[0]], [row.count, -1]), -far, far)
            normal = do.shifted(do.product(distance, root[0]), -op.least_shift)
            for step in range(op.top.bit_length()):
                normal = do.choose(do.bit(place[0], step), do.shifted(normal, -(1 << step)), normal)
            normal = do.known_in(normal, -op.greatest, op.greatest)
            results.append(_scaled(do, normal, at, gains[:, lane], biases[:, lane], op.up))
        return [elements([do.known_in(one, result.low, result.high) for one in results], (row.lanes,))]

    return assembled(name, "scaled and shifted, II = 1", inputs, [result], compute, kernels)


def _scaled(do: Arithmetic, normal: Signal, at: Signal, gain: Integers, bias: Integers, up: int) -> Signal:
    """Times the gain of the beat, and its bias added."""
    factor, added = (do.looked_up(at, lambda fold, of=of: int(of[fold])) for of in (gain, bias))  # type: ignore[misc]
    if factor.is_constant:
        return do.total([normal, added], [factor.low << up, 1])
    return do.total([do.product(normal, factor), added], [1 << up, 1])
