"""One rule for each operation of a fixed-point network: the layers of hls4ml that compute it to the bit, or why none do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Conv,
    Curve,
    Dense,
    IntegerProgram,
    Integers,
    LayerNorm,
    Leaky,
    Move,
    Pool,
    Product,
    Round,
    Scale,
    Shape,
    Softmax,
    Sum,
    Table,
)

from .hls4ml_backends import Backend
from .hls4ml_elementwise import clip_or_round, leaky, product, scaling, sums, table
from .hls4ml_layers import Network
from .hls4ml_moves import BEGINS, ENDS, SIDES, move, padded
from .hls4ml_types import Fixed, Held, Layers, channels_last, fixed_for, fixed_of, values_of


def layers(program: IntegerProgram, backend: Backend, stream: bool = False) -> Layers:
    """The program for a back end of hls4ml, `stream` for io_stream. Raises Unsupported for what it cannot compute to the bit."""
    network = Network(program, backend, stream)
    inputs = tuple(network.input(name) for name in program.inputs)
    for operation in program.operations:
        if id(operation) not in network.folded:
            _RULES[type(operation)](network, operation)
    outputs = tuple(network.output(name) for name in program.outputs)
    return Layers(tuple(network.layers), inputs, outputs, tuple(network.notes))


def _accumulator(weight: Integers, bias: Integers, held: Held, source_exponent: int, exponent: int) -> Fixed:
    """Holds every partial sum in any order. `weight` (outs, terms); source codes are those of the program's exponent."""
    step = 1 << held.exponent - source_exponent if held.exponent > source_exponent else 1
    ends = np.array([held.low * step, held.high * step], np.int64)
    products = weight[:, :, None] * ends
    low = np.minimum(products.min(axis=2), 0).sum(axis=1) + np.minimum(bias, 0)
    high = np.maximum(products.max(axis=2), 0).sum(axis=1) + np.maximum(bias, 0)
    return fixed_for(int(low.min(initial=0)), int(high.max(initial=0)), exponent)


def _weighted(
    network: Network, op: Dense | Conv, held: Held, weight: Integers, terms: Integers
) -> tuple[dict[str, Any], dict[str, Fixed]]:
    """Attributes and types of a layer with weights. `weight` as hls4ml wants it, `terms` the same as (outs, terms)."""
    exponent, source_exponent = network.tensors[op.result].exponent, network.tensors[op.source].exponent
    precision = {
        "weight": fixed_of(weight, exponent - source_exponent),
        "bias": fixed_of(op.bias, exponent),
        "accum": _accumulator(terms, op.bias, held, source_exponent, exponent),
    }
    attributes = {"weight_data": values_of(weight, exponent - source_exponent), "bias_data": values_of(op.bias, exponent)}
    return attributes, precision


def _dense(network: Network, op: Dense) -> None:
    held, shape = network.exact(op, op.source), network.tensors[op.source].shape
    outs, ins = op.weight.shape
    if math.prod(shape[:-1]) == 1:
        flat = network.reshaped(op, held, (ins,))
        weight = op.weight[:, held.order]
        attributes, precision = _weighted(network, op, held, weight.T, weight)
        attributes |= {"n_in": ins, "n_out": outs}
        kind, source, result = "Dense", flat, (outs,)
    elif len(shape) <= 3:
        rank = len(shape) - 1
        source = network.laid(op, held, shape, np.arange(held.order.size))
        attributes, precision = _weighted(network, op, held, op.weight.T.reshape(*(1,) * rank, ins, outs), op.weight)
        ones = (1,) * rank
        attributes |= {"n_chan": ins, "n_filt": outs} | _window(shape[:-1], shape[:-1], ones, ones, (0,) * 2 * rank)
        kind, result = f"Conv{rank}D", (*shape[:-1], outs)
    else:
        raise network.refusal(op, f"a dense layer over the last axis of shape {list(shape)}", "at most (height, width, features)")

    def add(fixed: Fixed) -> str:
        return network.put(op.node, kind, [source.layer], attributes, {**precision, "result": fixed}, (ins, outs))

    network.hold(op, network.cast_behind(network.cast_of(op.result)), result, np.arange(math.prod(result)), add)


