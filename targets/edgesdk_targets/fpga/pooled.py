"""Pooling stages: over a whole image, or over windows that are read beat by beat or side by side."""

from __future__ import annotations

from dataclasses import replace

from edgesdk_converters.integer_program import Codes, IntegerProgram, Pool

from . import windows
from .kernel import KernelOptions
from .segments import Segment, refuse
from .stage import Body, Counts, Stage, Timing
from .stream import Stream, bits_for, channels_first, levels


def pooled(name: str, segment: Segment, stream: Stream, program: IntegerProgram, pace: int, kernels: KernelOptions) -> Stage:
    """A pooling layer: over the whole image by what has been summed so far; else with its windows read element by element where
    that is done within `pace` cycles, or side by side."""
    pool = segment.first
    assert isinstance(pool, Pool)
    window = windows.of(pool, stream, program)
    codes, source = program.tensors[pool.result], stream.codes
    most = int(pool.kind == "max")
    if not most and window.padded:
        raise refuse(pool, "a sum over a window has no padding")
    body = Body(name, kernels)
    exact = source.bits if most else _sum_bits(source, window.taps)
    signed = source.signed
    shared: dict[str, int | str] = {"WIDTH": source.bits, "SIGNED": int(signed), "MAX": most}
    needs = (window.last_pixels(),)
    serial = window.outputs * window.taps * stream.folds
    if window.outputs == 1 and not window.padded and window.taps == window.height * window.width:
        form, cycles, timing = "accumulated over the image", stream.beats, Timing(needs, stream.folds, stream.folds, 0)
        given = {"LANES": stream.lanes, **shared, "OUT": exact, "PIXELS": window.taps, "PBITS": bits_for(window.taps)}
        given |= {"FOLDS": stream.folds, "FBITS": bits_for(stream.folds)}
        body.part("edgesdk_pool_all", "pool", given, "pooled", stream.lanes * exact, 1)
        body.library.add("edgesdk_combine")
        body.counts += Counts(stream.lanes, stream.lanes * exact, stream.lanes * exact, line_bits=stream.channels * exact)
    elif serial <= max(pace, stream.beats):
        each = window.taps * stream.folds
        form, cycles, timing = "windows read one by one", serial, Timing(needs, each, window.taps + stream.folds - 1, 0)
        windows.one_by_one(body, window, stream, stream.folds, True, source.low if most else 0)
        given = {"LANES": stream.lanes, **shared, "OUT": exact}
        body.part("edgesdk_accumulate", "pool", given, "pooled", stream.lanes * exact, 1, flags_in=True)
        body.library.add("edgesdk_combine")
        body.counts += Counts(stream.lanes, stream.lanes * exact, stream.lanes * exact)
    else:
        stream = stream.with_lanes(stream.channels)
        form, cycles, timing = "windows side by side", window.scan, Timing(needs, 1, 1, 0, window.scanned())
        windows.side_by_side(body, window, stream, source.low if most else 0)
        depth, pairs = levels(window.taps), stream.lanes * (window.taps - 1)
        if not most:
            exact, signed = source.bits + (not signed) + depth, True
        given = {"LANES": stream.lanes, "TAPS": window.taps, "LEVELS": depth, **shared, "OUT": exact}
        body.part("edgesdk_pool_window", "pool", given, "pooled", stream.lanes * exact, depth)
        body.library |= {"edgesdk_tree", "edgesdk_pipe"}
        body.counts += Counts(pairs, pairs * exact, pairs * exact)
    body.resize(stream.lanes, exact, signed, codes.bits)
    result = body.chain(segment.chain, Stream(codes, channels_first(codes.shape), stream.lanes), program)
    about = f"{pool.kind} pooling, {form}"
    return body.finished(about, segment.operations, [stream], result, form, max(cycles, stream.beats), timing)


def _sum_bits(codes: Codes, count: int) -> int:
    """Of `count` codes added, signed as they are."""
    return replace(codes, low=codes.low * count, high=codes.high * count).bits
