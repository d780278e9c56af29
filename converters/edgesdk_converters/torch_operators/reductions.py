"""Operators that reduce axes, or rank the values along them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .operator import Function, Operator, Value, ints, need_ints, positive


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def reduce(op: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
        chosen = ints(axes) if axes is not None else op.get("axes")
        if not chosen:
            if op.get("noop_with_empty_axes", 0):
                chosen = []
                return function(x.unsqueeze(0), [0], False)
            chosen = list(range(x.ndim))
        return function(x, [positive(axis, x.ndim) for axis in chosen], bool(op.get("keepdims", 1)))

    return reduce


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.mean(x, axes, keep) if axes else x


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _extreme(largest: bool) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if not axes:
            return x
        if any(x.shape[axis] == 0 for axis in axes):
            limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
            edge = float("-inf" if largest else "inf") if x.is_floating_point() else limits.min if largest else limits.max
            shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
            full = torch.full(shape, edge, dtype=x.dtype, device=x.device)
            return full if keep else full.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])
        if x.dtype == torch.bool:
            return torch.any(x, axes, keep) if largest else torch.all(x, axes, keep)
        return torch.amax(x, axes, keep) if largest else torch.amin(x, axes, keep)

    return reduce


def _extreme_place(op: Operator, x: Tensor) -> Tensor:
    axis = op.get("axis", 0)
    if op.get("select_last_index", 0):
        x = x.flip(axis)
    found = (torch.argmax if op.kind == "ArgMax" else torch.argmin)(x, axis, keepdim=bool(op.get("keepdims", 1)))
    return x.shape[axis] - 1 - found if op.get("select_last_index", 0) else found


def _cumulative(function: Callable[[Tensor, int], Tensor], start: float) -> Function:
    def run(op: Operator, x: Tensor, axis: Value) -> Tensor:
        along = need_ints(axis)[0]
        if op.get("reverse", 0):
            x = x.flip(along)
        found = function(x, along).to(x.dtype)
        if op.get("exclusive", 0):
            first = torch.full_like(found.narrow(along, 0, 1), start)
            found = torch.cat([first, found.narrow(along, 0, found.shape[along] - 1)], along)
        return found.flip(along) if op.get("reverse", 0) else found

    return run


def _top_k(op: Operator, x: Tensor, k: Value | None = None) -> tuple[Tensor, Tensor]:
    count = (ints(k) or [op.get("k")])[0]
    axis, largest = op.get("axis", -1), bool(op.get("largest", 1))
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _rowwise(op: Operator, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Along `axis`; before opset 13 along all axes from there on at once."""
    if op.opset >= 13:
        return function(x, op.get("axis", -1))
    axis = positive(op.get("axis", 1), x.ndim)
    return function(x.flatten(axis), axis).reshape(x.shape) if axis < x.ndim else torch.ones_like(x)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1)


OPERATORS: dict[str, Function] = {
    "ReduceSum": _reduced(_sum), "ReduceMean": _reduced(_mean), "ReduceProd": _reduced(_product),
    "ReduceMax": _reduced(_extreme(True)), "ReduceMin": _reduced(_extreme(False)),
    "ReduceL1": _reduced(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.sqrt(_sum(x * x, axes, keep)).to(x.dtype)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: torch.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keep).to(x.dtype)),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ArgMax": _extreme_place, "ArgMin": _extreme_place,
    "CumSum": _cumulative(torch.cumsum, 0), "CumProd": _cumulative(torch.cumprod, 1), "TopK": _top_k,
    "Softmax": lambda op, x: _rowwise(op, x, torch.softmax), "LogSoftmax": lambda op, x: _rowwise(op, x, torch.log_softmax),
    "Hardmax": lambda op, x: _rowwise(op, x, _hardmax),
}  # fmt: skip
