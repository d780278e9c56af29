"""Reads a fixed-point QDQ graph (QCDQ in qonnx's terms) as an integer program, or says which node cannot be one, and why."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from . import graph as graphs
from .errors import MissingExtra
from .integer_draft import (
    EXACT,
    FIXED_HINT,
    Constant,
    Draft,
    Rounded,
    inner,
    options,
    power_of_two,
    used,
)
from .integer_program import Clip, Codes, IntegerProgram, Move, Round, Rounding, Table, rounded
from .integer_rules import REASONS, RULES
from .model import Model

try:
    import onnx
    from onnx import helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error


FARTHEST_PLACES = 40
"""That a rounding shifts codes to the left by: farther, all but zero saturates."""
NO_RULE = ("there is no exact integer form of this operator", "keep that part on the host")
"""Reason and hint for an operator that neither a rule nor a reason of its own is known of."""


def program(model: Model) -> IntegerProgram:
    """The integers that a fixed-point model computes.

    Widths, binary points and roundings are read off its QuantizeLinear and DequantizeLinear nodes and those that spell a
    rounding out (Mul, Add, Floor, Clip). Raises Unsupported, with node, operator and reason, for whatever is not rounded to
    a power of two, has no fixed shape, or has no rule.
    """
    draft = Draft(model)
    rounds = {found.result: found for found in _roundings(draft)}
    needed = used(draft.outputs, draft.makers, rounds)
    inside = [node for node in draft.nodes if needed.intersection(node.output)]
    for node in inside:
        if not any(name in rounds for name in node.output):
            for name in node.input:
                draft.readers.setdefault(name, []).append(node)
    for found in rounds.values():
        if found.result in needed:
            draft.roundings.setdefault(found.source, []).append(found)
    inputs: dict[str, Rounding] = {}
    for node in inside:
        if any(name in rounds for name in node.output):
            _round(draft, node, rounds[node.output[0]], inputs)
            continue
        if node.domain not in ("", "ai.onnx"):
            raise draft.refuse(node, f"it is an operator of {node.domain}, not of ONNX itself", FIXED_HINT)
        if node.op_type == "QuantizeLinear" and node.input[0] in draft.stored:
            continue  # the DequantizeLinear behind it is a constant
        if node.op_type == "DequantizeLinear":
            draft.constants[node.output[0]] = _constant(draft, node)
        elif all(name in draft.stored for name in node.input if name):
            raise draft.refuse(node, "it computes on stored values alone", "let the fold pass compute them")
        elif node.op_type in RULES:
            for name in node.output:
                if name in needed:
                    draft.shape(node, name)
            RULES[node.op_type](draft, node)
        else:
            raise draft.refuse(node, *REASONS.get(node.op_type, NO_RULE))
    outputs = tuple(_output(draft, name) for name in draft.outputs)
    left = [info.name for info in draft.proto.graph.input if info.name not in inputs]
    notes = [*draft.notes, *(f"input {name} is read by nothing" for name in left)]
    ordered = [info.name for info in draft.proto.graph.input if info.name in inputs]
    return IntegerProgram(
        model.name, tuple(ordered), outputs, draft.tensors, tuple(draft.operations), inputs, draft.exact, tuple(notes)
    )


def _roundings(draft: Draft) -> list[Rounded]:
    """All roundings of computed values that the graph spells out, in its order."""
    return [_rounding(draft, node) for node in draft.nodes
            if node.op_type == "DequantizeLinear" and node.input[0] in draft.makers and not _of_stored(draft, node)]  # fmt: skip


def _of_stored(draft: Draft, node: onnx.NodeProto) -> bool:
    maker = draft.makers[node.input[0]]
    return maker.op_type == "QuantizeLinear" and maker.input[0] in draft.stored


def _rounding(draft: Draft, node: onnx.NodeProto) -> Rounded:
    """The rounding that ends in a DequantizeLinear, by walking back from it."""
    exponent = _exponent(draft, node)
    held = draft.makers[node.input[0]]
    low, high = _ends(draft, held) if held.op_type == "Clip" else (None, None)
    if held.op_type == "Clip":
        held = draft.makers.get(held.input[0], held)
    if held.op_type != "QuantizeLinear":
        raise draft.refuse(node, f"it reads integers that {held.op_type} {graphs.node_label(held)!r} makes", FIXED_HINT)
    step, limits = _exponent(draft, held), _limits(draft, held)
    low = limits[0] if low is None else max(int(low), limits[0])
    high = limits[1] if high is None else min(int(high), limits[1])
    label = graphs.node_label(held)
    before = draft.makers.get(held.input[0])
    if step == 0 and before is not None and before.op_type == "Clip":
        floor = draft.makers.get(before.input[0])
        if floor is not None and floor.op_type == "Floor":
            least, most = _ends(draft, before)
            low, high = max(low, _code(least, low)), min(high, _code(most, high))
            return Rounded(label, *_floored(draft, floor, exponent), node.output[0], exponent, low, high)
    if step != exponent:
        raise draft.refuse(
            node,
            f"it gives steps of 2**{exponent} to codes that {label!r} made in steps of 2**{step}; allowed: the same",
            FIXED_HINT,
        )
    source = held.input[0]
    if before is not None and before.op_type == "Clip":
        bounds = _ends(draft, before)
        codes = [None if bound is None else bound * 2.0**-exponent for bound in bounds]
        if None not in codes and _is_format(codes[0], codes[1]):  # bounds of a width that no integer type has
            low, high, source = max(low, int(codes[0] or 0)), min(high, int(codes[1] or 0)), before.input[0]
    return Rounded(label, source, "half_even", node.output[0], exponent, low, high)


def _code(bound: float | None, otherwise: int) -> int:
    return otherwise if bound is None else int(bound)


def _is_format(low: float | None, high: float | None) -> bool:
    """Whether all codes between are those of some number of bits."""
    return high is not None and power_of_two(high + 1) is not None and low in (0, -(high + 1))


def _floored(draft: Draft, floor: onnx.NodeProto, exponent: int) -> tuple[str, Rounding]:
    """What is rounded, and how, by scaling, perhaps adding a half, and Floor."""
    name = floor.input[0]
    rounding: Rounding = "truncate"
    raised = draft.makers.get(name)
    if raised is not None and raised.op_type == "Add":
        name, rounding = _other(draft, raised, 0.5), "half_up"
    scaled = draft.makers.get(name)
    if scaled is None or scaled.op_type != "Mul":
        raise draft.refuse(floor, "no Mul by a power of two before it says where the binary point is", FIXED_HINT)
    return _other(draft, scaled, 2.0**-exponent), rounding


def _other(draft: Draft, node: onnx.NodeProto, wanted: float) -> str:
    """The input of a node beside a stored number. Raises Unsupported where it is another number."""
    for place in range(2):
        held = draft.stored.get(node.input[place])
        if held is not None and held.size == 1 and float(held.ravel()[0]) == wanted:
            return str(node.input[1 - place])
    raise draft.refuse(node, f"before a Floor it has to take the stored number {wanted:g}", FIXED_HINT)


def _ends(draft: Draft, node: onnx.NodeProto) -> tuple[float | None, float | None]:
    """Stored bounds of a Clip; None for none."""
    found: list[float | None] = [None, None]
    for place in range(2):
        name = node.input[place + 1] if place + 1 < len(node.input) else ""
        if name in draft.stored:
            found[place] = float(draft.stored[name])
        elif name:
            return None, None
    return found[0], found[1]


def _exponent(draft: Draft, node: onnx.NodeProto) -> int:
    """The power of two that a quantiser's one scale is. Raises Unsupported for other scales and zero points."""
    scale = draft.stored.get(node.input[1])
    if scale is None:
        raise draft.refuse(node, f"its scale {node.input[1]!r} is computed; allowed: stored powers of two", FIXED_HINT)
    zero = draft.stored.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and zero.any():
        raise draft.refuse(node, f"its zero point is {int(zero.ravel()[np.flatnonzero(zero)[0]])}; allowed: 0", FIXED_HINT)
    if scale.size != 1:
        raise draft.refuse(node, f"it has {scale.size} scales for computed values; allowed: 1", FIXED_HINT)
    exponent = power_of_two(float(scale.ravel()[0]))
    if exponent is None:
        raise draft.refuse(node, f"its scale {float(scale.ravel()[0]):g} is no power of two", FIXED_HINT)
    return exponent


