"""Element-wise stages on long vectors and images, some lanes at a time: the constants of each beat come from tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import (
    Clip,
    Codes,
    Curve,
    IntegerProgram,
    Integers,
    Leaky,
    Operation,
    Round,
    Scale,
    Sum,
    Table,
)

from . import local
from .arithmetic import Arithmetic
from .kernel import Kernel, KernelOptions, assembled
from .lowering import Elements, Lowering, elements
from .stage import Body, Stage, Timing, one_by_one
from .stream import Stream, bits_for, divisors
from .verilog import Signal
from .verilog_text import CLOCK, concatenated, link, wires

AT_ONCE_BITS = 1024
"""Of tensors that are scaled by constants in logic: those of an element take some five adders."""
WIDEST_BITS = 8192
"""Of tensors that are taken at once."""


def lanes(operations: Sequence[Operation], stream: Stream, program: IntegerProgram, pace: int, multipliers: int) -> int | None:
    """Elements at a time: as few as keep `pace`, within half of the multipliers; None where it is no case for this form.

    It is one for a tensor of many bits whose elements are scaled or shifted by stored values that differ, if nothing else than
    element-wise operations follows. A vector is taken at once where that alone keeps the pace, if it can be.
    """
    size = stream.order.size
    bits = size * stream.codes.bits
    if bits <= AT_ONCE_BITS or not any(isinstance(one, (Scale, Sum)) for one in operations):
        return None
    if not all(_is_elementwise(one, size, program) for one in operations) or _is_by_channel(operations, stream, program):
        return None
    scales = sum(isinstance(one, Scale) for one in operations)
    affordable = [count for count in divisors(stream.channels) if count == 1 or count * scales <= multipliers // 2]
    found = next((count for count in affordable if size // count <= max(pace, stream.positions)), None)
    if found is None and stream.positions == 1 and bits <= WIDEST_BITS:
        return None
    found = affordable[-1] if found is None else found
    return found if found < size else None


def _is_by_channel(operations: Sequence[Operation], stream: Stream, program: IntegerProgram) -> bool:
    """Whether all positions of an image or sequence are treated alike."""
    if stream.positions == 1:
        return False
    try:
        local.on_pixels(operations, [stream], program)
    except Unsupported:
        return False
    return True


def _is_elementwise(one: Operation, size: int, program: IntegerProgram) -> bool:
    if program.tensors[one.result].size != size:
        return False
    if isinstance(one, Sum):
        return len(one.sources) == 1 and one.constant is not None
    return isinstance(one, (Scale, Round, Clip, Leaky, Table, Curve))


def in_turn(
    name: str, operations: Sequence[Operation], stream: Stream, program: IntegerProgram, count: int, kernels: KernelOptions
) -> Stage:
    """Operations for which `lanes` gives a count, on that many elements of `stream` in a cycle."""
    stream = stream.with_lanes(count)
    body = Body(name, kernels)
    bits = bits_for(stream.beats)
    body.text += wires("beat", stream.width, True) + f"    wire [{bits - 1}:0] beat_number;\n"
    body.text += "    wire unused_beat = &{1'b0, beat_first, beat_last};\n"
    given = {"WIDTH": stream.width, "COUNT": stream.beats, "CBITS": bits}
    body.place("edgesdk_count", "beats", given, CLOCK | link("s", "s0") | link("m", "beat", True) | {"m_number": "beat_number"})
    body.text += wires("all", stream.width + bits)
    body.text += "    assign all_valid = beat_valid;\n    assign beat_ready = all_ready;\n"
    body.text += f"    assign all_data = {concatenated(['beat_data', 'beat_number'])};\n"
    body.net = "all"
    body.pipeline(_kernel(f"{name}_kernel", operations, stream, program, kernels), "done")
    result = Stream(program.tensors[operations[-1].result], stream.order, count)
    timing = Timing((one_by_one(stream.positions),), stream.folds, stream.folds, 0)
    about = f"{stream.order.size} elements, {count} at a time"
    return body.finished(about, operations, [stream], result, "in turn", stream.beats, timing)


def _kernel(
    name: str, operations: Sequence[Operation], stream: Stream, program: IntegerProgram, kernels: KernelOptions
) -> Kernel:
    """Of a beat and its number: the results."""
    names = [stream.codes.name, *(one.result for one in operations)]
    sized = {one: replace(program.tensors[one], shape=(stream.lanes,)) for one in names}
    sized[names[0]] = replace(stream.codes, shape=(stream.lanes,))
    cut = IntegerProgram(program.name, (names[0],), (names[-1],), sized, tuple(operations), {}, {})
    number = Codes("number", (1,), 0, 0, stream.beats - 1)

    def compute(do: Arithmetic, sources: Sequence[Elements]) -> list[Elements]:
        values, (at,) = sources
        lowering = Lowering(cut, do, frozenset())
        lowering.known[names[0]] = values
        for place, one in enumerate(operations):
            do.net.begin(f"t{place}", f"{type(one).__name__} {one.node}")
            if isinstance(one, (Scale, Sum)):
                lowering.known[one.result] = _with_constants(do, one, at, lowering.known, stream, program)
            else:
                lowering.lower(one)
        return [lowering.known[names[-1]]]

    about = f"{program.name}: {len(operations)} operations, II = 1"
    return assembled(name, about, [sized[names[0]], number], [sized[names[-1]]], compute, kernels)


def _with_constants(
    do: Arithmetic, one: Scale | Sum, at: Signal, known: dict[str, Elements], stream: Stream, program: IntegerProgram
) -> Elements:
    """The lanes of a beat, each with its constant of the beat with that number."""
    codes = program.tensors[one.result]
    assert one.constant is not None
    flat = np.broadcast_to(one.constant, codes.shape).reshape(-1)[stream.order.reshape(-1)]
    table: Integers = flat.reshape(stream.beats, stream.lanes)
    made = []
    for lane, value in enumerate(known[one.source if isinstance(one, Scale) else one.sources[0]]):
        held = do.looked_up(at, lambda beat, of=table[:, lane]: int(of[beat]))  # type: ignore[misc]
        if isinstance(one, Sum):
            found = do.total([value, held], [one.factors[0], 1])
        elif held.is_constant:
            found = do.total([value], [held.low])
        else:
            found = do.product(value, held)
        made.append(do.known_in(found, codes.low, codes.high))
    return elements(made, (stream.lanes,))
