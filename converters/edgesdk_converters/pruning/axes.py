"""Axes: an atom for every index along every axis of every tensor, and which atoms can only go together.

Dependency groups as in DepGraph (Fang et al. 2023, arXiv 2301.12900), found on the ONNX graph itself and down to single indices:
a Concat, a Split or a Reshape needs no special case further on. What is not understood is pinned: it stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .. import graph as graphs

Array = NDArray[Any]
Axis = NDArray[np.int64] | None
"""The atoms along an axis in order; None where its size is not known (a dynamic batch)."""
Axes = tuple[Axis, ...]
Rule = Callable[["Tracer", onnx.NodeProto], None]


@dataclass(frozen=True)
class Fold:
    """A Reshape's knot: the axis `flat` is the product of the axes `factors`, the last varying fastest."""

    flat: NDArray[np.int64]
    factors: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one node, proportional to the length of each of these axes."""

    node: str
    macs: int
    axes: tuple[NDArray[np.int64], ...]


class Tracer:
    """Walks a graph in order and ties the axes of its tensors by the rules of its operators."""

    def __init__(self, proto: onnx.ModelProto, rules: Mapping[str, Rule], *, normalised: bool = False) -> None:
        self.proto, self.normalised = proto, normalised
        self.opset = graphs.opset(proto)
        self.types = graphs.value_types(proto.graph)
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.constant = set(self.stored)
        """Values that no input reaches: stored tensors, and what is made of them alone."""
        self.axes: dict[str, Axes | None] = {}
        self.count = 0
        self.ties: list[tuple[Array, Array]] = []
        self.pinned: list[Array] = []
        self.folds: list[Fold] = []
        self.work: list[Work] = []
        self.contracted: list[Array] = []
        """Axes of stored weights that are summed over: what reads a channel."""
        self.produced: list[Array] = []
        """Axes of stored weights that become channels: what makes one."""
        self.scaled: list[Array] = []
        """Axes of depthwise filters: what a channel is multiplied by on its way."""
        self.batched: list[Array] = []
        """Axes over which products of two computed tensors are made separately: the heads of attention."""
        for info in proto.graph.input:
            self.axes[info.name] = self._made(info.name, pin=True)
        for name, tensor in self.stored.items():  # sizes and indices are no weights
            self.axes[name] = self._made(name, pin=tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL))
        for node in proto.graph.node:
            if node.input and all(name in self.constant for name in node.input if name):
                self.constant.update(node.output)
            rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                self.give_up(node)
            else:
                rule(self, node)
            for name in filter(None, node.output):
                self._check(name)
        for info in proto.graph.output:
            self.pin_all(info.name)

    # --- what rules ask ----------------------------------------------------------------------------------

    def of(self, name: str) -> Axes | None:
        """Axes of a value, None where its rank is not known."""
        return self.axes.get(name)

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        kind = self.types.get(name)
        return None if kind is None else kind.shape

    def value(self, name: str) -> Array | None:
        """A stored tensor's value."""
        return numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def ints(self, node: onnx.NodeProto, attribute: str, place: int = -1) -> list[int] | None:
        """A list of integers that is an attribute in some opsets and a stored input in others; None where it is neither."""
        for found in node.attribute:
            if found.name == attribute:
                return list(found.ints) if found.type == onnx.AttributeProto.INTS else [int(found.i)]
        if 0 <= place < len(node.input) and node.input[place]:
            value = self.value(node.input[place])
            return None if value is None else [int(v) for v in value.reshape(-1)]
        return None

    # --- what rules do -----------------------------------------------------------------------------------

    def new(self, size: int, *, pin: bool = False) -> NDArray[np.int64]:
        """Fresh atoms for an axis. An axis of one index cannot lose it."""
        atoms = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        if pin or size == 1:
            self.pinned.append(atoms)
        return atoms

    def pin(self, axis: Axis) -> None:
        if axis is not None:
            self.pinned.append(axis)

    def pin_all(self, name: str) -> None:
        for axis in self.axes.get(name) or ():
            self.pin(axis)

    def tie(self, a: Axis, b: Axis) -> None:
        """Both axes lose the same indices. Where one is not known, or they are not equally long, neither loses any."""
        if a is None or b is None or len(a) != len(b):
            self.pin(a)
            self.pin(b)
        elif a is not b:
            self.ties.append((a, b))

    def set(self, node: onnx.NodeProto, axes: Sequence[Axis]) -> None:
        """The only output's axes; where there are more, their meaning is not followed."""
        if any(node.output[1:]):
            self.give_up(node)
        else:
            self.axes[node.output[0]] = tuple(axes)

    def fresh(self, name: str, index: int) -> Axis:
        """A new pinned axis of the size that a value has there."""
        shape = self.shape(name)
        size = shape[index] if shape is not None else None
        return self.new(size, pin=True) if isinstance(size, int) else None

    def give_up(self, node: onnx.NodeProto) -> None:
        """Nothing that this node touches is pruned."""
        inner = [g for attribute in node.attribute for g in ([attribute.g] if attribute.HasField("g") else attribute.graphs)]
        for name in (*node.input, *(name for graph in inner for name in graphs.free_values(graph))):
            self.pin_all(name)
        for name in node.output:
            if name:
                self.axes[name] = self._made(name, pin=True)

    def _made(self, name: str, *, pin: bool) -> Axes | None:
        shape = self.shape(name)
        if shape is None:
            return None
        return tuple(self.new(size, pin=pin) if isinstance(size, int) else None for size in shape)

    def _check(self, name: str) -> None:
        """What a rule says of a shape must be what shape inference says; else nothing of it is pruned."""
        axes, shape = self.axes.get(name), self.shape(name)
        if axes is None or shape is None:
            self.pin_all(name)
            self.axes[name] = self._made(name, pin=True)
        elif len(axes) != len(shape) or any(
            axis is not None and isinstance(size, int) and len(axis) != size for axis, size in zip(axes, shape, strict=True)
        ):
            raise ValueError(f"axes of {name!r}: {[None if a is None else len(a) for a in axes]}, inferred {shape}")

    # --- what comes of it --------------------------------------------------------------------------------

    def groups(self, *, heads: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each atom the least atom that it goes with, and whether it stays.

        Of a folded axis one factor is pruned, whole slices of it at a time: the heads where `heads` and there are some, else
        the factor with the most indices that are free.
        """
        left = [a for a, _ in self.ties]
        right = [b for _, b in self.ties]
        pinned = list(self.pinned)
        labels = _components(self.count, left, right)
        heads_at = _marked(self.count, self.batched)
        for fold in self.folds:
            fixed = _marked(self.count, pinned, labels)
            best, worth = -1, (0, 0)
            for index, factor in enumerate(fold.factors):
                free = len(np.unique(labels[factor][~fixed[labels[factor]]]))
                is_head = heads and bool(_marked(self.count, [np.flatnonzero(heads_at)], labels)[labels[factor]].any())
                if free and len(np.unique(labels[factor])) > 1 and (int(is_head), free) > worth:
                    best, worth = index, (int(is_head), free)
            pinned += [factor for index, factor in enumerate(fold.factors) if index != best]
            if best < 0:
                pinned.append(fold.flat)
                continue
            block = np.moveaxis(fold.flat.reshape([len(factor) for factor in fold.factors]), best, 0)
            rows = block.reshape(len(fold.factors[best]), -1)
            left.append(np.repeat(fold.factors[best], rows.shape[1]))
            right.append(rows.reshape(-1))
            labels = _components(self.count, left, right)
        return labels, _marked(self.count, pinned, labels)[labels]


def _components(count: int, left: Sequence[Array], right: Sequence[Array]) -> NDArray[np.int64]:
    """The least atom that each is connected with: labels are passed along ties and shortened until none changes."""
    labels = np.arange(count, dtype=np.int64)
    if not left:
        return labels
    a, b = np.concatenate(left), np.concatenate(right)
    while True:
        low = np.minimum(labels[a], labels[b])
        new = labels.copy()
        for place in (a, b, labels[a], labels[b]):
            np.minimum.at(new, place, low)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def _marked(count: int, axes: Sequence[Array], labels: Array | None = None) -> NDArray[np.bool_]:
    """Which atoms (or, with `labels`, the groups of which atoms) are on these axes."""
    found = np.zeros(count, bool)
    for axis in axes:
        found[axis if labels is None else labels[axis]] = True
    return found


def elements(axes: Sequence[Axis]) -> int:
    """Number of elements of a tensor; an unknown axis counts as one."""
    return math.prod(len(axis) for axis in axes if axis is not None)
