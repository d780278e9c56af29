"""What goes into a model and what comes out: names, types, shapes, and how raw data becomes tensors.

Standard library only: devices read it from a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import fields
from .errors import EdgeError, ModelError

Dim = int | str


@dataclass(frozen=True)
class Resize:
    """How an image is brought to `size` (height, width in pixels) before it enters the model.

    `fit`: `stretch` ignores the aspect ratio; `crop` scales the shorter side to size / crop_fraction and cuts the centre
    out; `letterbox` scales the longer side and pads with `pad` (0..255). `antialias` widens the kernel when shrinking,
    as Pillow does.
    """

    size: tuple[int, ...]
    mode: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    crop_fraction: float = 1.0
    antialias: bool = True
    pad: float = 0.0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ModelError(f"resize.size must be [height, width], both at least 1; got {list(self.size)}")
        if not 0 < self.crop_fraction <= 1:
            raise ModelError(f"resize.crop_fraction must be above 0 and at most 1; got {self.crop_fraction}")


@dataclass(frozen=True)
class Preprocess:
    """How raw data becomes an input tensor: (raw * scale - mean) / std, channel-wise.

    `layout` is the layout of the model's input; for NCHW and NHWC the raw data is an image, height x width x channels
    (RGB, uint8 or float), or a batch of them; `flat` takes raw data of the tensor's own shape. `color` is what the model
    expects; raw images are RGB unless `color` is gray (height x width).
    """

    layout: Literal["NCHW", "NHWC", "flat"] = "flat"
    color: Literal["RGB", "BGR", "gray"] = "RGB"
    resize: Resize | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(value == 0 for value in self.std):
            raise ModelError("preprocess.std contains 0; every standard deviation must be positive")
        channels = 1 if self.color == "gray" else 3
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if self.layout != "flat" and count not in (0, 1, channels):
                raise ModelError(f"preprocess.{name} has {count} values; allowed: 0, 1 or {channels} for {self.color}")
        if self.resize is not None and self.layout == "flat":
            raise ModelError("preprocess.resize needs layout NCHW or NHWC; got flat")


@dataclass(frozen=True)
class Postprocess:
    """How an output tensor becomes an answer: softmax over the last axis if the graph has none; names of the classes."""

    softmax: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """A named input tensor. `dtype` is numpy's name; a dimension is a number, or a name where it may vary."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Output:
    """A named output tensor, as Input."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    postprocess: Postprocess | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the graph's order."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    def to_json(self) -> dict[str, Any]:
        return {"inputs": fields.plain(self.inputs), "outputs": fields.plain(self.outputs)}

    @classmethod
    def from_json(cls, data: object, error: type[EdgeError] = ModelError) -> Signature:
        return fields.read(cls, data, "signature", error)

    @property
    def is_static(self) -> bool:
        return all(isinstance(dim, int) for spec in self.inputs for dim in spec.shape)

    def with_processing(self, processing: Processing) -> Signature:
        """The same signature with pre- and post-processing attached by tensor name."""
        for kind, specs, table in (
            ("input", self.inputs, processing.inputs),
            ("output", self.outputs, processing.outputs),
        ):
            names = [spec.name for spec in specs]
            for name in table:
                if name not in names:
                    raise ModelError(f"processing is given for {kind} {name!r}; the model has: {', '.join(names)}")
        signature = Signature(
            tuple(replace(i, preprocess=processing.inputs.get(i.name, i.preprocess)) for i in self.inputs),
            tuple(replace(o, postprocess=processing.outputs.get(o.name, o.postprocess)) for o in self.outputs),
        )
        for spec in signature.inputs:
            _check_image(spec)
        for output in signature.outputs:
            labels = output.postprocess.labels if output.postprocess else ()
            last = output.shape[-1] if output.shape else 1
            if labels and isinstance(last, int) and last != len(labels):
                raise ModelError(f"output {output.name!r} has {last} classes in its last axis, but {len(labels)} labels")
        return signature


@dataclass(frozen=True)
class Processing:
    """Pre- and post-processing by tensor name, as `edgesdk.toml` ([io.inputs.NAME]) or ONNX metadata give it."""

    inputs: dict[str, Preprocess] = field(default_factory=dict)
    outputs: dict[str, Postprocess] = field(default_factory=dict)

    @classmethod
    def from_metadata(cls, data: object) -> Processing:
        """From the JSON that ONNX files carry under the metadata key `edgesdk.io`."""
        if not isinstance(data, Mapping):
            raise ModelError(f"metadata edgesdk.io: expected an object, got {data!r}")
        for kind in ("inputs", "outputs"):
            entries = data.get(kind, [])
            if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
                raise ModelError(f"metadata edgesdk.io: {kind} must be a list of objects, got {entries!r}")
        inputs, outputs = (
            {
                str(entry.get("name")): fields.read(cls_, entry[key], f"metadata edgesdk.io {key}", ModelError)
                for entry in data.get(kind, ())
                if key in entry
            }
            for kind, key, cls_ in (("inputs", "preprocess", Preprocess), ("outputs", "postprocess", Postprocess))
        )
        return cls(inputs, outputs)  # type: ignore[arg-type]


def _check_image(spec: Input) -> None:
    pre = spec.preprocess
    if pre is None or pre.layout == "flat":
        return
    if len(spec.shape) != 4:
        raise ModelError(f"input {spec.name!r} has layout {pre.layout} but shape {list(spec.shape)}: 4 axes are needed")
    channel_axis = 1 if pre.layout == "NCHW" else 3
    channels = 1 if pre.color == "gray" else 3
    if isinstance(spec.shape[channel_axis], int) and spec.shape[channel_axis] != channels:
        raise ModelError(
            f"input {spec.name!r} has {spec.shape[channel_axis]} channels in axis {channel_axis} ({pre.layout}), "
            f"but {pre.color} has {channels}"
        )
    if pre.resize is not None:
        axes = (2, 3) if pre.layout == "NCHW" else (1, 2)
        for axis, size in zip(axes, pre.resize.size, strict=True):
            if isinstance(spec.shape[axis], int) and spec.shape[axis] != size:
                raise ModelError(f"input {spec.name!r} is {spec.shape[axis]} long in axis {axis}, resize gives {size}")
