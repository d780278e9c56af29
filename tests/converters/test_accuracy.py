"""Accuracy as arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgesdk_converters import accuracy
from edgesdk_converters.accuracy import Contract
from edgesdk_converters.errors import ModelError


def one_hot(classes: Any, n: int = 4) -> Any:
    return np.eye(n, dtype=np.float32)[np.asarray(classes)]


def test_an_outputs_scale_is_that_over_all_samples() -> None:
    wanted = [{"y": np.array([2.0, -4.0])}, {"y": np.array([0.01, -0.01])}]
    got = [{"y": np.array([2.0, -4.0])}, {"y": np.array([0.01, -0.03])}]
    off = accuracy.distance(got, wanted)
    assert off.relative == pytest.approx(0.005)
    assert off.worst == "y"
    with pytest.raises(ValueError, match="argument 2 is longer"):
        accuracy.distance(got[:1], wanted)
    assert accuracy.distance([], []).relative == 0.0


def test_relative_error_is_the_worst_output_against_its_own_scale() -> None:
    wanted = {"a": np.array([1.0, -10.0]), "b": np.array([0.1])}
    assert accuracy.relative_error({"a": np.array([1.5, -10.0]), "b": np.array([0.1])}, wanted) == pytest.approx(0.05)
    assert accuracy.relative_error({"a": np.array([1.0, -10.0]), "b": np.array([0.2])}, wanted) == pytest.approx(1.0)
    assert accuracy.max_abs_error({"a": np.array([1.5, -10.0]), "b": np.array([0.2])}, wanted) == pytest.approx(0.5)
    assert accuracy.relative_error(wanted, wanted) == 0.0
    assert accuracy.relative_error({}, {}) == 0.0


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        ([np.nan], [1.0], math.inf),
        ([1.0], [np.nan], math.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.inf], [np.inf], 0.0),
        ([np.inf], [-np.inf], math.inf),
        ([np.inf, 1.0], [np.inf, 2.0], 0.5),
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ([], [], 0.0),
        ([True], [False], math.inf),
        ([250], [240], 10 / 240),
    ],
)
def test_nan_infinity_zeros_shapes_and_integers(got: Any, wanted: Any, error: float) -> None:
    a, b = np.array(got), np.array(wanted)
    if wanted == [240]:
        a, b = a.astype(np.uint8), b.astype(np.uint8)
    assert accuracy.relative_error({"y": a}, {"y": b}) == pytest.approx(error)


def test_text_is_equal_or_infinitely_far() -> None:
    cat, dog = np.array(["cat"], object), np.array(["dog"], object)
    assert accuracy.relative_error({"y": cat}, {"y": cat}) == 0.0
    assert accuracy.max_abs_error({"y": dog}, {"y": cat}) == math.inf


def test_top1_takes_each_sample_and_no_class_where_there_is_nan() -> None:
    assert accuracy.top1(one_hot([2, 0, 3])).tolist() == [2, 0, 3]
    assert accuracy.top1(one_hot([2, 0]).reshape(2, 1, 4)).tolist() == [2, 0]
    assert accuracy.top1(np.array([[1, 9, 3]], np.uint8)).tolist() == [1]
    assert accuracy.top1(np.array([[np.nan, 1.0], [0.0, np.inf], [-np.inf, -1.0]])).tolist() == [-1, 1, 1]


def test_a_model_that_answers_nan_has_no_accuracy() -> None:
    labels = np.zeros(50, int)
    drop = accuracy.top1_drop(one_hot(labels), np.full((50, 4), np.nan, np.float32), labels)
    assert (drop.source, drop.converted, drop.drop_points) == (1.0, 0.0, 100.0)


def test_the_paired_drop_and_its_bound_by_hand() -> None:
    labels = np.zeros(100, int)
    source, converted = np.zeros(100, int), np.zeros(100, int)
    source[:10] = 1  # 90 right
    converted[8:14] = 1  # 94 right: 8 gained, 4 lost
    drop = accuracy.top1_drop(one_hot(source), one_hot(converted), labels)
    assert (drop.source, drop.converted, drop.n, drop.what) == (0.9, 0.94, 100, "top-1 accuracy")
    assert drop.drop_points == pytest.approx(-4.0)
    difference = np.array([-1.0] * 8 + [1.0] * 4 + [0.0] * 88)
    assert drop.bound_points == pytest.approx(100 * (-0.04 + 1.645 * difference.std(ddof=1) / 10))


def test_no_difference_seen_is_not_no_difference() -> None:
    labels = np.zeros(300, int)
    drop = accuracy.top1_drop(one_hot(labels), one_hot(labels), labels)
    assert (drop.drop_points, drop.bound_points) == (0.0, pytest.approx(1.0))  # rule of three


def test_the_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        source = rng.random(400) < 0.1
        converted = np.where(rng.random(400) < 0.04, ~source, source)
        true_drop = 100 * (0.04 * 0.9 - 0.04 * 0.1)
        drop = accuracy.top1_drop(one_hot(source.astype(int)), one_hot(converted.astype(int)), np.zeros(400, int))
        held += drop.bound_points >= true_drop
    assert 0.91 <= held / 400 <= 0.99


def test_disagreement_counts_answers_that_differ_right_or_wrong() -> None:
    source, converted = np.zeros(200, int), np.zeros(200, int)
    converted[:6] = 3
    drop = accuracy.disagreement(one_hot(source), one_hot(converted))
    assert (drop.source, drop.converted, drop.drop_points, drop.n) == (1.0, 0.97, pytest.approx(3.0), 200)
    assert 4.5 < drop.bound_points < 5.5


def test_a_users_metric_is_taken_in_points_with_a_paired_bound() -> None:
    labels = np.arange(200) % 4
    wrong = labels.copy()
    wrong[:20] = (wrong[:20] + 1) % 4

    def share_right(outputs: Any, truth: Any) -> float:
        return float((outputs.argmax(1) == truth).mean())

    drop = accuracy.metric_drop(share_right, one_hot(labels), one_hot(wrong), labels)
    assert (drop.what, drop.drop_points, drop.n) == ("share_right", pytest.approx(10.0), 200)
    assert 12.5 < drop.bound_points < 15
    assert accuracy.metric_drop(share_right, one_hot(labels), one_hot(wrong), labels) == drop


@pytest.mark.parametrize(
    ("samples", "points", "fine"), [(200, 0.5, True), (199, 0.5, False), (100, 1, True), (99, 1, False), (1, 0, True)]
)
def test_a_drop_needs_a_hundred_samples_over_its_size(samples: int, points: float, fine: bool) -> None:
    if fine:
        accuracy.check_sample_count(samples, points)
    else:
        with pytest.raises(ModelError, match=f"at least {math.ceil(100 / points)} are needed"):
            accuracy.check_sample_count(samples, points)


def test_contracts_with_impossible_bounds_are_refused() -> None:
    assert Contract(max_drop_points=0.0, max_relative_error=0.01).task == "auto"
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ModelError, match="--max-drop is"):
            Contract(max_drop_points=value)
        with pytest.raises(ModelError, match="--max-relative-error is"):
            Contract(max_relative_error=value)
