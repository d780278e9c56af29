"""Operations that treat every element alike: sums, products, slopes, roundings and clips, as layers of hls4ml."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from edgesdk_converters.integer_program import Clip, Integers, Leaky, Operation, Product, Round, Scale, Sum, Table

from .hls4ml_layers import Adding, Constants, Network
from .hls4ml_types import Cast, Fixed, Held, fixed_for, fixed_of, values_of

WIDEST_TABLE_BITS = 12
"""Of a code that addresses a table: 4,096 entries, which hls4ml spreads over registers."""


def clip_or_round(network: Network, op: Clip | Round) -> None:
    """A clip or a rounding of a tensor that others read too, or that no layer computes."""
    rounds = isinstance(op, Round)
    held = network.held[op.source] if rounds else network.exact(op, op.source)
    _linear(network, op, held, network.cast_behind(network.cast_by(network.cast_of(op.source), op), rounds))


def _linear(network: Network, op: Operation, held: Held, cast: Cast) -> None:
    """The same values, cast; a layer only where that changes any."""
    if not cast.clips_low and not cast.clips_high and cast.exponent <= held.exponent:
        network.held[cast.result] = held
        return
    attributes = {"activation": "linear", "n_in": held.order.size}

    def add(fixed: Fixed) -> str:
        return network.put(op.node, "Activation", [held.layer], attributes, {"result": fixed})

    network.hold(op, cast, held.shape, held.order, add)


def leaky(network: Network, op: Leaky) -> None:
    """A slope for negative values, as an exact parameter; positive ones keep theirs."""
    held = network.exact(op, op.source)
    source, result = network.tensors[op.source], network.tensors[op.result]
    if source.exponent != result.exponent + op.shift:
        raise network.refusal(op, f"positive values are multiplied by {2.0 ** (op.shift + result.exponent - source.exponent):g}")
    slope = np.array([op.slope])
    attributes = {
        "activation": "leakyrelu", "n_in": held.order.size, "activ_param": float(values_of(slope, -op.shift)[0]),
    }  # fmt: skip
    param = fixed_of(slope, -op.shift)

    def add(fixed: Fixed) -> str:
        return network.put(op.node, "LeakyReLU", [held.layer], attributes, {"param": param, "result": fixed})

    network.hold(op, network.cast_behind(network.cast_of(op.result)), held.shape, held.order, add)


def product(network: Network, op: Product) -> None:
    """Two computed tensors multiplied element by element."""
    left, right = network.exact(op, op.left), network.exact(op, op.right)
    exponents = network.tensors[op.left].exponent + network.tensors[op.right].exponent
    if op.matmul or left.order.size != right.order.size or exponents != network.tensors[op.result].exponent:
        raise network.refusal(op, "a product of computed tensors other than element by element of equal shapes")
    add = _merging(network, op, "multiply", left, network.laid(op, right, left.shape, left.order))
    network.hold(op, network.cast_behind(network.cast_of(op.result)), left.shape, left.order, add)


def _merging(network: Network, op: Operation, name: str, left: Held, right: Held) -> Adding:
    """The layer `name` of two tensors whose elements lie alike."""

    def add(fixed: Fixed) -> str:
        return network.put(op.node, "Merge", [left.layer, right.layer], {"op": name}, {"result": fixed})

    return add


def sums(network: Network, op: Sum) -> None:
    """Sources added and subtracted two by two, at full width; a constant by a layer of its own."""
    result = network.tensors[op.result]
    parts = [network.exact(op, name) for name in op.sources]
    if any(part.order.size != result.size for part in parts):
        raise network.refusal(op, "computed tensors of other shapes are added to it", "expand them before the sum")
    factors = [
        Fraction(2) ** (result.exponent - network.tensors[name].exponent) * factor
        for name, factor in zip(op.sources, op.factors, strict=True)
    ]
    cast = network.cast_behind(network.cast_of(op.result))
    constant = np.zeros(1, np.int64) if op.constant is None else op.constant
    if len(parts) == 1:
        _affine(network, op, parts[0], factors[0], constant, cast)
        return
    parts = [scaled(network, op, part, factor) for part, factor in zip(parts, factors, strict=True)]
    order = sorted(range(len(parts)), key=lambda place: factors[place] < 0)  # what is subtracted comes last
    if factors[order[0]] < 0:
        parts[order[0]] = scaled(network, op, parts[order[0]], Fraction(-1), always=True)
    whole = parts[order[0]]
    for count, place in enumerate(order[1:], start=2):
        part = network.laid(op, parts[place], whole.shape, whole.order)
        name = "subtract" if factors[place] < 0 else "add"
        low, high = _reach(whole, part, name == "subtract")
        exponent = min(whole.exponent, part.exponent)
        add = _merging(network, op, name, whole, part)
        if count == len(parts) and not constant.any():
            network.hold(op, cast, whole.shape, whole.order, add)
            return
        whole = replace(whole, layer=add(fixed_for(low, high, exponent)), low=low, high=high, exponent=exponent)
    _affine(network, op, whole, Fraction(1), constant, cast)


def _reach(left: Held, right: Held, subtracts: bool) -> tuple[int, int]:
    """Least and greatest of a sum or difference, in the finer one's codes."""
    finer = min(left.exponent, right.exponent)
    (low, high), (least, most) = (
        (part.low << part.exponent - finer, part.high << part.exponent - finer) for part in (left, right)
    )
    return (low - most, high - least) if subtracts else (low + least, high + most)


