"""Operators of neural networks: convolution, pooling, normalisation, matrix products, attention, recurrence, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .operator import Function, Operator, Value, ints, need_ints, numbers, positive

_CONV: Sequence[Callable[..., Tensor]] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: Sequence[Callable[..., Tensor]] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOL: Sequence[Callable[..., Any]] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def spatial(op: Operator, name: str, rank: int, default: int = 1) -> list[int]:
    """An attribute with one number for each spatial axis."""
    return list(op.get(name) or [default] * rank)


def pads(op: Operator, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is put before and after each spatial axis; `sizes` are the input's."""
    rank = len(kernel)
    strides, dilations = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    automatic = op.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        given = op.get("pads") or [0] * (2 * rank)
        return list(given[:rank]), list(given[rank:])
    before, after = [0] * rank, [0] * rank
    if automatic != "VALID":
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            outputs = -(-sizes[axis] // strides[axis])
            total = max(0, (outputs - 1) * strides[axis] + reach - sizes[axis])
            less = total // 2
            before[axis], after[axis] = (less, total - less) if automatic == "SAME_UPPER" else (total - less, less)
    return before, after


def flat_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As torch's pad takes them: the last axis first."""
    return [size for axis in reversed(range(len(before))) for size in (before[axis], after[axis])]


def _conv(op: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    kernel = list(weight.shape[2:])
    before, after = pads(op, x.shape[2:], kernel)
    even = before == after
    if not even:
        x = F.pad(x, flat_pads(before, after))
    return _CONV[rank - 1](
        x, weight, bias, spatial(op, "strides", rank), before if even else [0] * rank, spatial(op, "dilations", rank),
        op.get("group", 1),
    )  # fmt: skip


def _conv_transpose(op: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    kernel, strides, dilations = list(weight.shape[2:]), spatial(op, "strides", rank), spatial(op, "dilations", rank)
    extra = spatial(op, "output_padding", rank, 0)
    full = _TRANSPOSED[rank - 1](x, weight, bias, strides, [0] * rank, 0, op.get("group", 1), dilations)
    shape = op.get("output_shape")
    before, after = [0] * rank, [0] * rank
    if shape or op.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(shape[-rank:]) if shape else [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
        for axis in range(rank):
            total = (
                strides[axis] * (x.shape[axis + 2] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - wanted[axis]
            )
            upper = op.get("auto_pad", "NOTSET") == "SAME_UPPER"
            before[axis] = total // 2 if upper else total - total // 2
            after[axis] = total - before[axis]
    elif op.get("pads"):
        before, after = list(op.get("pads")[:rank]), list(op.get("pads")[rank:])
    # The full result ends where the kernel does; output_padding is what strides leave beyond it, and holds the bias alone.
    ends = [extra[axis] - after[axis] for axis in range(rank)]
    grown = F.pad(full - _channelwise(bias, rank), flat_pads([-size for size in before], ends))
    return grown + _channelwise(bias, rank)


def _channelwise(values: Tensor | None, rank: int) -> Tensor | float:
    return 0.0 if values is None else values.reshape(1, -1, *(1,) * rank)


def _ceiled(op: Operator, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Pads of a pooling, and what more it takes at the ends so that ceil_mode's last windows are whole."""
    rank = len(kernel)
    strides, dilations = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    before, after = pads(op, x.shape[2:], kernel)
    more = [0] * rank
    if op.get("ceil_mode", 0):
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            free = x.shape[axis + 2] + before[axis] + after[axis] - reach
            outputs = -(-free // strides[axis]) + 1
            if (outputs - 1) * strides[axis] >= x.shape[axis + 2] + before[axis]:  # it would begin in the padding
                outputs -= 1
            more[axis] = max(0, (outputs - 1) * strides[axis] + reach - (x.shape[axis + 2] + before[axis] + after[axis]))
    return before, after, more


def _max_pool(op: Operator, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    kernel = list(op.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    before, after, more = _ceiled(op, x, kernel)
    sizes = list(x.shape[2:])
    kind = x.dtype
    if not x.is_floating_point():
        x = x.to(torch.float32 if kind in (torch.int8, torch.uint8) else torch.float64)
    padded = F.pad(x, flat_pads(before, [a + b for a, b in zip(after, more, strict=True)]), value=-math.inf)
    if op.outputs == 1:
        found: Tensor = _MAX_POOL[rank - 1](padded, kernel, strides, 0, dilations)
        return found.to(kind)
    values, places = _MAX_POOL[rank - 1](padded, kernel, strides, 0, dilations, return_indices=True)
    coordinates, rest = [], places
    for size in reversed(padded.shape[2:]):
        coordinates.append(rest % size)
        rest = rest // size
    flat = torch.zeros_like(places)
    by_column = bool(op.get("storage_order", 0))
    axes = list(range(rank))
    for axis in reversed(axes) if by_column and rank == 2 else axes:
        flat = flat * sizes[axis] + (coordinates[rank - 1 - axis] - before[axis])
    block = math.prod(sizes)
    lead = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *(1,) * rank)
    return values.to(kind), flat + lead * block


def _windows(op: Operator, x: Tensor, weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """Sums over windows, by a convolution of each channel alone; the padding counts as nothing."""
    rank, channels = len(kernel), x.shape[1]
    before, after, more = _ceiled(op, x, kernel)
    padded = F.pad(x, flat_pads(before, [a + b for a, b in zip(after, more, strict=True)]))
    flat = padded.reshape(-1, 1, *padded.shape[2:])
    summed: Tensor = _CONV[rank - 1](flat, weight, None, spatial(op, "strides", rank), 0, spatial(op, "dilations", rank))
    return summed.reshape(x.shape[0], channels, *summed.shape[2:])


def _average_pool(op: Operator, x: Tensor) -> Tensor:
    kernel = list(op.get("kernel_shape"))
    weight = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    inside = torch.ones_like(x[:1, :1])
    if op.get("count_include_pad", 0):  # the padding counts, what ceil_mode adds beyond it does not
        before, after = pads(op, x.shape[2:], kernel)
        inside = F.pad(inside, flat_pads(before, after), value=1.0)
        bare = Operator(op.kind, op.opset, {**op.attributes, "pads": None, "auto_pad": "VALID"})
        ceiled = _windows(bare, inside, weight, kernel)
        whole = _windows(op, x, weight, kernel)
        return whole / ceiled[tuple(slice(0, size) for size in (1, 1, *whole.shape[2:]))]
    return _windows(op, x, weight, kernel) / _windows(op, inside, weight, kernel)


def _lp_pool(op: Operator, x: Tensor) -> Tensor:
    kernel, p = list(op.get("kernel_shape")), op.get("p", 2)
    weight = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    return torch.pow(_windows(op, x.abs() ** p, weight, kernel), 1 / p)


def _global(function: Callable[..., Tensor]) -> Function:
    return lambda op, x: function(x, list(range(2, x.ndim)), keepdim=True)


def _global_lp_pool(op: Operator, x: Tensor) -> Tensor:
    p = op.get("p", 2)
    return torch.pow(torch.sum(x.abs() ** p, list(range(2, x.ndim)), keepdim=True), 1 / p)


def _batch_norm(op: Operator, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    epsilon = op.get("epsilon", 1e-5)
    if not op.get("training_mode", 0):
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    momentum = op.get("momentum", 0.9)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    now, spread = x.mean(axes), x.var(axes, unbiased=False)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return y, mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)


def _layer_norm(op: Operator, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = positive(op.get("axis", -1), x.ndim)
    axes = list(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + op.get("epsilon", 1e-5))
    y = (x - mean) * inverse * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse)[: op.outputs] if op.outputs > 1 else y


def _rms_norm(op: Operator, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(positive(op.get("axis", -1), x.ndim), x.ndim))
    inverse = torch.rsqrt((x * x).mean(axes, keepdim=True) + op.get("epsilon", 1e-5))
    return x * inverse * scale


def _instance_norm(op: Operator, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, op.get("epsilon", 1e-5))


def _group_norm(op: Operator, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = op.get("num_groups")
    if op.opset < 21:  # one value a group
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return F.group_norm(x, groups, scale, bias, op.get("epsilon", 1e-5))


def _lp_norm(op: Operator, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, op.get("p", 2), op.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


def _mean_variance_norm(op: Operator, x: Tensor) -> Tensor:
    axes = list(op.get("axes") or [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


def _lrn(op: Operator, x: Tensor) -> Tensor:
    size = op.get("size")
    squares = F.pad((x * x).movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    summed = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / torch.pow(op.get("bias", 1.0) + op.get("alpha", 1e-4) / size * summed, op.get("beta", 0.75))


def _gemm(op: Operator, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    y: Tensor = op.get("alpha", 1.0) * ((a.T if op.get("transA", 0) else a) @ (b.T if op.get("transB", 0) else b))
    y = y if c is None else y + op.get("beta", 1.0) * c
    return y.to(a.dtype)


def _einsum(op: Operator, *values: Tensor) -> Tensor:
    return torch.einsum(op.get("equation"), *values)


def _dropout(op: Operator, x: Tensor, ratio: Value | None = None, training: Value | None = None) -> Any:
    """As at inference, unless the graph itself says that it trains."""
    kept = torch.ones_like(x, dtype=torch.bool)
    if training is not None and any(need_ints(training)):
        rate = (numbers(ratio) or [0.5])[0]
        kept = torch.rand_like(x) >= rate
        x = torch.where(kept, x / (1 - rate), torch.zeros_like(x)) if rate < 1 else torch.zeros_like(x)
    return (x, kept) if op.outputs > 1 else x


def _attention(
    op: Operator, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, lengths: Tensor | None = None,
) -> Any:  # fmt: skip
    flat = q.ndim == 3
    if flat:
        heads, kv_heads = op.get("q_num_heads"), op.get("kv_num_heads")
        q = q.reshape(q.shape[0], q.shape[1], heads, -1).transpose(1, 2)
        k = k.reshape(k.shape[0], k.shape[1], kv_heads, -1).transpose(1, 2)
        v = v.reshape(v.shape[0], v.shape[1], kv_heads, -1).transpose(1, 2)
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present_k, present_v = k, v
    k, v = (value.repeat_interleave(q.shape[1] // value.shape[1], 1) for value in (k, v))
    scale = op.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).transpose(-1, -2)
    cap = op.get("softcap", 0.0)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    columns = torch.arange(scores.shape[-1], device=q.device)
    bias = torch.zeros(scores.shape[-2:], dtype=q.dtype, device=q.device)
    if op.get("is_causal", 0):
        rows = torch.arange(scores.shape[-2], device=q.device)[:, None]
        if lengths is not None and past_k is None:  # what is cached already, by batch
            rows = rows + (lengths - scores.shape[-2]).reshape(-1, 1, 1, 1)
        elif past_k is not None:
            rows = rows + past_k.shape[2]
        bias = torch.zeros_like(columns > rows, dtype=q.dtype).masked_fill(columns > rows, -math.inf)
    if mask is not None:
        added = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask
        if added.shape[-1] < scores.shape[-1]:
            added = F.pad(added, (0, scores.shape[-1] - added.shape[-1]), value=-math.inf)
        bias = bias + added
    if lengths is not None:
        beyond = columns[None] >= lengths[:, None]
        bias = bias + torch.zeros_like(beyond, dtype=q.dtype).masked_fill(beyond, -math.inf)[:, None, None]
    masked = scores + bias
    nothing = torch.isneginf(bias.amax(-1, keepdim=True))  # a row that may look at nothing gives zeros
    safe = torch.where(nothing, torch.zeros_like(masked), masked)
    weights = torch.where(nothing, torch.zeros_like(masked), torch.softmax(safe, -1))
    y = weights @ v
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    shown = [scores, scores, masked, weights][op.get("qk_matmul_output_mode", 0)]
    return (y, present_k, present_v, shown)[: op.outputs] if op.outputs > 1 else y


def _rotary(op: Operator, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
    flat = x.ndim == 3
    if flat:
        x = x.reshape(x.shape[0], x.shape[1], op.get("num_heads"), -1).transpose(1, 2)
    turned = op.get("rotary_embedding_dim", 0) or x.shape[-1]
    if places is not None:
        cos, sin = cos[places], sin[places]
    cos, sin = (value[..., : turned // 2].unsqueeze(1) for value in (cos, sin))
    head, rest = x[..., :turned], x[..., turned:]
    if op.get("interleaved", 0):
        a, b = head[..., 0::2], head[..., 1::2]
        head = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = head.chunk(2, -1)
        head = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    y = torch.cat([head, rest], -1)
    return y.transpose(1, 2).flatten(2) if flat else y


def _resize(op: Operator, x: Tensor, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None) -> Tensor:
    """Each axis by a matrix of weights, made here: exact for every mode, and differentiable."""
    if op.kind == "Upsample" or op.opset < 11:
        scales, roi = (roi if roi is not None else scales), None
    axes = [positive(axis, x.ndim) for axis in op.get("axes") or range(x.ndim)]
    factors, wanted = numbers(scales) or op.get("scales"), ints(sizes)
    region = numbers(roi) or []
    if wanted:
        factors = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = op.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(factors)
            factors = [one] * len(axes)
            wanted = [math.floor(one * x.shape[axis] + 0.5) for axis in axes]
    assert factors is not None
    bounds = {axis: (region[i], region[i + len(axes)]) for i, axis in enumerate(axes)} if region else {}
    mode = op.get("coordinate_transformation_mode", "asymmetric" if op.opset < 11 or op.kind == "Upsample" else "half_pixel")
    for place, axis in enumerate(axes):
        size = wanted[place] if wanted else math.floor(x.shape[axis] * factors[place])
        if size == x.shape[axis] and factors[place] == 1 and mode != "tf_crop_and_resize":
            continue
        weights, outside = _resample(op, x.shape[axis], size, factors[place], mode, bounds.get(axis, (0.0, 1.0)))
        matrix = weights.to(x.device, x.dtype if x.is_floating_point() else torch.float32)
        y = torch.tensordot(x.to(matrix.dtype), matrix, ([axis], [1])).movedim(-1, axis)
        if bool(outside.any()):
            shape = [1] * x.ndim
            shape[axis] = -1
            y = torch.where(outside.to(x.device).reshape(shape), torch.full_like(y, op.get("extrapolation_value", 0.0)), y)
        x = y.to(x.dtype) if x.is_floating_point() else torch.round(y).to(x.dtype)
    return x


def _resample(op: Operator, have: int, size: int, factor: float, mode: str, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Weights (size x have) of one axis, and which outputs lie outside."""
    index = torch.arange(size, dtype=torch.float64)
    length = factor * have
    if mode == "half_pixel":
        at = (index + 0.5) / factor - 0.5
    elif mode == "half_pixel_symmetric":
        at = have / 2 * (1 - size / length) + (index + 0.5) / factor - 0.5
    elif mode == "pytorch_half_pixel":
        at = (index + 0.5) / factor - 0.5 if size > 1 else torch.zeros_like(index)
    elif mode == "align_corners":
        at = index * (have - 1) / (length - 1) if length != 1 else torch.zeros_like(index)
    elif mode == "tf_half_pixel_for_nn":
        at = (index + 0.5) / factor
    elif mode == "tf_crop_and_resize":
        low, high = bounds
        at = (
            low * (have - 1) + index * (high - low) * (have - 1) / (size - 1)
            if size > 1
            else (low + high) * (have - 1) / 2 + index
        )
    else:
        at = index / factor
    outside = (at < 0) | (at > have - 1) if mode == "tf_crop_and_resize" else torch.zeros(size, dtype=torch.bool)
    kind = op.get("mode", "nearest")
    if kind == "nearest":
        how = op.get("nearest_mode", "floor" if op.opset < 11 or op.kind == "Upsample" else "round_prefer_floor")
        chosen = {
            "floor": torch.floor(at), "ceil": torch.ceil(at), "round_prefer_floor": torch.ceil(at - 0.5),
            "round_prefer_ceil": torch.floor(at + 0.5),
        }[how].clamp(0, have - 1)  # fmt: skip
        return F.one_hot(chosen.to(torch.int64), have).to(torch.float64), outside
    stretch = max(1.0, 1 / factor) if op.get("antialias", 0) else 1.0
    reach = (2 if kind == "cubic" else 1) * stretch
    first = torch.floor(at - reach).to(torch.int64)
    taps = torch.arange(int(2 * math.ceil(reach)) + 2)
    places = first[:, None] + taps[None]
    away = (at[:, None] - places) / stretch
    weight = _cubic(away, op.get("cubic_coeff_a", -0.75)) if kind == "cubic" else (1 - away.abs()).clamp(min=0)
    if op.get("exclude_outside", 0):
        weight = torch.where((places < 0) | (places > have - 1), torch.zeros_like(weight), weight)
    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros(size, have, dtype=torch.float64).scatter_add(1, places.clamp(0, have - 1), weight), outside


def _cubic(x: Tensor, a: float) -> Tensor:
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _grid_sample(op: Operator, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(op.get("mode", "linear"), op.get("mode", "linear"))
    return F.grid_sample(x, grid, mode, op.get("padding_mode", "zeros"), bool(op.get("align_corners", 0)))


def _affine_grid(op: Operator, theta: Tensor, size: Value) -> Tensor:
    return F.affine_grid(theta, need_ints(size), align_corners=bool(op.get("align_corners", 0)))


def _col2im(op: Operator, x: Tensor, image: Value, block: Value) -> Tensor:
    size, kernel = need_ints(image), need_ints(block)
    rank = len(size)
    strides, dilations = spatial(op, "strides", rank), spatial(op, "dilations", rank)
    given = op.get("pads") or [0] * (2 * rank)
    padded = [size[axis] + given[axis] + given[axis + rank] for axis in range(rank)]
    counts = [(padded[a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a in range(rank)]
    places = torch.zeros(1, 1, dtype=torch.int64)
    for axis in range(rank):
        taps, steps = torch.arange(kernel[axis]) * dilations[axis], torch.arange(counts[axis]) * strides[axis]
        own = taps[:, None] + steps[None]
        places = (places[:, None, :, None] * padded[axis] + own[None, :, None, :]).reshape(
            places.shape[0] * kernel[axis], places.shape[1] * counts[axis]
        )
    channels = x.shape[1] // math.prod(kernel)
    values = x.reshape(x.shape[0], channels, -1)
    flat = torch.zeros(x.shape[0], channels, math.prod(padded), dtype=x.dtype, device=x.device)
    summed = flat.scatter_add(2, places.to(x.device).reshape(1, 1, -1).expand_as(values), values)
    whole = summed.reshape(x.shape[0], channels, *padded)
    inner: Any = (..., *(slice(given[axis], given[axis] + size[axis]) for axis in range(rank)))
    return whole[inner]


OPERATORS: dict[str, Function] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _max_pool, "AveragePool": _average_pool, "LpPool": _lp_pool,
    "GlobalAveragePool": _global(torch.mean), "GlobalMaxPool": _global(torch.amax), "GlobalLpPool": _global_lp_pool,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm, "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm, "LRN": _lrn, "Gemm": _gemm, "MatMul": lambda op, a, b: torch.matmul(a, b),
    "Einsum": _einsum, "Dropout": _dropout, "Attention": _attention, "RotaryEmbedding": _rotary, "Resize": _resize,
    "Upsample": _resize, "GridSample": _grid_sample, "AffineGrid": _affine_grid, "Col2Im": _col2im,
    "Det": lambda op, x: torch.linalg.det(x),
}  # fmt: skip