def _window(space: Shape, out: Shape, kernel: Shape, strides: Shape, pads: Shape) -> dict[str, int]:
    """Attributes of a convolution's window over one or two dimensions of space."""
    found: dict[str, int] = {}
    for axis, side in enumerate(SIDES[len(space)]):
        found |= {
            f"in_{side}": space[axis], f"out_{side}": out[axis], f"filt_{side}": kernel[axis], f"stride_{side}": strides[axis],
            f"pad_{BEGINS[side]}": pads[axis], f"pad_{ENDS[side]}": pads[axis + len(space)],
        }  # fmt: skip
    return found


def _in_space(network: Network, op: Conv | Pool, kernel: Shape) -> Held:
    """The source of a window, channels last."""
    shape = network.tensors[op.source].shape
    if len(kernel) not in SIDES or len(shape) != len(kernel) + 1:
        raise network.refusal(op, f"a window of {list(kernel)} over shape {list(shape)}", "one or two dimensions of space")
    return network.laid(op, network.exact(op, op.source), (*shape[1:], shape[0]), channels_last(shape))


def _conv(network: Network, op: Conv) -> None:
    outs, group_ins, *kernel = op.weight.shape
    channels, rank = group_ins * op.groups, len(kernel)
    held = padded(network, op, _in_space(network, op, tuple(kernel)), op.pads)
    out = network.tensors[op.result].shape[1:]
    single = outs == op.groups == channels > 1
    weight, groups = op.weight, op.groups
    if groups > 1 and not (single and f"DepthwiseConv{rank}D" in network.backend.kinds):
        network.notes.append(f"{op.node}: {groups} groups written as one with zeros between them")
        weight, groups = _ungrouped(op), 1
    points = groups == 1 and math.prod(kernel) == 1
    if network.stream and rank == 2 and kernel[0] == 1 < held.shape[0] and op.strides[0] > 1 and not points:
        told = f"io_stream takes a window of {kernel} for one of one dimension and drops its stride of {op.strides[0]} downwards"
        raise network.refusal(op, told, "io_parallel")
    if groups > 1:
        attributes, precision = _weighted(network, op, held, np.moveaxis(weight, (0, 1), (-2, -1)), weight.reshape(outs, -1))
        attributes["depthwise_data"] = attributes.pop("weight_data")
        attributes["depth_multiplier"] = 1
        kind = f"DepthwiseConv{rank}D"
    else:
        attributes, precision = _weighted(network, op, held, np.moveaxis(weight, (0, 1), (-1, -2)), weight.reshape(outs, -1))
        kind = f"Conv{rank}D"
    attributes |= {"n_chan": channels, "n_filt": outs}
    attributes |= _window(held.shape[:-1], out, tuple(kernel), op.strides, (0,) * 2 * rank)
    products = (channels * math.prod(kernel), outs)

    def add(fixed: Fixed) -> str:
        return network.put(op.node, kind, [held.layer], attributes, {**precision, "result": fixed}, products)

    network.hold(op, network.cast_behind(network.cast_of(op.result)), (*out, outs), channels_last((outs, *out)), add)


