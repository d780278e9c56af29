"""Operators that work value by value, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody gives it

from .operator import DTYPES, Function, Operator, Value


def _plain(function: Callable[..., Any]) -> Function:
    return lambda op, *values: function(*values)


def _celu(op: Operator, x: Tensor) -> Tensor:
    return F.celu(x, float(op.get("alpha", 1.0)))


def _elu(op: Operator, x: Tensor) -> Tensor:
    alpha = op.get("alpha", 1.0)
    return torch.where(x < 0, alpha * torch.expm1(torch.minimum(x, torch.zeros_like(x))), x)


def _gelu(op: Operator, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.get("approximate", "none"))


def _hard_sigmoid(op: Operator, x: Tensor) -> Tensor:
    return torch.clamp(op.get("alpha", 0.2) * x + op.get("beta", 0.5), 0, 1)


def _is_inf(op: Operator, x: Tensor) -> Tensor:
    high, low = bool(op.get("detect_positive", 1)), bool(op.get("detect_negative", 1))
    return torch.isinf(x) & (((x > 0) & high) | ((x < 0) & low))


def _leaky_relu(op: Operator, x: Tensor) -> Tensor:
    return F.leaky_relu(x, op.get("alpha", 0.01))


def _selu(op: Operator, x: Tensor) -> Tensor:
    alpha, gamma = op.get("alpha", 1.67326319217681884765625), op.get("gamma", 1.05070102214813232421875)
    return torch.mul(torch.where(x > 0, x, alpha * torch.expm1(torch.minimum(x, torch.zeros_like(x)))), gamma)


def _shrink(op: Operator, x: Tensor) -> Tensor:
    bias, lambd = op.get("bias", 0.0), op.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def _swish(op: Operator, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.get("alpha", 1.0) * x)


def _thresholded_relu(op: Operator, x: Tensor) -> Tensor:
    return torch.where(x > op.get("alpha", 1.0), x, torch.zeros_like(x))


def _clip(op: Operator, x: Tensor, low: Value | None = None, high: Value | None = None) -> Tensor:
    below, above = (
        bound.reshape(-1)[0].item() if isinstance(bound, np.ndarray) else bound
        for bound in (op.get("min", low), op.get("max", high))
    )
    if isinstance(below, Tensor) or isinstance(above, Tensor):
        x = x if below is None else torch.maximum(x, torch.as_tensor(below).to(x))
        return x if above is None else torch.minimum(x, torch.as_tensor(above).to(x))
    if below is None and above is None:
        return x
    return torch.clamp(x, below, above)  # one pass, where maximum and minimum take ten in training


def _prelu(op: Operator, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _div(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    return torch.true_divide(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    if op.get("fmod", 0):
        return torch.fmod(a, b)
    return torch.remainder(a, b)


def _pow(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda op, *values: functools.reduce(function, values)


def _mean(op: Operator, *values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


def _cast(op: Operator, x: Tensor) -> Tensor:
    return x.to(DTYPES[int(op.get("to"))])


def _bit_shift(op: Operator, a: Tensor, b: Tensor) -> Tensor:
    wide = a.to(torch.int64), b.to(torch.int64)
    return (wide[0] << wide[1] if op.get("direction") == "LEFT" else wide[0] >> wide[1]).to(a.dtype)


def _softplus(op: Operator, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _hard_swish(op: Operator, x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


_PLAIN: dict[str, Any] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Not": torch.logical_not, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Where": torch.where, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
"""Those that torch has under another name and without options."""

OPERATORS: dict[str, Function] = {
    **{kind: _plain(function) for kind, function in _PLAIN.items()},
    "Celu": _celu, "Elu": _elu, "Gelu": _gelu, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish, "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu, "Selu": _selu, "Shrink": _shrink, "Softplus": _softplus, "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu, "Clip": _clip, "PRelu": _prelu, "Div": _div, "Mod": _mod, "Pow": _pow,
    "Max": _fold(torch.maximum), "Min": _fold(torch.minimum), "Sum": _fold(torch.add), "Mean": _mean, "Cast": _cast,
    "CastLike": lambda op, x, like: x.to(like.dtype), "Identity": lambda op, x: x, "BitShift": _bit_shift,
}  # fmt: skip
