"""Weighted layers of an integer program: weights and biases on one grid, how wide their sums get, channels that stand still."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .errors import MissingExtra
from .graph import node_label
from .integer_draft import EXACT, WIDEST_BITS, Constant, Draft, Reach, Rounded, inner, options, trailing_zeros, unled
from .integer_program import Codes, Conv, Dense, Integers, Product, Shape, Sum

try:
    import onnx
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

_NO_GRID = 1 << 20
"""The exponent of a channel that is all zeros: any grid holds it."""
WIDE_BITS = 32
"""Of sums: beyond it, channels are looked for that make them wider than they need to be."""
_FLOAT_MARGIN = Fraction(1, 2**22)


def conv(draft: Draft, node: onnx.NodeProto) -> None:
    """Conv of (1, channels, *space), one or two dimensions of space."""
    source, given = draft.source(node), options(node)
    shape = draft.shape(node, node.input[0])
    space = shape[2:]
    if len(space) not in (1, 2):
        raise draft.refuse(node, f"it has {len(space)} dimensions of space; allowed: 1 or 2")
    if shape[0] != 1:
        raise draft.refuse(node, f"its input has {shape[0]} entries in the batch axis; allowed: 1")
    weight, bias = _weight(draft, node, 1), draft.constant(node, 2)
    if len(node.input) > 2 and node.input[2] and bias is None:
        raise draft.refuse(node, f"its bias {node.input[2]!r} is computed; allowed: stored values")
    kernel = weight.codes.shape[2:]
    if any(step != 1 for step in given.get("dilations", ())):
        raise draft.refuse(node, f"dilations {list(given['dilations'])}; allowed: 1", "train it with dilation 1")
    strides = tuple(given.get("strides", (1,) * len(space)))
    pads = padding(draft, node, space, kernel, strides)
    low, high = (min(source.low, 0), max(source.high, 0)) if any(pads) else (source.low, source.high)
    lines = _lines(draft, node, source, weight, bias, (low, high))
    result = node.output[0]
    made = Conv(node_label(node), source.name, result, lines.weight.reshape(weight.codes.shape), lines.bias, strides, pads,
                int(given.get("group", 1)))  # fmt: skip
    draft.known[result] = _finish(draft, node, made, lines, source)


def gemm(draft: Draft, node: onnx.NodeProto) -> None:
    """Gemm of computed rows and a stored matrix; what it adds may be stored in any shape, or computed."""
    given = options(node)
    if given.get("transA", 0):
        raise draft.refuse(node, "transA = 1; allowed: 0", "transpose its input by a node of its own")
    for name in ("alpha", "beta"):
        if given.get(name, 1.0) != 1.0:
            raise draft.refuse(node, f"{name} = {given[name]:g}; allowed: 1", "fold the factor into its weights")
    source, weight = draft.source(node), _weight(draft, node, 1)
    turned = weight if given.get("transB", 0) else _transposed(weight)
    outs = turned.codes.shape[0]
    added, result = draft.constant(node, 2), node.output[0]
    if added is None and len(node.input) > 2 and node.input[2]:
        product = dense(draft, node, source, turned, None, draft.fresh(f"{result}/product"), whole=False)
        total(draft, node, [(product, 1), (draft.source(node, 2), 1)], None)
    elif added is not None and max(added.codes.shape[:-1], default=1) > 1:
        product = dense(draft, node, source, turned, None, draft.fresh(f"{result}/product"), whole=False)
        total(draft, node, [(product, 1)], added)
    else:
        bias = None if added is None else Constant(_row(added.codes, outs), _row(added.exponents, outs))
        draft.known[result] = dense(draft, node, source, turned, bias, result)


def matmul(draft: Draft, node: onnx.NodeProto) -> None:
    """MatMul with a stored right side, or of two computed tensors."""
    if draft.constant(node, 0) is not None:
        raise draft.refuse(node, "its left side is stored; allowed: computed rows times a stored matrix", "transpose both sides")
    left, weight = draft.source(node), draft.constant(node, 1)
    if weight is not None:
        if weight.codes.ndim != 2 or not left.shape:
            raise draft.refuse(node, f"its stored side has {weight.codes.ndim} axes; allowed: 2", "take Gemm, or 2 axes")
        draft.known[node.output[0]] = dense(draft, node, left, _transposed(weight), None, node.output[0])
        return
    right = draft.source(node, 1)
    shapes = [draft.shape(node, name) for name in node.input[:2]]
    if min(map(len, shapes)) < 2:
        raise draft.refuse(node, "one side is a vector; allowed: matrices")
    rank = max(2, *(len(inner(shape)) for shape in shapes))
    left, right = (draft.reshaped(node, side, _to_rank(shape, rank)) for side, shape in zip((left, right), shapes, strict=True))
    wanted, terms = inner(draft.shape(node, node.output[0])), left.shape[-1]
    corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    made = _to_rank(draft.shape(node, node.output[0]), rank)
    result = node.output[0] if made == wanted else draft.fresh(f"{node.output[0]}/product")
    codes = Codes(result, made, left.exponent + right.exponent, min(corners) * terms, max(corners) * terms,
                  left.divisor * right.divisor)  # fmt: skip
    draft.add(node, Product(node_label(node), left.name, right.name, result, matmul=True), codes, computes=True)
    peak = max(-left.low, left.high) * max(-right.low, right.high) * terms
    draft.held(node_label(node), peak <= EXACT and codes.divisor == 1)
    if made != wanted:
        codes = draft.moved(node, codes, np.arange(codes.size), node.output[0], wanted)
    draft.known[node.output[0]] = codes


def dense(
    draft: Draft, node: onnx.NodeProto, source: Codes, weight: Constant, bias: Constant | None, result: str, whole: bool = True
) -> Codes:
    """Rows times a stored (outs, ins) matrix; `whole`: this is all that the node does."""
    lines = _lines(draft, node, source, weight, bias, (source.low, source.high), whole)
    return _finish(draft, node, Dense(node_label(node), source.name, result, lines.weight, lines.bias), lines, source)


def total(
    draft: Draft, node: onnx.NodeProto, sources: list[tuple[Codes, int]], constant: Constant | None, result: str = ""
) -> None:
    """The sum of tensors, each times a whole number, and of stored values: on the finest of their grids."""
    result = result or node.output[0]
    shape = inner(draft.shape(node, node.output[0]))
    divisor = int(np.lcm.reduce([codes.divisor for codes, _ in sources]))
    held, grid = (None, None) if constant is None else draft.aligned(node, constant)
    exponents = [codes.exponent for codes, _ in sources]
    exponent = min([*exponents, *([] if grid is None or held is None or not held.any() else [grid])])
    if max(exponents) - exponent > WIDEST_BITS:
        raise draft.refuse(node, f"its terms lie {max(exponents) - exponent} binary places apart; allowed: {WIDEST_BITS}")
    factors = tuple(sign * (divisor // codes.divisor) << codes.exponent - exponent for codes, sign in sources)
    low = high = 0
    for (codes, _), factor in zip(sources, factors, strict=True):
        ends = (codes.low * factor, codes.high * factor)
        low, high = low + min(ends), high + max(ends)
    added: Integers | None = None
    if held is not None and grid is not None and held.any():
        if int(np.abs(held).max()) * divisor << grid - exponent >= 1 << WIDEST_BITS:
            raise draft.refuse(node, f"its stored values take more than {WIDEST_BITS} bits on the grid of its terms")
        added = unled(held * divisor << grid - exponent, len(shape))
        low, high = low + int(added.min()), high + int(added.max())
    names = tuple(codes.name for codes, _ in sources)
    made = Codes(result, shape, exponent, low, high, divisor)
    draft.known[node.output[0]] = draft.add(node, Sum(node_label(node), names, factors, result, added), made, computes=True)
    draft.held(node_label(node), max(-low, high) <= EXACT and divisor == 1)


def padding(draft: Draft, node: onnx.NodeProto, space: Shape, kernel: Shape, strides: Shape) -> Shape:
    """Pads of a window, begins before ends, with auto_pad written out."""
    given = options(node)
    kind = given.get("auto_pad", b"NOTSET").decode()
    if kind == "VALID":
        return (0,) * (2 * len(space))
    if kind == "NOTSET":
        pads = tuple(given.get("pads", (0,) * (2 * len(space))))
        if min(pads, default=0) < 0:
            raise draft.refuse(node, f"pads {list(pads)}; allowed: 0 or more")
        return pads
    missing = [max(0, (-(-size // stride) - 1) * stride + width - size)
               for size, width, stride in zip(space, kernel, strides, strict=True)]  # fmt: skip
    less, more = tuple(size // 2 for size in missing), tuple(size - size // 2 for size in missing)
    return less + more if kind == "SAME_UPPER" else more + less


@dataclass(frozen=True, eq=False)
class _Lines:
    """A layer's weights (outs, terms) and biases on the grid of its sums, with the extremes and the reach of those."""

    weight: Integers
    bias: Integers
    exponent: int
    low: int
    high: int
    reach: Reach
    exact: bool


