"""Rules: what each operator does to the axes of its tensors. An operator without a rule pins all that it touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx

from .. import graph as graphs
from . import shape_rules
from .axes import Axes, Axis, Fold, Rule, Tracer, Work
from .shape_rules import number


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
    groups = number(node, "group", 1)
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
    m, k = a[::-1] if number(node, "transA", 0) else a
    again, n = b[::-1] if number(node, "transB", 0) else b
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
    first = number(node, "axis", -1) % len(axes)
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
    axis = number(node, "axis", default) % max(1, len(axes))
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
    if axes is None or unknown or (not given and number(node, "noop_with_empty_axes", 0)):
        look.give_up(node)
        return
    reduced = {index % len(axes) for index in given} if given else set(range(len(axes)))
    keep = number(node, "keepdims", 1)
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
    axis = number(node, "axis", 0) % len(axes)
    look.pin(axes[axis])
    rest: list[Axis] = list(axes)
    rest[axis : axis + 1] = [look.new(1)] if number(node, "keepdims", 1) else []
    look.set(node, rest)


def _quantised(look: Tracer, node: onnx.NodeProto) -> None:
    """QuantizeLinear and DequantizeLinear: scales of one axis go with it."""
    axes = look.of(node.input[0])
    if axes is None or number(node, "block_size", 0):
        look.give_up(node)
        return
    axis = number(node, "axis", 1) % max(1, len(axes))
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
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shape_rules.reshape),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantised),
    "MatMul": _matmul, "Gemm": _gemm, "Concat": shape_rules.concat, "Split": shape_rules.split,
    "Slice": shape_rules.cut, "Gather": shape_rules.gather, "Transpose": shape_rules.transpose, "Pad": shape_rules.pad,
    "Resize": shape_rules.resize,
}  # fmt: skip
"""By operator. `_along` before opset 13 takes all axes from its own on."""