def _limits(draft: Draft, node: onnx.NodeProto) -> tuple[int, int]:
    """The ends of the integer type that a QuantizeLinear saturates in."""
    if len(node.input) > 2 and node.input[2] in draft.stored:
        kind = draft.stored[node.input[2]].dtype
    else:
        given = options(node).get("output_dtype", 0)
        kind = helper.tensor_dtype_to_np_dtype(given) if given else np.dtype(np.uint8)
    found = re.fullmatch(r"(u?)int(\d+)", kind.name)
    if found is None:
        raise draft.refuse(node, f"it rounds to {kind.name}; allowed: integers", FIXED_HINT)
    bits, signed = int(found[2]), not found[1]
    return -(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1


def _constant(draft: Draft, node: onnx.NodeProto) -> Constant:
    """Stored codes with their exponents, one or one a channel; floats that the graph rounds itself are rounded."""
    name = node.input[0]
    if name not in draft.stored and name not in draft.makers:
        raise draft.refuse(node, f"{name!r} enters the graph as integers; allowed: floats that the graph rounds", FIXED_HINT)
    scale = draft.stored.get(node.input[1])
    if scale is None:
        raise draft.refuse(node, f"its scale {node.input[1]!r} is computed; allowed: stored powers of two", FIXED_HINT)
    zero = draft.stored.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and zero.any():
        raise draft.refuse(node, "its zero point is not 0; allowed: 0", FIXED_HINT)
    mantissas, exponents = np.frexp(scale.astype(np.float64))
    if (mantissas != 0.5).any():
        raise draft.refuse(
            node, f"its scale {float(scale.ravel()[np.argmax(mantissas != 0.5)]):g} is no power of two", FIXED_HINT
        )
    places = exponents.astype(np.int64) - 1
    if options(node).get("block_size", 0):
        raise draft.refuse(node, "it has scales for blocks; allowed: one, or one a channel", FIXED_HINT)
    maker = draft.makers.get(name)
    values = draft.stored[maker.input[0]] if maker is not None else draft.stored[name]
    if places.size == 1:
        places = places.reshape(())
    else:
        axis = int(options(node).get("axis", 1)) % values.ndim
        places = places.reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    if maker is None:
        return Constant(values.astype(np.int64), places)
    steps = np.exp2(places.astype(np.float64))
    return Constant(np.clip(np.rint(values / steps), *_limits(draft, maker)).astype(np.int64), places)


def _round(draft: Draft, node: onnx.NodeProto, how: Rounded, inputs: dict[str, Rounding]) -> None:
    if how.result in draft.known:  # a table, which rounds itself
        return
    signature = {info.name for info in draft.proto.graph.input}
    if how.source in signature:
        shape = draft.shape(node, how.source)
        if not shape or shape[0] != 1:
            shown = "x".join(map(str, shape)) or "scalar"
            raise draft.refuse(
                node, f"input {how.source!r} is {shown}; allowed: a first axis of 1, the batch",
                f"give --shape {how.source}={'x'.join(map(str, (1, *shape[1:])))}",
            )  # fmt: skip
        codes = Codes(how.source, inner(shape), how.exponent, how.low, how.high)
        if draft.tensors.setdefault(how.source, codes) != codes or inputs.setdefault(how.source, how.rounding) != how.rounding:
            raise draft.refuse(node, f"input {how.source!r} is rounded in two ways; allowed: one", FIXED_HINT)
        draft.known[how.result] = codes
        return
    reader = onnx.NodeProto(name=how.node, op_type="QuantizeLinear", input=[how.source], output=[how.result])
    source = draft.source(reader)
    shift = how.exponent - source.exponent
    if shift < -FARTHEST_PLACES or source.divisor << max(shift, 0) > 2 * max(-source.low, source.high):
        _round_far(draft, reader, source, how, shift)
        return
    low, high = (int(rounded(np.asarray(end), shift, source.divisor, how.rounding)) for end in (source.low, source.high))
    low, high = min(max(low, how.low), how.high), min(max(high, how.low), how.high)
    made = Codes(how.result, source.shape, how.exponent, low, high)
    draft.known[how.result] = draft.add(reader, Round(how.node, source.name, how.result, how.rounding), made)
    draft.origins.pop(how.result, None)
    if source.name in draft.origins:
        draft.held(draft.origins[source.name], _float_rounds_alike(draft, source, how))


def _round_far(draft: Draft, node: onnx.NodeProto, source: Codes, how: Rounded, shift: int) -> None:
    """A rounding so far from the source's grid that only signs are left: what a tensor that was always zero is rounded to."""
    below = -1 if how.rounding == "truncate" else 0
    ends = {-1: how.low, 0: 0, 1: how.high} if shift < 0 else {-1: below, 0: 0, 1: 0}
    signs = replace(
        source, name=draft.fresh(f"{how.result}/signs"), low=max(-1, min(source.low, 1)), high=min(1, max(source.high, -1))
    )
    draft.add(node, Clip(how.node, source.name, signs.name, signs.low, signs.high), signs)
    values = np.array([min(max(ends[sign], how.low), how.high) for sign in range(signs.low, signs.high + 1)])
    made = Codes(how.result, source.shape, how.exponent, int(values.min()), int(values.max()))
    draft.known[how.result] = draft.add(node, Table(how.node, signs.name, how.result, "round", values), made)
    draft.origins.pop(how.result, None)


def _float_rounds_alike(draft: Draft, source: Codes, how: Rounded) -> bool:
    """Whether float32 comes to the same code: its division must not cross a tie, its added half not be lost."""
    top = max(-how.low, how.high) + 2
    if source.divisor != 1:
        finer = max(0, how.exponent - source.exponent)
        return bool(source.divisor * top * 2.0 ** (finer + 2) < EXACT)  # a step between ties, and an error each of / and +
    if how.rounding != "half_up":
        return True
    found = draft.reach(source)
    units = np.minimum(found.exponents, how.exponent - 1).astype(np.float64)
    codes = np.minimum(found.reach * np.exp2(found.exponents - units), top * np.exp2(how.exponent - units))
    return bool((codes + np.exp2(how.exponent - 1 - units) <= EXACT).all())


def _output(draft: Draft, name: str) -> str:
    """The name of an output of the program, which is that of the graph."""
    ends = onnx.NodeProto(name=name, op_type="output", input=[name], output=[name])
    codes = draft.source(ends)
    if codes.name != name:
        made = Codes(name, codes.shape, codes.exponent, codes.low, codes.high, codes.divisor)
        index = np.arange(codes.size).reshape(codes.shape)
        draft.add(ends, Move(name, (codes.name,), (1,), name, index), made)
    return name