def _lines(
    draft: Draft, node: onnx.NodeProto, source: Codes, weight: Constant, bias: Constant | None, ends: tuple[int, int],
    whole: bool = True,
) -> _Lines:  # fmt: skip
    """Channels brought to one grid by shifting codes left. Where that makes them wide, channels that stand still on a finer grid
    than all others are replaced by their one value."""
    outs = weight.codes.shape[0]
    rows, grids = _rows(draft, node, weight)
    held = np.zeros((outs, 1), np.int64) if bias is None else bias.codes.reshape(outs, 1) * source.divisor
    places = np.zeros((outs, 1), np.int64) if bias is None else np.broadcast_to(bias.exponents, bias.codes.shape).reshape(outs, 1)
    zeros = trailing_zeros(held)
    held, places = held >> zeros, np.where(held != 0, places + zeros, _NO_GRID)[:, 0]
    grids = np.where((rows != 0).any(axis=1), grids + source.exponent, _NO_GRID)
    peak = max(-ends[0], ends[1], 1)
    sums = np.abs(rows).sum(axis=1).astype(np.float64) * peak
    if whole and _width(sums, grids, held[:, 0], places) > WIDE_BITS:
        _settle(draft, node, source, rows, grids, held, places, ends)
        sums = np.abs(rows).sum(axis=1).astype(np.float64) * peak
    own = np.minimum(grids, places)
    exponent = 0 if (own == _NO_GRID).all() else int(own.min())
    wide = _width(sums, grids, held[:, 0], places)
    if wide > WIDEST_BITS:
        raise draft.refuse(
            node,
            f"its sums take {wide} bits on one grid; allowed: {WIDEST_BITS}",
            "prune channels of vanishing weights, or take per_channel=false",
        )
    weight_shifts = np.where(grids == _NO_GRID, 0, grids - exponent)
    bias_shifts = np.where(places == _NO_GRID, 0, places - exponent)
    widest = sums * np.exp2(weight_shifts) + np.abs(held[:, 0]).astype(np.float64) * np.exp2(bias_shifts)
    rows, held = rows << weight_shifts[:, None], held << bias_shifts[:, None]
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    low = held[:, 0] + positive * ends[0] + negative * ends[1]
    high = held[:, 0] + positive * ends[1] + negative * ends[0]
    units = np.where(own == _NO_GRID, exponent, own)
    reach = Reach(units, widest * np.exp2(exponent - units.astype(np.float64)))
    fits = bool((reach.reach <= EXACT).all()) and source.divisor == 1
    return _Lines(rows, held[:, 0], exponent, int(low.min()), int(high.max()), reach, fits)


