"""Unrolled stages: constants in logic, a pixel, a window or a whole vector in every cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Operation

from . import local, windows
from .in_turn import WIDEST_BITS
from .kernel import KernelOptions
from .segments import Segment, natural_order, refuse
from .stage import Body, Counts, Stage, Timing, one_by_one
from .stream import Stream, bits_for

FEW_BITS = 256
"""That are moved in wires rather than through a memory."""


def pixelwise(
    name: str, operations: Sequence[Operation], streams: Sequence[Stream], program: IntegerProgram, kernels: KernelOptions
) -> Stage:
    """Operations on one position at a time, on as many lanes as the sources have where channels are treated alike.

    Where positions are not treated alike, on all of them at once, as long as these are few bits. Raises Unsupported beyond.
    """
    bits = sum(stream.order.size * stream.codes.bits for stream in streams)
    try:
        found = local.on_pixels(operations, streams, program)
    except Unsupported as error:
        if bits > WIDEST_BITS:
            reason = f"{error.reason}; and all at once, {bits:,} bits are more than {WIDEST_BITS:,}"
            raise refuse(operations[0], reason, error.hint) from error
        return _at_once(name, operations, [stream.as_vector() for stream in streams], program, kernels)
    if all(stream.positions == 1 for stream in streams) and bits > WIDEST_BITS:
        layered = any(isinstance(one, Dense) for one in operations)
        hint = "give --set form=folded" if layered else "take fewer bits, or keep it on the host: no form takes it in parts"
        raise refuse(operations[0], f"it takes {bits:,} bits at once; allowed: {WIDEST_BITS:,}", hint)
    lanes = min(stream.lanes for stream in streams)
    if found.uniform:
        found = found.on(lanes)
        streams = [stream.with_lanes(lanes) for stream in streams]
    else:
        streams = [stream.with_lanes(stream.channels) for stream in streams]
        lanes = found.order.shape[1]
    body = Body(name, kernels)
    if len(streams) > 1:
        body.join(streams)
    body.kernel(found)
    codes = replace(found.result, shape=program.tensors[operations[-1].result].shape)
    result = Stream(codes, found.order, lanes)
    needs = (one_by_one(result.positions),) * len(streams)
    weighted = any(isinstance(one, Dense) for one in operations)
    form = "unrolled" if weighted or result.positions == 1 else "pixel by pixel"
    return body.finished(form, operations, streams, result, form, result.beats, Timing(needs, result.folds, result.folds, 0))


def moves_channels(segment: Segment, stream: Stream, program: IntegerProgram) -> bool:
    """Whether a segment takes the same channels from every pixel, or all elements of a few: wires then do what a memory would."""
    if stream.order.size * stream.codes.bits <= FEW_BITS:
        return True
    try:
        return bool(local.on_pixels(segment.operations, [stream], program).order.size)
    except Unsupported:
        return False


def _at_once(
    name: str, operations: Sequence[Operation], streams: Sequence[Stream], program: IntegerProgram, kernels: KernelOptions
) -> Stage:
    """All elements in one cycle; the result leaves pixel by pixel."""
    codes = program.tensors[operations[-1].result]
    order = natural_order(codes.name, codes.shape, program)
    found = local.at_once(operations, streams, program, order)
    streams = [stream.with_lanes(stream.channels) for stream in streams]
    body = Body(name, kernels)
    if len(streams) > 1:
        body.join(streams)
    body.kernel(found)
    result = Stream(replace(found.result, name=codes.name, shape=codes.shape), order, order.shape[1])
    if result.positions > 1:
        given = {"WIDTH": result.width, "RATIO": result.positions, "CBITS": bits_for(result.positions)}
        body.part("edgesdk_narrow", "narrow", given, "narrow", result.width, 1)
        body.counts += Counts(register_bits=result.width * result.positions)
    needs = (np.ones(result.positions, np.int64),) * len(streams)
    return body.finished("all at once", operations, streams, result, "unrolled", result.positions, Timing(needs, 1, 1, 0))


def convolution(name: str, segment: Segment, stream: Stream, program: IntegerProgram, kernels: KernelOptions) -> Stage:
    """A convolution that gives a pixel a cycle: a window in registers, a multiplier-free kernel over it."""
    conv = segment.first
    assert isinstance(conv, Conv)
    stream = stream.with_lanes(stream.channels)
    window = windows.of(conv, stream, program)
    found = local.on_windows(conv, segment.chain, stream, program)
    body = Body(name, kernels)
    windows.side_by_side(body, window, stream, 0)
    body.kernel(found)
    codes = replace(found.result, shape=program.tensors[segment.result].shape)
    result = Stream(codes, found.order, found.order.shape[1])
    timing = Timing((window.last_pixels(),), 1, 1, 0, window.scanned())
    about = f"a pixel a cycle, {window.taps} taps unrolled"
    return body.finished(about, segment.operations, [stream], result, "streaming", window.scan, timing)
