"""What each ONNX operator is in integers: one rule an operator; what has none is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from . import integer_layers as layers
from . import integer_moves as moves
from . import integer_norm as norm
from . import integer_tables as tables
from .errors import MissingExtra
from .graph import node_label
from .integer_draft import EXACT, FIXED_HINT, Constant, Draft, Reach, dyadic, inner, options, power_of_two, unled
from .integer_program import ArgMax, Clip, Codes, Leaky, Pool, Product, Scale, Shape

try:
    import onnx
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

SLOPE_BITS = 16
HINT_BITS = 8


def add(draft: Draft, node: onnx.NodeProto) -> None:
    """Add, Sub, Sum of computed and stored tensors."""
    sources: list[tuple[Codes, int]] = []
    constant: Constant | None = None
    for index in range(len(node.input)):
        sign = -1 if node.op_type == "Sub" and index == 1 else 1
        found = draft.constant(node, index)
        if found is None:
            sources.append((draft.source(node, index), sign))
        elif constant is not None or len(node.input) < 2:
            raise draft.refuse(
                node, "it sums stored values alone, or several; allowed: one stored", "let the fold pass compute them"
            )
        else:
            constant = Constant(sign * found.codes, found.exponents)
    layers.total(draft, node, sources, constant)


def multiply(draft: Draft, node: onnx.NodeProto) -> None:
    """Mul by stored values or of two computed tensors."""
    for index in range(2):
        constant = draft.constant(node, index)
        if constant is not None:
            _scaled(draft, node, draft.source(node, 1 - index), constant)
            return
    left, right = draft.source(node), draft.source(node, 1)
    corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    low = 0 if left is right and min(corners) < 0 else min(corners)
    made = Codes(node.output[0], inner(draft.shape(node, node.output[0])), left.exponent + right.exponent, low, max(corners),
                 left.divisor * right.divisor)  # fmt: skip
    operation = Product(node_label(node), left.name, right.name, made.name)
    draft.known[made.name] = draft.add(node, operation, made, computes=True)
    draft.held(node_label(node), max(-min(corners), max(corners)) <= EXACT and made.divisor == 1)


def divide(draft: Draft, node: onnx.NodeProto) -> None:
    """Div by a stored power of two."""
    constant = draft.constant(node, 1)
    values = None if constant is None else constant.codes * np.exp2(constant.exponents.astype(np.float64))
    if values is None or any(power_of_two(float(value)) is None for value in values.ravel()):
        raise draft.refuse(node, "it divides by what is no stored power of two", "multiply by the reciprocal")
    inverse = dyadic(1 / values)
    if inverse is None:
        raise draft.refuse(node, "its stored values lie more than 16 binary places apart")
    _scaled(draft, node, draft.source(node), inverse)


def negate(draft: Draft, node: onnx.NodeProto) -> None:
    _scaled(draft, node, draft.source(node), Constant(np.asarray(-1, np.int64), np.asarray(0)))


def _scaled(draft: Draft, node: onnx.NodeProto, source: Codes, constant: Constant) -> None:
    held, grid = draft.aligned(node, constant)
    shape = inner(draft.shape(node, node.output[0]))
    ends = [int(factor) * end for factor in (held.min(), held.max()) for end in (source.low, source.high)]
    made = Codes(node.output[0], shape, source.exponent + grid, min(ends), max(ends), source.divisor)
    operation = Scale(node_label(node), source.name, made.name, unled(held, len(shape)))
    draft.known[made.name] = draft.add(node, operation, made, computes=True)
    draft.held(node_label(node), max(-made.low, made.high) <= EXACT and made.divisor == 1)


def clip(draft: Draft, node: onnx.NodeProto) -> None:
    """Relu and Clip, whose bounds lie on the grid."""
    source = draft.source(node)
    low, high = (0.0, math.inf) if node.op_type == "Relu" else _bounds(draft, node)
    codes: list[int | None] = []
    for bound, name in ((low, "lower"), (high, "upper")):
        code = bound * source.divisor * 2.0**-source.exponent if math.isfinite(bound) else bound
        if math.isfinite(code) and not code.is_integer():
            raise draft.refuse(
                node, f"its {name} bound {bound:g} is no multiple of the step {source.step:g} of its input",
                "take a bound that is, such as a power of two",
            )  # fmt: skip
        codes.append(int(code) if math.isfinite(code) and abs(code) < 2.0**62 else None)
    least, most = codes
    if (least is not None and most is not None and least > most) or low == math.inf or high == -math.inf:
        raise draft.refuse(node, f"its bounds are {low:g} and {high:g}; allowed: the lower first")

    def clipped(code: int) -> int:
        code = code if least is None else max(code, least)
        return code if most is None else min(code, most)

    made = replace(source, name=node.output[0], low=clipped(source.low), high=clipped(source.high))
    _like(draft, source, made)
    draft.known[made.name] = draft.add(node, Clip(node_label(node), source.name, made.name, least, most), made)


def _bounds(draft: Draft, node: onnx.NodeProto) -> tuple[float, float]:
    if draft.opset < 11:
        given = options(node)
        return float(given.get("min", -math.inf)), float(given.get("max", math.inf))
    found = []
    for index, missing in ((1, -math.inf), (2, math.inf)):
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            found.append(missing)
        elif name in draft.stored:
            found.append(float(draft.stored[name]))
        else:
            constant = draft.constant(node, index)
            if constant is None:
                raise draft.refuse(node, f"its bound {name!r} is computed; allowed: stored values")
            found.append(float(constant.codes * np.exp2(constant.exponents.astype(np.float64))))
    return found[0], found[1]


def leaky(draft: Draft, node: onnx.NodeProto) -> None:
    """LeakyRelu whose slope is a fraction of a power of two."""
    source, alpha = draft.source(node), float(options(node).get("alpha", np.float32(0.01)))
    numerator, denominator = alpha.as_integer_ratio()
    if numerator.bit_length() > SLOPE_BITS:
        scale = 2 ** (HINT_BITS - math.frexp(alpha)[1])
        raise draft.refuse(
            node, f"its slope {alpha:g} has {abs(numerator).bit_length()} significant bits; allowed: {SLOPE_BITS}",
            f"take the nearest of {HINT_BITS} bits, {round(alpha * scale)}/{scale} = {round(alpha * scale) / scale:g}",
        )  # fmt: skip
    shift = denominator.bit_length() - 1
    ends = [source.low * numerator if source.low < 0 else source.low << shift,
            source.high * numerator if source.high < 0 else source.high << shift]  # fmt: skip
    if source.low < 0 <= source.high:
        ends.append(0)
    made = replace(source, name=node.output[0], exponent=source.exponent - shift, low=min(ends), high=max(ends))
    operation = Leaky(node_label(node), source.name, made.name, numerator, shift)
    reach = draft.reach(source)  # positive values stay on their grid
    both = Reach(np.append(reach.exponents, reach.exponents - shift), np.append(reach.reach, reach.reach * abs(numerator)))
    draft.reaches[made.name] = both
    draft.held(node_label(node), bool((both.reach <= EXACT).all()) and source.divisor == 1)
    draft.known[made.name] = draft.add(node, operation, made, computes=True)


def pool(draft: Draft, node: onnx.NodeProto) -> None:
    """MaxPool and AveragePool over one or two dimensions of space."""
    source, given = draft.source(node), options(node)
    shape = draft.shape(node, node.input[0])
    space, kernel = shape[2:], tuple(given["kernel_shape"])
    if len(space) not in (1, 2) or shape[0] != 1:
        raise draft.refuse(node, f"its input is {'x'.join(map(str, shape))}; allowed: 1, channels, 1 or 2 dimensions of space")
    if any(step != 1 for step in given.get("dilations", ())):
        raise draft.refuse(node, f"dilations {list(given['dilations'])}; allowed: 1")
    if len(node.output) > 1 and node.output[1]:
        raise draft.refuse(node, "it gives the places of its maxima; allowed: their values")
    strides = tuple(given.get("strides", (1,) * len(kernel)))
    pads = layers.padding(draft, node, space, kernel, strides)
    rank = len(kernel)
    floors = tuple((space[i] + pads[i] + pads[i + rank] - kernel[i]) // strides[i] + 1 for i in range(rank))
    if floors != draft.shape(node, node.output[0])[2:]:
        raise draft.refuse(
            node, "ceil_mode makes windows that reach beyond the pads; allowed: 0", "pad its input to whole windows"
        )
    if node.op_type == "MaxPool":
        made = replace(source, name=node.output[0], shape=(shape[1], *floors))
        _like(draft, source, made)
        operation = Pool(node_label(node), source.name, made.name, "max", kernel, strides, pads)
        draft.known[made.name] = draft.add(node, operation, made)
        return
    if any(pads):
        if not given.get("count_include_pad", 0):
            raise draft.refuse(
                node, "it pads and does not count the pads: its windows have several sizes", "count_include_pad = 1"
            )
        places = np.pad(np.arange(source.size).reshape(source.shape), [(0, 0), *_pairs(pads)], constant_values=-1)
        source = draft.moved(node, source, places, draft.fresh(f"{node.output[0]}/padded"), places.shape)
    _pooled(draft, node, source, kernel, strides, "mean", node.output[0])


def _pairs(pads: Shape) -> list[tuple[int, int]]:
    rank = len(pads) // 2
    return [(pads[axis], pads[axis + rank]) for axis in range(rank)]


def _pooled(draft: Draft, node: onnx.NodeProto, source: Codes, kernel: Shape, strides: Shape, how: str, result: str) -> Codes:
    """Maximum, sum or mean over windows without pads."""
    out = tuple((size - width) // stride + 1 for size, width, stride in zip(source.shape[1:], kernel, strides, strict=True))
    count = math.prod(kernel) if how != "max" else 1
    halvings = (count & -count).bit_length() - 1 if how == "mean" else 0
    odd = count >> halvings if how == "mean" else 1
    made = Codes(result, (source.shape[0], *out), source.exponent - halvings, source.low * count, source.high * count,
                 source.divisor * odd)  # fmt: skip
    label = node_label(node)
    if how == "max":
        _like(draft, source, made)
        operation = Pool(label, source.name, result, "max", kernel, strides, (0,) * (2 * len(kernel)))
        draft.known[result] = draft.add(node, operation, made)
        return made
    operation = Pool(label, source.name, result, "sum", kernel, strides, (0,) * (2 * len(kernel)))
    draft.held(label, max(-made.low, made.high) <= EXACT and source.divisor == 1)
    draft.known[result] = draft.add(node, operation, made, computes=True)
    return made


def global_pool(draft: Draft, node: onnx.NodeProto) -> None:
    """GlobalAveragePool, GlobalMaxPool."""
    rank = len(draft.shape(node, node.input[0]))
    _reduced(draft, node, tuple(range(2, rank)), True, "max" if node.op_type == "GlobalMaxPool" else "mean")


def reduce(draft: Draft, node: onnx.NodeProto) -> None:
    """ReduceMean, ReduceSum, ReduceMax over any axes but the batch."""
    given, rank = options(node), len(draft.shape(node, node.input[0]))
    axes = draft.ints(node, 1) if "axes" not in given else list(given["axes"])
    if not axes and given.get("noop_with_empty_axes", 0):
        raise draft.refuse(node, "it reduces no axis", "let the fold pass drop it")
    chosen = tuple(sorted(axis % rank for axis in axes or range(rank)))
    how = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}[node.op_type]
    _reduced(draft, node, chosen, bool(given.get("keepdims", 1)), how)


def _reduced(draft: Draft, node: onnx.NodeProto, axes: Shape, keep: bool, how: str) -> None:
    source, shape = draft.source(node), draft.shape(node, node.input[0])
    gone = len(shape) - len(source.shape)
    if gone and 0 in axes:
        raise draft.refuse(node, "it reduces the batch axis; allowed: all others")
    axes = tuple(axis - gone for axis in axes)
    result, wanted = node.output[0], inner(draft.shape(node, node.output[0]))
    kept = tuple(axis for axis in range(len(source.shape)) if axis not in axes)
    if axes == tuple(range(1, len(source.shape))) and len(axes) in (1, 2):
        lined = source
    else:
        places = np.arange(source.size).reshape(source.shape).transpose(*kept, *axes)
        lengths = (math.prod(source.shape[axis] for axis in kept), math.prod(source.shape[axis] for axis in axes))
        lined = draft.moved(node, source, places.reshape(lengths), draft.fresh(f"{result}/lined"), lengths)
    rank = len(lined.shape) - 1
    same = wanted == (lined.shape[0], *(1,) * rank)
    name = result if same else draft.fresh(f"{result}/reduced")
    made = _pooled(draft, node, lined, lined.shape[1:], (1,) * rank, how, name)
    if not same:
        draft.known[result] = draft.moved(node, made, np.arange(made.size), result, wanted)


def argmax(draft: Draft, node: onnx.NodeProto) -> None:
    source, given = draft.source(node), options(node)
    shape = draft.shape(node, node.input[0])
    gone = len(shape) - len(source.shape)
    axis = int(given.get("axis", 0)) % len(shape)
    if gone and axis == 0:
        raise draft.refuse(node, "it looks along the batch axis; allowed: all others")
    if given.get("select_last_index", 0):
        raise draft.refuse(node, "select_last_index = 1; allowed: 0, the first of equal ones")
    made = Codes(node.output[0], inner(draft.shape(node, node.output[0])), 0, 0, shape[axis] - 1)
    operation = ArgMax(node_label(node), source.name, made.name, axis - gone, bool(given.get("keepdims", 1)))
    draft.known[made.name] = draft.add(node, operation, made)


def batch_norm(draft: Draft, node: onnx.NodeProto) -> None:
    """None is left where a model was made fixed point by this SDK, unless it was kept or counts on its batch."""
    if options(node).get("training_mode", 0):
        told = "training_mode = 1: its statistics are those of each batch"
        raise draft.refuse(node, told, "export the model for evaluation, in torch after model.eval()")
    raise draft.refuse(node, "its statistics are float: they were rounded nowhere", FIXED_HINT)


def _like(draft: Draft, source: Codes, made: Codes) -> None:
    """What is clipped or chosen lies on the grids that it came from."""
    if source.name in draft.reaches:
        draft.reaches[made.name] = draft.reaches[source.name]


RULES: Mapping[str, Callable[[Draft, onnx.NodeProto], None]] = {
    "Conv": layers.conv, "Gemm": layers.gemm, "MatMul": layers.matmul, "Add": add, "Sub": add, "Sum": add, "Mul": multiply,
    "Div": divide, "Neg": negate, "Relu": clip, "Clip": clip, "LeakyRelu": leaky, "MaxPool": pool, "AveragePool": pool,
    "GlobalAveragePool": global_pool, "GlobalMaxPool": global_pool,
    "ReduceMean": reduce, "ReduceSum": reduce, "ReduceMax": reduce,
    "ArgMax": argmax, "Softmax": tables.softmax, "LayerNormalization": norm.layer_norm, "BatchNormalization": batch_norm,
    **dict.fromkeys(tables.FUNCTIONS, tables.function), **dict.fromkeys(moves.OPERATORS, moves.move),
}  # fmt: skip
_RECURRENT = ("its state goes around inside one node, where nothing says how it is rounded", "unroll it into layers")
REASONS: Mapping[str, tuple[str, str]] = {
    "PRelu": ("its slope for each channel has no integer form here", "train with LeakyRelu or Relu instead"),
    "LogSoftmax": ("there is no exact integer form of this operator", "end with Softmax, or before it: the greatest stays so"),
    "Cast": ("there is no exact integer form of this operator", "begin behind it, or end before it, in float32"),
    "ConvTranspose": ("a transposed convolution has no integer form here", "resize by nearest and convolve"),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    **dict.fromkeys(
        ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"),
        ("it computes on integers of a form that is not fixed point", FIXED_HINT),
    ),
}
"""Why some operators have no rule, and what to do instead."""
