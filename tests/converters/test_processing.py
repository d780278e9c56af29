"""Raw images to tensors: as Pillow resizes, as the signature says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgesdk_converters.errors import ModelError
from edgesdk_converters.processing import resize, softmax, to_answer, to_tensor
from edgesdk_converters.signature import Input, Output, Postprocess, Preprocess, Resize

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SIZES = [
    ((37, 53), (20, 11)),
    ((20, 11), (37, 53)),
    ((300, 200), (7, 9)),
    ((64, 64), (64, 32)),
    ((1, 5), (9, 3)),
    ((9, 7), (9, 7)),
]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bytes_are_resized_as_pillow_does_within_one_grey_level(
    mode: Any, source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = picture(*source)
    wanted = np.asarray(Image.fromarray(image).resize(target[::-1], PILLOW[mode])).astype(int)
    got = resize(image.astype(np.float32), Resize(target, mode), round_to_bytes=True)
    difference = np.abs(got - wanted)
    if mode == "nearest":  # a centre right between two pixels may fall to either side
        for axis in (0, 1):
            tie = (2 * np.arange(target[axis]) + 1) * source[axis] % (2 * target[axis]) == 0
            difference = np.compress(~tie, difference, axis=axis)
        assert difference.sum() == 0
    else:
        assert difference.max() <= 1
        assert difference.mean() < 0.01
    assert set(np.unique(got % 1)) == {0.0}


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_floats_are_resized_as_torch_does(mode: Any, antialias: bool, source: Any, target: Any) -> None:
    import torch

    if mode == "bicubic" and not antialias:
        return self_check_bicubic_without_antialias(source, target)
    image = picture(*source).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(tensor, size=target, mode=mode, antialias=antialias, align_corners=False)
    got = resize(image, Resize(target, mode, antialias=antialias))
    assert np.abs(got - wanted[0].permute(1, 2, 0).numpy()).max() < 0.01
    return None


def self_check_bicubic_without_antialias(source: Any, target: Any) -> None:
    """torch takes another cubic (a = -0.75) there; a linear ramp must come out linear inside the image."""
    ramp = np.broadcast_to(np.arange(source[0], dtype=np.float32)[:, None, None], (*source, 1))
    got = resize(np.ascontiguousarray(ramp), Resize(target, "bicubic", antialias=False))[:, 0, 0]
    centres = (np.arange(target[0]) + 0.5) * source[0] / target[0] - 0.5
    inside = (centres >= 2) & (centres <= source[0] - 3)
    assert np.allclose(got[inside], centres[inside], atol=1e-3)


def test_crop_scales_the_short_side_and_takes_the_middle() -> None:
    image = picture(100, 160)
    got = resize(image.astype(np.float32), Resize((56, 56), "bilinear", "crop", 0.875), round_to_bytes=True)
    scaled = Image.fromarray(image).resize((102, 64), Image.Resampling.BILINEAR)
    wanted = np.asarray(scaled.crop((23, 4, 79, 60))).astype(int)
    assert got.shape == (56, 56, 3)
    assert np.abs(got - wanted).max() <= 1


def test_letterbox_keeps_the_aspect_ratio_and_pads_evenly() -> None:
    image = picture(50, 100)
    got = resize(image.astype(np.float32), Resize((64, 64), "bilinear", "letterbox", pad=114), round_to_bytes=True)
    wanted = np.asarray(Image.fromarray(image).resize((64, 32), Image.Resampling.BILINEAR)).astype(int)
    assert (got[:16] == 114).all()
    assert (got[48:] == 114).all()
    assert np.abs(got[16:48] - wanted).max() <= 1


def spec(layout: Any, color: Any = "RGB", dtype: str = "float32", size: tuple[int, int] = (4, 6), **rest: Any) -> Input:
    channels = 1 if color == "gray" else 3
    shape = ("n", channels, *size) if layout == "NCHW" else ("n", *size, channels)
    return Input("x", dtype, shape, Preprocess(layout, color, **rest))


def test_layouts_and_colours() -> None:
    image = picture(4, 6)
    nhwc = to_tensor(spec("NHWC"), image)
    nchw = to_tensor(spec("NCHW"), image)
    assert (nhwc.shape, nchw.shape, nchw.dtype) == ((1, 4, 6, 3), (1, 3, 4, 6), np.float32)
    assert np.array_equal(nhwc[0], image)
    assert np.array_equal(nchw[0], image.transpose(2, 0, 1))
    assert nchw.flags.c_contiguous
    assert np.array_equal(to_tensor(spec("NCHW", "BGR"), image)[0], image.transpose(2, 0, 1)[::-1])
    grey = image[..., 0]
    assert to_tensor(spec("NCHW", "gray"), grey).shape == (1, 1, 4, 6)
    assert np.array_equal(to_tensor(spec("NHWC", "gray"), image[..., :1]), grey[None, ..., None])
    assert to_tensor(spec("NCHW", "gray"), np.stack([grey, grey]))[1, 0].tolist() == grey.tolist()
    assert to_tensor(spec("NHWC"), np.stack([image] * 5)).shape == (5, 4, 6, 3)


def test_normalisation_is_scale_then_mean_then_deviation_by_channel_of_the_model() -> None:
    image = picture(4, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = to_tensor(spec("NCHW", "BGR", scale=1 / 255, mean=mean, std=std), image)
    wanted = (image[..., ::-1] / 255 - np.array(mean)) / np.array(std)
    assert np.allclose(got[0], wanted.transpose(2, 0, 1), atol=1e-6)
    assert np.allclose(
        to_tensor(spec("NCHW", mean=(127.0,), std=(128.0,)), image)[0, 0], (image[..., 0] - 127.0) / 128, atol=1e-6
    )


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127)])
def test_whole_numbers_are_rounded_and_clipped(dtype: str, low: int, high: int) -> None:
    image = picture(4, 6)
    got = to_tensor(spec("NHWC", dtype=dtype, scale=2.0, mean=(100.3,)), image)
    assert got.dtype == dtype
    assert np.array_equal(got[0], np.clip(np.rint(image * np.float32(2) - np.float32(100.3)), low, high))
    flat = Input("x", dtype, (3,), Preprocess("flat", scale=2.0))
    assert to_tensor(flat, np.array([0.3, 200, -200])).tolist() == [1, high, low]


def test_images_are_resized_to_the_model() -> None:
    rule = Resize((4, 6))
    got = to_tensor(spec("NHWC", resize=rule), picture(40, 30))
    wanted = np.asarray(Image.fromarray(picture(40, 30)).resize((6, 4), Image.Resampling.BILINEAR))
    assert np.abs(got[0] - wanted).max() <= 1
    assert (got % 1 == 0).all()  # uint8 stays on whole grey levels
    assert (to_tensor(spec("NHWC", resize=rule), picture(40, 30) / 255.0) % 1 != 0).any()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (np.zeros((4, 6)), "must be height x width x 3"),
        (np.zeros((4, 6, 4)), r"got shape \(4, 6, 4\)"),
        (np.zeros((1, 1, 4, 6, 3)), "or a batch of them"),
        (np.zeros((0, 6, 3)), r"got shape \(0, 6, 3\)"),
        (np.zeros((4, 6, 3), bool), "must hold numbers, got dtype bool"),
        (np.zeros((4, 6, 3), "U1"), "must hold numbers"),
    ],
)
def test_what_cannot_be_an_image_is_refused(raw: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        to_tensor(spec("NCHW"), raw)


def test_data_without_preprocessing_keeps_its_values_and_gains_a_leading_axis() -> None:
    plain = Input("x", "float32", (1, 3))
    assert to_tensor(plain, np.array([1, 2, 3])).tolist() == [[1, 2, 3]]
    assert to_tensor(plain, np.array([[1, 2, 3]])).dtype == np.float32
    scaled = Input("x", "float32", (1, 3), Preprocess("flat", scale=0.5, mean=(1.0,)))
    assert to_tensor(scaled, np.array([2, 4, 6])).tolist() == [[0, 1, 2]]


def test_softmax_is_safe_and_only_where_it_is_asked_for() -> None:
    logits = np.array([[1e4, 1e4, -1e4]], np.float32)
    assert np.allclose(softmax(logits), [[0.5, 0.5, 0]])
    assert softmax(logits).dtype == np.float32
    asked = Output("y", "float32", (1, 3), Postprocess(softmax=True))
    assert np.allclose(to_answer(asked, logits).sum(-1), 1)
    assert to_answer(Output("y", "float32", (1, 3)), logits) is logits
