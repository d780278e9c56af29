"""What is computed on one beat: a segment's operations as a small program on a flattened vector, for the kernel generator.

An image's program says what happens to (channels, height, width); a stage sees one pixel, a window of pixels, or some of a
pixel's channels. Weights, constants and orders are cut accordingly; where they differ between pixels there is no such program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Codes,
    Conv,
    Curve,
    Dense,
    IntegerProgram,
    Integers,
    Leaky,
    Move,
    Operation,
    Product,
    Round,
    Scale,
    Softmax,
    Sum,
    Table,
    read,
)

from .segments import refuse
from .stream import Stream, channels_first, channels_last


@dataclass(frozen=True, eq=False)
class Local:
    """`program` computes one beat of the result from one beat (or window) of each source, its inputs.

    `order` (positions, channels) is the result's; `uniform` says that all channels are treated alike, so that any part of them
    can be computed alone.
    """

    program: IntegerProgram
    order: Integers
    uniform: bool

    @property
    def result(self) -> Codes:
        return self.program.tensors[self.program.outputs[0]]

    @property
    def is_empty(self) -> bool:
        """Nothing but names: the beat goes on as it came."""
        return not self.program.operations

    def on(self, lanes: int) -> Local:
        """The same on some of the channels; only where it is `uniform`."""
        if not self.uniform:
            raise ValueError("channels are not treated alike")
        return replace(self, program=_narrowed(self.program, lanes))


def on_pixels(operations: Sequence[Operation], streams: Sequence[Stream], program: IntegerProgram) -> Local:
    """Of operations that see one position at a time. Raises Unsupported where positions are not treated alike."""
    if all(stream.positions == 1 for stream in streams):
        size = program.tensors[operations[-1].result].size
        return at_once(operations, streams, program, np.arange(size, dtype=np.int64).reshape(1, -1))
    builder = _Builder(program)
    orders = {}
    for stream in streams:
        builder.input(stream.codes, stream.channels)
        orders[stream.codes.name] = stream.order
    uniform = len({stream.channels for stream in streams}) == 1
    for operation in operations:
        if isinstance(operation, Move):
            uniform = False
            orders[operation.result] = builder.move(operation, [orders[name] for name in operation.sources])
        elif isinstance(operation, (ArgMax, Softmax)):
            uniform = False
            orders[operation.result] = builder.along_channels(operation, orders[operation.source])
        elif isinstance(operation, Dense):
            uniform = False
            orders[operation.result] = builder.dense(operation, orders[operation.source])
        elif isinstance(operation, (Sum, Product)):
            uniform &= builder.several(operation, [orders[name] for name in read(operation)])
            orders[operation.result] = orders[read(operation)[0]]
        elif isinstance(operation, (Round, Clip, Leaky, Table, Curve, Scale)):
            uniform &= builder.elementwise(operation, orders[operation.source])
            orders[operation.result] = orders[operation.source]
        else:
            raise refuse(operation, "it cannot be computed pixel by pixel")
    result = operations[-1].result
    return Local(builder.finished(result), orders[result], uniform)


def on_windows(conv: Conv, chain: Sequence[Operation], stream: Stream, program: IntegerProgram) -> Local:
    """Of a convolution and what follows it; the input is a window, row by row, pixel by pixel, all channels of each."""
    builder = _Builder(program)
    weight = window_weights(conv, stream.channels)
    builder.input(stream.codes, weight.shape[1])
    builder.add(Dense(conv.node, stream.codes.name, conv.result, weight, conv.bias), len(weight))
    order = channels_first(program.tensors[conv.result].shape)
    for operation in chain:
        if isinstance(operation, Sum):
            builder.several(operation, [order])
        elif isinstance(operation, (Round, Clip, Leaky, Table, Curve, Scale)):
            builder.elementwise(operation, order)
        else:
            raise refuse(operation, "it cannot follow a convolution pixel by pixel")
    return Local(builder.finished(chain[-1].result if chain else conv.result), order, False)


def window_weights(conv: Conv, channels: int) -> Integers:
    """(outs, taps * channels) of a convolution, zeros where a group does not reach: columns as a window travels."""
    outs, mine = conv.weight.shape[:2]
    whole = np.zeros((outs, channels, math.prod(conv.weight.shape[2:])), np.int64)
    for group in range(conv.groups):
        rows = slice(group * outs // conv.groups, (group + 1) * outs // conv.groups)
        whole[rows, group * mine : (group + 1) * mine] = conv.weight[rows].reshape(-1, mine, whole.shape[2])
    columns: Integers = whole.transpose(0, 2, 1)
    return columns.reshape(outs, -1)


def at_once(
    operations: Sequence[Operation], streams: Sequence[Stream], program: IntegerProgram, order: Integers
) -> Local:  # fmt: skip
    """Of operations on all elements of their sources, which come as vectors; the result leaves in `order`.

    The operations stay as they are, between changes of order where there are any.
    """
    builder = _Builder(program)
    straight = True
    for stream in streams:
        name = stream.codes.name
        if np.array_equal(stream.order[0], np.arange(stream.channels)):
            builder.tensors[name] = stream.codes
            builder.inputs.append(name)
            continue
        straight = False
        place = np.empty(stream.channels, np.int64)
        place[stream.order[0]] = np.arange(stream.channels)
        builder.input(replace(stream.codes, name=f"{name} as it comes"), stream.channels)
        builder.tensors[name] = stream.codes
        builder.operations.append(Move("", (builder.inputs[-1],), (1,), name, place.reshape(stream.codes.shape)))
    for operation in operations:
        builder.tensors[operation.result] = program.tensors[operation.result]
        builder.operations.append(operation)
    result = operations[-1].result
    flat = order.reshape(-1)
    if not np.array_equal(flat, np.arange(flat.size)):
        straight = False
        name = f"{result} as it goes"
        builder.tensors[name] = replace(program.tensors[result], name=name, shape=flat.shape)
        builder.operations.append(Move("", (result,), (1,), name, flat))
        result = name
    uniform = straight and len(streams) == 1 and all(isinstance(one, (Round, Clip, Leaky, Table, Curve)) for one in operations)
    return Local(builder.finished(result), order, uniform)


class _Builder:
    """Collects operations on (channels,) vectors."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.inputs: list[str] = []
        self.tensors: dict[str, Codes] = {}
        self.operations: list[Operation] = []

    def input(self, codes: Codes, size: int) -> None:
        self.inputs.append(codes.name)
        self.tensors[codes.name] = replace(codes, shape=(size,))

    def add(self, operation: Operation, size: int) -> None:
        self.tensors[operation.result] = replace(self.program.tensors[operation.result], shape=(size,))
        self.operations.append(operation)

    def elementwise(self, operation: Round | Clip | Leaky | Table | Curve | Scale, order: Integers) -> bool:
        """Returns whether all channels are treated alike."""
        uniform = True
        if isinstance(operation, Scale):
            constant = self.constant(operation, operation.constant, order)
            uniform = bool((constant == constant[0]).all())
            operation = replace(operation, constant=constant)
        self.add(operation, order.shape[1])
        return uniform

    def several(self, operation: Sum | Product, orders: Sequence[Integers]) -> bool:
        """A sum or product of tensors that travel in the same order; returns whether all channels are treated alike."""
        if any(not np.array_equal(order, orders[0]) for order in orders[1:]):
            raise refuse(operation, "its operands come in different orders or shapes", "only operands of one shape are combined")
        uniform = True
        if isinstance(operation, Product) and operation.matmul:
            raise refuse(operation, "a matrix product of two computed tensors needs all of them at once")
        if isinstance(operation, Sum) and operation.constant is not None:
            constant = self.constant(operation, operation.constant, orders[0])
            uniform = bool((constant == constant[0]).all())
            operation = replace(operation, constant=constant)
        self.add(operation, orders[0].shape[1])
        return uniform

    def dense(self, operation: Dense, order: Integers) -> Integers:
        """Of the features of a token, wherever all of them come together and alike; returns the order of the result."""
        features = operation.weight.shape[1]
        start = np.arange(len(order))[:, None] * features
        if order.shape[1] != features or ((order - start) != order[0]).any():
            raise refuse(operation, "the features of a token do not come together")
        self.add(replace(operation, weight=operation.weight[:, order[0]]), len(operation.weight))
        return channels_last((len(order), len(operation.weight)))

    def along_channels(self, operation: ArgMax | Softmax, order: Integers) -> Integers:
        codes = self.program.tensors[operation.source]
        axis = (operation.axis if isinstance(operation, ArgMax) else -1) % len(codes.shape)
        wanted = np.moveaxis(np.arange(codes.size).reshape(codes.shape), axis, -1).reshape(-1, codes.shape[axis])
        if not np.array_equal(order, wanted):
            raise refuse(operation, f"it runs along axis {axis}, and those elements do not come together")
        if isinstance(operation, Softmax):
            self.add(operation, order.shape[1])
            return order
        self.add(replace(operation, axis=0, keepdims=True), 1)
        return np.arange(len(order), dtype=np.int64).reshape(-1, 1)

    def move(self, operation: Move, orders: Sequence[Integers]) -> Integers:
        """Channels picked and put in another order, at every position alike; returns the order of the result."""
        positions = len(orders[0])
        if any(len(order) != positions for order in orders):
            raise refuse(operation, "its sources come in different numbers of pixels")
        sizes = [self.program.tensors[name].size for name in operation.sources]
        where = np.empty((sum(sizes), 2), np.int64)
        start = channel = 0
        for order, size in zip(orders, sizes, strict=True):
            place, lane = np.indices(order.shape)
            where[start + order] = np.stack([place, lane + channel], axis=-1)
            start, channel = start + size, channel + order.shape[1]
        flat = operation.index.reshape(-1)
        if (flat < 0).any() or flat.size % positions:
            raise refuse(operation, "it puts zeros in, or takes other channels from one pixel than from another")
        taken = where[flat]
        order = np.argsort(taken[:, 0], kind="stable").reshape(positions, -1)
        picks = taken[order, 1]
        if (taken[order, 0] != np.arange(positions)[:, None]).any() or (picks != picks[0]).any():
            raise refuse(operation, "it takes other channels from one pixel than from another, or moves pixels")
        self.add(replace(operation, index=picks[0]), picks.shape[1])
        return order

    def constant(self, operation: Operation, constant: Integers, order: Integers) -> Integers:
        """(channels,) of a constant that is the same at every position."""
        shape = self.program.tensors[operation.result].shape
        each: Integers = np.broadcast_to(constant, shape).reshape(-1)[order]
        if (each != each[0]).any():
            raise refuse(operation, "its constant differs from pixel to pixel", "a constant may have one value a channel")
        mine: Integers = each[0]
        return mine

    def finished(self, result: str) -> IntegerProgram:
        operations = tuple(self.operations)
        return IntegerProgram(self.program.name, tuple(self.inputs), (result,), self.tensors, operations, {}, {})


def _narrowed(program: IntegerProgram, lanes: int) -> IntegerProgram:
    """A program that treats all channels alike, on some of them."""
    cut: list[Operation] = []
    for operation in program.operations:
        if isinstance(operation, (Sum, Scale)) and operation.constant is not None:
            operation = replace(operation, constant=operation.constant[:lanes])
        cut.append(operation)
    sized = {name: replace(codes, shape=(lanes,)) for name, codes in program.tensors.items()}
    return replace(program, tensors=sized, operations=tuple(cut))
