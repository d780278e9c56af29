"""Structure: the parts of a network that can be taken out, what each is made of, and the graph without some of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .. import graph as graphs
from ..model import Model
from .axes import Array, Axis, Tracer
from .rules import RULES
from .shape_rules import slices

_NO_PARAMETERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)


@dataclass(frozen=True, eq=False)
class Family:
    """Units that could stand for each other: channels of one layer, heads of one attention.

    `labels` names the group of atoms that each unit is; `length` is how many indices of an axis one of them takes at most.
    """

    labels: NDArray[np.int64]
    length: int
    name: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Slot:
    """An axis of a stored tensor with indices that can go.

    `role` is in (it reads channels), out (it makes them), scale (it is what they are multiplied by) or along.
    """

    tensor: str
    axis: int
    role: str
    labels: NDArray[np.int64]


class Structure:
    """What can go from a model. `heads`: attention loses whole heads, else an equal part of each.

    With `normalised`, channels that a LayerNormalization (or the mean inside one) sees may go too: what is left is then
    normalised by itself, another function than that of the whole with zeros. All other removals give just what the whole
    gives when those channels are zero wherever they are read.
    """

    def __init__(self, model: Model, *, heads: bool = True, normalised: bool = False) -> None:
        self.model = model
        self.proto = _constants_stored(model.copy_proto())
        self.tracer = Tracer(self.proto, RULES, normalised=normalised)
        self.labels, fixed = self.tracer.groups(heads=heads)
        self.fixed = np.zeros(self.tracer.count, bool)
        self.fixed[self.labels[fixed]] = True
        self.families = tuple(self._families())

    def _families(self) -> Iterator[Family]:
        """Free groups by where they occur: the same axes, the same number of times."""
        seen: dict[bytes, int] = {}
        places: dict[int, list[tuple[int, int]]] = {}
        owner: dict[int, str] = {}
        for name, axes in self.tracer.axes.items():
            for axis in axes or ():
                if axis is None or axis.tobytes() in seen:
                    continue
                seen[axis.tobytes()] = len(seen)
                found, counts = np.unique(self.labels[axis], return_counts=True)
                free = ~self.fixed[found]
                for label, count in zip(found[free].tolist(), counts[free].tolist(), strict=True):
                    places.setdefault(label, []).append((len(seen), count))
                    owner.setdefault(label, name)
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for label, where in places.items():
            alike.setdefault(tuple(where), []).append(label)
        for signature, labels in alike.items():
            # the only one of its kind stays: some axis would be empty; what is on one axis alone is no channel: nothing reads it
            if len(labels) > 1 and len(signature) > 1:
                yield Family(np.array(labels, np.int64), max(count for _, count in signature), owner[labels[0]])

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The axes of stored tensors that can get shorter."""
        look = self.tracer
        marks = {"in": look.contracted, "out": look.produced, "scale": look.scaled}
        roles = {role: np.zeros(look.count, bool) for role in marks}
        for role, axes in marks.items():
            for atoms in axes:
                roles[role][atoms] = True
        free = np.zeros(self.tracer.count, bool)
        for family in self.families:
            free[family.labels] = True
        found = []
        for name in self.tracer.stored:
            for index, axis in enumerate(self.tracer.of(name) or ()):
                if axis is not None and len(axis) and free[self.labels[axis]].any():
                    role = next((role for role, marked in roles.items() if marked[axis].all()), "along")
                    found.append(Slot(name, index, role, self.labels[axis]))
        return tuple(found)

    def value(self, name: str) -> Array | None:
        """A stored tensor in float64, integers by the scale with which they are read; None for what is no weight."""
        tensor = self.tracer.stored[name]
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            return numpy_helper.to_array(tensor).astype(np.float64)
        for node in self.proto.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] == name and node.input[1] in self.tracer.stored:
                values = numpy_helper.to_array(tensor).astype(np.float64)
                scale = numpy_helper.to_array(self.tracer.stored[node.input[1]]).astype(np.float64)
                axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
                if scale.size > 1:
                    scale = scale.reshape([-1 if index == axis % values.ndim else 1 for index in range(values.ndim)])
                return np.asarray(values * scale)
        return None

    # --- what is left -------------------------------------------------------------------------------------

    def kept(self, removed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For every atom whether it stays when the groups of these labels go."""
        gone = np.zeros(self.tracer.count, bool)
        gone[removed] = True
        return ~gone[self.labels]

    def macs(self, kept: NDArray[np.bool_]) -> float:
        """Multiply-accumulates that are left."""
        total = 0.0
        for work in self.tracer.work:
            total += work.macs * math.prod(float(kept[axis].mean()) for axis in work.axes)
        return total

    def params(self, kept: NDArray[np.bool_]) -> int:
        """Stored weights that are left."""
        total = 0
        for name, tensor in self.tracer.stored.items():
            if tensor.data_type not in _NO_PARAMETERS:
                axes = self.tracer.axes[name]
                total += math.prod(tensor.dims if axes is None else (_left(kept, axis) for axis in axes))
        return total

    def without(self, removed: NDArray[np.int64]) -> onnx.ModelProto:
        """The graph without these groups: weights cut, and what names sizes or indices put right."""
        kept = self.kept(removed)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.value_info[:]
        for tensor in proto.graph.initializer:
            axes = self.tracer.axes[tensor.name] or ()
            if any(axis is not None and not kept[axis].all() for axis in axes):
                values = numpy_helper.to_array(tensor)
                for index, along in enumerate(axes):
                    if along is not None:
                        values = np.compress(kept[along], values, axis=index)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
        fresh = graphs.fresh_names(proto)
        for node in proto.graph.node:
            for place, value in self._rewritten(node, kept):
                if isinstance(place, str):
                    _set(node, place, value)
                else:
                    name = fresh(f"{graphs.node_label(node)}/pruned")
                    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
                    node.input.extend([""] * (place + 1 - len(node.input)))
                    node.input[place] = name
        return _unused_dropped(proto)

    def _rewritten(self, node: onnx.NodeProto, kept: NDArray[np.bool_]) -> Iterator[tuple[str | int, Array]]:
        """New values for attributes (by name) and stored inputs (by place) of a node that name sizes or indices."""
        look = self.tracer
        if node.domain not in ("", "ai.onnx"):
            return
        if node.op_type in ("Conv", "ConvTranspose"):
            group = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
            x = look.of(node.input[0])
            if group > 1 and x is not None and x[1] is not None and group == len(x[1]):
                yield "group", np.array(int(kept[x[1]].sum()))
        elif node.op_type == "Reshape":
            given, axes = look.value(node.input[1]), look.of(node.output[0])
            if given is not None and axes is not None:
                sizes = [
                    int(old) if old <= 0 or axis is None else int(kept[axis].sum()) for old, axis in zip(given, axes, strict=True)
                ]
                if sizes != given.tolist():
                    yield 1, np.array(sizes)
        elif node.op_type == "Split":
            yield from self._split(node, kept)
        elif node.op_type == "Slice":
            yield from self._slice(node, kept)
        elif node.op_type == "Gather":
            data, indices = look.of(node.input[0]), look.value(node.input[1])
            whole = data[_axis(node, 0) % len(data)] if data else None
            if whole is not None and indices is not None and not kept[whole].all():
                new = np.cumsum(kept[whole]) - 1
                flat = indices % len(whole)
                yield 1, new[flat[kept[whole][flat]]]

    def _split(self, node: onnx.NodeProto, kept: NDArray[np.bool_]) -> Iterator[tuple[str | int, Array]]:
        axes = self.tracer.of(node.input[0])
        axis = axes[_axis(node, 0) % len(axes)] if axes else None
        if axes is None or axis is None or kept[axis].all():
            return
        parts = [(self.tracer.of(name) or ())[_axis(node, 0) % len(axes)] for name in node.output]
        sizes = np.array([_left(kept, part) for part in parts])
        if self.tracer.opset < 13:
            yield "split", sizes
        else:
            yield 1, sizes
            yield "num_outputs", np.array([])

    def _slice(self, node: onnx.NodeProto, kept: NDArray[np.bool_]) -> Iterator[tuple[str | int, Array]]:
        axes, cuts = self.tracer.of(node.input[0]), slices(self.tracer, node)
        if axes is None or not cuts:
            return
        starts, ends = [], []
        changed = False
        for place, cut in cuts.items():
            axis = axes[place]
            assert axis is not None
            start, end, _ = cut.indices(len(axis))
            if cut.step != 1 or kept[axis].all():
                starts.append(cut.start)
                ends.append(np.iinfo(np.int64).min if cut.stop is None else cut.stop)
                continue
            changed = True
            starts.append(int(kept[axis[:start]].sum()))
            ends.append(int(kept[axis[:end]].sum()))
        if changed:
            attribute = self.tracer.opset < 10
            yield "starts" if attribute else 1, np.array(starts)
            yield "ends" if attribute else 2, np.array(ends)


def _left(kept: NDArray[np.bool_], axis: Axis) -> int:
    return 1 if axis is None else int(kept[axis].sum())


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), default)


def _set(node: onnx.NodeProto, name: str, value: Array) -> None:
    """An attribute's new value; an empty one takes it away."""
    rest = [attribute for attribute in node.attribute if attribute.name != name]
    if value.size:
        rest.append(helper.make_attribute(name, value.tolist()))
    copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in rest]
    del node.attribute[:]
    node.attribute.extend(copies)


def _unused_dropped(proto: onnx.ModelProto) -> onnx.ModelProto:
    used = {name for node in graphs.nodes(proto) for name in node.input} | {output.name for output in proto.graph.output}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in proto.graph.initializer if t.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def _constants_stored(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes become initialisers: weights, sizes and indices are looked for in one place."""
    if not any(node.op_type == "Constant" for node in proto.graph.node):
        return proto
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    made = ir.from_proto(proto)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(made)
    return ir.to_proto(made)
