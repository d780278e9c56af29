"""Operators that move, select and make values without computing on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .operator import DTYPES, Function, Known, Operator, Value, ints, need_ints, numbers, positive


def _shape(op: Operator, x: Tensor) -> Known:
    shape = list(x.shape)[slice(op.get("start", 0), op.get("end"))]
    return np.array(shape, np.int64)


def _size(op: Operator, x: Tensor) -> Known:
    return np.array(x.numel(), np.int64)


def _reshape(op: Operator, x: Tensor, shape: Value) -> Tensor:
    wanted = need_ints(shape)
    if not op.get("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    if x.numel() == 0 and -1 in wanted:
        rest = int(np.prod([size for size in wanted if size != -1]))
        wanted = [0 if size == -1 and rest else size for size in wanted]
    return x.reshape(wanted)


def _transpose(op: Operator, x: Tensor) -> Tensor:
    return x.permute(op.get("perm") or list(reversed(range(x.ndim))))


def _axes(op: Operator, given: Value | None) -> list[int] | None:
    found = ints(given)
    return found if found is not None else op.get("axes")


def _squeeze(op: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
    chosen = _axes(op, axes)
    if chosen is None:
        chosen = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = {positive(axis, x.ndim) for axis in chosen}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


def _unsqueeze(op: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
    chosen = _axes(op, axes)
    assert chosen is not None
    rank = x.ndim + len(chosen)
    for axis in sorted(positive(axis, rank) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _flatten(op: Operator, x: Tensor) -> Tensor:
    axis = positive(op.get("axis", 1), x.ndim)
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), int(np.prod(x.shape[axis:], dtype=np.int64)))


def _expand(op: Operator, x: Tensor, shape: Value) -> Tensor:
    wanted = need_ints(shape)
    both = np.broadcast_shapes(tuple(x.shape), tuple(wanted))
    return x.expand(both)


def _tile(op: Operator, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat(need_ints(repeats))


def _concat(op: Operator, *values: Tensor) -> Tensor:
    return torch.cat(values, op.get("axis", 1))


def _split(op: Operator, x: Tensor, sizes: Value | None = None) -> tuple[Tensor, ...]:
    axis = op.get("axis", 0)
    given = ints(sizes) or op.get("split")
    if given is None:
        parts = op.get("num_outputs") or op.outputs
        each = -(-x.shape[axis] // parts)
        given = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return torch.split(x, given, axis)


def _slice(op: Operator, x: Tensor, *rest: Value | None) -> Tensor:
    given: list[list[int] | None] = [ints(value) for value in rest]
    starts, ends, axes, steps = [*given, None, None, None, None][:4]
    starts, ends = starts or list(op.get("starts", ())), ends or list(op.get("ends", ()))
    axes = axes or op.get("axes") or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        first, last, step = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * positive(axis, x.ndim) + (slice(first, max(first, last), step),)]
        else:
            places = torch.arange(first, last, step, device=x.device)
            x = x.index_select(axis, places)
    return x


def _pad(op: Operator, x: Tensor, pads: Value | None = None, value: Value | None = None, axes: Value | None = None) -> Tensor:
    given = ints(pads) if pads is not None else op.get("pads", op.get("paddings"))
    assert given is not None
    chosen = ints(axes) or list(range(x.ndim))
    fill = (numbers(value) or [op.get("value", 0.0)])[0]
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = given[place], given[place + len(chosen)]
    for axis in range(x.ndim):  # what is cut off goes first
        x = x.narrow(axis, max(0, -before[axis]), x.shape[axis] - max(0, -before[axis]) - max(0, -after[axis]))
    before, after = [max(0, size) for size in before], [max(0, size) for size in after]
    mode = op.get("mode", "constant")
    if mode == "constant":
        flat = [size for axis in reversed(range(x.ndim)) for size in (before[axis], after[axis])]
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=fill).to(torch.bool)
        return F.pad(x, flat, value=fill if x.is_floating_point() else int(fill))
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            places = np.pad(np.arange(x.shape[axis]), (before[axis], after[axis]), mode="edge" if mode == "edge" else mode)
            x = x.index_select(axis, torch.as_tensor(places, device=x.device))
    return x


def _wrapped(places: Tensor, size: int) -> Tensor:
    return torch.where(places < 0, places + size, places).to(torch.int64)


def _gather(op: Operator, x: Tensor, places: Tensor) -> Tensor:
    axis = positive(op.get("axis", 0), x.ndim)
    chosen = _wrapped(places, x.shape[axis])
    found = x.index_select(axis, chosen.reshape(-1))
    return found.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _gather_elements(op: Operator, x: Tensor, places: Tensor) -> Tensor:
    axis = positive(op.get("axis", 0), x.ndim)
    return torch.gather(x, axis, _wrapped(places, x.shape[axis]))


def _places_nd(places: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    return tuple(_wrapped(places[..., axis], shape[axis]) for axis in range(places.shape[-1]))


def _gather_nd(op: Operator, x: Tensor, places: Tensor) -> Tensor:
    batch = op.get("batch_dims", 0)
    if not batch:
        return x[_places_nd(places, x.shape)]
    lead = x.shape[:batch]
    flat, chosen = x.reshape(-1, *x.shape[batch:]), places.reshape(-1, *places.shape[batch:])
    found = torch.stack([one[_places_nd(own, one.shape)] for one, own in zip(flat, chosen, strict=True)])
    return found.reshape(*lead, *found.shape[1:])


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(op: Operator, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis = positive(op.get("axis", 0), x.ndim)
    chosen = _wrapped(places, x.shape[axis])
    reduction = op.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, chosen, updates)
    return x.scatter_reduce(axis, chosen, updates, _REDUCTIONS[reduction])


def _scatter_nd(op: Operator, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    depth = places.shape[-1]
    strides = [int(np.prod(x.shape[axis + 1 : depth], dtype=np.int64)) for axis in range(depth)]
    rows = x.reshape(int(np.prod(x.shape[:depth], dtype=np.int64)), -1)
    chosen = sum((part * stride for part, stride in zip(_places_nd(places, x.shape), strides, strict=True)), start=0)
    flat = torch.as_tensor(chosen, device=x.device).reshape(-1, 1).expand(-1, rows.shape[1])
    values, reduction = updates.reshape(-1, rows.shape[1]), op.get("reduction", "none")
    if reduction == "none":
        return rows.scatter(0, flat, values).reshape(x.shape)
    return rows.scatter_reduce(0, flat, values, _REDUCTIONS[reduction]).reshape(x.shape)


def _depth_to_space(op: Operator, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = op.get("blocksize")
    if op.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(op: Operator, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = op.get("blocksize")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _range(op: Operator, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    first, last, by = (value.item() for value in (start, limit, step))
    return torch.arange(first, last, by, dtype=start.dtype, device=start.device)


def _constant_of_shape(op: Operator, shape: Value) -> Known:
    value = op.get("value")
    return np.full(need_ints(shape), 0.0 if value is None else value.reshape(-1)[0], np.float32 if value is None else value.dtype)


def _eye_like(op: Operator, x: Tensor) -> Tensor:
    rows, columns = x.shape
    kind = DTYPES[op.get("dtype")] if op.get("dtype") else x.dtype
    eye = torch.diag(torch.ones(max(rows, columns) + abs(op.get("k", 0)), device=x.device), op.get("k", 0))
    return eye[:rows, :columns].to(kind)


def _one_hot(op: Operator, places: Tensor, depth: Value, values: Tensor) -> Tensor:
    size = need_ints(depth)[0]
    axis = positive(op.get("axis", -1), places.ndim + 1)
    shape = [1] * (places.ndim + 1)
    shape[axis] = size
    hot = _wrapped(places, size).unsqueeze(axis) == torch.arange(size, device=places.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


def _trilu(op: Operator, x: Tensor, k: Value | None = None) -> Tensor:
    diagonal = (ints(k) or [0])[0]
    return torch.triu(x, diagonal) if op.get("upper", 1) else torch.tril(x, diagonal)


def _reverse_sequence(op: Operator, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = op.get("time_axis", 0), op.get("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device)
    turned = torch.where(steps[None] < lengths[:, None], lengths[:, None] - 1 - steps[None], steps[None])
    moved = x.movedim((batch, time), (0, 1))
    places = turned.reshape(*turned.shape, *(1,) * (moved.ndim - 2)).expand_as(moved)
    return torch.gather(moved, 1, places.to(torch.int64)).movedim((0, 1), (batch, time))


def _center_crop_pad(op: Operator, x: Tensor, shape: Value) -> Tensor:
    axes = op.get("axes") or list(range(x.ndim))
    for axis, size in zip(axes, need_ints(shape), strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        elif have < size:
            flat = [0] * (2 * x.ndim)
            place = 2 * (x.ndim - 1 - positive(axis, x.ndim))
            flat[place], flat[place + 1] = (size - have) // 2, size - have - (size - have) // 2
            x = F.pad(x, flat)
    return x


def _compress(op: Operator, x: Tensor, chosen: Value) -> Tensor:
    axis = op.get("axis")
    places = [place for place, taken in enumerate(np.asarray(chosen.tolist()).reshape(-1)) if taken]
    kept: Any = torch.tensor(places, dtype=torch.int64, device=x.device)
    return x.reshape(-1).index_select(0, kept) if axis is None else x.index_select(axis, kept)


OPERATORS: dict[str, Function] = {
    "Shape": _shape, "Size": _size, "Reshape": _reshape, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Flatten": _flatten, "Expand": _expand, "Tile": _tile, "Concat": _concat, "Split": _split, "Slice": _slice, "Pad": _pad,
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements, "ScatterND": _scatter_nd, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
    "Range": _range, "ConstantOfShape": _constant_of_shape, "EyeLike": _eye_like, "OneHot": _one_hot, "Trilu": _trilu,
    "ReverseSequence": _reverse_sequence, "CenterCropPad": _center_crop_pad, "Compress": _compress,
}  # fmt: skip