def _width(sums: Any, grids: Integers, held: Integers, places: Integers) -> int:
    """Bits of the widest sum, its sign included, with all channels on the finest of their grids."""
    finest = min(int(grids.min()), int(places.min()))
    logs = [np.log2(part[used]) + axis[used] - finest
            for part, axis, used in ((sums, grids, sums > 0), (np.abs(held).astype(np.float64), places, held != 0))]  # fmt: skip
    return int(np.ceil(max((float(log.max()) for log in logs if log.size), default=0.0))) + 2


def _settle(
    draft: Draft, node: onnx.NodeProto, source: Codes, rows: Integers, grids: Integers, held: Integers, places: Integers,
    ends: tuple[int, int],
) -> None:  # fmt: skip
    """Makes constants, in place, of the channels that stand still on grids finer than that of all others."""
    still = _still(draft, node, source, rows, grids, held[:, 0], places, ends)
    own = np.minimum(grids, places)
    moving = [int(own[out]) for out in range(len(rows)) if out not in still]
    finest = min(moving) if moving else _NO_GRID
    settled = [out for out in still if own[out] < finest]
    for out in settled:
        rounded, code = still[out]
        rows[out], grids[out] = 0, _NO_GRID
        held[out], places[out] = code, rounded.exponent if code else _NO_GRID
    if settled:
        draft.notes.append(f"{node_label(node)}: {len(settled)} of {len(rows)} channels are the same for every input")


