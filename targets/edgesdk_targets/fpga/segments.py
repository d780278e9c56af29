"""A program cut into segments, each of which becomes a stage: one operation that needs memory or another order, and what follows
it element by element."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Conv,
    Curve,
    Dense,
    IntegerProgram,
    Integers,
    LayerNorm,
    Leaky,
    Move,
    Operation,
    Pool,
    Round,
    Scale,
    Shape,
    Softmax,
    Sum,
    Table,
    read,
)

from .stream import channels_first, channels_last
from .subexpressions import signed_digits

Form: TypeAlias = Literal["unrolled", "folded"]
TARGET = "rtl"
ELEMENTWISE = (Round, Clip, Leaky, Table, Curve, Scale)


@dataclass(frozen=True, eq=False)
class Segment:
    """`first` reads the sources; `chain` is what follows it, one after another. `form` matters to what has weights."""

    first: Operation
    chain: tuple[Operation, ...]
    form: Form

    @property
    def sources(self) -> tuple[str, ...]:
        """Without repetitions."""
        return tuple(dict.fromkeys(read(self.first)))

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (self.first, *self.chain)

    @property
    def result(self) -> str:
        return self.operations[-1].result


@dataclass(frozen=True, eq=False)
class Alias:
    """`result` is `source` under another name: the same elements, counted otherwise."""

    move: Move

    @property
    def source(self) -> str:
        return self.move.sources[0]


def refuse(operation: Operation, reason: str, hint: str = "") -> Unsupported:
    """The error of an operation that this flow cannot build."""
    return Unsupported(TARGET, operation.node, type(operation).__name__, reason, hint)


def weights(operation: Operation) -> int:
    """Of a Dense or Conv, those that are not zero."""
    return int(np.count_nonzero(operation.weight)) if isinstance(operation, (Dense, Conv)) else 0


def weight_bits(operation: Dense | Conv) -> int:
    """Of the narrowest signed integers that hold all its weights."""
    low, high = int(operation.weight.min(initial=0)), int(operation.weight.max(initial=0))
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length()) + 1


def adder_bits(operation: Dense | Conv, program: IntegerProgram) -> int:
    """Bits of the adders that a layer takes unrolled while none is shared: an adder a signed digit, of input and weight wide."""
    digits = np.count_nonzero(signed_digits(operation.weight))
    return int(digits) * (program.tensors[operation.source].bits + weight_bits(operation))


def weighted(program: IntegerProgram) -> Iterator[Dense | Conv]:
    """The operations with weights, in order."""
    for operation in program.operations:
        if isinstance(operation, (Dense, Conv)):
            yield operation


def segments(program: IntegerProgram, forms: Mapping[str, Form]) -> list[Segment | Alias]:
    """In an order in which they can be built. `forms` has one for the result of each operation with weights."""
    readers = Counter(name for operation in program.operations for name in dict.fromkeys(read(operation)))
    readers.update(program.outputs)
    found: list[Segment | Alias] = []
    open_at: dict[str, int] = {}
    for operation in program.operations:
        taken = read(operation)
        place = open_at.get(taken[0]) if len(taken) == 1 and readers[taken[0]] == 1 else None
        if isinstance(operation, Move) and _is_renaming(operation, program):
            found.append(Alias(operation))
            continue
        if place is not None and _follows(operation, found[place], program, forms):
            segment = found[place]
            assert isinstance(segment, Segment)
            found[place] = Segment(segment.first, (*segment.chain, operation), segment.form)
        else:
            place = len(found)
            found.append(Segment(operation, (), forms.get(operation.result, "unrolled")))
        open_at[operation.result] = place
    return found


def natural_order(name: str, shape: Shape, program: IntegerProgram) -> Integers:
    """Of a tensor: pixel by pixel, or token by token where what reads it works along the last axis; a vector is one position."""
    if len(shape) <= 1:
        return channels_last((1, *shape))
    reader = next((op for op in program.operations if name in read(op)), None)
    while isinstance(reader, (Round, Clip, Leaky, Table, Curve)):
        result = reader.result
        reader = next((op for op in program.operations if result in read(op)), None)
    return channels_last(shape) if isinstance(reader, (Dense, Softmax, LayerNorm)) else channels_first(shape)


def _is_renaming(move: Move, program: IntegerProgram) -> bool:
    size = program.tensors[move.sources[0]].size
    flat = move.index.reshape(-1)
    whole = len(move.sources) == 1 and move.factors == (1,) and flat.size == size
    return whole and bool(np.array_equal(np.sort(flat), np.arange(size)))


def _follows(operation: Operation, segment: Segment | Alias, program: IntegerProgram, forms: Mapping[str, Form]) -> bool:
    """Whether an operation can be computed on what a segment gives, beat by beat."""
    assert isinstance(segment, Segment)
    if isinstance(operation, (Sum, *ELEMENTWISE)):
        return True
    vector = len(program.tensors[read(operation)[0]].shape) == 1
    if isinstance(operation, (ArgMax, Softmax)):
        return vector and segment.form == "unrolled"
    if isinstance(operation, Dense) and vector and not isinstance(segment.first, Pool):
        return forms[operation.result] == segment.form == "unrolled"
    return False
