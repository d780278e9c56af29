"""Streams: the order of elements in beats, and that a tensor comes back out of them as it went in."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk_converters.integer_program import Codes
from edgesdk_targets.fpga.stream import Stream, bits_for, channels_first, channels_last, divisors, levels

IMAGE = Codes("image", (4, 2, 3), -3, -8, 7)


def test_an_image_travels_pixel_by_pixel_with_its_channels_side_by_side() -> None:
    stream = Stream(IMAGE, channels_first(IMAGE.shape), 4)
    values = np.arange(24).reshape(1, 4, 2, 3)
    assert (stream.positions, stream.beats, stream.width) == (6, 6, 16)
    assert stream.pack(values)[0, 1].tolist() == [1, 7, 13, 19]  # row 0, column 1 of each channel


def test_tokens_travel_one_after_another() -> None:
    codes = Codes("tokens", (3, 2), 0, 0, 7)
    stream = Stream(codes, channels_last(codes.shape), 2)
    assert stream.pack(np.arange(6).reshape(1, 3, 2))[0].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_what_is_packed_comes_back(lanes: int) -> None:
    stream = Stream(IMAGE, channels_first(IMAGE.shape), lanes)
    values = np.random.default_rng(0).integers(-8, 8, (5, 4, 2, 3))
    beats = stream.pack(values)
    assert beats.shape == (5, stream.beats, lanes) and stream.folds == 4 // lanes
    np.testing.assert_array_equal(stream.unpack(beats), values)


def test_lanes_that_do_not_divide_the_channels_are_a_bug() -> None:
    with pytest.raises(ValueError, match="3 lanes do not divide 4 channels of image"):
        Stream(IMAGE, channels_first(IMAGE.shape), 3)


def test_a_flattened_image_is_the_same_beats_with_other_numbers() -> None:
    flat = Codes("flat", (24,), -3, -8, 7)
    stream = Stream(IMAGE, channels_first(IMAGE.shape), 2)
    renamed = stream.renamed(flat, np.arange(24))
    assert renamed is not None and renamed.codes.shape == (24,)
    values = np.arange(24)[None]
    np.testing.assert_array_equal(renamed.pack(values), stream.pack(values.reshape(1, 4, 2, 3)))
    assert renamed.as_vector().order.shape == (1, 24)


def test_a_transposed_tensor_is_the_same_beats_and_a_part_of_it_is_not() -> None:
    stream = Stream(IMAGE, channels_first(IMAGE.shape), 4)
    index = np.arange(24).reshape(4, 2, 3).transpose(1, 2, 0).copy()
    turned = stream.renamed(Codes("turned", (2, 3, 4), -3, -8, 7), index)
    assert turned is not None
    values = np.random.default_rng(1).integers(-8, 8, (2, 4, 2, 3))
    np.testing.assert_array_equal(turned.pack(values.transpose(0, 2, 3, 1)), stream.pack(values))
    np.testing.assert_array_equal(turned.order, channels_last((2, 3, 4)))
    assert stream.renamed(Codes("part", (2, 2, 3), -3, -8, 7), np.arange(12)) is None
    assert stream.renamed(Codes("twice", (24,), -3, -8, 7), np.zeros(24, np.int64)) is None


def test_counters_and_trees_are_wide_and_deep_enough() -> None:
    assert [bits_for(count) for count in (1, 2, 3, 4, 5, 256, 257)] == [1, 1, 2, 2, 3, 8, 9]
    assert [levels(count) for count in (1, 2, 3, 4, 5, 9)] == [0, 1, 2, 2, 3, 4]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
