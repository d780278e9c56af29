"""QuantizeLinear and DequantizeLinear: with the gradient of the identity inside the range, so that training goes through."""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import DTYPES, Function, Operator, positive

RANGES = {
    torch.uint8: (0, 255), torch.int8: (-128, 127), torch.uint16: (0, 65535), torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}  # fmt: skip


def along(values: Tensor, op: Operator, x: Tensor) -> Tensor:
    """Scales or zero points in the shape that broadcasts over x: one value, one an axis place, or one a block."""
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    axis = positive(op.get("axis", 1), x.ndim)
    block = op.get("block_size", 0)
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def limits(op: Operator, kind: torch.dtype) -> tuple[int, int]:
    """The least and the greatest code."""
    low, high = RANGES[kind]
    return max(low, op.get("low", low)), min(high, op.get("high", high))


def fake_quantise(op: Operator, x: Tensor, scale: Tensor, zero: Tensor | None, kind: torch.dtype) -> Tensor:
    """x rounded to its steps, as float; the gradient is 1 inside the range and 0 outside.

    The range is the type's, or narrower: that between the attributes `low` and `high`.
    """
    low, high = limits(op, kind)
    step = along(scale, op, x)
    middle = 0.0 if zero is None else along(zero, op, x).to(x.dtype)
    codes = x / step
    rounded = codes + (torch.round(codes) - codes).detach()  # before the zero point is added: ties go to even multiples
    return (torch.clamp(rounded + middle, low, high) - middle) * step


def _kind(op: Operator, zero: Tensor | None) -> torch.dtype:
    if zero is not None:
        return zero.dtype
    return DTYPES[op.get("output_dtype")] if op.get("output_dtype") else torch.uint8


def _quantize(op: Operator, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = _kind(op, zero)
    low, high = RANGES[kind]
    middle = 0 if zero is None else along(zero, op, x).to(torch.float32)
    return torch.clamp(torch.round(x / along(scale, op, x)) + middle, low, high).to(kind)


def _dequantize(op: Operator, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    whole = x.to(torch.int32)
    if zero is not None:
        whole = whole - along(zero, op, x).to(torch.int32)
    return whole.to(scale.dtype) * along(scale, op, x)


OPERATORS: dict[str, Function] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
