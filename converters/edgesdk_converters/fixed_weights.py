"""Stored tensors in fixed point: codes on the grids that lose least, and the axes that these go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra
from .fixed_widths import EXACT_BITS, Format, covering

try:
    import onnx
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]


def best(values: Array, bits: int) -> Format:
    """The signed format of least squared rounding error on stored values: that which covers them or one of two finer ones."""
    whole = covering(min(float(values.min()), -(2.0**-100)), float(values.max()), bits)
    tried = [Format(bits, whole.exponent - less, True) for less in range(3)]
    exact = values.astype(np.float64)
    return min(tried, key=lambda f: float(np.square(codes(values, f) * f.step - exact).sum()))


def codes(values: Array, form: Format) -> Array:
    """Integers nearest to values / step, ties to even, clipped; int64."""
    return np.clip(np.rint(values.astype(np.float64) / form.step), form.low, form.high).astype(np.int64)


@dataclass(frozen=True)
class Weight:
    """A stored tensor: integer codes, and the exponents of their steps: one, or one for each output channel."""

    codes: Array
    exponents: Array


def weighed(values: Array, bits: int, axis: int | None) -> Weight:
    if not values.size:
        return Weight(values.astype(np.int64), np.asarray(0))
    if axis is None:
        form = best(values, bits)
        return Weight(codes(values, form), np.asarray(form.exponent))
    rows = np.moveaxis(values, axis, 0)
    forms = [best(row, bits) for row in rows]
    held = np.stack([codes(row, form) for row, form in zip(rows, forms, strict=True)])
    exponents = np.array([form.exponent for form in forms])
    alive = held.reshape(len(held), -1).any(axis=1)  # channels of zeros lie on any grid: on one where biases stay narrow too
    exponents[~alive] = exponents[alive].min() if alive.any() else 0
    return Weight(np.moveaxis(held, 0, axis), exponents)


def reach(form: Format) -> int:
    """The code farthest from zero."""
    return max(-form.low, form.high)


def fitting(peaks: Array, otherwise: Array) -> Array:
    """The finest exponents at which float32 holds stored values exactly: a coarser power of two lies on every grid too."""
    found = np.ceil(np.log2(np.where(peaks > 0, peaks, 1.0))) - EXACT_BITS + 1
    return np.asarray(np.where(peaks > 0, found, np.min(otherwise)), np.int64)


def channel_axis(node: onnx.NodeProto, shape: Sequence[int]) -> int | None:
    """The axis of output channels in a layer's weight; None where it has none for all of them (grouped deconvolution).

    Of a factor, the axis in which it differs, if that is one.
    """
    rank = len(shape)
    if node.op_type == "Mul":
        axes = [axis for axis, size in enumerate(shape) if size > 1]
        return axes[0] if len(axes) == 1 else None
    if node.op_type == "Conv" or (node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)):
        return 0
    return rank - 1 if node.op_type in ("Gemm", "MatMul") and rank == 2 else None


def summed(node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    """Axes of a weight whose products go into one sum."""
    if node.op_type == "Conv":
        return tuple(range(1, rank))
    if node.op_type == "ConvTranspose":
        return (0, *range(2, rank))
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return (1,)
    return (max(0, rank - 2),)