def _still(
    draft: Draft, node: onnx.NodeProto, source: Codes, rows: Integers, grids: Integers, held: Integers, places: Integers,
    ends: tuple[int, int],
) -> dict[int, tuple[Rounded, int]]:  # fmt: skip
    """Channels whose rounded result is the same code for every input, with that code: weights far below what rounding keeps.

    Folding a batch norm of a dead channel makes such: their grid would make the sums of all others needlessly wide.
    """
    found = _rounded_next(draft, node)
    if found is None or source.divisor != 1:
        return {}
    rounded, relu = found
    result = {}
    for out in range(len(rows)):
        if grids[out] == _NO_GRID:
            continue
        bias = Fraction(int(held[out])) * Fraction(2) ** int(places[out]) if held[out] else Fraction(0)
        step = Fraction(2) ** int(grids[out])
        up, down = (int(np.maximum(sign * rows[out], 0).sum()) for sign in (1, -1))
        margin = abs(bias) * _FLOAT_MARGIN
        least = bias + 2 * min(0, up * ends[0] - down * ends[1]) * step - margin
        most = bias + 2 * max(0, up * ends[1] - down * ends[0]) * step + margin
        codes = {_rounded(value, rounded, relu) for value in (least, most)}
        if len(codes) == 1:
            result[out] = (rounded, codes.pop())
    return result


def _rounded_next(draft: Draft, node: onnx.NodeProto) -> tuple[Rounded, bool] | None:
    """The one rounding that follows, at once or behind a Relu (True), if nothing else reads the sums."""
    name, relu = node.output[0], False
    readers = draft.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type == "Relu" and name not in draft.roundings and name not in draft.outputs:
        name, relu = readers[0].output[0], True
        readers = draft.readers.get(name, [])
    if readers or name in draft.outputs or len(draft.roundings.get(name, [])) != 1:
        return None
    return draft.roundings[name][0], relu


def _rounded(value: Fraction, how: Rounded, relu: bool) -> int:
    scaled = (max(value, Fraction(0)) if relu else value) / Fraction(2) ** how.exponent
    half = Fraction(1, 2)
    whole = {"half_even": round(scaled), "half_up": (scaled + half).__floor__(), "truncate": scaled.__floor__()}[how.rounding]
    return min(max(whole, how.low), how.high)


def _rows(draft: Draft, node: onnx.NodeProto, weight: Constant) -> tuple[Integers, Integers]:
    """(outs, terms) codes, each row on a grid of its own, and the exponents of those grids."""
    codes = weight.codes.reshape(len(weight.codes), -1)
    exponents = np.broadcast_to(weight.exponents, weight.codes.shape).reshape(codes.shape)
    grids = np.where(codes != 0, exponents, _NO_GRID).min(axis=1, initial=_NO_GRID)
    shifts = np.where(codes != 0, exponents - grids[:, None], 0)
    if shifts.max(initial=0) > WIDEST_BITS - 32:
        raise draft.refuse(
            node, f"the scales of one channel lie {int(shifts.max())} binary places apart; allowed: {WIDEST_BITS - 32}"
        )
    return codes << shifts, grids


def _finish(draft: Draft, node: onnx.NodeProto, made: Dense | Conv, lines: _Lines, source: Codes) -> Codes:
    shape = inner(draft.shape(node, node.output[0])) if isinstance(made, Conv) else (*source.shape[:-1], len(lines.bias))
    codes = Codes(made.result, shape, lines.exponent, lines.low, lines.high, source.divisor)
    draft.reaches[made.result] = lines.reach
    draft.held(made.node, lines.exact)
    return draft.add(node, made, codes, computes=True)


def _weight(draft: Draft, node: onnx.NodeProto, index: int) -> Constant:
    found = draft.constant(node, index)
    if found is None:
        raise draft.refuse(node, f"its weights {node.input[index]!r} are computed; allowed: stored values")
    return found


def _transposed(weight: Constant) -> Constant:
    exponents = np.broadcast_to(weight.exponents, weight.codes.shape)
    return Constant(weight.codes.T, exponents.T)


def _row(values: Any, outs: int) -> Any:
    return np.broadcast_to(np.asarray(values).reshape(-1) if np.ndim(values) else values, (outs,))


def _to_rank(shape: Shape, rank: int) -> Shape:
    """The shape with axes of one in front dropped or added."""
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return (*(1,) * (rank - len(shape)), *shape)