def _ungrouped(op: Conv) -> Integers:
    outs, group_ins, *kernel = op.weight.shape
    weight = np.zeros((outs, group_ins * op.groups, *kernel), np.int64)
    for group in range(op.groups):
        mine = slice(group * outs // op.groups, (group + 1) * outs // op.groups)
        weight[mine, group * group_ins : (group + 1) * group_ins] = op.weight[mine]
    return weight


def _pool(network: Network, op: Pool) -> None:
    source, result = network.tensors[op.source], network.tensors[op.result]
    size, channels = math.prod(op.kernel), source.shape[0]
    mean = Fraction(2) ** (source.exponent - result.exponent) * result.divisor
    inexact = network.backend.inexact_means
    if op.kind == "sum" and (mean == 1 or (inexact and result.divisor == 1)):
        ones, zeros = np.ones((channels, 1, *op.kernel), np.int64), np.zeros(channels, np.int64)
        _conv(network, Conv(op.node, op.source, op.result, ones, zeros, op.strides, op.pads, channels))
        return
    if op.kind == "sum" and mean != size:
        raise network.refusal(op, f"a sum over {size} elements that stands for {size / mean} times their mean")
    if op.kind == "sum" and inexact:
        raise network.refusal(op, f"a mean over {size} elements: this back end divides inexactly", "a window of 2, 4, 8 ...")
    held = _in_space(network, op, op.kernel)
    out = result.shape[1:]
    strides = tuple(kernel if count == 1 else stride for kernel, stride, count in zip(op.kernel, op.strides, out, strict=True))
    if network.stream and strides != op.kernel:
        raise network.refusal(op, f"io_stream pools only with strides as its window {list(op.kernel)}", "io_parallel")
    lifted = held.low if any(op.pads) and held.low < 0 else 0
    if lifted:  # so that the zeros around are the least
        above = fixed_for(0, held.high - lifted, held.exponent)
        name = network.shifted(op, held.layer, held.shape, -lifted, held.exponent, above)
        held = replace(held, layer=name, low=0, high=held.high - lifted)
    if any(pad >= op.kernel[axis % len(op.kernel)] for axis, pad in enumerate(op.pads)):
        raise network.refusal(op, f"pads {list(op.pads)} hold a whole window of {list(op.kernel)}")
    held = padded(network, op, held, op.pads)
    finest = network.finest(op.result)
    accumulated = held.fixed
    if op.kind == "sum":
        scale = 1 << held.exponent - finest
        accumulated = fixed_for(min(held.low * size, held.low) * scale, max(held.high * size, held.high) * scale, finest)
    window = _window(held.shape[:-1], out, op.kernel, strides, (0,) * 2 * len(out))
    attributes: dict[str, Any] = {"n_filt": channels}
    attributes |= {name.replace("filt_", "pool_"): value for name, value in window.items()}
    if len(out) == 1:
        attributes |= {"n_in": attributes.pop("in_width"), "n_out": attributes.pop("out_width")}
    kind = f"{'Max' if op.kind == 'max' else 'Average'}Pooling{len(out)}D"
    shape, order = (*out, channels), channels_last((channels, *out))

    def add(fixed: Fixed) -> str:
        return network.put(op.node, kind, [held.layer], attributes, {"accum": accumulated, "result": fixed})

    cast = network.cast_behind(network.cast_of(op.result))
    if lifted:
        name = add(held.fixed)
        network.hold(op, cast, shape, order, lambda fixed: network.shifted(op, name, shape, lifted, held.exponent, fixed))
    elif network.tensors[cast.result].divisor != 1:  # rounded later: cut off where no rounding can tell
        low, high = held.low * scale - 1, held.high * scale + 1
        network.held[op.result] = Held(add(fixed_for(low, high, finest)), shape, order, low, high, finest)
    else:
        network.hold(op, cast, shape, order, add)


def on_host(backend: Backend) -> tuple[type, ...]:
    """Operations that a back end does not have to the bit; at a network's end the host does them, on integers."""
    without = (ArgMax, Softmax, Curve, LayerNorm)  # hls4ml has layers of these names, with tables and roundings of its own
    return without if "UnaryLUT" in backend.kinds else (*without, Table)


def _on_host(network: Network, op: ArgMax | Softmax | Curve | LayerNorm) -> None:
    raise network.refusal(op, "only the host does it to the bit, and weights follow it", "--set flow=rtl")


_RULES: dict[type, Callable[[Network, Any], None]] = {
    Dense: _dense, Conv: _conv, Pool: _pool, Move: move, Sum: sums, Scale: scaling, Product: product, Leaky: leaky,
    Clip: clip_or_round, Round: clip_or_round, Table: table, ArgMax: _on_host, Softmax: _on_host,
    Curve: _on_host, LayerNorm: _on_host,
}  # fmt: skip
