"""Scales and shifts as arrays: taken through nodes that move elements, and into the weights of the layer behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra

try:
    import onnx
    from onnx import helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[np.float64]
DEVIATIONS = 4.0
"""How far from the value that becomes zero a channel is taken to reach, when its scale makes one of a standard deviation."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """x * scale + shift, element by element; both have the tensor's shape, with 1 for a batch of any size."""

    scale: Array
    shift: Array
    original: onnx.NodeProto | None
    """The node, as long as nothing else was merged into it."""

    def moved(self, move: Callable[[Array], Array]) -> Scaling:
        return Scaling(move(self.scale), move(self.shift), None)


def spread(scaling: Scaling) -> float:
    """How much wider a tensor is than its smallest channel, by what scales its channels to one size."""
    used = scaling.scale != 0
    if not used.any():
        return 1.0
    reach = DEVIATIONS / np.abs(scaling.scale[used])
    middle = -scaling.shift[used] / scaling.scale[used]
    return float(((middle + reach).max() - (middle - reach).min()) / (2 * reach.min()))


def along(values: Array, axis: int) -> Array | None:
    """The values along the one axis in which they differ; None where they differ in others too."""
    first = np.moveaxis(values, axis, -1)
    row = first.reshape(-1, first.shape[-1])[0]
    return row if (first == row).all() else None


def packed(values: Array) -> Array:
    """Without what repeats: broadcast, it is the same again."""
    for axis in range(values.ndim):
        first = np.take(values, [0], axis)
        values = first if (values == first).all() else values
    while values.ndim and values.shape[0] == 1:
        values = values[0]
    return values


def forth(move: onnx.NodeProto, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """What a move does to an array."""
    return lambda values: values.transpose(_order(move, values.ndim)) if move.op_type == "Transpose" else values.reshape(shape)


def undone(move: onnx.NodeProto, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """What undoes a move."""
    if move.op_type == "Transpose":
        return lambda values: values.transpose(np.argsort(_order(move, values.ndim)))
    return lambda values: values.reshape(shape)


def _order(transpose: onnx.NodeProto, rank: int) -> list[int]:
    return next((list(a.ints) for a in transpose.attribute if a.name == "perm"), list(range(rank))[::-1])


def is_turned(layer: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in layer.attribute)


def pads(conv: onnx.NodeProto) -> bool:
    given = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    return any(given.get("pads", ())) or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def scaled_inputs(layer: onnx.NodeProto, weight: Array, scale: Array) -> Array:
    """Weights of a layer whose inputs are scaled by channel."""
    if layer.op_type == "Conv":
        ins = weight.shape[1]
        groups = len(scale) // ins
        own = scale.reshape(groups, 1, ins)
        return (weight.reshape(groups, -1, ins, *weight.shape[2:]) * own.reshape(*own.shape, *(1,) * (weight.ndim - 2))).reshape(
            weight.shape
        )
    return weight * (scale if is_turned(layer) else scale[:, None])


def added_by(layer: onnx.NodeProto, weight: Array, shift: Array) -> Array:
    """What a shift of a layer's inputs by channel adds to its results, before its weights are scaled."""
    shifted = scaled_inputs(layer, weight, shift)
    if layer.op_type == "Conv":
        return np.asarray(shifted.reshape(len(weight), -1).sum(axis=1))
    return np.asarray(shifted.sum(axis=1 if is_turned(layer) else 0))
