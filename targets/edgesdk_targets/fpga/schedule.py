"""The schedule of a network, computed instead of simulated: lengths of queues with which nothing hangs, and latency.

Where branches of one tensor meet again, the queue in front of each operand holds all that can have come on its way until the
last of the other operands is there: then no queue is ever full while another one waits, and nothing can hang. How much that is
follows from what each stage needs of its source before it gives a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk_converters.integer_program import Integers

from .stage import Stage
from .stream import Stream

QUEUE_DELAY = 2
"""Cycles from a queue's input to its output."""


@dataclass(frozen=True)
class Placed:
    """A stage and the nets that it reads: inputs of the network count from 0, then the stages' results."""

    stage: Stage
    nets: tuple[int, ...]


def depths(inputs: Sequence[Stream], placed: Sequence[Placed]) -> dict[int, tuple[int, ...]]:
    """Positions that the queue of each operand of a join holds, by the number of the join's net."""
    needs: list[list[Integers]] = []  # by net: of each input of the network, how much of it each position needs
    for number, stream in enumerate(inputs):
        own = [np.zeros(stream.positions, np.int64) for _ in inputs]
        own[number] = np.arange(1, stream.positions + 1)
        needs.append(own)
    found: dict[int, tuple[int, ...]] = {}
    for number, one in enumerate(placed, len(inputs)):
        operands = [needs[net] for net in one.nets]
        counts = [
            count if stream.positions == len(operand[0]) else np.full_like(count, len(operand[0]))  # else all of it is one
            for operand, count, stream in zip(operands, one.stage.timing.needs, one.stage.sources, strict=True)
        ]
        each = [[_at(of, count) for of in operand] for operand, count in zip(operands, counts, strict=True)]
        needs.append(_greatest(each))
        if len(operands) > 1:
            others = [_greatest([*each[:place], *each[place + 1 :]]) for place in range(len(each))]
            found[number] = tuple(map(_waiting, operands, others, counts))
    return found


def _at(values: Integers, counts: Integers) -> Integers:
    """The value at the last of the first `counts` positions, 0 where that is none."""
    return np.where(counts > 0, values[np.maximum(counts - 1, 0)], 0)


def _greatest(needs: Sequence[Sequence[Integers]]) -> list[Integers]:
    """Of several operands' needs, of each input what all of them need."""
    return [np.max(of, axis=0) for of in zip(*needs, strict=True)]


def _waiting(own: Sequence[Integers], others: Sequence[Integers], counts: Integers) -> int:
    """The most positions of an operand that have come, but not been used, when the others have what the join waits for."""
    arrived = np.min([np.searchsorted(mine, wanted, side="right") for mine, wanted in zip(own, others, strict=True)], axis=0)
    used = np.concatenate([[0], counts[:-1]])
    return max(1, int((arrived - used).max()))


def latency_cycles(inputs: Sequence[Stream], placed: Sequence[Placed], outputs: Sequence[int]) -> int:
    """From the first beat in to the last beat of the first result, both included, when neither side ever pauses.

    An estimate: what waits because a later stage is slower is not followed.
    """
    nets: list[tuple[Integers, Stream]] = []
    for stream in inputs:
        nets.append(((np.arange(stream.positions) + 1) * stream.folds - 1, stream))
    for one in placed:
        sources = [
            _converted(*nets[net], wanted, len(one.nets) > 1) for net, wanted in zip(one.nets, one.stage.sources, strict=True)
        ]
        nets.append((_given(one.stage, sources), one.stage.result))
    return int(max(nets[net][0][-1] for net in outputs)) + 1


def _converted(times: Integers, have: Stream, wanted: Stream, queued: bool) -> Integers:
    """Cycles in which positions are there, as beats of the lanes that the next stage takes."""
    both = np.lcm(have.lanes, wanted.lanes)
    added = QUEUE_DELAY * queued + (both > have.lanes)
    if wanted.positions < len(times):
        times = times[-1:]
    if both > wanted.lanes:  # one beat becomes several: after the last of them the next position can begin
        ratio = int(both // wanted.lanes)
        steps = np.arange(len(times)) * ratio
        times = np.maximum.accumulate(times - steps) + steps + ratio
    return times + int(added)


def _given(stage: Stage, sources: Sequence[Integers]) -> Integers:
    """Cycles in which a stage's positions are there, of those of its sources."""
    timing = stage.timing
    if timing.scan is not None:
        pixels, ends = timing.scan
        late = np.maximum.accumulate(np.concatenate([[-pixels[-1]], sources[0] - pixels]))  # behind one cycle a pixel
        return ends + late[timing.needs[0]] + timing.delay
    ready = np.max([_at(times, need) for times, need in zip(sources, timing.needs, strict=True)], axis=0)
    steps = np.arange(len(ready)) * timing.each
    return np.maximum.accumulate(ready - steps) + steps + timing.each - timing.lead + timing.delay
