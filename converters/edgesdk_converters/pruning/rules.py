"""Rules: what each operator does to the axes of its tensors. An operator without a rule pins all that it touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from .. import graph as graphs
from .axes import Array, Axes, Axis, Fold, Rule, Tracer, Work


def _options(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _number(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _same(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    look.give_up(node) if axes is None else look.set(node, axes)


def _broadcast(look: Tracer, node: onnx.NodeProto) -> None:
    """Elementwise on several tensors, numpy's broadcasting: axes that are not 1 long go together."""
    found = [look.of(name) for name in node.input if name]
    if any(axes is None for axes in found):
        look.give_up(node)
        return
    operands = cast("list[Axes]", found)
    computed = [name not in look.constant for name in node.input if name]
    order = sorted(range(len(operands)), key=lambda index: not computed[index])  # a weight's own atoms stay its own
    rank = max(len(axes) for axes in operands)
    result: list[Axis] = []
    for place in range(-rank, 0):
        along = [operands[index][place] for index in order if len(operands[index]) >= -place]
        long = [axis for axis in along if axis is None or len(axis) > 1]
        for axis in long[1:]:
            look.tie(long[0], axis)
        result.append(long[0] if long else look.new(1))
    look.set(node, result)


def _conv(look: Tracer, node: onnx.NodeProto) -> None:
    x, w = look.of(node.input[0]), look.of(node.input[1])
    if x is None or w is None or len(x) < 3 or any(axis is None for axis in (x[1], *w)):
        look.give_up(node)
        return
    channels, (out, inner, *kernel) = x[1], w
    assert channels is not None and out is not None and inner is not None
    groups = _number(node, "group", 1)
    if node.op_type == "ConvTranspose":
        out, inner = inner, out  # stored (in, out / groups): inner are all inputs, out those of one group
    result: Axis = out
    axes = [out, inner]
    if groups == 1:
        look.tie(channels, inner)
    elif groups == len(channels) and node.op_type == "Conv":
        look.tie(np.repeat(channels, len(out) // groups), out)  # depthwise: a channel goes with all that is made of it
        look.scaled.append(out)
        axes = [out]
    elif node.op_type == "ConvTranspose":
        look.give_up(node)
        return
    else:  # every group loses the same places, inside and out
        rows = look.new(groups, pin=True)
        look.folds.append(Fold(channels, (rows, inner)))
        look.folds.append(Fold(out, (rows, look.new(len(out) // groups))))
    if groups == 1 or len(inner) > 1:
        look.contracted.append(inner)
        look.produced.append(out)
    if len(node.input) > 2 and node.input[2]:
        bias = look.of(node.input[2])
        look.tie(bias[0] if bias else None, result)
    look.pin(x[0])
    for axis in (*x[2:], *kernel):
        look.pin(axis)
    spatial = [look.fresh(node.output[0], index) for index in range(2, len(x))]
    made: list[Axis] = [x[0], result, *spatial]
    look.set(node, made)
    pixels = math.prod(len(axis) for axis in (x[2:] if node.op_type == "ConvTranspose" else spatial) if axis is not None)
    fixed = pixels * math.prod(len(axis) for axis in kernel if axis is not None) * (1 if x[0] is None else len(x[0]))
    look.work.append(Work(graphs.node_label(node), fixed * math.prod(len(axis) for axis in axes), tuple(axes)))


def _matmul(look: Tracer, node: onnx.NodeProto) -> None:
    a, b = look.of(node.input[0]), look.of(node.input[1])
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        look.give_up(node)
        return
    (m, k), (again, n) = a[-2:], b[-2:]
    look.tie(k, again)
    _roles(look, node, (m, k), (again, n))
    batch: list[Axis] = []
    rank = max(len(a), len(b)) - 2
    for place in range(-rank, 0):
        along = [axes[place - 2] for axes in (a, b) if len(axes) - 2 >= -place]
        long = [axis for axis in along if axis is None or len(axis) > 1]
        for axis in long[1:]:
            look.tie(long[0], axis)
        batch.append(long[0] if long else look.new(1))
    if not any(name in look.constant for name in node.input):
        look.batched += [axis for axis in batch if axis is not None and len(axis) > 1]
    look.set(node, [*batch, m, n])
    _works(look, node, [*batch, m, k, n])


def _gemm(look: Tracer, node: onnx.NodeProto) -> None:
    a, b = look.of(node.input[0]), look.of(node.input[1])
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        look.give_up(node)
        return
    m, k = a[::-1] if _number(node, "transA", 0) else a
    again, n = b[::-1] if _number(node, "transB", 0) else b
    look.tie(k, again)
    _roles(look, node, (m, k), (again, n))
    if len(node.input) > 2 and node.input[2]:
        bias = look.of(node.input[2])
        if bias is None:
            look.pin(n)
            look.pin(m)
        else:
            for axis, whole in zip(bias[::-1], (n, m), strict=False):
                if axis is None or len(axis) > 1:
                    look.tie(axis, whole)
    look.set(node, [m, n])
    _works(look, node, [m, k, n])


def _roles(look: Tracer, node: onnx.NodeProto, a: Sequence[Axis], b: Sequence[Axis]) -> None:
    """Says which axes of a stored operand are summed over, and which become channels."""
    for name, inner, outer in ((node.input[0], a[1], a[0]), (node.input[1], b[0], b[1])):
        if name in look.constant and inner is not None and outer is not None:
            look.contracted.append(inner)
            look.produced.append(outer)


def _works(look: Tracer, node: onnx.NodeProto, axes: Sequence[Axis]) -> None:
    known = tuple(axis for axis in axes if axis is not None)
    look.work.append(Work(graphs.node_label(node), math.prod(len(axis) for axis in known), known))


def _per_channel(look: Tracer, node: onnx.NodeProto) -> None:
    """BatchNormalization and InstanceNormalization: parameters that go with the channels."""
    axes = look.of(node.input[0])
    if axes is None or len(axes) < 2:
        look.give_up(node)
        return
    for name in node.input[1:]:
        stored = look.of(name)
        look.tie(axes[1], stored[0] if stored else None)
    if node.op_type == "InstanceNormalization":
        for axis in axes[2:]:
            look.pin(axis)
    look.set(node, axes)


def _layer_norm(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    first = _number(node, "axis", -1) % len(axes)
    for name in filter(None, node.input[1:]):
        stored = look.of(name)
        for axis, whole in zip((stored or ())[::-1], axes[::-1], strict=False):
            if axis is None or len(axis) > 1:
                look.tie(axis, whole)
    if not look.normalised:
        for axis in axes[first:]:
            look.pin(axis)
    look.set(node, axes)


def _along(look: Tracer, node: onnx.NodeProto) -> None:
    """Softmax and the like: what is computed along an axis needs all of it."""
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    default = 1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and look.opset < 13 else -1
    axis = _number(node, "axis", default) % max(1, len(axes))
    for index, found in enumerate(axes):
        if index == axis or (look.opset < 13 and index > axis):
            look.pin(found)
    look.set(node, axes)


def _middle(look: Tracer, node: onnx.NodeProto) -> None:
    """What looks across channels."""
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    for axis in axes[1:]:
        look.pin(axis)
    for name in node.input[1:]:
        look.pin_all(name)
    look.set(node, axes)


def _pool(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    if axes is None or len(axes) < 3 or len([name for name in node.output if name]) > 1:
        look.give_up(node)
        return
    for axis in axes[2:]:
        look.pin(axis)
    look.set(node, [*axes[:2], *(look.fresh(node.output[0], index) for index in range(2, len(axes)))])


def _reduce(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    given = look.ints(node, "axes", 1)
    unknown = len(node.input) > 1 and node.input[1] and given is None
    if axes is None or unknown or (not given and _number(node, "noop_with_empty_axes", 0)):
        look.give_up(node)
        return
    reduced = {index % len(axes) for index in given} if given else set(range(len(axes)))
    keep = _number(node, "keepdims", 1)
    result: list[Axis] = []
    for index, axis in enumerate(axes):
        if index not in reduced:
            result.append(axis)
            continue
        if not (look.normalised and node.op_type == "ReduceMean"):
            look.pin(axis)
        if keep:
            result.append(look.new(1))
    look.set(node, result)


def _arg(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    axis = _number(node, "axis", 0) % len(axes)
    look.pin(axes[axis])
    rest: list[Axis] = list(axes)
    rest[axis : axis + 1] = [look.new(1)] if _number(node, "keepdims", 1) else []
    look.set(node, rest)


def _concat(look: Tracer, node: onnx.NodeProto) -> None:
    found = [look.of(name) for name in node.input]
    if any(axes is None for axes in found):
        look.give_up(node)
        return
    parts = cast("list[Axes]", found)
    axis = _number(node, "axis", 1) % len(parts[0])
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


def _split(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    axis = _number(node, "axis", 0) % len(axes) if axes else 0
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


def _slice(look: Tracer, node: onnx.NodeProto) -> None:
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


def _gather(look: Tracer, node: onnx.NodeProto) -> None:
    data, indices = look.of(node.input[0]), look.value(node.input[1])
    places = look.of(node.input[1])
    if data is None or places is None:
        look.give_up(node)
        return
    axis = _number(node, "axis", 0) % len(data)
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


def _transpose(look: Tracer, node: onnx.NodeProto) -> None:
    axes = look.of(node.input[0])
    if axes is None:
        look.give_up(node)
        return
    order = look.ints(node, "perm") or list(range(len(axes)))[::-1]
    look.set(node, [axes[place] for place in order])


def _reshape(look: Tracer, node: onnx.NodeProto) -> None:
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


def _pad(look: Tracer, node: onnx.NodeProto) -> None:
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


def _resize(look: Tracer, node: onnx.NodeProto) -> None:
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


def _quantised(look: Tracer, node: onnx.NodeProto) -> None:
    """QuantizeLinear and DequantizeLinear: scales of one axis go with it."""
    axes = look.of(node.input[0])
    if axes is None or _number(node, "block_size", 0):
        look.give_up(node)
        return
    axis = _number(node, "axis", 1) % max(1, len(axes))
    for name in filter(None, node.input[1:]):
        steps = look.of(name)
        if steps and (steps[0] is None or len(steps[0]) > 1):
            look.tie(axes[axis], steps[0])
    look.set(node, axes)


_SAME = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Mish", "Softplus",
    "Softsign", "ThresholdedRelu", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Identity", "Cast", "Sin", "Cos", "Tan",
    "Floor", "Ceil", "Round", "Sign", "Not", "IsNaN", "IsInf", "Swish", "Dropout", "Shrink", "Atan", "Sinh", "Cosh",
)  # fmt: skip
_BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "PRelu", "Clip", "Equal", "Greater", "Less",
    "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Mod",
)  # fmt: skip
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _along),
    **dict.fromkeys(("LRN", "GroupNormalization"), _middle),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pool),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
         "ReduceLogSum", "ReduceLogSumExp"), _reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantised),
    "MatMul": _matmul, "Gemm": _gemm, "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather,
    "Transpose": _transpose, "Pad": _pad, "Resize": _resize,
}  # fmt: skip
"""By operator. `_along` before opset 13 takes all axes from its own on."""
