"""How fast each layer has to be: lanes of the folded ones, so that all take about as long within a budget of multipliers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgesdk_converters.integer_program import Clip, Conv, Curve, Dense, IntegerProgram, LayerNorm, Leaky, Pool, Round, Table

from .folded import Folding, is_depthwise
from .segments import Alias, Segment, natural_order
from .stream import Stream, divisors


def foldings(
    program: IntegerProgram, parts: Sequence[Segment | Alias], multipliers: int, target_cycles: int
) -> tuple[dict[str, Folding], int]:
    """Lanes of each folded layer and the pace that they keep: the shortest within the budget, or a target or another layer's pace
    if that is longer. With a budget below one lane a layer, one lane a layer."""
    layers = {part.first.result: layer_of(part) for part in parts if isinstance(part, Segment) and part.form == "folded"}
    channels = _channels(program, parts)
    choices = {name: _choices(layer, channels[layer.source], program) for name, layer in layers.items()}
    scans = [
        program.tensors[part.first.source].size // channels[part.first.source]
        for part in parts
        if isinstance(part, Segment) and isinstance(part.first, Conv) and part.form == "unrolled"
    ]
    floor = max([1, target_cycles, *scans])
    paces = sorted({floor, *(cycles for choice in choices.values() for cycles, _ in choice)})
    least = max((min(cycles for cycles, _ in choice) for choice in choices.values()), default=1)
    paces = [pace for pace in paces if pace >= max(least, floor)]
    if not layers:
        return {}, floor
    place = bisect.bisect_left(paces, -multipliers, key=lambda pace: -_used(choices, pace))
    pace = paces[min(place, len(paces) - 1)]
    return {name: _cheapest(choice, pace) for name, choice in choices.items()}, pace


def _choices(layer: Dense | Conv, channels: int, program: IntegerProgram) -> list[tuple[int, Folding]]:
    """Cycles of an inference with each number of lanes that divides the layer; `channels` come together at the source."""
    outs = layer.weight.shape[0]
    positions = program.tensors[layer.result].size // outs
    if is_depthwise(layer):
        taps = layer.weight[0].size
        return [(positions * taps * (outs // lanes), Folding(1, lanes)) for lanes in divisors(outs)]
    if isinstance(layer, Conv):
        taps, channels = layer.weight[0, 0].size, program.tensors[layer.source].shape[0]
    elif len(program.tensors[layer.source].shape) > 1:
        taps, channels = 1, layer.weight.shape[1]
    else:
        taps = layer.weight.shape[1] // channels
    return [
        (positions * taps * (channels // ins) * (outs // lanes), Folding(ins, lanes))
        for ins in divisors(channels)
        for lanes in divisors(outs)
    ]


def _channels(program: IntegerProgram, parts: Sequence[Segment | Alias]) -> dict[str, int]:
    """Elements that come together, of each tensor between segments."""
    found = {name: input_stream(name, program).channels for name in program.inputs}
    for part in parts:
        if isinstance(part, Alias):
            found[part.move.result] = found[part.source]
            continue
        first, codes = part.first, program.tensors[part.result]
        source = program.tensors[part.sources[0]]
        if isinstance(first, (Conv, Dense)):
            found[part.result] = first.weight.shape[0]
        elif isinstance(first, Pool):
            found[part.result] = codes.shape[0]
        elif isinstance(first, LayerNorm):
            found[part.result] = codes.shape[-1]
        elif takes_vector(part, program):
            found[part.result] = codes.size
        else:
            found[part.result] = max(1, codes.size * found[source.name] // source.size)
    return found


def _cheapest(choices: Sequence[tuple[int, Folding]], pace: int) -> Folding:
    """The fewest multipliers that keep the pace; of those the fewest accumulators."""
    fast = [folding for cycles, folding in choices if cycles <= pace]
    return min(fast, key=lambda folding: (folding.multipliers, folding.outs))


def _used(choices: Mapping[str, Sequence[tuple[int, Folding]]], pace: int) -> int:
    return sum(_cheapest(choice, pace).multipliers for choice in choices.values())


def input_stream(name: str, program: IntegerProgram) -> Stream:
    """How an input travels, all channels of a pixel at a time."""
    codes = program.tensors[name]
    codes = codes if codes.shape else replace(codes, shape=(1,))
    order = natural_order(name, codes.shape, program)
    return Stream(codes, order, order.shape[1])


def wanted_lanes(
    name: str, stream: Stream, parts: Sequence[Segment | Alias], foldings: Mapping[str, Folding], turns: Mapping[str, int]
) -> int:
    """Lanes that the first reader of an input takes; `turns` are those of element-wise parts, by their results."""
    names = {name}
    for part in parts:
        if isinstance(part, Alias):
            if part.source in names:
                names.add(part.move.result)
        elif names & set(part.sources):
            folding = foldings.get(part.first.result)
            if folding is None:
                return math.gcd(turns.get(part.result, stream.channels), stream.channels)
            return folding.outs if is_depthwise(layer_of(part)) else folding.ins
    return stream.channels


def takes_vector(part: Segment, program: IntegerProgram) -> bool:
    """Whether a segment takes all elements of its sources at once."""
    vectors = all(len(program.tensors[source].shape) <= 1 for source in part.sources)
    return vectors and not all(isinstance(op, (Round, Clip, Leaky, Table, Curve)) for op in part.operations)


def layer_of(part: Segment) -> Dense | Conv:
    """The operation with weights that a segment begins with."""
    assert isinstance(part.first, (Dense, Conv))
    return part.first
