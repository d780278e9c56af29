"""Rearrangements: concatenation, zeros around, parts cut out; whatever only reorders elements costs no layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np

from edgesdk_converters.integer_program import Integers, Move, Operation, Shape

from .hls4ml_elementwise import scaled
from .hls4ml_layers import Network, is_permutation
from .hls4ml_types import Held, channels_last

SIDES: Mapping[int, tuple[str, ...]] = {1: ("width",), 2: ("height", "width")}
"""hls4ml's names of the axes of space, by how many there are."""
BEGINS: Mapping[str, str] = {"height": "top", "width": "left"}
ENDS: Mapping[str, str] = {"height": "bottom", "width": "right"}


def move(network: Network, op: Move) -> None:
    """Elements in another order cost no layer: what comes after reads them from where they lie."""
    result = network.tensors[op.result]
    parts = []
    for name, factor in zip(op.sources, op.factors, strict=True):
        source = network.tensors[name]
        ratio = Fraction(2) ** (result.exponent - source.exponent) * factor * source.divisor / result.divisor
        part = network.held[name] if ratio == 1 else network.exact(op, name)
        parts.append(part if ratio == 1 else scaled(network, op, part, ratio, always=True))
    if len(parts) == 1 and is_permutation(op.index, parts[0].order.size):
        place = np.argsort(op.index, axis=None)
        held = replace(parts[0], order=place[parts[0].order])
    elif len(parts) > 1 and is_permutation(op.index, sum(part.order.size for part in parts)):
        held = _concatenated(network, op, parts, np.argsort(op.index, axis=None), result.shape)
    elif len(parts) == 1 and 2 <= len(result.shape) <= 3:
        held = _cut_or_padded(network, op, parts[0])
    else:
        raise network.refusal(op, "it takes elements in a way that no layer of hls4ml does")
    network.held[op.result] = held


def padded(network: Network, op: Operation, held: Held, pads: Shape) -> Held:
    """With zeros around; `pads` all begins, then all ends."""
    if not any(pads):
        return held
    rank = len(held.shape) - 1
    out = tuple(size + pads[axis] + pads[axis + rank] for axis, size in enumerate(held.shape[:-1]))
    attributes: dict[str, int] = {"n_chan": held.shape[-1]}
    for axis, side in enumerate(SIDES[rank]):
        attributes |= {f"in_{side}": held.shape[axis], f"out_{side}": out[axis]}
        attributes |= {f"pad_{BEGINS[side]}": pads[axis], f"pad_{ENDS[side]}": pads[axis + rank]}
    name = network.put(op.node, f"ZeroPadding{rank}D", [held.layer], attributes, {"result": held.fixed})
    shape = (*out, held.shape[-1])
    return Held(name, shape, np.arange(math.prod(shape)), min(held.low, 0), max(held.high, 0), held.exponent)


def _concatenated(network: Network, op: Move, parts: list[Held], place: Integers, shape: Shape) -> Held:
    """Sources one behind the other along the axis that brings the result's channels last, else along any that fits."""
    begins = np.cumsum([0, *(part.order.size for part in parts)])
    wanted = channels_last(shape) if len(shape) > 1 else np.arange(len(place))
    rank = len(parts[0].shape)
    fitting = []
    for axis in reversed(range(rank)):
        others = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
        if len(others) == 1 and all(len(part.shape) == rank for part in parts):
            order = np.concatenate(
                [place[begin + part.order].reshape(part.shape) for begin, part in zip(begins, parts, strict=False)], axis=axis
            )
            fitting.append((not np.array_equal(order.reshape(-1), wanted), axis, order))
    if not fitting:
        flat = [network.reshaped(op, part, (part.order.size,)) for part in parts]
        return _concatenated(network, op, flat, place, shape)
    _, axis, order = min(fitting, key=lambda item: item[0])
    whole = parts[0]
    for part in parts[1:]:
        exponent = min(whole.exponent, part.exponent)
        ends = [end << held.exponent - exponent for held in (whole, part) for end in (held.low, held.high)]
        size = whole.shape[axis] + part.shape[axis]
        joined = (*whole.shape[:axis], size, *whole.shape[axis + 1 :])
        held = Held("", joined, whole.order, min(ends), max(ends), exponent)
        attributes = {"op": f"concatenate{rank}d", "axis": axis + 1}
        name = network.put(op.node, "Concatenate", [whole.layer, part.layer], attributes, {"result": held.fixed})
        whole = replace(held, layer=name)
    return replace(whole, order=order.reshape(-1))


def _cut_or_padded(network: Network, op: Move, held: Held) -> Held:
    """Zeros around the space of (channels, *space), or a part of that space."""
    source, index = network.tensors[op.sources[0]], op.index
    rank = len(index.shape) - 1
    if len(source.shape) == rank + 1 and source.shape[0] == index.shape[0]:
        whole = network.laid(op, held, (*source.shape[1:], source.shape[0]), channels_last(source.shape))
        filled = np.argwhere(index >= 0)
        begins, ends = filled.min(axis=0, initial=index.size), filled.max(axis=0, initial=-1) + 1
        inside = index[tuple(slice(begin, end) for begin, end in zip(begins, ends, strict=True))]
        if inside.shape == source.shape and np.array_equal(inside.reshape(-1), np.arange(source.size)):
            after = tuple(size - end for size, end in zip(index.shape, ends, strict=True))
            pads = (*(int(begin) for begin in begins[1:]), *(int(end) for end in after[1:]))
            return replace(padded(network, op, whole, pads), order=channels_last(index.shape))
        first = [int(begin) for begin in np.argwhere(np.arange(source.size).reshape(source.shape) == index.flat[0]).reshape(-1)]
        window = tuple(slice(begin, begin + size) for begin, size in zip(first, index.shape, strict=False))
        if np.array_equal(np.arange(source.size).reshape(source.shape)[window], index):
            return _cropped(network, op, whole, window[1:])
    raise network.refusal(op, "it takes elements in a way that no layer of hls4ml does")


def _cropped(network: Network, op: Move, held: Held, window: tuple[slice, ...]) -> Held:
    rank = len(window)
    attributes: dict[str, int] = {"n_chan": held.shape[-1]}
    for side, size, part in zip(SIDES[rank], held.shape, window, strict=False):
        attributes |= {f"in_{side}": size, f"out_{side}": part.stop - part.start}
        attributes |= {f"crop_{BEGINS[side]}": part.start, f"crop_{ENDS[side]}": size - part.stop}
    name = network.put(op.node, f"Cropping{rank}D", [held.layer], attributes, {"result": held.fixed})
    shape = (*(part.stop - part.start for part in window), held.shape[-1])
    return replace(held, layer=name, shape=shape, order=channels_last(op.index.shape))
