"""Stages that give elements in another order: through a memory that holds two inferences, an element a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgesdk_converters.integer_program import IntegerProgram, Integers, Move, Operation, Sum

from .kernel import KernelOptions
from .segments import Segment, natural_order
from .stage import Body, Counts, Stage, Timing
from .stream import Stream, bits_for
from .verilog_text import memory_file


def moved(name: str, segment: Segment, stream: Stream, program: IntegerProgram, kernels: KernelOptions) -> Stage:
    """Any elements of one tensor, zeros among them, in the order that suits what reads them."""
    move = segment.first
    assert isinstance(move, Move)
    codes = program.tensors[move.result]
    order = natural_order(move.result, codes.shape, program)
    place = np.empty(stream.order.size, np.int64)
    place[stream.order.reshape(-1)] = np.arange(place.size)
    wanted = move.index.reshape(-1)[order.reshape(-1)]
    index = np.where(wanted < 0, -1, place[np.maximum(wanted, 0)])
    chain = segment.chain
    if move.factors != (1,):
        chain = (Sum(move.node, move.sources, move.factors, move.result), *chain)
    given = Stream(
        replace(stream.codes, shape=codes.shape, name=move.sources[0] if move.factors != (1,) else move.result), order, 1
    )
    return _stage(name, segment.operations, chain, stream, given, index, program, kernels)


def ordered(
    name: str, reader: Operation, stream: Stream, order: Integers, program: IntegerProgram, kernels: KernelOptions
) -> Stage:
    """The same tensor in the order that an operation needs."""
    place = np.empty(stream.order.size, np.int64)
    place[stream.order.reshape(-1)] = np.arange(place.size)
    move = Move(reader.node, (stream.codes.name,), (1,), stream.codes.name, order)
    return _stage(name, (move,), (), stream, replace(stream, order=order, lanes=1), place[order.reshape(-1)], program, kernels)


def _stage(
    name: str, operations: Sequence[Operation], chain: Sequence[Operation], stream: Stream, given: Stream, index: Integers,
    program: IntegerProgram, kernels: KernelOptions,
) -> Stage:  # fmt: skip
    stream = stream.with_lanes(1)
    size, count, bits = stream.order.size, index.size, stream.codes.bits
    abits = bits_for(max(size, count))
    body = Body(name, kernels)
    parameters: dict[str, int | str] = {
        "WIDTH": bits, "SIZE": size, "COUNT": count, "ABITS": abits, "INDEX": f"{name}_index.hex"
    }  # fmt: skip
    body.part("edgesdk_reorder", "reorder", parameters, "reordered", bits, 3)
    body.files[f"{name}_index.hex"] = memory_file(np.where(index < 0, 1 << abits, index)[:, None], abits + 1)
    body.counts += Counts(register_bits=bits + abits + 1, rom_bits=count * (abits + 1), line_bits=bits << abits + 1)
    result = body.chain(chain, given, program)
    needs = (np.full(result.positions, stream.positions, np.int64),)
    timing = Timing(needs, given.channels, 1, 0)
    return body.finished("another order", operations, [stream], result, "reordered", max(size, count), timing)
