"""LayerNormalization in integers: exact sums, a root from a table, and how far that is from exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import MissingExtra
from .graph import node_label
from .integer_curves import InverseRoot, LayerNorm
from .integer_draft import Constant, Draft, options
from .integer_program import Codes, Integers

try:
    import onnx
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

SHARE = 1 / 32
"""Of a step of the result: the most that the table, its rounding, epsilon and the cut behind the root may each be off."""
INSIDE_BITS = 62
LEAST_GAIN = 2.0**-40
"""Below which gains say nothing of how fine a root has to be."""
LEAST_CELL_BITS, LEAST_ROOT_BITS = 2, 4


@dataclass(frozen=True)
class _Sizes:
    """How fine everything inside is; `error` in results before the gain."""

    bits: int
    finer: int
    added: int
    root: tuple[int, int, int]
    error: float


def layer_norm(draft: Draft, node: onnx.NodeProto) -> None:
    """LayerNormalization over the last axis, with stored scale and bias; its note has its distance from exact sums and roots."""
    source, given = draft.source(node), options(node)
    shape = draft.shape(node, node.input[0])
    axis = int(given.get("axis", -1))
    if axis % len(shape) != len(shape) - 1 or not source.shape:
        raise draft.refuse(node, f"axis {axis} of {len(shape)}; allowed: the last", "transpose before and behind it")
    if [name for name in node.output[1:] if name and (name in draft.outputs or draft.readers.get(name))]:
        raise draft.refuse(node, "its mean or deviation is read; allowed: its result alone")
    count, epsilon = shape[-1], float(given.get("epsilon", np.float32(1e-5)))
    scale, added = draft.constant(node, 1), draft.constant(node, 2)
    for place, held in ((1, scale), (2, added)):
        if held is None and place < len(node.input) and node.input[place]:
            raise draft.refuse(node, f"{node.input[place]!r} is computed; allowed: stored values")
        if held is not None and held.codes.size not in (1, count):
            raise draft.refuse(node, f"{node.input[place]!r} has {held.codes.size} values; allowed: {count}")
    gain, bias = _row(draft, node, scale, count, 1), _row(draft, node, added, count, 0)
    exponent = min(rounded.exponent for rounded in draft.only_rounded(node))
    operation, made, inside = normalising(node_label(node), source, node.output[0], gain, bias, epsilon, exponent)
    if inside > INSIDE_BITS:
        raise draft.refuse(node, f"it needs {inside} bits inside; allowed: {INSIDE_BITS}", "give its input or result fewer bits")
    draft.known[made.name] = draft.add(node, operation, made, computes=True)
    draft.held(node_label(node), False)
    draft.notes.append(
        f"{node_label(node)}: layer normalisation by exact sums and a root from a table of {len(operation.root.base)} entries of "
        f"{operation.root.bits + 1} bits, before its rounding within {operation.error:.3f} steps of exact arithmetic; float32 "
        "has errors of its own"
    )


def normalising(
    node: str, source: Codes, result: str, gain: tuple[Integers, int], bias: tuple[Integers, int], epsilon: float, exponent: int
) -> tuple[LayerNorm, Codes, int]:
    """The operation, its result, and how many bits the widest number inside takes.

    Gain and bias are codes, one for each of a row, and the exponent of their step; `exponent` is that of the rounding behind.
    """
    count = source.shape[-1]
    (gains, gain_exponent), (biases, bias_exponent) = gain, bias
    most = int(np.abs(gains).max()) * 2.0**gain_exponent
    sizes = _sizes(source, count, epsilon, SHARE * 2.0**exponent / max(most, LEAST_GAIN))
    step = gain_exponent - sizes.bits
    step = min(step, bias_exponent) if biases.any() else step
    up, finer = gain_exponent - sizes.bits - step, bias_exponent - step
    root = InverseRoot.of(*sizes.root)
    greatest = math.ceil(_farthest(count) * (1 + root.error) * 2.0**sizes.bits) + 1
    top = _top(source, count, sizes)
    inside = 1 + max(
        2 * top + 2, ((count * max(-source.low, source.high)) ** 2).bit_length(),
        (count * (source.high - source.low) << root.bits).bit_length(), (greatest * int(np.abs(gains).max()) << up).bit_length(),
        int(np.abs(biases).max()).bit_length() + finer if biases.any() else 0,
    )  # fmt: skip
    if inside > INSIDE_BITS:
        finer = up = 0  # it is refused: all that is told of it is its width
    biases = biases << finer if biases.any() else biases
    reach = greatest * np.abs(gains) << up
    made = Codes(result, source.shape, step, int((biases - reach).min()), int((biases + reach).max()))
    error = sizes.error * most * 2.0**-exponent
    operation = LayerNorm(node, source.name, result, gains, biases, up, root, sizes.bits, sizes.finer, sizes.added, top, greatest,
                          epsilon, error)  # fmt: skip
    return operation, made, inside


def _row(draft: Draft, node: onnx.NodeProto, held: Constant | None, count: int, otherwise: int) -> tuple[Integers, int]:
    """Stored values, one for each of a row, and the exponent of their grid."""
    if held is None:
        return np.full(count, otherwise, np.int64), 0
    codes, exponent = draft.aligned(node, held)
    return np.array(np.broadcast_to(codes.ravel(), count), np.int64), exponent


def _farthest(count: int) -> float:
    """The greatest distance from the mean of `count` numbers, in their deviations."""
    return math.sqrt(max(count - 1, 0))


def _sizes(source: Codes, count: int, epsilon: float, each: float) -> _Sizes:
    """As coarse as leaves each of the four errors within `each`."""
    far = max(1.0, _farthest(count))
    bits = max(0, math.ceil(-math.log2(each)))
    wanted = count**2 * epsilon / source.step**2
    finer = 0
    while _off(wanted, count, finer) * far > each and finer < 12:
        finer += 1
    cell_bits = max(LEAST_CELL_BITS, math.ceil(math.log2(3 / 32 * far / each) / 2))
    part_bits = max(1, math.ceil(math.log2(0.5 * far / each)) - cell_bits)
    root_bits = max(LEAST_ROOT_BITS, math.ceil(math.log2(3 * far / each)), bits + finer)
    root = cell_bits, part_bits, root_bits
    rough, off = InverseRoot.of(*root).error, _off(wanted, count, finer)
    error = far * (rough + off + rough * off) + 2.0**-bits
    return _Sizes(bits, finer, _whole(wanted, finer), root, error)


def _whole(wanted: float, finer: int) -> int:
    """Epsilon on the grid of the spread; not 0, of which there is no root."""
    return max(1, round(wanted * 4.0**finer))


def _off(wanted: float, count: int, finer: int) -> float:
    """By how much a root is off, relative to it, because epsilon is whole: the least spread that is not 0 is count - 1."""
    apart = abs(_whole(wanted, finer) - wanted * 4.0**finer)
    least = max(1, count - 1) * 4.0**finer
    return apart / (2 * (least + min(_whole(wanted, finer), wanted * 4.0**finer)))


def _top(source: Codes, count: int, sizes: _Sizes) -> int:
    """The greatest k with 4**k <= w, or more where the table takes more bits than that."""
    spread = count**2 * (source.high - source.low) ** 2 // 4
    wide = (spread << 2 * sizes.finer) + sizes.added
    return max((wide.bit_length() - 1) // 2, -(-(sizes.root[0] + sizes.root[1]) // 2))
