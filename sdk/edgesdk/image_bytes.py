"""Images as files: how many bytes the samples of a model's input have as PNG and as lossless WebP, measured by coding them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.signature import Preprocess

FORMS: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "method": 4}}
"""Both lossless: what the model computes stays the same. Options as Pillow takes them."""
MOST = 200
"""Images coded at most."""
OFF_PIXEL = 0.02
"""How far a value may lie from a whole number of 0 to 255 and still be a pixel."""


def encoded(model: Model, data: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """For each form the mean bytes of an image, rounded up, and the number of images.

    Raises ModelError where the model does not take one image, or samples are none; MissingExtra where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("dev", "pillow") from error
    specs = model.signature.inputs
    pre = specs[0].preprocess if len(specs) == 1 else None
    if pre is None or pre.layout == "flat":
        raise ModelError(
            f"the input of {model.name} is not described as one image, so what it has as PNG is not known",
            "give the model its [io.inputs.NAME], or say --input-bytes",
        )
    samples = Samples.load(data, model.signature)
    samples = samples.take(np.arange(min(MOST, len(samples))))
    sums, count = dict.fromkeys(FORMS, 0), 0
    for sample in samples:
        for pixels in _pixels(sample[specs[0].name], pre, samples.origin):
            count += 1
            for form, options in FORMS.items():
                sink = io.BytesIO()
                Image.fromarray(pixels).save(sink, form, **options)
                sums[form] += sink.tell()
    return {form: (-(-total // count), count) for form, total in sums.items()}


def _pixels(tensor: NDArray[Any], pre: Preprocess, origin: str) -> Iterator[NDArray[np.uint8]]:
    """The images of a batch, height x width (x 3), as they were before they were scaled and normalised."""
    images = np.moveaxis(tensor, 1, 3) if pre.layout == "NCHW" else tensor
    values = (images.astype(np.float64) * np.asarray(pre.std or 1.0) + np.asarray(pre.mean or 0.0)) / pre.scale
    rounded = np.rint(values)
    if np.abs(values - rounded).max() > OFF_PIXEL or rounded.min() < 0 or rounded.max() > 255:
        raise ModelError(
            f"{origin} are no pixels of 8 bits by the processing of the model's input",
            "give --input-bytes, or images as they are",
        )
    for image in rounded.astype(np.uint8):
        if pre.color == "BGR":
            image = image[:, :, ::-1]
        yield np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
