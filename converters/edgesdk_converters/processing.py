"""Pre- and post-processing with numpy: raw images to input tensors, logits to probabilities."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError
from .signature import Input, Output, Preprocess, Resize

Array = NDArray[Any]


def to_tensor(spec: Input, raw: Array) -> Array:
    """Raw data as the input tensor `spec` wants.

    Images: height x width (x 3, RGB), uint8 or float in 0..255, or a batch of them with one more axis in front. Other
    data: the tensor's own shape, or without its leading axis. Returns an array of the tensor's dtype. Raises ModelError
    for a rank or channel count that cannot be meant.
    """
    pre = spec.preprocess
    raw = np.asarray(raw)
    if raw.dtype.kind not in "biuf":
        raise ModelError(f"input {spec.name!r}: raw data must hold numbers, got dtype {raw.dtype}", "convert it to numbers first")
    got = raw.shape
    if pre is None or pre.layout == "flat":
        values = raw if pre is None else _normalise(raw.astype(np.float32), pre)
        if values.ndim == len(spec.shape) - 1:
            values = values[np.newaxis]
        return values if pre is None and values.dtype == spec.dtype else _cast(values, spec)
    gray = pre.color == "gray"
    rank = 2 if gray else 3
    if gray and raw.ndim in (3, 4) and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim == rank:
        raw = raw[np.newaxis]
    if raw.ndim != rank + 1 or (not gray and raw.shape[-1] != 3) or 0 in raw.shape:
        wanted = "height x width" if gray else "height x width x 3"
        raise ModelError(f"input {spec.name!r}: raw image must be {wanted} or a batch of them, got shape {got}")
    if raw.dtype.kind not in "uif":
        raise ModelError(f"input {spec.name!r}: raw image must hold numbers, got dtype {raw.dtype}")
    images = raw.astype(np.float32)[..., np.newaxis] if gray else raw.astype(np.float32)
    if pre.resize is not None:
        images = np.stack([resize(image, pre.resize, round_to_bytes=raw.dtype == np.uint8) for image in images])
    if pre.color == "BGR":
        images = images[..., ::-1]
    values = _normalise(images, pre)
    if pre.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(_cast(values, spec))


def to_answer(spec: Output, values: Array) -> Array:
    """An output tensor as an answer: probabilities where the signature asks for a softmax, else unchanged."""
    if spec.postprocess is not None and spec.postprocess.softmax:
        return softmax(values)
    return values


def softmax(logits: Array) -> Array:
    """Softmax over the last axis, safe against overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=logits.dtype)


def resize(image: Array, rule: Resize, round_to_bytes: bool = False) -> Array:
    """An image (height x width x channels, float) brought to rule.size.

    Kernels are Pillow's: triangle for bilinear, cubic with a = -0.5 for bicubic, pixel centres at half-integers.
    `round_to_bytes` rounds and clips to 0..255, as a uint8 image library would.
    """
    height, width = rule.size
    if rule.fit == "crop":
        scale = max(height / rule.crop_fraction / image.shape[0], width / rule.crop_fraction / image.shape[1])
        size = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        scaled = _scale(image, size, rule, round_to_bytes)[top : top + height, left : left + width]
    elif rule.fit == "letterbox":
        scale = min(height / image.shape[0], width / image.shape[1])
        size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        scaled = np.full((height, width, image.shape[2]), rule.pad, dtype=image.dtype)
        scaled[top : top + size[0], left : left + size[1]] = _scale(image, size, rule, round_to_bytes)
    else:
        scaled = _scale(image, (height, width), rule, round_to_bytes)
    return _to_bytes(scaled) if round_to_bytes else scaled


def _cast(values: Array, spec: Input) -> Array:
    """In the tensor's type; whole numbers are rounded to and stay inside their range."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "ui" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype, copy=False)


def _normalise(values: Array, pre: Preprocess) -> Array:
    if pre.scale != 1.0:
        values = values * np.float32(pre.scale)
    if pre.mean:
        values = values - np.asarray(pre.mean, dtype=np.float32)
    if pre.std:
        values = values / np.asarray(pre.std, dtype=np.float32)
    return values


def _scale(image: Array, size: tuple[int, int], rule: Resize, round_to_bytes: bool) -> Array:
    if image.shape[:2] == size:
        return image
    across = _weights(image.shape[1], size[1], rule.mode, rule.antialias)
    down = _weights(image.shape[0], size[0], rule.mode, rule.antialias)
    wide: Array = np.einsum("hwc,xw->hxc", image, across, optimize=True)
    if round_to_bytes:  # Pillow keeps bytes between the two directions: what overshoots is cut there already
        wide = _to_bytes(wide)
    return np.asarray(np.einsum("yh,hxc->yxc", down, wide, optimize=True), dtype=image.dtype)


def _to_bytes(values: Array) -> Array:
    return np.asarray(np.clip(np.floor(values + 0.5), 0, 255), dtype=values.dtype)


@lru_cache(maxsize=64)
def _weights(source: int, target: int, mode: str, antialias: bool) -> Array:
    """The target x source matrix that resamples one axis."""
    ratio = source / target
    centres = (np.arange(target) + 0.5) * ratio
    if mode == "nearest":
        matrix = np.zeros((target, source), dtype=np.float32)
        matrix[np.arange(target), (2 * np.arange(target) + 1) * source // (2 * target)] = 1
        return matrix
    stretch = max(ratio, 1.0) if antialias else 1.0
    distance = np.abs((np.arange(source) + 0.5)[np.newaxis, :] - centres[:, np.newaxis]) / stretch
    if mode == "bilinear":
        matrix = np.maximum(0.0, 1.0 - distance)
    else:
        a = -0.5
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        matrix = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)
