"""Dataflow: what of a graph depends on the model's inputs, in which order it is computed, and what crosses a place in it.

A *place* is a set of nodes that a head would compute, as the bits of a whole number: bit p is the p-th of `order`. A value
crosses it that is made before (by those nodes, or outside as an input) and read behind (by other nodes, or as an output).
What depends on no input is constant: it crosses nowhere, since either side can have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import onnx

from . import graph as graphs
from .errors import ModelError

MOST_PAIRS = 20_000
"""Cuts of two tensors that are listed. Two branches of 140 nodes side by side have as many."""
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


class Dataflow:
    """Of the main graph of a model; a subgraph belongs to its node, with whatever it takes from outside."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.types = graphs.value_types(graph)
        self.inputs = [info.name for info in graph.input]
        self.outputs = [info.name for info in graph.output]
        self.stored = [tensor.name for tensor in graph.initializer]
        self.reads = [reads_of(node) for node in self.nodes]
        self.constant: set[int] = set()
        """Nodes, by their index in the graph, that depend on no input."""
        self.of_shape: set[int] = set()
        """Those of them that give the static shape of a value that is not constant."""
        self.constants = set(self.stored)
        """Names of all constant values."""
        random = _random_operators(model)
        for index, node in enumerate(self.nodes):
            steady = all(name in self.constants for name in self.reads[index]) and not _is_random(node, random)
            if not steady and self._shape_is_static(node):
                self.of_shape.add(index)
                self.reads[index] = ()
                steady = True
            if steady:
                self.constant.add(index)
                self.constants.update(filter(None, node.output))
        self.order = self._schedule()
        """Nodes that depend on inputs and that an output needs, each after what it reads."""
        self.end = len(self.order)
        """A position behind all nodes, where the outputs are read."""
        self.position = {name: p for p, index in enumerate(self.order) for name in self.nodes[index].output if name}
        """Where each value is made that is not constant."""
        self.readers: dict[str, int] = {}
        """The positions where a value is read, as bits; values that nothing reads are missing."""
        for position, index in enumerate(self.order):
            for name in self.reads[index]:
                self.readers[name] = self.readers.get(name, 0) | 1 << position
        for name in self.outputs:
            self.readers[name] = self.readers.get(name, 0) | 1 << self.end
        for index in sorted(self.constant, reverse=True):
            needed = self.needed(index)
            for name in self.reads[index] if needed else ():
                self.readers[name] = self.readers.get(name, 0) | needed

    def needed(self, index: int) -> int:
        """The positions that need a constant node, as bits."""
        found = 0
        for name in self.nodes[index].output:
            found |= self.readers.get(name, 0)
        return found

    def sourced(self, name: str) -> bool:
        """Whether an input reaches a value; none reaches constants and random numbers."""
        return name in self._sourced

    def can_cross(self, name: str) -> bool:
        """Whether a cut can be at a value: an inner one made of inputs, a tensor of known rank with elements, and no text."""
        kind = self.types.get(name)
        return (
            self.sourced(name) and name in self.position and name not in self.outputs
            and kind is not None and kind.shape is not None and kind.elements != 0 and graphs.item_bits(kind.elem_type) > 0
        )  # fmt: skip

    @cached_property
    def before(self) -> list[int]:
        """The place of each position: itself and all that it depends on."""
        found: list[int] = []
        for position, index in enumerate(self.order):
            place = 1 << position
            for name in self.reads[index]:
                if name in self.position:
                    place |= found[self.position[name]]
            found.append(place)
        return found

    def place(self, *names: str) -> int:
        """The place of a head that computes these values."""
        found = 0
        for name in names:
            found |= self.before[self.position[name]]
        return found

    def crossing(self, place: int) -> list[str]:
        """The values that cross, in order."""
        made = [*self.inputs, *(name for name in self.position if place >> self.position[name] & 1)]
        return [name for name in made if self.readers.get(name, 0) & ~place]

    @cached_property
    def single(self) -> dict[str, int]:
        """Every tensor that crosses alone, and its position. One sweep: after it nothing else that was made is still read."""
        left = {name: readers.bit_count() for name, readers in self.readers.items() if name not in self.constants}
        alive = {name for name in self.inputs if name in left}
        found: dict[str, int] = {}
        for position, index in enumerate(self.order):
            for name in self.reads[index]:
                if name not in self.constants:
                    left[name] -= 1
                    if not left[name]:
                        alive.discard(name)
            alive.update(name for name in self.nodes[index].output if name in left)
            if len(alive) == 1 and self.can_cross(next(iter(alive))):
                found[next(iter(alive))] = position
        return found

    def pairs(self) -> Iterator[tuple[str, str, int]]:
        """Every two tensors that cross together, neither alone, and their place; the head computes nothing that they do without.

        Both lie between neighbouring cuts at one tensor, of which they may be the first. Raises ModelError for more than
        MOST_PAIRS.
        """
        marks = [*self.single.items(), ("", self.end)]
        count = 0
        begin, first = 0, ""
        for name, position in marks:
            for a, b, place in self._pairs_between(first, begin, position):
                count += 1
                if count > MOST_PAIRS:
                    raise ModelError(
                        f"there are more than {MOST_PAIRS:,} cuts of two tensors: long branches lie side by side",
                        "look for cuts of one tensor, or ask for one pair by name",
                    )
                yield a, b, place
            first, begin = name, position + 1

    def _pairs_between(self, first: str, begin: int, end: int) -> Iterator[tuple[str, str, int]]:
        names = [name for p in range(begin, end) for name in self.nodes[self.order[p]].output if name in self.readers]
        others = [first] if first else [name for name in self.inputs if name in self.readers]
        inside = [*others, *names]
        makes = {name: self.before[self.position[name]] if name in self.position else 0 for name in inside}
        at = {name: 1 << self.position[name] if name in self.position else 0 for name in inside}
        behind = self._behind(begin, end)
        still = {}
        """What is still read when only a tensor and what it depends on was computed."""
        for name in inside:
            made = makes[name]
            still[name] = [v for v in inside if at[v] & ~made == 0 and self.readers[v] & ~made]
        for i, a in enumerate(inside):
            if not self.can_cross(a):
                continue
            closing = -1  # positions that depend on all that reads what else crosses
            for name in still[a]:
                waiting = self.readers[name] & ~makes[a]
                if name != a:
                    if waiting >> end:
                        closing = 0  # read behind the next cut, or an output
                    while waiting and closing:
                        low = waiting & -waiting
                        closing &= behind[low.bit_length() - 1]
                        waiting ^= low
            for b in inside[i + 1 :]:
                if not (at[b] & closing or at[b] == at[a]) or not self.can_cross(b):
                    continue
                place = makes[a] | makes[b]
                left = {name for name in (*still[a], *still[b]) if self.readers[name] & ~place}
                if left == {a, b}:
                    yield a, b, place

    def _behind(self, begin: int, end: int) -> dict[int, int]:
        """For each position between: itself and those between that depend on it, as bits."""
        found = {position: 1 << position for position in range(begin, end)}
        for position in reversed(range(begin, end)):
            for name in self.nodes[self.order[position]].output:
                waiting = self.readers.get(name, 0) & (1 << end) - 1
                while waiting:
                    low = waiting & -waiting
                    found[position] |= found[low.bit_length() - 1]
                    waiting ^= low
        return found

    def _shape_is_static(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx"):
            return False
        kind = self.types.get(node.input[0])
        return kind is not None and kind.elements is not None

    def _schedule(self) -> list[int]:
        """The needed nodes in the graph's order; random numbers, which no input reaches, just before they are read."""
        needed = {name for name in self.outputs if name not in self.constants}
        kept = []
        for index in reversed(range(len(self.nodes))):
            if index not in self.constant and any(name in needed for name in self.nodes[index].output):
                kept.append(index)
                needed.update(name for name in self.reads[index] if name not in self.constants)
        self._sourced = set(self.inputs)
        waiting: dict[str, int] = {}
        order: list[int] = []

        def append(index: int) -> None:
            """The node, and before it what it reads of those that wait."""
            found, look = {index}, [index]
            while look:
                fresh = {waiting[name] for name in self.reads[look.pop()] if name in waiting} - found
                found |= fresh
                look.extend(fresh)
            for one in sorted(found):
                order.append(one)
                for name in self.nodes[one].output:
                    waiting.pop(name, None)

        for index in reversed(kept):
            made = [name for name in self.nodes[index].output if name]
            if any(name in self._sourced for name in self.reads[index]):
                self._sourced.update(made)
                append(index)
            else:
                waiting.update((name, index) for name in made)
        while waiting:
            append(next(iter(waiting.values())))
        return order


def static_shape(node: onnx.NodeProto, shape: tuple[int | str, ...]) -> onnx.NodeProto:
    """The constant that a Shape or Size of a static shape is."""
    sizes = [int(dim) for dim in shape]
    if node.op_type == "Size":
        value = np.array(math.prod(sizes), np.int64)
    else:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        value = np.array(sizes[ends.get("start", 0) : ends.get("end", len(sizes))], np.int64)
    made = onnx.helper.make_node("Constant", [], list(node.output), value=onnx.numpy_helper.from_array(value))
    made.name = node.name
    return made


def reads_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """What a node reads, each once, with what its subgraphs take from outside."""
    found = dict.fromkeys(name for name in node.input if name)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            found.update(dict.fromkeys(sorted(graphs.free_values(inner))))
    return tuple(found)


def _random_operators(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """Domain and name of operators that give something else each time: ONNX's own, and local functions that use them."""
    found = {(domain, name) for name in _RANDOM for domain in ("", "ai.onnx")}
    for _ in model.functions:  # functions may call one another, in any order
        for function in model.functions:
            if any(_is_random(node, found) for node in function.node):
                found.add((function.domain, function.name))
    return found


def _is_random(node: onnx.NodeProto, operators: set[tuple[str, str]]) -> bool:
    if (node.domain, node.op_type) in operators:
        return True
    inner = [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
    return any(_is_random(below, operators) for graph in inner for below in graph.node)
