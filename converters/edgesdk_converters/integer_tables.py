"""Functions of one code as tables: of a narrow one every value, of a wider one straight lines between some; and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .errors import MissingExtra
from .graph import node_label
from .integer_curves import RAMPS, TABLE_BITS, TURNED, Curve
from .integer_draft import FIXED_HINT, Array, Draft, Rounded, options
from .integer_program import Codes, Integers, Round, Softmax, Table
from .model import Model
from .reference import Reference

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

FUNCTIONS = (
    "Sigmoid", "Tanh", "Gelu", "Erf", "HardSwish", "HardSigmoid", "Elu", "Selu", "Celu", "Exp", "Log", "Sqrt", "Softplus",
    "Softsign", "Mish", "Reciprocal", "Abs", "Sin", "Cos", "ThresholdedRelu",
)  # fmt: skip
CURVE_BITS = 16
"""Of the widest code of which a function is drawn by straight lines."""
CURVE_ERROR = 1 / 8
"""Of a step of the result: the most that straight lines are off before their rounding."""
MOST_CURVE_BITS = 24
"""Behind the point of a curve's entries: ONNX Runtime's floats tell no more."""
MOST_LINES = 1 << TABLE_BITS
GUARD_BITS = 3
"""Of softmax: its table and sum err by at most 2**-GUARD_BITS / 2 of a step of the result before that is rounded."""


def function(draft: Draft, node: onnx.NodeProto) -> None:
    """A table of what ONNX Runtime computes for each code, rounded as the graph rounds it; beyond 12 bits, straight lines."""
    source = draft.source(node)
    if TABLE_BITS < source.bits <= CURVE_BITS and source.divisor == 1 and node.op_type in (*RAMPS, *TURNED):
        curve(draft, node, source)
        return
    source = narrow(draft, node)
    for rounded in draft.only_rounded(node):
        codes = np.arange(source.low, source.high + 1, dtype=np.int64)
        values = _computed(node, (codes * source.step).astype(np.float32), draft.opset)
        whole = _whole(values, rounded)
        if np.isnan(whole).any():
            first = float(codes[np.isnan(whole)][0] * source.step)
            raise draft.refuse(node, f"it is not defined for {first:g}, which its input can be", "keep its input in its domain")
        held = np.clip(whole, rounded.low, rounded.high).astype(np.int64)
        made = Codes(rounded.result, source.shape, rounded.exponent, int(held.min()), int(held.max()))
        table = Table(node_label(node), source.name, rounded.result, node.op_type, held)
        draft.known[rounded.result] = draft.add(node, table, made)


def curve(draft: Draft, node: onnx.NodeProto, source: Codes) -> None:
    """A function by straight lines, as few as keep within an eighth of a step of the rounding behind, for every code."""
    exponent = min(rounded.exponent for rounded in draft.only_rounded(node))

    def computed(values: Array) -> Array:
        return _computed(node, values.astype(np.float32), draft.opset).astype(np.float64)

    found, codes = drawn(node_label(node), source, node.output[0], node.op_type, computed, exponent)
    if found.error > CURVE_ERROR:
        told = f"straight lines come within {found.error:.3f} steps of it, allowed: {CURVE_ERROR:g}"
        raise draft.refuse(node, told, f"give it {TABLE_BITS} bits")
    if len(found.base) > MOST_LINES:
        told = f"it takes {len(found.base):,} straight lines; allowed: {MOST_LINES:,}"
        raise draft.refuse(node, told, f"give it {TABLE_BITS} bits")
    draft.known[codes.name] = draft.add(node, found, codes, computes=True)
    draft.held(node_label(node), False)
    what = "ReLU and a curve" if node.op_type in RAMPS else "a curve"
    draft.notes.append(
        f"{node_label(node)}: {node.op_type} of {source.bits} bits by {what} of {len(found.base)} straight lines, before its "
        f"rounding within {found.error:.3f} steps of ONNX Runtime's for every code; its codes may differ by one"
    )


def drawn(
    node: str, source: Codes, result: str, function: str, computed: Callable[[Array], Array], exponent: int
) -> tuple[Curve, Codes]:
    """The curve of one of RAMPS or TURNED with the fewest lines within CURVE_ERROR, or else as near as it comes."""
    every = np.arange(source.low, source.high + 1, dtype=np.int64)
    wanted = computed(every * source.step)
    odd, middle = function in TURNED, TURNED.get(function, 0.0)
    last = max(-source.low, source.high)
    sizes = np.arange((1 << last.bit_length()) + 1, dtype=np.int64)  # so that the last line has an end too
    ends = computed((sizes if odd else -sizes) * source.step) - middle
    bits = min(MOST_CURVE_BITS, max(0, math.ceil(-math.log2(CURVE_ERROR / 4) - exponent)))
    for shift in reversed(range(source.bits)):
        behind = max(bits, -source.exponent - shift)
        base = np.rint(ends[: ((last >> shift) + 1 << shift) + 1 : 1 << shift] * 2.0**behind).astype(np.int64)
        base = base[: np.flatnonzero(base != base[-1]).max(initial=-1) + 2]  # those at the end that are alike are one
        slope = np.append(base[1:] - base[:-1], 0)
        ramp = 0 if odd else 1 << source.exponent + behind + shift
        offset = round(middle * 2.0 ** (behind + shift))
        found = Curve(node, source.name, result, function, base, slope, shift, ramp, offset, odd, 0.0)
        made = found.of(every)
        off = float(np.abs(made * 2.0 ** -(behind + shift) - wanted).max()) * 2.0**-exponent
        if off <= CURVE_ERROR:
            break
    return replace(found, error=off), Codes(result, source.shape, -(behind + shift), int(made.min()), int(made.max()))


def softmax(draft: Draft, node: onnx.NodeProto) -> None:
    """Softmax over the last axis. Its results differ from the rounded exact ones by at most one code: see `softmax_error`."""
    source = narrow(draft, node)
    shape = draft.shape(node, node.input[0])
    axis = int(options(node).get("axis", -1 if draft.opset >= 13 else 1))
    if axis % len(shape) != len(shape) - 1 or not source.shape:
        raise draft.refuse(node, f"axis {axis} of {len(shape)}; allowed: the last", "transpose before and behind it")
    for rounded in draft.only_rounded(node):
        if rounded.exponent > 0:
            raise draft.refuse(node, f"its result is rounded to steps of {2**rounded.exponent}; allowed: up to 1")
        finer = 8 if rounded.rounding == "truncate" else 0  # a table rounds to the nearest; the graph's own cut follows
        shift = finer - rounded.exponent
        bits = shift + math.ceil(math.log2(shape[-1])) + GUARD_BITS
        if bits + shift > 60:
            raise draft.refuse(node, f"it needs {bits + shift} bits inside; allowed: 60", "give its result fewer bits")
        values = powers(source, bits)
        top = min(rounded.high << finer, 1 << shift)
        made = Codes(rounded.result, source.shape, -shift, 0, top)
        if finer:
            made = replace(made, name=draft.fresh(f"{rounded.result}/finer"))
        draft.add(node, Softmax(node_label(node), source.name, made.name, values, shift), made)
        if finer:
            cut = Codes(rounded.result, source.shape, rounded.exponent, 0, top >> finer)
            made = draft.add(node, Round(rounded.node, made.name, rounded.result, "truncate"), cut)
        draft.known[rounded.result] = made
        draft.notes.append(
            f"{node_label(node)}: softmax by a table of {len(values)} entries of {bits + 1} bits, before its rounding within "
            f"{softmax_error(values, shape[-1], -rounded.exponent):.3f} steps of the exact one; its codes may differ by one"
        )
    draft.held(node_label(node), False)


def softmax_error(values: Integers, count: int, shift: int) -> float:
    """The most by which the quotient of a softmax of `count` elements differs from the exact one, in steps of 2**-shift.

    With powers off by at most h of 2**f, f bits behind the point, and the greatest exact: h * (1 + (count - 1)) / 2**f.
    """
    return 0.5 * count * 2.0**shift / float(values[0])


def narrow(draft: Draft, node: onnx.NodeProto) -> Codes:
    """The source of a table. Raises Unsupported for one that is too wide."""
    source = draft.source(node)
    if source.bits > TABLE_BITS or source.divisor != 1:
        raise draft.refuse(
            node,
            f"its input is {source.bits} bits wide; a table takes up to {TABLE_BITS}{_curves(node)}",
            f"round its input first; {FIXED_HINT}",
        )
    return source


def _curves(node: onnx.NodeProto) -> str:
    return f", straight lines up to {CURVE_BITS}" if node.op_type in (*RAMPS, *TURNED) else ""


def powers(source: Codes, bits: int) -> Integers:
    """exp(-d * step) * 2**bits for d = 0, 1, ... up to the last that is not zero or that differs two codes of the source."""
    below = np.arange(source.high - source.low + 1)
    found = np.rint(np.exp(-below * source.step) * 2.0**bits).astype(np.int64)
    return np.asarray(found[: int(np.count_nonzero(found))], np.int64)


def _computed(node: onnx.NodeProto, values: Array, opset: int) -> Array:
    """What ONNX Runtime makes of values by one node."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    one.input[0], one.output[0] = "x", "y"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in ("x", "y")]
    graph = helper.make_graph([one], "one", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Reference(Model.from_proto(proto, "one")).run({"x": values})["y"]


def _whole(values: Array, rounded: Rounded) -> Array:
    """As the graph rounds in float32, before it clips."""
    scaled = values * np.float32(2.0**-rounded.exponent)
    if rounded.rounding == "half_even":
        return np.asarray(np.rint(scaled))
    return np.asarray(np.floor(scaled + np.float32(0.5 if rounded.rounding == "half_up" else 0.0)))