def scaled(network: Network, op: Operation, held: Held, factor: Fraction, always: bool = False) -> Held:
    """A source times the absolute value of a factor (times the factor itself with `always`): as it is where that is 1."""
    factor = factor if always else abs(factor)
    if factor == 1:
        return held
    codes, exponent = _binary(network, op, factor)
    low, high = sorted((held.low * codes, held.high * codes))
    scale = (np.full(held.shape[-1], codes, np.int64), exponent)
    result = fixed_for(low, high, held.exponent + exponent)
    bias = (np.zeros(held.shape[-1], np.int64), 0)
    name = network.normalised(op, held.layer, held.shape, scale, bias, result)
    return replace(held, layer=name, low=low, high=high, exponent=held.exponent + exponent)


def _binary(network: Network, op: Operation, factor: Fraction) -> tuple[int, int]:
    """(code, exponent) of a factor."""
    exponent = 1 - factor.denominator.bit_length()
    if Fraction(2) ** -exponent != factor.denominator:
        raise network.refusal(op, f"a factor of {factor} is no fixed-point number")
    return factor.numerator, exponent


def _affine(network: Network, op: Operation, held: Held, factor: Fraction, constant: Integers, cast: Cast) -> None:
    """held * factor + constant, which broadcasts to the result's shape."""
    codes, exponent = _binary(network, op, factor)
    result = network.tensors[op.result]
    scale = np.full(result.shape, codes, np.int64)
    _channelwise(network, op, held, (scale, exponent), (np.broadcast_to(constant, result.shape), result.exponent), cast)


def _channelwise(network: Network, op: Operation, held: Held, scale: Constants, bias: Constants, cast: Cast) -> None:
    """held * scale + bias, both (codes in the result's shape, exponent)."""
    laid = [codes.reshape(-1)[held.order].reshape(held.shape) for codes in (scale[0], bias[0])]
    if all((codes == codes.reshape(-1, held.shape[-1])[0]).all() for codes in laid):
        laid = [codes.reshape(-1, held.shape[-1])[0] for codes in laid]
    elif network.stream:
        raise network.refusal(op, "constants that differ within a channel", "io_parallel")
    scales, biases = (codes.reshape(-1) for codes in laid)
    if scale[1] == 0 and (scales == 1).all() and not biases.any():
        _linear(network, op, held, cast)
        return

    def add(fixed: Fixed) -> str:
        return network.normalised(op, held.layer, held.shape, (scales, scale[1]), (biases, bias[1]), fixed)

    network.hold(op, cast, held.shape, held.order, add)


def scaling(network: Network, op: Scale) -> None:
    """A constant for each channel, or for each element."""
    held, result = network.exact(op, op.source), network.tensors[op.result]
    if held.order.size != result.size:
        raise network.refusal(op, "its constant is larger than its source", "expand the source before it")
    exponent = result.exponent - network.tensors[op.source].exponent
    zeros = np.zeros(result.shape, np.int64)
    cast = network.cast_behind(network.cast_of(op.result))
    _channelwise(network, op, held, (np.broadcast_to(op.constant, result.shape), exponent), (zeros, 0), cast)


def table(network: Network, op: Table) -> None:
    """A read-only memory that the bits of a code address, as they are."""
    held, source, result = network.exact(op, op.source), network.tensors[op.source], network.tensors[op.result]
    fixed = held.fixed
    if fixed.bits > WIDEST_TABLE_BITS or held.exponent < source.exponent:
        raise network.refusal(op, f"a table of {fixed.bits} bits", f"at most {WIDEST_TABLE_BITS}: quantise its source")
    bits = np.arange(1 << fixed.bits)
    codes = np.where(bits > fixed.limits[1], bits - (1 << fixed.bits), bits) << held.exponent - source.exponent
    values = op.values[np.clip(codes - source.low, 0, len(op.values) - 1)]  # what no code reaches may be anything
    attributes = {"activation": "unary_lut", "n_in": held.order.size, "table_data": values_of(values, result.exponent)}
    entry = fixed_of(values, result.exponent)

    def add(fixed: Fixed) -> str:
        return network.put(op.node, "UnaryLUT", [held.layer], attributes, {"table": entry, "result": fixed})

    network.hold(op, network.cast_behind(network.cast_of(op.result)), held.shape, held.order, add)
