"""Rules of the operators that move, cut and join: which axes of what comes out are which of what went in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray

from .axes import Array, Axes, Axis, Fold, Tracer


def number(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute that is an integer."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def concat(look: Tracer, node: onnx.NodeProto) -> None:
    found = [look.of(name) for name in node.input]
    if any(axes is None for axes in found):
        look.give_up(node)
        return
    parts = cast("list[Axes]", found)
    axis = number(node, "axis", 1) % len(parts[0])
    result: list[Axis] = list(parts[0])
    for axes in parts[1:]:
        for index, (first, other) in enumerate(zip(parts[0], axes, strict=True)):
            if index != axis:
                look.tie(first, other)
    along = [axes[axis] for axes in parts]
    if any(part is None for part in along):
        look.give_up(node)
        return
    result[axis] = np.concatenate(cast("list[Array]", along))
    look.set(node, result)


def split(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    axis = number(node, "axis", 0) % len(axes) if axes else 0
    shapes = [look.shape(name) for name in node.output]
    whole = axes[axis] if axes else None
    sizes = [shape[axis] if shape is not None else None for shape in shapes]
    if axes is None or whole is None or not all(isinstance(size, int) for size in sizes):
        look.give_up(node)
        return
    begin = 0
    for name, size in zip(node.output, cast("list[int]", sizes), strict=True):
        part = list(axes)
        part[axis] = whole[begin : begin + size]
        begin += size
        look.axes[name] = tuple(part)
        _stays_alone(look, part[axis])


def _stays_alone(look: Tracer, axis: Axis) -> None:
    """A part of one index cannot lose it."""
    if axis is not None and len(axis) == 1:
        look.pin(axis)


def slices(look: Tracer, node: onnx.NodeProto) -> dict[int, slice] | None:
    """What a Slice takes along each axis that it cuts; None where that is not stored."""
    axes = look.of(node.input[0])
    if axes is None:
        return None
    starts, ends = look.ints(node, "starts", 1), look.ints(node, "ends", 2)
    places = look.ints(node, "axes", 3)
    steps = look.ints(node, "steps", 4)
    named = [len(node.input) > index and bool(node.input[index]) for index in (3, 4)]
    if starts is None or ends is None or (named[0] and places is None) or (named[1] and steps is None):
        return None
    places = list(range(len(starts))) if places is None else [place % len(axes) for place in places]
    steps = [1] * len(starts) if steps is None else steps
    found = {}
    for place, start, end, step in zip(places, starts, ends, steps, strict=True):
        axis = axes[place]
        if axis is None:
            return None
        end_or_none = None if step < 0 and end < -len(axis) else end
        found[place] = slice(start, end_or_none, step)
    return found


def cut(look: Tracer, node: onnx.NodeProto) -> None:
    axes, cuts = look.of(node.input[0]), slices(look, node)
    if axes is None or cuts is None:
        look.give_up(node)
        return
    result = list(axes)
    for place, cut in cuts.items():
        axis = axes[place]
        assert axis is not None
        part = axis[cut]
        if cut.step != 1:
            look.pin(axis)  # its bounds cannot be moved one by one
        result[place] = part
        _stays_alone(look, part)
    look.set(node, result)


def gather(look: Tracer, node: onnx.NodeProto) -> None:
    data, indices = look.of(node.input[0]), look.value(node.input[1])
    places = look.of(node.input[1])
    if data is None or places is None:
        look.give_up(node)
        return
    axis = number(node, "axis", 0) % len(data)
    whole = data[axis]
    if whole is not None and indices is not None and indices.ndim == 1 and node.input[0] not in look.constant:
        _stays_alone(look, whole[indices])
        if len(np.unique(indices)) == len(indices):
            look.set(node, [*data[:axis], whole[indices], *data[axis + 1 :]])
            return
    look.pin(whole)
    if indices is not None:
        look.pin_all(node.input[1])
    if node.input[0] in look.constant:  # an embedding
        look.produced += [found for index, found in enumerate(data) if index != axis and found is not None]
    look.set(node, [*data[:axis], *places, *data[axis + 1 :]])


def transpose(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    order = look.ints(node, "perm") or list(range(len(axes)))[::-1]
    look.set(node, [axes[place] for place in order])


def reshape(look: Tracer, node: onnx.NodeProto) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: axes of one size pass, products are folded."""
    axes, shape = look.of(node.input[0]), look.shape(node.output[0])
    if axes is None or shape is None or 0 in shape:
        look.give_up(node)
        return
    before, after = [_size(axis) for axis in axes], list(shape)
    result: list[Axis] = [look.new(1) if size == 1 else None for size in after]
    old = [index for index, size in enumerate(before) if size != 1]
    new = [index for index, size in enumerate(after) if size != 1]
    if old and new and before[old[0]] is None and not isinstance(after[new[0]], int):  # a dynamic batch
        old, new = old[1:], new[1:]
    if any(before[index] is None for index in old) or not all(isinstance(after[index], int) for index in new):
        look.give_up(node)
        return
    for some, others in _matched([cast("int", before[i]) for i in old], [cast("int", after[i]) for i in new]):
        factors = [cast("NDArray[np.int64]", axes[old[index]]) for index in some]
        sizes = [cast("int", after[new[index]]) for index in others]
        if len(factors) == 1 and len(sizes) == 1:
            made = factors
        else:
            flat = factors[0] if len(factors) == 1 else look.new(math.prod(len(factor) for factor in factors))
            made = [flat] if len(sizes) == 1 else [look.new(size) for size in sizes]
            if len(factors) > 1:
                look.folds.append(Fold(flat, tuple(factors)))
            if len(sizes) > 1:
                look.folds.append(Fold(flat, tuple(made)))
        for index, axis in zip(others, made, strict=True):
            result[new[index]] = axis
    if len(node.input) > 1:
        look.pin_all(node.input[1])
    look.set(node, result)


def _size(axis: Axis) -> int | None:
    return None if axis is None else len(axis)


def _matched(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of both that have the same product, as short as can be."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        some, others = [i], [j]
        left, right = a[i], b[j]
        while left != right:
            if left < right:
                some.append(some[-1] + 1)
                left *= a[some[-1]]
            else:
                others.append(others[-1] + 1)
                right *= b[others[-1]]
        found.append((some, others))
        i, j = some[-1] + 1, others[-1] + 1
    return found


def pad(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    pads = look.ints(node, "pads", 1)
    if axes is None or pads is None or (len(node.input) > 3 and node.input[3]):
        look.give_up(node)
        return
    result: list[Axis] = []
    for index, axis in enumerate(axes):
        if pads[index] or pads[index + len(axes)]:
            look.pin(axis)
            result.append(look.fresh(node.output[0], index))
        else:
            result.append(axis)
    look.set(node, result)


def resize(look: Tracer, node: onnx.NodeProto) -> None:
    axes, shape = look.of(node.input[0]), look.shape(node.output[0])
    if axes is None or shape is None:
        look.give_up(node)
        return
    sizes = len(node.input) > 3 and bool(node.input[3])
    result: list[Axis] = []
    for index, axis in enumerate(axes):
        channels = index == 1 and axis is not None and shape[1] == len(axis) and not sizes
        if not channels:
            look.pin(axis)
        result.append(axis if channels else look.fresh(node.output[0], index))
    look.set(node, result)
